"""Routers in the processes of several controllers: whoever is to meet comes to the same one, wherever it is connected."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest
import trio

from jmp.client.connect import TARGET, device_of
from jmp.driver.plugins import driver_class
from jmp.exporter import config as configuration
from jmp.exporter.lab import LabExporter, Memory
from jmp.link import Link, websocket
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from jmp.wire.records import State, Want
from tests.fakes.kube import Cluster
from tests.fakes.lab import MOCK_POWER
from tests.fakes.replicas import Replica, admin_token, lab_at, replicas

pytestmark = pytest.mark.real


async def test_each_is_offered_to_the_clients_of_all(cluster: Cluster, tmp_path: Path) -> None:
    access = cluster.namespace()
    with replicas(cluster, access, tmp_path, "ab", "--router") as (a, b):
        with trio.fail_after(600):
            admin = await admin_token(access)
            async with lab_at(partial(dial, a, admin)) as boss:
                await boss.call("create", "exporter", "one", {})
                await boss.call("create", "client", "alice", {})
                exporter = (await boss.call("issue", "one", "exporter"))["token"]
                alice = (await boss.call("issue", "alice", "client"))["token"]
            (tmp_path / "one.yaml").write_text(MOCK_POWER.format(name="one", board="mock"))
            config = configuration.load(tmp_path / "one.yaml", driver_class)
            async with trio.open_nursery() as nursery:
                serving = LabExporter(config, Memory.load(tmp_path / "one.json"), partial(dial, a, exporter), ca=a.ca)
                nursery.start_soon(serving.run)
                used: set[str] = set()
                async with lab_at(partial(dial, b, alice)) as lab:
                    lease = await lab.acquire([Want(exporter="one")], 600.0)
                    async with aclosing(lab.watch(lease.id)) as watching:
                        async for standing in watching:
                            if standing.lease.state is State.READY:
                                break
                    while len(used) < 2:
                        answer = await lab.meet(lease.id, "one", "router")
                        [way] = answer["endpoints"]
                        used.add(way["url"])
                        link = await websocket.connect(way["url"], token=answer["token"], ca=b.ca)
                        async with multiplex(link, Role.DIALLER) as connection:
                            caller = Caller(connection)
                            report = await caller.call(TARGET, "begin", (), {"token": answer["token"]})
                            device = device_of(caller, report)
                            await device.power.on()
                assert used == {f"wss://127.0.0.1:{replica.port}" for replica in (a, b)}
                nursery.cancel_scope.cancel()


async def dial(replica: Replica, token: str) -> Link:
    return await websocket.connect(replica.url, token=token, ca=replica.ca)
