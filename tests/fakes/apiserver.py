"""A Kubernetes API server in memory, as far as controllers can tell: what it answers, without any network.

It keeps the rules that several controllers rely on: every write gives a version larger than all before, a PUT of another version
than the present one is a conflict, what does not change anything is no write, a status is changed by itself, deleting takes
preconditions. What has happened is remembered up to a point, for those who watch. tests/controller/test_stores.py tries it with
what the real one is tried with.
"""

from __future__ import annotations

import json
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trio

from jmp.controller.kubernetes_api import Access, Api, Object


@dataclass(frozen=True)
class Happened:
    """One line of what watches tell."""

    version: int
    at: float
    """By Trio's clock."""
    path: str
    type: str
    item: Object


@dataclass
class Response:
    """What a client of ``httpcore2`` gets, as far as :mod:`jmp.controller.kubernetes_api` looks at it."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""
    stream: AsyncIterator[bytes] | None = None

    async def aread(self) -> bytes:
        return self.body

    def aiter_stream(self) -> AsyncIterator[bytes]:
        assert self.stream is not None
        return self.stream


@dataclass
class ApiServer:
    """All objects, by path; :meth:`answer` is one request."""

    clock: Callable[[], float]
    objects: dict[str, Object] = field(default_factory=dict)
    version: int = 0
    happened: list[Happened] = field(default_factory=list)
    forgotten: int = 0
    """What happened up to this version is not told any more."""
    changed: dict[str, trio.lowlevel.ParkingLot] = field(default_factory=lambda: defaultdict(trio.lowlevel.ParkingLot))
    """Who waits for something to happen to objects of a path."""
    wrote: Callable[[Object | None, Object], None] = lambda before, after: None
    """Hears of each write."""

    def api(self) -> Api:
        """Somebody's connection, which nothing disturbs."""
        return api_through(Pool(self))

    # ---- requests

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Object | None = None) -> Response:
        """Any request but one to watch."""
        collection, _, name = path.rpartition("/")
        part = ""
        if name == "status":
            collection, name, part = collection.rpartition("/")[0], collection.rpartition("/")[2], name
        place = f"{collection}/{name}"
        if method == "POST":
            assert body is not None
            return self._create(path, body)
        if method == "GET" and self._is_collection(path):
            return self._list(path)
        there = self.objects.get(place)
        if there is None:
            return self._refusal(404, "NotFound", f"{name} not found")
        if method == "GET":
            return self.say(200, there)
        assert body is not None
        given = body.get("preconditions") or {} if method == "DELETE" else body["metadata"]
        for key in ("uid", "resourceVersion"):
            if given.get(key, there["metadata"][key]) != there["metadata"][key]:
                return self._refusal(409, "Conflict", f"{name} has been modified")
        return self._delete(place, there) if method == "DELETE" else self._put(place, there, body, part)

    def _is_collection(self, path: str) -> bool:
        return path.rpartition("/")[2] in ("secrets", "events") or path.count("/") == 6

    def say(self, status: int, body: Object) -> Response:
        """A response that is an object."""
        return Response(status, self.headers(), json.dumps(body).encode())

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those of each answer."""
        return [(b"Date", formatdate(int(self.clock()), usegmt=True).encode())]

    def _refusal(self, status: int, reason: str, message: str) -> Response:
        return self.say(status, {"kind": "Status", "status": "Failure", "reason": reason, "message": message})

    def _list(self, path: str) -> Response:
        items = [item for place, item in self.objects.items() if place.rpartition("/")[0] == path]
        return self.say(200, {"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items})

    def _create(self, path: str, body: Object) -> Response:
        place = f"{path}/{body['metadata']['name']}"
        if place in self.objects:
            return self._refusal(409, "AlreadyExists", f"{place} already exists")
        if path.endswith("/events"):
            return self.say(201, body)
        at = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        item = {key: value for key, value in body.items() if key != "status"}
        item["metadata"] = {**body["metadata"], "uid": f"uid-{self.version + 1}", "creationTimestamp": at}
        return self.say(201, self._keep(place, "ADDED", item))

    def _put(self, place: str, there: Object, body: Object, part: str) -> Response:
        if part:
            item = {**there, "status": body.get("status") or {}}
        else:
            given = {key: body["metadata"][key] for key in ("labels", "annotations") if key in body["metadata"]}
            kept = {key: value for key, value in there["metadata"].items() if key not in ("labels", "annotations")}
            item = {key: value for key, value in body.items() if key not in ("metadata", "status")}
            item["metadata"] = {**kept, **given}
            if "status" in there:
                item["status"] = there["status"]
        return self.say(200, there if item == there else self._keep(place, "MODIFIED", item))

    def _delete(self, place: str, there: Object) -> Response:
        self._keep(place, "DELETED", there)
        return self.say(200, {"kind": "Status", "status": "Success"})

    def _keep(self, place: str, type: str, item: Object) -> Object:
        self.version += 1
        item = json.loads(json.dumps({**item, "metadata": {**item["metadata"], "resourceVersion": str(self.version)}}))
        before = self.objects.pop(place, None)
        if type != "DELETED":
            self.objects[place] = item
        self.wrote(before, item)
        path = place.rpartition("/")[0]
        self.happened.append(Happened(self.version, trio.current_time(), path, type, item))
        self.changed[path].unpark_all()
        return item

    # ---- watches

    def after(self, path: str, version: int) -> Iterable[Happened]:
        """What has happened to objects of a path since ``version``."""
        first = len(self.happened)
        while first and self.happened[first - 1].version > version:
            first -= 1
        return (one for one in self.happened[first:] if one.path == path)

    def stir(self) -> None:
        """Have all who watch look what is the matter."""
        for lot in self.changed.values():
            lot.unpark_all()

    def forget(self, keep: int = 0) -> None:
        """Remember the last ``keep`` writes only."""
        self.forgotten = max(self.forgotten, self.version - keep)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # of no use here, and takes long to make


def api_through(pool: Any, clock: Callable[[], float] = time.time) -> Api:
    """The real client of the API, whose requests go to ``pool``, on a machine with this clock."""
    return Api(pool, Access("http://kubernetes", "lab", _tls()), clock)


def line(type: str, item: Object) -> bytes:
    """What a watch tells."""
    return json.dumps({"type": type, "object": item}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    """That nothing has happened up to a version which has not been told."""
    return line("BOOKMARK", {"metadata": {"resourceVersion": str(version)}})


class Pool:
    """In place of ``httpcore2.AsyncConnectionPool``: a server that is near and always there."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    def stream(
        self, method: str, url: str, *, headers: object = (), content: bytes | None = None, extensions: Any = None
    ) -> AbstractAsyncContextManager[Response]:
        """One request, as the real one has it."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        body = None if content is None else json.loads(content)
        patience = extensions["timeout"]["read"]
        return self._stream(method, parts.path, query, body, patience)

    @asynccontextmanager
    async def _stream(
        self, method: str, path: str, query: dict[str, str], body: Object | None, patience: float
    ) -> AsyncIterator[Response]:
        if "watch" in query:
            yield Response(200, self.server.headers(), stream=self.watch(path, int(query["resourceVersion"])))
        else:
            await trio.lowlevel.checkpoint()
            yield self.server.answer(method, path, query, body)

    async def watch(self, path: str, version: int) -> AsyncIterator[bytes]:
        """What happens, for ever."""
        while True:
            for one in list(self.server.after(path, version)):
                version = one.version
                yield line(one.type, one.item)
            await self.server.changed[path].park()
