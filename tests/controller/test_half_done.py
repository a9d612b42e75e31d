"""Grants that others have left half done, where the API server takes its time."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpcore2
import trio
from trio.testing import MockClock

from jmp.controller.kubernetes import PATIENCE, KubernetesStore
from jmp.controller.kubernetes_api import Access, Answer, Api, Object
from jmp.controller.kubernetes_objects import RESOURCES, to_object, to_status
from jmp.controller.store import Record
from jmp.wire.records import Exporter, Lease, Want


class SlowApi(Api):
    """Objects in memory; each write takes most of the time that a grant may stay half done."""

    def __init__(self) -> None:
        super().__init__(httpcore2.AsyncConnectionPool(), Access("https://none", "lab", ssl.create_default_context()))
        self.objects: dict[str, Object] = {}
        self.written: list[str] = []
        self._version = 0
        self._send, self._news = trio.open_memory_channel[Object](100)

    def keep(self, kind: str, name: str, record: Record, **more: Any) -> str:
        """Have an object of a record; its path."""
        resource = RESOURCES[kind]
        item = to_object(resource, name, record)
        path = resource.path(self.namespace, item["metadata"]["name"])
        self._put(path, {**item, "status": {**to_status(resource, record, item), **more}})
        return path

    def touch(self, path: str) -> None:
        """Somebody writes an object anew."""
        self._put(path, self.objects[path])
        self._send.send_nowait(self.objects[path])

    def _put(self, path: str, item: Object) -> None:
        self._version += 1
        self.objects[path] = {**item, "metadata": {**item["metadata"], "resourceVersion": str(self._version)}}

    async def request(
        self, method: str, path: str, body: Object | None = None, query: Mapping[str, str] | None = None
    ) -> Answer:
        await trio.sleep(0.7 * PATIENCE)
        if body is not None and method == "PUT":
            path = path.removesuffix("/status")
            self._put(path, body)
            self.written.append(path.rpartition("/")[2])
        return Answer(200, self.objects.get(path, {}))

    async def list(self, path: str, *, remembered: bool = False) -> tuple[list[Object], str]:
        await trio.lowlevel.checkpoint()
        return [item for name, item in self.objects.items() if name.startswith(path + "/")], str(self._version)

    async def watch(
        self, path: str, version: str, only: Mapping[str, str] | None = None
    ) -> AsyncIterator[tuple[str, Object]]:
        if not path.endswith("/exporters"):
            await trio.sleep_forever()
        async for item in self._news:
            yield "MODIFIED", item


async def test_one_becomes_due_while_another_is_given_up(autojump_clock: MockClock) -> None:
    api = SlowApi()
    for name, lease in ("a", "l1"), ("b", "l2"):
        wants = (Want(exporter=name),)
        api.keep("lease", lease, Lease(id=lease, client="bo", wants=wants, duration=9.0, created=1.0, number=1))
        path = api.keep("exporter", name, Exporter(name=name, created=1.0, epoch=1, lease=lease), attempt=0)
    store = KubernetesStore(api)
    await store.load()
    with trio.fail_after(60.0):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.watch, lambda change: None)
            await trio.sleep(PATIENCE / 2)
            api.touch(path.replace("/b", "/a"))  # so that it is due in the middle of that
            await trio.sleep(10 * PATIENCE)
            nursery.cancel_scope.cancel()
    assert api.written == ["l2", "b", "l1", "a"]
    assert all("lease" not in item["status"] for path, item in api.objects.items() if "/exporters/" in path)
