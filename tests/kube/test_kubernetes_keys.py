"""Keys that the controllers of a cluster share, on a real API server."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.audit import Audit
from jmp.controller.kubernetes import open_store
from jmp.controller.kubernetes_api import Answer, Api, Denied, Object, connect
from jmp.controller.kubernetes_keys import ROUTER, SECRET, SharedKeys, keep_join, keep_router
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.errors import LabError
from jmp.link import websocket
from jmp.wire.records import Role
from jmp.wire.tokens import Verifier
from tests.fakes.kube import Cluster
from tests.fakes.memory_lab import memory_labs
from tests.fakes.memory_store import MemoryStore
from tests.fakes.replicas import admin_token, lab_at, replicas

pytestmark = pytest.mark.real


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    with trio.fail_after(600):
        async with connect(cluster.namespace()) as made:
            yield made


async def opened(api: Api, directory: Path) -> SharedKeys:
    directory.mkdir()
    return await SharedKeys.open(api, directory, ["lab.example"])


def kids(shared: SharedKeys) -> set[str]:
    return {key["kid"] for key in shared.keys.jwks()["keys"]}


async def knows(shared: SharedKeys, kid: str) -> None:
    """Wait until a controller has a key."""
    note, came = shared.keys.changed, trio.Event()

    def changed() -> None:
        note()
        came.set()

    shared.keys.changed = changed
    while kid not in kids(shared):
        await came.wait()
        came = trio.Event()
    shared.keys.changed = note


async def test_two_that_begin_at_once_have_the_same(api: Api, tmp_path: Path) -> None:
    found: list[SharedKeys] = []

    async def begin(name: str) -> None:
        found.append(await opened(api, tmp_path / name))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, "a")
        nursery.start_soon(begin, "b")
    one, two = found
    assert one.keys.ca_fingerprint == two.keys.ca_fingerprint
    assert one.keys.files() == two.keys.files()


async def test_what_either_signs_the_other_takes_for_good(api: Api, tmp_path: Path) -> None:
    one, two = await opened(api, tmp_path / "a"), await opened(api, tmp_path / "b")
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        await nursery.start(two.run)
        before, _ = one.keys.identity("bo", Role.CLIENT, 86400.0)
        new = await one.keys.rotate()
        await knows(two, new)
        other = await two.keys.rotate()
        await knows(one, other)
        assert kids(one) == kids(two)
        after, _ = two.keys.identity("cy", Role.CLIENT, 86400.0)
        for shared in (one, two):
            verifier = Verifier(shared.keys.jwks(), frozenset())
            assert [verifier.identity(token).name for token in (before, after)] == ["bo", "cy"]
        nursery.cancel_scope.cancel()
    third = await opened(api, tmp_path / "c")
    assert kids(third) == kids(one)


async def test_a_key_that_comes_just_before_the_watch_is_heard_of(api: Api, tmp_path: Path) -> None:
    one, two = await opened(api, tmp_path / "a"), await opened(api, tmp_path / "b")
    made: list[str] = []
    rotated = trio.Event()

    class Late(Api):
        asked = 0

        async def request(
            self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None
        ) -> Answer:
            self.asked += 1
            if self.asked == 2:  # after it has seen that all is the same
                made.append(await one.keys.rotate())
                rotated.set()
            return await super().request(method, path, body, query)

    two._api = Late(api._pool, api._access)
    async with trio.open_nursery() as nursery:
        await nursery.start(two.run)
        await rotated.wait()
        await knows(two, made[0])
        nursery.cancel_scope.cancel()


async def test_a_new_key_is_in_the_secret_before_it_signs(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    kid = await one.keys.rotate()
    assert kids(await opened(api, tmp_path / "b")) == kids(one)
    assert kid in kids(one)


async def test_a_key_that_nobody_else_would_know_signs_nothing(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    before = kids(one)

    class Forbidding(Api):
        async def request(
            self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None
        ) -> Answer:
            if method == "PUT":
                raise Denied("no right to do that")
            return await super().request(method, path, body, query)

    one._api = Forbidding(api._pool, api._access)
    with pytest.raises(LabError, match=r"^no right to do that$"):
        await one.keys.rotate()
    assert kids(one) == before


async def test_there_is_nothing_to_do_when_nothing_has_changed(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    await one.keys.rotate()
    written = (tmp_path / "a" / "keys.json").stat().st_ino
    one.keys.changed = lambda: pytest.fail("nothing has changed")
    for _ in range(2):
        await one.keep()
    assert (tmp_path / "a" / "keys.json").stat().st_ino == written


async def test_keys_that_were_deleted_are_put_back(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    path = f"/api/v1/namespaces/{api.namespace}/secrets/{SECRET}"
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run)
        await one.keys.rotate()  # it does not only look after the first change
        await api.request("DELETE", path)
        while (await api.request("GET", path)).status == 404:  # noqa: ASYNC110  # the server has no better word for it
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()
    assert kids(await opened(api, tmp_path / "b")) == kids(one)


async def test_keys_of_another_lab_are_not_taken_over(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    await api.request("DELETE", f"/api/v1/namespaces/{api.namespace}/secrets/{SECRET}")
    await opened(api, tmp_path / "b")
    with pytest.raises(LabError, match=r"are another lab's now: start again$"):
        await one.keep()


async def routers_secret(api: Api, but: str = "") -> dict[str, str]:
    """What routers come in with, once it is another one than ``but``."""
    path = f"/api/v1/namespaces/{api.namespace}/secrets"
    _, version = await api.list(path)
    answer = await api.request("GET", f"{path}/{ROUTER}")
    found = _text(answer.body) if answer.status != 404 else {}
    if found and found["id"] != but:
        return found
    with trio.CancelScope() as scope:
        async with aclosing(api.watch(path, version, {"fieldSelector": f"metadata.name={ROUTER}"})) as events:  # type: ignore[type-var]
            async for _, item in events:
                if _text(item)["id"] != but:
                    found = _text(item)
                    scope.cancel()
    return found


def _text(secret: Object) -> dict[str, str]:
    return {name: base64.b64decode(content).decode() for name, content in secret["data"].items()}


async def test_routers_of_the_cluster_find_their_token(cluster: Cluster, tmp_path: Path) -> None:
    """It is made by one of the controllers; one that is revoked, or not of this lab, is made anew."""
    access = cluster.namespace()
    with trio.fail_after(600):
        async with AsyncExitStack() as stack:
            stores = {name: await stack.enter_async_context(open_store(access)) for name in "ab"}
            api = stores["a"].api
            [a, b] = await stack.enter_async_context(memory_labs(tmp_path, stores))
            nursery = await stack.enter_async_context(trio.open_nursery())
            for lab, store in ((a, stores["a"]), (b, stores["b"])):
                nursery.start_soon(keep_router, store.api, lab.lab)
            first = await routers_secret(api)
            assert first["ca.pem"] == a.lab.keys.ca_pem == b.lab.keys.ca_pem
            verifier = Verifier(a.lab.keys.jwks(), frozenset(), clock=a.clock)
            who = verifier.identity(first["token"])
            assert (who.name, who.role, who.id) == ("cluster", Role.ROUTER, first["id"])
            async with a.client("boss", Role.ADMIN) as boss:
                await boss.call("revoke", first["id"])
            second = await routers_secret(api, first["id"])
            assert verifier.identity(second["token"]).id == second["id"]
            nursery.cancel_scope.cancel()


async def test_the_first_admins_command_outlives_the_controller_that_made_it(cluster: Cluster, tmp_path: Path) -> None:
    """Killed after it had kept that, and before its lab knew of the token."""
    access = cluster.namespace()
    with trio.fail_after(600):
        async with connect(access) as api:
            keys = (await opened(api, tmp_path / "dead")).keys
            lab = Lab(Engine(), MemoryStore(), keys, Audit(None))
            token, _ = keys.identity("admin", Role.ADMIN, 86400.0)
            assert await keep_join(api, lab, f"JMP_TOKEN={token} jmp", token) == token
        with replicas(cluster, access, tmp_path, "a") as [a]:
            assert await admin_token(access) == token
            for _ in range(2):
                link = partial(websocket.connect, a.url, token=token, ca=a.ca)
                async with lab_at(link) as boss:
                    found = await boss.call("list", "token")
                assert [one["subject"] for one in found if one["role"] == "admin"] == ["admin"]
                await trio.to_thread.run_sync(a.kill)
                await trio.to_thread.run_sync(a.start)
