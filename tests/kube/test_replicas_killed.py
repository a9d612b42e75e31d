"""Three controllers as processes over a real API server; they are killed, stopped and started at any moment."""

from __future__ import annotations

import base64
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.lab import Lab
from jmp.controller.kubernetes import open_store
from jmp.controller.kubernetes_api import Access, connect
from jmp.controller.kubernetes_keys import JOIN
from jmp.controller.replicas import LOST
from jmp.errors import JmpError
from jmp.link import Link, websocket
from jmp.mux.protocol import Role
from jmp.mux.stream import multiplex
from jmp.rpc.call import Caller
from jmp.rpc.reconnect import keep_connected
from jmp.wire.records import Lease, Observed, Phase, State, Want, to_wire
from tests.fakes.kube import Cluster
from tests.fakes.lab import Program

pytestmark = pytest.mark.real

BOARDS = 12
USERS = 8


class Replica:
    """One controller."""

    def __init__(self, name: str, kubeconfig: Path, access: Access, directory: Path) -> None:
        self.name = name
        self.port = 0
        self._kubeconfig, self._access, self._directory = kubeconfig, access, directory
        self.program: Program | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready; again at the same address."""
        arguments = ["controller", "serve", "--store", "kubernetes", "--replica", self.name, "--http", "none"]
        arguments += ["--listen", f"127.0.0.1:{self.port}", "--name", "localhost", "--log-level", "warning"]
        arguments += ["--kubeconfig", str(self._kubeconfig), "--namespace", self._access.namespace]
        arguments += ["--data", str(self._directory / self.name)]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self._directory), "PYTHONPATH": ":".join(sys.path)}
        self.program = Program(arguments, environment, self._directory)
        self.port = int(self.program.until(r"ready at wss://localhost:(\d+)")[1])

    def kill(self) -> None:
        """End it at once."""
        assert self.program is not None
        self.program.process.kill()
        self.program.finish()

    def stop(self, number: signal.Signals) -> None:
        """Stop it, or have it go on."""
        assert self.program is not None
        self.program.process.send_signal(number)


class Balancer:
    """Sends each connection to one of the replicas that answer, as a Service does."""

    def __init__(self, replicas: list[Replica]) -> None:
        self._replicas = replicas
        self._turn = 0
        self.ready = set(replicas)

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        for _ in self._replicas:
            self._turn += 1
            replica = self._replicas[self._turn % len(self._replicas)]
            if replica not in self.ready:
                continue
            try:
                other = await trio.open_tcp_stream("127.0.0.1", replica.port)
            except OSError:
                continue
            async with stream, other, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, stream, other, nursery.cancel_scope)
                nursery.start_soon(_pump, other, stream, nursery.cancel_scope)
            return
        await stream.aclose()


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


class Board:
    """An exporter that is quick to get ready and to clean up, and notices whatever it should not be told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.observed = Observed(epoch=0)
        self.grants: list[tuple[int, str]] = []
        self.wrong: list[str] = []

    async def attend(self, caller: Caller) -> None:
        """Be connected."""
        registration = {"labels": {"kind": "x"}, "observed": to_wire(self.observed), "tree": {}, "endpoints": []}
        async with aclosing(caller.items("@lab", "attend", (registration,), {})) as items:
            async for item in items:
                if "desired" in item and self._is_to_be(item["desired"]):
                    await caller.call("@lab", "observe", (to_wire(self.observed),), {})

    def _is_to_be(self, desired: dict[str, Any]) -> bool:
        epoch, grant, now = desired["epoch"], desired["grant"], self.observed
        if epoch < now.epoch:
            return False  # somebody who does not know better yet
        if grant is None:
            self.observed = Observed(epoch=epoch, lease=now.lease)
        elif (epoch, grant["lease"]) != (now.epoch, now.lease):
            if epoch == now.epoch:
                self.wrong.append(f"{grant['lease']} has the epoch {epoch} of {now.lease}")
            if now.phase is not Phase.IDLE:
                self.wrong.append(f"{grant['lease']} is granted while {now.lease} is in use")
            self.grants.append((epoch, grant["lease"]))
            self.observed = Observed(epoch=epoch, lease=grant["lease"], phase=Phase.READY)
        return self.observed != now


@asynccontextmanager
async def lab_at(dial: Callable[[], Any]) -> AsyncIterator[Lab]:
    async with multiplex(await dial(), Role.DIALLER, watch=True) as connection:
        yield Lab(Caller(connection))


async def use(dial: Callable[[], Any], asked: list[str], over: dict[str, str], enough: trio.Event) -> None:
    """Ask for leases, one after the other, and see each of them through."""
    while not enough.is_set():
        id: str | None = None
        while id not in over:
            try:
                with trio.move_on_after(6):
                    async with lab_at(dial) as lab:
                        if id is None:
                            id = (await lab.acquire([Want(selector="kind=x")], 5.0)).id
                            asked.append(id)
                        async with aclosing(lab.watch(id)) as watching:
                            async for standing in watching:
                                if standing.lease.state is State.READY:
                                    await lab.release(id)
                                elif standing.lease.state is State.ENDED:
                                    over[id] = standing.lease.reason
            except* JmpError:
                pass  # its controller is gone, or does not know of the lease yet
            await trio.sleep(0.02)


async def trouble(cluster: Cluster, replicas: list[Replica], balancer: Balancer, over: trio.Event) -> None:
    """Kill one after the other; stop one for longer than it takes to be given up; kill the API server."""
    chance = random.Random(4)
    stopped, *others = replicas
    balancer.ready.discard(stopped)  # it would not be ready
    stopped.stop(signal.SIGSTOP)
    deadline = trio.current_time() + LOST + 4
    while trio.current_time() < deadline:
        await trio.sleep(chance.uniform(0.5, 3))
        victim = chance.choice(others)
        victim.kill()
        await trio.to_thread.run_sync(victim.start)
    stopped.stop(signal.SIGCONT)
    balancer.ready.add(stopped)
    cluster.kill_api()
    await trio.to_thread.run_sync(cluster.start)
    for victim in replicas:
        victim.kill()
        await trio.to_thread.run_sync(victim.start)
    over.set()


async def test_nothing_is_granted_twice_nor_lost(cluster: Cluster, tmp_path: Path) -> None:
    access = cluster.namespace()
    with ExitStack() as stack:
        account = cluster.account(access.namespace)
        replicas = [Replica(name, account, access, tmp_path) for name in "abc"]
        for replica in replicas:
            replica.start()
            stack.callback(replica.kill)
        assert replicas[0].program is not None
        replicas[0].program.until("This is its first start")
        async with connect(access) as api, trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + 110
            balancer = Balancer(replicas)
            [listener] = await nursery.start(partial(trio.serve_tcp, balancer.serve, 0, host="127.0.0.1"))
            url = f"wss://localhost:{listener.socket.getsockname()[1]}"
            ca = tmp_path / "a" / "ca-with-key.pem"

            async def dial(token: str) -> Link:
                with trio.move_on_after(5):
                    return await websocket.connect(url, token=token, ca=ca)
                raise JmpError("nobody answers")

            admin = await _secret(api, JOIN, "join")
            boards = [Board(f"board-{number}") for number in range(BOARDS)]
            users = []
            async with lab_at(partial(dial, admin.split()[0].removeprefix("JMP_TOKEN="))) as boss:
                for board in boards:
                    await boss.call("create", "exporter", board.name, {})
                    issued = await boss.call("issue", board.name, "exporter")
                    nursery.start_soon(keep_connected, partial(dial, issued["token"]), board.attend)
                for number in range(USERS):
                    await boss.call("create", "client", f"user-{number}", {})
                    users.append((await boss.call("issue", f"user-{number}", "client"))["token"])
            asked: list[str] = []
            over: dict[str, str] = {}
            enough = trio.Event()
            async with trio.open_nursery() as busy:
                busy.start_soon(trouble, cluster, replicas, balancer, enough)
                for token in users:
                    busy.start_soon(use, partial(dial, token), asked, over, enough)
            nursery.cancel_scope.cancel()
    print(len(asked), "leases,", sum(len(board.grants) for board in boards), "grants")
    assert set(asked) == over.keys(), "not all came to an end in time"
    assert len(asked) > 100
    assert [board.wrong for board in boards if board.wrong] == []
    async with open_store(access) as store:
        leases = [record for _, _, record in await store.load() if isinstance(record, Lease)]
    given = [(held.exporter, held.epoch) for lease in leases for held in lease.devices]
    assert len(set(given)) == len(given)
    assert set(asked) <= {lease.id for lease in leases if lease.granted is not None and lease.ended is not None}


async def _secret(api: Any, name: str, item: str) -> str:
    answer = await api.request("GET", f"/api/v1/namespaces/{api.namespace}/secrets/{name}")
    return base64.b64decode(answer.body["data"][item]).decode()
