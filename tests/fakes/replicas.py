"""Controllers of one lab as processes, over a real Kubernetes API server."""

from __future__ import annotations

import base64
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from jmp.client.lab import Lab
from jmp.controller.kubernetes_api import Access, connect
from jmp.controller.kubernetes_keys import JOIN
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role
from jmp.rpc.call import Caller
from tests.fakes.kube import Cluster
from tests.fakes.lab import Program
from tests.fakes.ports import free_port


class Replica:
    """One controller, with the rights that it is deployed with."""

    def __init__(self, name: str, kubeconfig: Path, access: Access, directory: Path, *more: str) -> None:
        self.name = name
        self.port = 0
        self.program: Program | None = None
        self._kubeconfig, self._access, self._directory = kubeconfig, access, directory
        self._more = more

    @property
    def ca(self) -> Path:
        """The lab's CA."""
        return self._directory / self.name / "ca-with-key.pem"

    @property
    def url(self) -> str:
        """Where it is."""
        return f"wss://localhost:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it is ready; again at the same address."""
        self.port = self.port or free_port()
        arguments = ["controller", "serve", "--store", "kubernetes", "--replica", self.name, "--http", "none"]
        arguments += [
            "--listen",
            f"127.0.0.1:{self.port}",
            "--name",
            "localhost",
            *(() if "--log-level" in self._more else ("--log-level", "warning")),
        ]
        arguments += ["--kubeconfig", str(self._kubeconfig), "--namespace", self._access.namespace]
        arguments += ["--data", str(self._directory / self.name), *self._more]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self._directory), "PYTHONPATH": ":".join(sys.path)}
        self.program = Program(arguments, environment, self._directory)
        self.port = int(self.program.until(r"ready at wss://localhost:(\d+)")[1])

    def kill(self) -> None:
        """End it at once; it is there still, or was stopped, or has failed."""
        if self.program is None:
            return
        failed = self.program.process.poll() not in (None, -signal.SIGKILL)
        self.program.process.kill()
        self.program.finish()
        assert not failed, f"controller {self.name} ended by itself: {self.program.said}"

    def stop(self) -> tuple[str, str]:
        """Have it stop in order; returns what it has said."""
        assert self.program is not None
        program, self.program = self.program, None
        _, out, said = program.interrupt(signal.SIGTERM)
        return out, said

    def signal(self, number: signal.Signals) -> None:
        """Stop it, or have it go on."""
        assert self.program is not None
        self.program.process.send_signal(number)


@contextmanager
def replicas(cluster: Cluster, access: Access, directory: Path, names: str, *more: str) -> Iterator[list[Replica]]:
    """Controllers that serve one lab, for the length of a block; the first one has made its keys and its admin."""
    account = cluster.account(access.namespace)
    with ExitStack() as stack:
        made = [Replica(name, account, access, directory, *more) for name in names]
        for number, replica in enumerate(made):
            replica.start()
            stack.callback(replica.kill)
            if not number:
                assert replica.program is not None
                replica.program.until("This is its first start")
        yield made


async def admin_token(access: Access) -> str:
    """The first admin's."""
    async with connect(access) as api:
        answer = await api.request("GET", f"/api/v1/namespaces/{api.namespace}/secrets/{JOIN}")
    command = base64.b64decode(answer.body["data"]["join"]).decode()
    return command.split()[0].removeprefix("JMP_TOKEN=")


@asynccontextmanager
async def lab_at(dial: Callable[[], Any]) -> AsyncIterator[Lab]:
    """A client's connection, for the length of a block."""
    async with multiplex(await dial(), Role.DIALLER, watch=True) as connection:
        yield Lab(Caller(connection))
