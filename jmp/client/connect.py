"""``connect``: from a URL, or the environment, or an exporter's configuration, to a device in use."""

from __future__ import annotations

import getpass
import math
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Literal

from jmp.client.blocks import EitherBlock
from jmp.client.calls import watched
from jmp.client.interfaces import client_class
from jmp.driver.proxy import Backend, Blocking, DriverClient, Node, build, read_report, run
from jmp.environment import LEASE, session_url
from jmp.errors import ProtocolViolation, Timeout, UsageError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from jmp.link import Link
    from jmp.link.blocking import BlockingLink
    from jmp.link.blocking_resumable import ResumableBlockingLink
    from jmp.link.resumable import Onward, Told
    from jmp.mux.connection import Connection

TARGET: Final = "@session"


class Device(DriverClient):
    """A device in use: its drivers are attributes. ``info`` holds name, labels, description, motd and version of its exporter."""

    def __init__(
        self, backend: Backend, node: Node, children: Mapping[str, DriverClient], info: dict[str, Any]
    ) -> None:
        super().__init__(backend, node, children)
        self.info = info

    async def reset(self, path: str = "") -> None:
        """Reset the driver at ``path`` and all below it; by default every driver."""
        await self._backend.call(TARGET, "reset", (path,), {})

    def states(self) -> AsyncGenerator[dict[str, tuple[str, str]], None]:
        """State and reason of every driver by its path: now, and again whenever one has changed."""
        return self._backend.items(TARGET, "states", (), {})

    def __repr__(self) -> str:
        return f"<Device {self.info.get('name', '')}>"


RESERVED: Final = frozenset(name for name in vars(Device) if not name.startswith("_")) | {"info"}
"""Names that no driver at the top of a tree can have."""


@dataclass(frozen=True)
class Dial:
    """Where a session is, and what it takes to get in."""

    url: str
    passphrase: str | None = None
    """What the listener asks for: a passphrase, or for a leased device a session token."""
    fingerprint: str | None = None
    ca: Path | None = None
    leased: bool = False
    seconds: float | None = None
    """How long it may take until the listener has let this side in; None: as long as it takes."""
    way: Literal["direct", "router"] = "direct"
    """Whether the listener is the exporter itself."""

    @property
    def is_local(self) -> bool:
        """The system itself tells when the other side is gone."""
        return self.url.startswith("unix:")

    def introduction(self, wait: float | None) -> dict[str, Any]:
        """What ``@session.begin`` is told."""
        return {"who": who()} | ({"token": self.passphrase} if self.leased else {"wait": wait})


def who() -> str:
    """How this user is named to others: ``user@machine``."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class connect(EitherBlock[Any, Device]):  # used like a function
    """Connect to a device: ``with connect() as dut`` blocks, ``async with connect() as dut`` is for Trio; the names are the same.

    ``url`` is ``unix:PATH``, ``wss://HOST:PORT`` or ``ws://HOST:PORT``; by default the session that this process runs in
    (``JMP_HOST``), of whose devices ``device`` names one, else that of the lease in ``JMP_LEASE``.

    Three others make a session of one's own, as ``jmp shell`` does with options of these names, which ends with the block:
    ``exporter``, the name or the path of a configuration; ``selector`` or ``name`` or both, to lease a device of the lab with
    these labels or this exporter's, for ``duration`` (seconds, or as in ``"1h30m"``); ``lease``, the id of a lease, which stays.

    ``wait`` seconds (None: without limit) may pass until the device is free; by default a lease is queued for without limit, and
    nothing else is. ``passphrase`` (default: ``JMP_PASSPHRASE``), ``fingerprint`` and ``ca`` are for exporters that listen on the
    network.

    Raises :class:`~jmp.errors.UsageError` outside a session or if too much is named. Entering raises ``LabError`` if nothing
    answers, ``Refused``, ``Busy``, ``NotFound``, ``Timeout`` if the lease was not granted. However the block is left, it releases
    what it has.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        exporter: str | os.PathLike[str] | None = None,
        selector: str | None = None,
        name: str | None = None,
        lease: str | None = None,
        duration: float | str = "1h",
        device: str | None = None,
        passphrase: str | None = None,
        fingerprint: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        wait: float | EllipsisType | None = ...,
    ) -> None:
        given = {"a url": url, "an exporter": exporter, "a selector or name": selector or name, "a lease": lease}
        named = [what for what, value in given.items() if value is not None]
        if len(named) > 1:
            raise UsageError(f"connect takes {' or '.join(named)}, not both")
        if device is not None and named and lease is None:
            raise UsageError("connect takes device for one of those in a session or lease, and for nothing else")
        self._options = _shell_options(exporter, selector, name, lease, duration, wait)
        self._url = url
        if not named:
            self._url = session_url(device=device)
            if self._url is None and (lease := os.environ.get(LEASE)):
                self._options = ["--lease", lease]
            elif self._url is None:
                raise UsageError(
                    "there is no session here: run this in `jmp shell`, or name a url, an exporter, a selector or a lease"
                )
        self._device = device
        self._passphrase = passphrase if passphrase is not None else os.environ.get("JMP_PASSPHRASE")
        self._fingerprint = fingerprint
        self._ca = Path(ca) if ca is not None else None
        self._wait = 0.0 if isinstance(wait, EllipsisType) else wait

    def _dial(self, url: str) -> Dial:
        return Dial(url, self._passphrase, self._fingerprint, self._ca)

    def _session(self) -> AbstractContextManager[str]:
        """Where the session is, for as long as it is needed."""
        return nullcontext(self._url) if self._url is not None else self._own_session()

    @contextmanager
    def _own_session(self) -> Iterator[str]:
        from jmp.client.local import session_process

        with session_process(*self._options) as own:
            yield session_url(own.environment, device=self._device) or own.url

    @contextmanager
    def _by_threads(self) -> Iterator[Any]:
        with self._session() as url, open_blocking(self._dial(url), wait=self._wait) as device:
            yield device

    @asynccontextmanager
    async def _by_tasks(self) -> AsyncIterator[Device]:
        import trio

        session = self._session()
        url = await trio.to_thread.run_sync(session.__enter__)
        try:
            async with open_trio(self._dial(url), wait=self._wait) as device:
                yield device
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(session.__exit__, None, None, None)


def _shell_options(
    exporter: str | os.PathLike[str] | None,
    selector: str | None,
    name: str | None,
    lease: str | None,
    duration: float | str,
    wait: float | EllipsisType | None,
) -> list[str]:
    """What ``jmp shell`` is told, to make the session that a call of :class:`connect` asks for."""
    if exporter is not None:
        return ["--exporter", os.fspath(exporter), *(["--wait"] if wait is None else [])]
    if lease is not None:
        return ["--lease", lease]
    options = [f"--selector={selector}"] if selector is not None else []
    options += [f"--name={name}"] if name is not None else []
    options.append(f"--for={duration if isinstance(duration, str) else f'{duration:.3f}s'}")
    if not isinstance(wait, EllipsisType) and wait is not None:
        options.append(f"--wait-limit={wait:.3f}s" if wait > 0 else "--no-wait")
    return options


def dial_blocking(dial: Dial) -> BlockingLink:
    """A link to ``dial``, for threads. Raises ``LabError``, ``Refused``, ``Timeout``."""
    from jmp.link.blocking import connect as dial_link

    return dial_link(dial.url, token=dial.passphrase, fingerprint=dial.fingerprint, ca=dial.ca, timeout=dial.seconds)


async def dial_on(dial: Dial) -> Onward:
    """The next link of a session to the same place. Raises as :func:`dial_blocking` does."""
    from jmp.link.resumable import Onward

    return Onward(await dial_trio(dial), dial.passphrase if dial.leased else None)


async def dial_trio(dial: Dial) -> Link:
    """A link to ``dial``, under Trio. Raises as :func:`dial_blocking` does."""
    import trio

    from jmp.link.websocket import connect as dial_link

    try:
        with trio.fail_after(math.inf if dial.seconds is None else dial.seconds):
            return await dial_link(dial.url, token=dial.passphrase, fingerprint=dial.fingerprint, ca=dial.ca)
    except trio.TooSlowError:
        raise Timeout(f"{dial.url} did not answer within {dial.seconds:g} s") from None


def _lasting(dial: Dial, link: BlockingLink) -> ResumableBlockingLink:
    """``link``, and the next one to the same place whenever one breaks."""
    from jmp.link.blocking_resumable import ResumableBlockingLink

    return ResumableBlockingLink(link, lambda seconds: dial_blocking(replace(dial, seconds=seconds)))


@contextmanager
def open_blocking(dial: Dial, *, wait: float | None = 0.0, link: BlockingLink | None = None) -> Iterator[Any]:
    """The device at ``dial``, for threads, over ``link`` if there is one: a ``Blocking`` :class:`Device`."""
    from jmp.mux.blocking import BlockingConnection
    from jmp.rpc.blocking import BlockingCaller

    link = link or dial_blocking(dial)
    connection = BlockingConnection(link if dial.is_local else _lasting(dial, link), keep=not dial.is_local)
    try:
        caller = BlockingCaller(connection)
        report = run(caller.call(TARGET, "begin", (), dial.introduction(wait)))
        yield Blocking(device_of(watched(caller), report))
    finally:
        connection.close()


@asynccontextmanager
async def open_session(
    dial: Dial, *, wait: float | None = 0.0, link: Link | None = None, told: Told | None = None
) -> AsyncIterator[tuple[Connection, Device]]:
    """A connection to ``dial`` that holds a session, and its device, under Trio; over ``link`` first if that is there.

    Over a network it goes on over another link when one breaks; ``told`` hears of that.
    """
    from functools import partial

    from jmp.link.resumable import lasting
    from jmp.mux.connection import multiplex
    from jmp.mux.protocol import Role
    from jmp.rpc.call import Caller

    link = link or await dial_trio(dial)
    lasts = nullcontext(link) if dial.is_local else lasting(link, partial(dial_on, dial), told)
    async with lasts as link, multiplex(link, Role.DIALLER, watch=not dial.is_local) as connection:
        caller = Caller(connection)
        report = await caller.call(TARGET, "begin", (), dial.introduction(wait))
        yield connection, device_of(watched(caller), report)


@asynccontextmanager
async def open_trio(dial: Dial, *, wait: float | None = 0.0) -> AsyncIterator[Device]:
    """The device at ``dial``, under Trio."""
    async with open_session(dial, wait=wait) as (_, device):
        yield device


def device_of(backend: Backend, report: Any) -> Device:
    """The device that an exporter's report describes."""
    if not isinstance(report, dict) or not isinstance(report.get("tree"), dict):
        raise ProtocolViolation("the exporter sent no report")
    root = read_report(report["tree"])
    children = build(backend, root, client_class)._children
    return Device(backend, root, children, {name: value for name, value in report.items() if name != "tree"})
