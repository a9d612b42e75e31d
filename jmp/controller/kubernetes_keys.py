"""The lab's keys in a cluster: one Secret, which all its controllers share.

Each has a copy in files of its own, as a controller without a cluster has. What one changes goes into the Secret; what has
changed there, the others take over. Both are unions, so it does not matter who was first.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final

import httpx2
import trio

from jmp.controller.keys import Keys
from jmp.controller.kubernetes_api import Api, Gone, Object
from jmp.errors import LabError
from jmp.link.tls import write_private

log = logging.getLogger("jmp.controller")

SECRET: Final = "jmp-keys"
JOIN: Final = "jmp-admin-join"
_PAUSE: Final = 0.5


class SharedKeys:
    """Made by :meth:`open`; :meth:`run` has to run."""

    def __init__(self, api: Api, keys: Keys) -> None:
        self.keys = keys
        self._api = api
        self._changed = trio.Event()
        keys.changed = self._note

    @classmethod
    async def open(cls, api: Api, directory: Path, names: Sequence[str]) -> SharedKeys:
        """The keys of the cluster's lab, made if there are none; with a copy in ``directory``, which is there."""
        while True:
            there = await api.request("GET", _path(api, SECRET))
            if there.status != 404:
                for name, content in _files(there.body).items():
                    write_private(directory / name, content)
            keys = Keys.open(directory, names)
            if there.status != 404:
                return cls(api, keys)
            if await create(api, SECRET, keys.files()):
                log.info("the keys of this lab were made: secret/%s", SECRET)
                return cls(api, keys)
            # Another one was faster: its keys are the lab's, and are written over these.

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep files and Secret the same, until cancelled."""
        await self.keep()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            while True:
                await self._changed.wait()
                await self.keep()

    async def keep(self) -> None:
        """See that all that the files have is in the Secret, and the other way round."""
        while True:
            self._changed = trio.Event()
            there = await self._api.request("GET", _path(self._api, SECRET))
            if there.status == 404:
                raise LabError(f"secret/{SECRET} was deleted: this lab cannot prove itself any more; restore it")
            files = _files(there.body)
            self.keys.adopt(files)
            wanted = self.keys.files()
            if wanted == files:
                return
            answer = await self._api.request("PUT", _path(self._api, SECRET), {**there.body, "data": _data(wanted)})
            if answer.status < 400:
                return

    def _note(self) -> None:
        self._changed.set()

    async def _follow(self) -> None:
        path = _path(self._api)
        while True:
            try:
                there = await self._api.request("GET", _path(self._api, SECRET))
                version = there.body["metadata"]["resourceVersion"]
                only = {"fieldSelector": f"metadata.name={SECRET}"}
                async with aclosing(self._api.watch(path, version, only)) as events:  # type: ignore[type-var]
                    async for kind, item in events:
                        if kind == "MODIFIED":
                            self.keys.adopt(_files(item))
            except Gone:
                pass  # what has happened meanwhile is found by asking again
            except (httpx2.HTTPError, KeyError) as error:
                log.debug("the watch of secret/%s ended: %s", SECRET, error)
            await trio.sleep(_PAUSE)
            await self.keep()


async def create(api: Api, name: str, files: dict[str, bytes]) -> bool:
    """Make a Secret; whether it is ours, as there was none of that name."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "jmp"}},
        "type": "Opaque",
        "data": _data(files),
    }
    answer = await api.request("POST", _path(api), secret)
    return answer.status < 400


def _path(api: Api, name: str = "") -> str:
    return f"/api/v1/namespaces/{api.namespace}/secrets" + (f"/{name}" if name else "")


def _data(files: dict[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def _files(secret: Object) -> dict[str, bytes]:
    return {name: base64.b64decode(content) for name, content in (secret.get("data") or {}).items()}
