"""Whole processes, from the start to the end of a command, as a user waits for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.lab import Failed
from tests.bench.worker import Figures
from tests.e2e.product import argv

CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export: {power: {type: mock-power}}
"""
JUMPSTARTER_CONFIG = """\
apiVersion: jumpstarter.dev/v1alpha1
kind: ExporterConfig
metadata: {namespace: default, name: bench}
export: {power: {type: jumpstarter_driver_power.driver.MockPower}}
"""
Commands = Mapping[str, tuple[Sequence[str], Mapping[str, str]]]


class Commander:
    """Runs commands, one at each measurement; the first one of each kind is not timed, so what is cached is there."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._warm: set[str] = set()

    def measure(self, what: str, short: bool) -> Figures | None:
        if what not in self._commands:
            return None
        if what not in self._warm and not short:
            self._time(what)
        self._warm.add(what)
        return {"ms": self._time(what) * 1e3}

    def _time(self, what: str) -> float:
        command, environ = self._commands[what]
        began = time.perf_counter()
        done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            raise Failed(f"{what}: {done.stderr.decode()}")
        return seconds


@contextmanager
def session(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment of commands in a session that lasts for the block."""
    hold = [*command, "--", "sh", "-c", "env -0; echo; exec cat"]
    with subprocess.Popen(hold, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        told = b""
        while not told.endswith(b"\0\n"):
            data = os.read(shell.stdout.fileno(), 1 << 16)
            if not data:
                raise Failed(f"there is no session: {' '.join(command)}")
            told += data
        yield dict(item.split("=", 1) for item in told.decode().split("\0")[:-1])
        shell.stdin.close()


def _on_path(program: str, environ: Mapping[str, str]) -> str:
    """The program that somebody gets who types its name."""
    found = shutil.which(program, path=environ["PATH"])
    if found is None:
        raise Failed(f"there is no {program}")
    return found


@contextmanager
def of_jmp(folder: Path, environ: Mapping[str, str]) -> Iterator[Commander]:
    config = folder / "power.yaml"
    config.write_text(CONFIG)
    shell = argv("shell", "--exporter-config", config)
    with session(shell, environ) as inside:
        yield Commander(
            {
                "help": (argv("--help"), environ),
                "version": (argv("version"), environ),
                "j-power-on": ([_on_path("j", inside), "power", "on"], inside),
                "shell-true": ([*shell, "--", "true"], environ),
            }
        )


@contextmanager
def of_jumpstarter(folder: Path, python: Path, environ: Mapping[str, str]) -> Iterator[Commander]:
    config = folder / "jumpstarter.yaml"
    config.write_text(JUMPSTARTER_CONFIG)
    jmp = [str(python), str(python.with_name("jmp"))]
    shell = [*jmp, "shell", "--exporter-config", str(config)]
    with session(shell, environ) as inside:
        yield Commander(
            {
                "help": ([*jmp, "--help"], environ),
                "version": ([*jmp, "version"], environ),
                "j-power-on": ([str(python), str(python.with_name("j")), "power", "on"], inside),  # as pip installs it
                "shell-true": ([*shell, "--", "true"], environ),
            }
        )


def of_labgrid(python: Path, environ: Mapping[str, str]) -> Commander:
    client = [str(python), str(python.with_name("labgrid-client"))]
    return Commander({"help": ([*client, "--help"], environ), "version": ([*client, "--help"], environ)})
