"""The lab's keys in a cluster: one Secret, which all its controllers share; and another for the lab's routers there.

Each controller has a copy in files of its own, as a controller without a cluster has. What one changes goes into the
Secret before it is used; what has changed there, the others take over. Both are unions, so it does not matter who was first.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Final

import trio

from jmp.controller.desks import DEFAULT_TOKEN_DAYS, issue, revoke
from jmp.controller.keys import Keys
from jmp.controller.kubernetes_api import Api, Denied, Gone, Object, Unreachable
from jmp.controller.lab import Lab
from jmp.errors import LabError, Refused
from jmp.private import write_private
from jmp.wire.records import Role

log = logging.getLogger("jmp.controller")

SECRET: Final = "jmp-keys"
JOIN: Final = "jmp-admin-join"
ROUTER: Final = "jmp-router"
"""The token of the routers in the cluster, which share it, the CA that they know a controller by, and the token's id."""
ROUTER_RENEW_DAYS: Final = 30
_PAUSE: Final = 0.5
_DAY: Final = 86400.0
_LATE: Final = 5.0
"""Seconds in which a record comes by the watch that another controller has made."""
_DENIED_PAUSE: Final = 5.0


class SharedKeys:
    """Made by :meth:`open`; :meth:`run` has to run."""

    def __init__(self, api: Api, keys: Keys) -> None:
        self.keys = keys
        self._api = api
        self._changed = trio.Event()
        keys.changed = self._note
        keys.share = self.keep

    @classmethod
    async def open(cls, api: Api, directory: Path, names: Sequence[str]) -> SharedKeys:
        """The keys of the cluster's lab, made if there are none; with a copy in ``directory``, which is there."""
        while True:
            there = await api.request("GET", _path(api, SECRET))
            if there.status != 404:
                for name, content in files_of(there.body).items():
                    write_private(directory / name, content)
            keys = Keys.open(directory, names, clock=api.clock)
            if there.status != 404:
                return cls(api, keys)
            if await create(api, SECRET, keys.files()):
                log.info("the keys of this lab were made: secret/%s", SECRET)
                return cls(api, keys)
            # Another one was faster: its keys are the lab's, and are written over these.

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep files and Secret the same, until cancelled. Raises ``LabError`` if it is another lab's now."""
        await self.keep()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                await self._try_to_keep()

    async def keep(self, more: Mapping[str, bytes] = {}) -> None:
        """See that all that the files have, and ``more``, is in the Secret; and all that is there in the files.

        Raises :class:`~jmp.errors.LabError` if the Secret may not be written, or is another lab's.
        """
        while True:
            there = await self._api.request("GET", _path(self._api, SECRET))
            if there.status == 404:
                log.warning("secret/%s was deleted: it is made again of what this controller has", SECRET)
                if await create(self._api, SECRET, self.keys.union(more)):
                    return
                continue
            files = files_of(there.body)
            wanted = self.keys.union(files, more)
            if wanted != files:
                answer = await self._api.request("PUT", _path(self._api, SECRET), {**there.body, "data": _data(wanted)})
                if answer.status >= 400:
                    continue
            self.keys.adopt(wanted)
            return

    async def _try_to_keep(self) -> None:
        try:
            await self.keep()
        except Denied as error:
            log.error("%s", error)
            await trio.sleep(_DENIED_PAUSE)
            self._note()

    def _note(self) -> None:
        self._changed.set()

    async def _follow(self) -> None:
        path = _path(self._api)
        while True:
            try:
                there = await self._api.request("GET", _path(self._api, SECRET))
                version = there.body["metadata"]["resourceVersion"]
                self.keys.adopt(files_of(there.body))  # the watch tells what comes after that
                only = {"fieldSelector": f"metadata.name={SECRET}"}
                async with aclosing(self._api.watch(path, version, only)) as events:  # type: ignore[type-var]
                    async for kind, item in events:
                        if kind == "MODIFIED":
                            self.keys.adopt(files_of(item))
                        elif kind == "DELETED":
                            self._note()
            except Gone:
                pass  # what has happened meanwhile is found by asking again
            except Denied as error:
                log.error("%s", error)
                await trio.sleep(_DENIED_PAUSE)
            except (Unreachable, KeyError) as error:
                log.debug("the watch of secret/%s ended: %s", SECRET, error)
            await trio.sleep(_PAUSE)
            self._note()


async def keep_router(api: Api, lab: Lab) -> None:
    """See that there is a Secret that lets routers in, with a token that is good for a while; until cancelled."""
    with lab.news.listen("keys") as listener:
        while True:
            try:
                await _see_to_router(api, lab)
            except LabError as error:
                log.error("the routers of this cluster are not let in: %s", error)
                await trio.sleep(_DENIED_PAUSE)
                continue
            with trio.move_on_after(_DAY):
                await listener.wait()


async def _see_to_router(api: Api, lab: Lab) -> None:
    kept = False
    while not kept:
        there = await api.request("GET", _path(api, ROUTER))
        files = files_of(there.body)
        id = files.get("id", b"").decode("ascii", "replace")
        if there.status != 404 and id not in lab.view.token:
            await trio.sleep(_LATE)
        if _is_good(lab, id) and files.get("ca.pem") == lab.keys.ca_pem.encode():
            return
        made = await lab.do(lambda: issue(lab, "cluster", Role.ROUTER, DEFAULT_TOKEN_DAYS))
        new = {"id": made["id"].encode(), "token": made["token"].encode(), "ca.pem": lab.keys.ca_pem.encode()}
        try:
            if there.status == 404:
                kept = await create(api, ROUTER, new)
            else:
                kept = (await api.request("PUT", _path(api, ROUTER), {**there.body, "data": _data(new)})).status < 400
        finally:
            if not kept:  # another controller was faster
                with trio.CancelScope(shield=True):
                    await lab.do(partial(revoke, lab, made["id"]))
    log.info("secret/%s lets the routers of this cluster in", ROUTER)


def _is_good(lab: Lab, id: str) -> bool:
    token = lab.view.token.get(id)
    return token is not None and token.revoked is None and token.expires > lab.clock() + ROUTER_RENEW_DAYS * _DAY


async def keep_join(api: Api, lab: Lab, command: str, token: str) -> str:
    """Keep how the first admin joins, before anybody is told: a command, and the token in it. Returns the token that is kept.

    It is another one if a controller that was faster has kept that, or one that died before the lab knew of it. Raises
    :class:`~jmp.errors.LabError` if none can be kept.
    """
    files = {"join": f"{command}\n".encode(), "token": token.encode()}
    while not await create(api, JOIN, files):
        there = await api.request("GET", _path(api, JOIN))
        if there.status == 404:
            continue
        kept = files_of(there.body).get("token", b"").decode("utf-8", "replace")
        with suppress(Refused):  # it is another lab's, or has ended
            record = lab.keys.record_of(kept)
            if record.role is Role.ADMIN and record.id not in lab.view.token:
                return kept
        if (await api.request("PUT", _path(api, JOIN), {**there.body, "data": _data(files)})).status < 400:
            break
    return token


async def create(api: Api, name: str, files: Mapping[str, bytes]) -> bool:
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


def _data(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: base64.b64encode(content).decode() for name, content in files.items()}


def files_of(secret: Object) -> dict[str, bytes]:
    """What is in a Secret, by name."""
    return {name: base64.b64decode(content) for name, content in (secret.get("data") or {}).items()}
