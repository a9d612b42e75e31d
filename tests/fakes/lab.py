"""A lab of real processes for tests of the command line: a controller, and whoever joins it. Everything is gone afterwards."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from jmp.client.config import Store
from jmp.client.lab import open_lab
from tests.fakes.ports import free_port

JMP = [sys.executable, "-c", "import sys; from jmp.cli import main; sys.exit(main())"]
PATIENCE = 240.0
"""Seconds after which a test that waits for a program has failed."""
_SAID = 1 << 20
"""Bytes that a program may say before somebody has to read them: past that it would wait, whole labs log more than 64 KiB."""

MOCK_POWER = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: {name}, labels: {{board: {board}}}}}
export: {{power: {{type: mock-power}}}}
"""


class Program:
    """A command that runs. What it says on standard error is read only by :meth:`until` and at its end."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], directory: Path) -> None:
        self.said = ""
        self.process = subprocess.Popen(
            [*JMP, *arguments],
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stderr is not None
        fcntl.fcntl(self.process.stderr, fcntl.F_SETPIPE_SZ, _SAID)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.finish()
        finally:
            self.process.kill()
            self.process.wait()

    def until(self, pattern: str) -> re.Match[str]:
        """Wait until standard error has said this since the last time; the match."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.said)) is None:
            ready, _, _ = select.select([self.process.stderr], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{pattern!r} was not said within {PATIENCE:g} s, but: {self.said}"
            data = os.read(self.process.stderr.fileno(), 65536)
            assert data, f"{pattern!r} was never said, but: {self.said}"
            self.said += data.decode()
        self.said = self.said[found.end() :]
        return found

    def finish(self) -> tuple[int, str, str]:
        """Wait for its end: exit code, standard output, and what standard error has said since the last :meth:`until`."""
        if self.process.stdout is not None and not self.process.stdout.closed:
            out, err = self.process.communicate(timeout=PATIENCE)
            self.said += err.decode()
            self.out = out.decode()
        return self.process.returncode, self.out, self.said

    def interrupt(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        """Send a signal, then :meth:`finish`."""
        self.process.send_signal(number)
        return self.finish()


class ServedLab:
    """A controller, and an admin whose command line is set up. Use :func:`served_lab`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.fingerprint = ""
        self.where = ["--data", str(directory / "data")]
        """Options that tell where the controller keeps everything."""
        self._stack = ExitStack()
        self._controller: Program | None = None

    # ---- the controller

    def start(self) -> None:
        """Start the controller, for the second time at the same address as before."""
        self.port = self.port or free_port()
        arguments = ["controller", "serve", "--listen", f"127.0.0.1:{self.port}", "--name", "localhost", "--router"]
        environment = self.environment("controller")
        self._controller = self._stack.enter_context(
            Program(
                [*arguments, "--http", "none", *self.where, "--log-level", "warning"],
                environment,
                self.directory,
            )
        )
        ready = self._controller.until(r"ready at wss://localhost:(\d+), CA fingerprint ([0-9a-f]+)")
        self.port, self.fingerprint = int(ready[1]), ready[2]

    @property
    def pid(self) -> int:
        """The controller's process."""
        assert self._controller is not None
        return self._controller.process.pid

    def kill(self) -> None:
        """Kill the controller."""
        assert self._controller is not None
        self._controller.process.kill()
        self._controller.finish()

    def stop(self) -> None:
        """Have the controller end in order."""
        assert self._controller is not None
        code, _, said = self._controller.interrupt(signal.SIGTERM)
        assert code == 0, said

    def join_admin(self) -> None:
        """Do what the first start says."""
        assert self._controller is not None
        file = self._controller.until(r"sh (\S+/admin\.join)")[1]
        self.run_join("admin", Path(file).read_text())

    @property
    def url(self) -> str:
        return f"wss://localhost:{self.port}"

    # ---- its users

    def environment(self, user: str, **more: str) -> dict[str, str]:
        """The environment of a user of the lab: with configuration and state of its own, and nothing of this machine's user."""
        home = self.directory / "home" / user
        home.mkdir(parents=True, exist_ok=True)
        bare = {key: value for key, value in os.environ.items() if not key.startswith(("JMP_", "JUMPSTARTER"))}
        folders = {"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "run"}
        return {**bare, "HOME": str(home), **{key: str(home / name) for key, name in folders.items()}, **more}

    def program(self, user: str, *arguments: str, **environment: str) -> Program:
        """A command that this user starts."""
        return Program(arguments, self.environment(user, **environment), self.directory)

    def run(self, user: str, *arguments: str, input: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of this user's, from start to end."""
        return subprocess.run(
            [*JMP, *arguments],
            env=self.environment(user, **environment),
            cwd=self.directory,
            input=input,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def ok(self, user: str, *arguments: str, **environment: str) -> str:
        """What a command of this user's prints, which has to succeed."""
        done = self.run(user, *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def once(self, user: str, *arguments: str, says: str) -> str:
        """What a command of this user's prints once that is as ``says`` has it, a regular expression for all of it."""
        deadline = time.monotonic() + PATIENCE
        while not re.fullmatch(says, out := self.ok(user, *arguments), re.DOTALL):
            assert time.monotonic() < deadline, f"{' '.join(arguments)} says: {out}"
        return out

    def run_join(self, user: str, command: str) -> str:
        """Run a command that joins, as a shell does; what it says."""
        words = command.split()
        done = self.run(user, *words[2:], JMP_TOKEN=words[0].removeprefix("JMP_TOKEN="))
        assert done.returncode == 0, done.stderr
        return done.stderr

    def release_all(self) -> None:
        """Release all leases, and wait until they are over."""
        clients = Path(self.environment("admin")["XDG_CONFIG_HOME"], "jmp", "clients")
        with open_lab(Store(clients, "Client").load("admin")) as lab:
            for item in lab.call("leases", everybody=True):
                lab.release(item["id"])
                for _ in lab.watch(item["id"]):
                    pass

    def add_client(self, name: str, *options: str) -> None:
        """A client, who has joined."""
        self.run_join(name, self.ok("admin", "admin", "create", "client", name, *options))

    def add_exporter(self, name: str, board: str = "mock", config: str = MOCK_POWER, **more: str) -> Program:
        """An exporter that has joined, and serves from now on."""
        self.run_join(name, self.ok("admin", "admin", "create", "exporter", name))
        folder = self.directory / "home" / name / "config" / "jmp" / "exporters"
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(config.format(name=name, board=board))
        program = self._stack.enter_context(self.program(name, "exporter", "serve", name, **more))
        program.until("connected to the controller")
        return program


@contextmanager
def served_lab(directory: Path) -> Iterator[ServedLab]:
    """A lab whose controller runs, and which the user ``admin`` administers."""
    lab = ServedLab(directory)
    with lab._stack:
        lab.start()
        lab.join_admin()
        yield lab
