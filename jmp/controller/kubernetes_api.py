"""The Kubernetes API as far as a controller needs it: JSON requests, and lists that are kept up to date.

A request is repeated until it is answered: a server that restarts, is busy or out of reach is waited for. Whoever repeats a write
has to see by what is there whether the first one was done.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import random
import ssl
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httpcore2
import trio
import yaml

from jmp.errors import ConfigError, LabError

log = logging.getLogger("jmp.controller")

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds who it is."""
REQUEST_SECONDS: Final = 15.0
WATCH_SECONDS: Final = (240, 300)
"""A watch is ended by the server after a time between these, so that not all end at once."""
PAGE: Final = 500
_TOO_LARGE: Final = "request is too large"
"""What etcd says of an object that it cannot keep; some API servers pass that on as an internal error."""
STARTING: Final = 10.0
"""Seconds after a lost connection in which the server may be one that has just started: it knows nobody's rights at first."""
_PAUSES: Final = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries; the last one from then on."""

Object = dict[str, Any]


class Denied(LabError):
    """The API server says no, and would again: this controller lacks a right, or the object is none."""


class Unserved(Denied):
    """The API server knows no such kind: its definition is missing, or the server has started and has not read it yet."""


class Gone(Exception):
    """The version to watch from is too old: list again."""


class Unreachable(Exception):
    """The API server is out of reach, or does not speak HTTP."""


@dataclass(frozen=True)
class Access:
    """Where the API is, and who asks."""

    server: str
    namespace: str
    tls: ssl.SSLContext
    token: str | None = None
    token_file: Path | None = None
    """Read for each request, as Kubernetes replaces it every hour."""

    def headers(self) -> dict[str, str]:
        """Those that say who asks."""
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text().strip()
            except OSError as error:
                raise LabError(f"{self.token_file} cannot be read: {error.strerror or error}") from error
        return {} if token is None else {"Authorization": f"Bearer {token}"}


def find_access(kubeconfig: Path | None = None, namespace: str | None = None) -> Access:
    """The API of the cluster that this process runs in; or that of ``kubeconfig`` or $KUBECONFIG, if there is one.

    Raises :class:`~jmp.errors.ConfigError`.
    """
    given = kubeconfig or (Path(os.environ["KUBECONFIG"]) if os.environ.get("KUBECONFIG") else None)
    if given is not None:
        return _from_file(given, namespace)
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if not host:
        raise ConfigError("this is no pod of a Kubernetes cluster: say by --kubeconfig or $KUBECONFIG where its API is")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    try:
        own = (ACCOUNT / "namespace").read_text().strip()
        tls = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    except OSError as error:
        raise ConfigError(f"the pod has no service account in {ACCOUNT}: {error.strerror or error}") from error
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(server, namespace or own, tls, token_file=ACCOUNT / "token")


def _from_file(path: Path, namespace: str | None) -> Access:
    try:
        config = yaml.safe_load(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        tls = ssl.create_default_context(cadata=_pem(path, cluster, "certificate-authority"))
        if cluster.get("insecure-skip-tls-verify"):
            raise ConfigError(f"{path} would have the API server not verified: give its certificate-authority")
        certificate, key = _pem(path, user, "client-certificate"), _pem(path, user, "client-key")
        if certificate is not None and key is not None:
            with tempfile.NamedTemporaryFile("w") as both:  # ssl reads files only
                both.write(f"{certificate}\n{key}")
                both.flush()
                tls.load_cert_chain(both.name)
        elif "exec" in user or "auth-provider" in user:
            raise ConfigError(f"{path} has a plugin say who asks: a token or a client certificate is needed")
        file = user.get("tokenFile")
        return Access(
            str(cluster["server"]).rstrip("/"),
            namespace or context.get("namespace") or "default",
            tls,
            user.get("token"),
            None if file is None else path.parent / file,
        )
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no kubeconfig: {error}") from error


def _named(items: list[Object], name: str) -> Object:
    return next(item for item in items if item["name"] == name)


def _pem(path: Path, values: Object, key: str) -> str | None:
    """What is given in a file, or as base64."""
    if key in values:
        return (path.parent / str(values[key])).read_text()
    data = values.get(f"{key}-data")
    return None if data is None else base64.b64decode(data).decode()


class Answer:
    """What came of a request."""

    def __init__(self, status: int, body: Object) -> None:
        self.status = status
        self.body = body

    @property
    def message(self) -> str:
        return str(self.body.get("message", f"status {self.status}"))

    @property
    def is_of_no_kind(self) -> bool:
        """Whether there is no such path, and not just no such object: that one is told of in an object of kind Status."""
        return self.status == 404 and self.body.get("kind") != "Status"


class ServerClock:
    """The time of the day as the API server has it: what several controllers agree on, whatever their machines' clocks say.

    Each answer tells it in whole seconds, and was given between two moments of the monotonic clock here: so the server's clock
    is ahead of that by something between two bounds, which are not much more than a second apart. What is reckoned with is moved
    into them, and no further, so that it gets closer with most answers: by half a second at first, and soon by milliseconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """``clock`` is this machine's, until the server has said something."""
        self._ahead = clock() - trio.current_time()
        self._heard = False

    def __call__(self) -> float:
        """Seconds since the epoch."""
        return trio.current_time() + self._ahead

    def hear(self, date: bytes, asked: float, answered: float) -> None:
        """An answer's ``Date``, and when, by Trio's clock, it was asked for and came."""
        try:
            told = parsedate_to_datetime(date.decode("ascii")).timestamp()
        except ValueError:
            return
        least, most = told - answered, told + 1.0 - asked
        self._ahead = min(max(self._ahead, least), most) if self._heard else (least + most) / 2
        self._heard = True


class Api:
    """A connection to the API; made by :func:`connect`."""

    def __init__(
        self, pool: httpcore2.AsyncConnectionPool, access: Access, clock: Callable[[], float] = time.time
    ) -> None:
        self.clock = ServerClock(clock)
        self._pool = pool
        self._access = access
        self._host = urlsplit(access.server).netloc
        self._lost = -math.inf
        """When it was out of reach last."""
        self.namespace = access.namespace

    async def request(
        self, method: str, path: str, body: Object | None = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        """Ask until there is an answer. Answers that tell of a conflict, or that there is no such thing, are answers.

        One that does not know the kind is waited for, as a server that has started is to know it soon; and so is, for
        :data:`STARTING`, one that comes back and knows no rights. Raises :class:`Denied` for others that say no.
        """
        tries = 0
        while (answer := await self._ask_until_answered(method, path, body, query)).is_of_no_kind:
            await self._pause(tries, method, path, answer)
            tries += 1
        return answer

    async def _ask_until_answered(
        self, method: str, path: str, body: Object | None, query: Mapping[str, str] | None
    ) -> Answer:
        tries = 0
        while True:
            try:
                async with self._ask(method, path, body, query) as response:
                    answer = Answer(response.status, _object(await response.aread()))
            except Unreachable as error:
                answer = Answer(0, {"message": str(error)})
            if answer.status < 400 and answer.status:
                return answer
            if answer.status in (404, 409, 410):
                return answer
            later = (401, 403, 408, 429) if self._is_starting else (401, 408, 429)
            if (400 <= answer.status < 500 and answer.status not in later) or _TOO_LARGE in answer.message:
                raise Denied(f"the Kubernetes API refuses to {method} {path}: {answer.message}")
            # 401: the token has expired or was replaced; it is read again.
            await self._pause(tries, method, path, answer)
            tries += 1

    @property
    def _is_starting(self) -> bool:
        return trio.current_time() < self._lost + STARTING

    @staticmethod
    async def _pause(tries: int, method: str, path: str, answer: Answer) -> None:
        log.debug("%s %s: %s, tried again", method, path, answer.message)
        if tries == len(_PAUSES):
            log.warning("the Kubernetes API does not answer, it is waited for: %s", answer.message)
        await trio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)] * random.uniform(0.7, 1.3))

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: Mapping[str, str] | None,
        seconds: float = REQUEST_SECONDS,
    ) -> AsyncIterator[httpcore2.Response]:
        """One request, and its answer for the length of a block; ``seconds`` may pass without a byte of it.

        Raises :class:`Unreachable`.
        """
        headers = [("Host", self._host), ("Accept", "application/json"), *self._access.headers().items()]
        content = None
        if body is not None:
            content = json.dumps(body, separators=(",", ":")).encode()
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(content)))]
        timeout = {"connect": REQUEST_SECONDS, "pool": REQUEST_SECONDS, "write": REQUEST_SECONDS, "read": seconds}
        url = f"{self._access.server}{path}" + (f"?{urlencode(query)}" if query else "")
        asked = trio.current_time()
        try:
            async with self._pool.stream(
                method, url, headers=headers, content=content, extensions={"timeout": timeout}
            ) as response:
                for name, value in response.headers:
                    if name.lower() == b"date":
                        self.clock.hear(value, asked, trio.current_time())
                yield response
        except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError) as error:
            self._lost = trio.current_time()
            raise Unreachable(str(error) or type(error).__name__) from error

    async def list(self, path: str, *, remembered: bool = False) -> tuple[list[Object], str]:
        """All objects of a kind as they are now, and the version to watch from.

        ``remembered``: as the API server has them in memory, which may be a moment ago, and is several times cheaper for it.

        Raises :class:`Denied`, :class:`Unserved`.
        """
        while True:
            query = {"limit": str(PAGE)} | ({"resourceVersion": "0"} if remembered else {})
            items: list[Object] = []
            while True:
                answer = await self._ask_until_answered("GET", path, None, query)
                if answer.status == 404:
                    raise Unserved(f"the cluster has no {path.rpartition('/')[2]}.{GROUP}: apply the manifests first")
                if answer.status == 410:
                    break
                items += answer.body.get("items") or []
                metadata = answer.body.get("metadata", {})
                if not metadata.get("continue"):
                    return items, str(metadata["resourceVersion"])
                query = {"limit": str(PAGE), "continue": metadata["continue"]}

    async def watch(
        self, path: str, version: str, only: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, Object]]:
        """What happens to objects of a kind after ``version``: type of event and object, until the server ends it.

        Raises :class:`Gone`; :class:`Denied`, :class:`Unserved`; :class:`Unreachable`.
        """
        seconds = random.randint(*WATCH_SECONDS)
        query = {
            "watch": "1",
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            "allowWatchBookmarks": "true",
        }
        query |= only or {}
        async with self._ask("GET", path, None, query, seconds + REQUEST_SECONDS) as response:
            if response.status == 410:
                raise Gone
            if response.status in (400, 403, 404):
                answer = Answer(response.status, _object(await response.aread()))
                refused = f"the Kubernetes API refuses to watch {path}: {answer.message}"
                if answer.status == 403 and self._is_starting:
                    raise Unreachable(refused)
                raise Unserved(refused) if answer.is_of_no_kind else Denied(refused)
            if response.status != 200:
                raise Unreachable(f"a watch of {path} was answered with {response.status}")
            async with aclosing(_lines(response.aiter_stream())) as lines:
                async for line in lines:
                    event = _object(line)
                    if event.get("type") == "ERROR":
                        raise Gone  # too old, most often; listing again is right in any case
                    if "object" in event:
                        yield event["type"], event["object"]


async def _lines(stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    rest = bytearray()
    async with aclosing(stream) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            rest += chunk
            *lines, last = rest.split(b"\n")
            rest = last
            for line in lines:
                yield bytes(line)


GROUP: Final = "jmp.dev"
VERSION: Final = "v1alpha1"


def _object(text: bytes | str) -> Object:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    said = text[:200].decode("utf-8", "replace") if isinstance(text, bytes) else text[:200]
    return value if isinstance(value, dict) else {"message": said.strip()}


class _Network(httpcore2.TrioBackend):
    """Trio's, which closes a connection, too, when somebody is cancelled while TLS begins on it."""

    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
        plain = await super().connect_tcp(*arguments, **options)
        begin = plain.start_tls

        async def start_tls(*arguments: Any, **options: Any) -> httpcore2.AsyncNetworkStream:
            try:
                return await begin(*arguments, **options)
            except trio.Cancelled:
                with trio.CancelScope(shield=True):
                    await plain.aclose()
                raise

        plain.start_tls = start_tls  # type: ignore[method-assign]
        return plain


@asynccontextmanager
async def connect(access: Access) -> AsyncIterator[Api]:
    """The API, for the length of a block."""
    logging.getLogger("httpcore2").setLevel(logging.WARNING)  # it would tell of every request
    pool = httpcore2.AsyncConnectionPool(
        ssl_context=access.tls, max_connections=40, max_keepalive_connections=20, network_backend=_Network()
    )
    async with pool:
        yield Api(pool, access)
