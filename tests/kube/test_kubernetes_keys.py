"""Keys that the controllers of a cluster share, on a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from jmp.controller.kubernetes_api import Api, connect
from jmp.controller.kubernetes_keys import SECRET, SharedKeys
from jmp.errors import LabError
from jmp.wire.records import Role
from jmp.wire.tokens import Verifier
from tests.fakes.kube import Cluster

pytestmark = pytest.mark.real


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    with trio.fail_after(60):
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
        new = one.keys.rotate()
        await knows(two, new)
        other = two.keys.rotate()
        await knows(one, other)
        assert kids(one) == kids(two)
        after, _ = two.keys.identity("cy", Role.CLIENT, 86400.0)
        for shared in (one, two):
            verifier = Verifier(shared.keys.jwks(), frozenset())
            assert [verifier.identity(token).name for token in (before, after)] == ["bo", "cy"]
        nursery.cancel_scope.cancel()
    third = await opened(api, tmp_path / "c")
    assert kids(third) == kids(one)


async def test_keys_that_were_deleted_are_missed(api: Api, tmp_path: Path) -> None:
    one = await opened(api, tmp_path / "a")
    await api.request("DELETE", f"/api/v1/namespaces/{api.namespace}/secrets/{SECRET}")
    with pytest.raises(LabError, match=f"^secret/{SECRET} was deleted"):
        await one.keep()
