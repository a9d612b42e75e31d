"""Ctrl-C during a blocking call, at each of the moments at which Python lets a signal's handler run."""

from __future__ import annotations

import dis
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import jmp
from tests.fakes.lab import Program

BENCH = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  board: {type: virtual-board, config: {boot_time: 0}}
  power: {ref: board.power}
  console: {ref: board.console}
"""


@pytest.fixture(scope="module", params=["unix", "wss"])
def where(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """An exporter that listens; on the network, sessions go on over another link."""
    directory = tmp_path_factory.mktemp("exporter")
    (directory / "bench.yaml").write_text(BENCH)
    listen = "127.0.0.1:0" if request.param == "wss" else f"unix:{directory}/socket"
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "XDG_RUNTIME_DIR": str(directory)}
    with Program(["exporter", "serve", "bench.yaml", "--listen", listen], environment, directory) as exporter:
        said = exporter.until(r"jmp shell --connect (\S+)( --passphrase-file (\S+) --fingerprint (\S+))?\n")
        yield {"url": said[1]} | (
            {"passphrase": Path(said[3]).read_text().strip(), "fingerprint": said[4]} if said[2] else {}
        )


class Interrupt:
    """Ctrl-C at the ``number``-th moment of what runs inside, in this project's code."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> None:
        sys.setprofile(self._called)
        sys.settrace(self._traced)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        if event in ("call", "c_return") and ours(frame):
            self._moment()

    def _traced(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            return self._traced if ours(frame) else None
        if event == "opcode" and frame.f_lasti in jumps_back(frame.f_code):
            self._moment()
        return self._traced

    def _moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.__exit__()
            signal.raise_signal(signal.SIGINT)


def ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).startswith("jmp.")


@cache
def jumps_back(code: CodeType) -> frozenset[int]:
    return frozenset(each.offset for each in dis.get_instructions(code) if "JUMP_BACKWARD" in each.opname)


def power(dut: Any) -> None:
    dut.power.on()


def readings(dut: Any) -> None:
    with closing(iter(dut.states())) as states:
        next(states)


def console(dut: Any) -> None:
    with dut.console.connect(replay=False) as stream:
        stream.send_all(b"\n")
        stream.receive_some()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # it was interrupted before
@pytest.mark.parametrize("use", [power, readings, console])
def test_the_connection_is_as_good_as_before(where: dict[str, Any], use: Callable[[Any], None]) -> None:
    interrupted = 0
    with jmp.connect(**where, wait=30) as dut:
        dut.power.on()
        while True:
            ctrl_c = Interrupt(interrupted + 1)
            try:
                with ctrl_c:
                    use(dut)
            except KeyboardInterrupt:
                interrupted += 1
            else:
                break
            with jmp.fail_after(60):
                assert dut.power.state() == "on"
    assert ctrl_c.left > 0
    assert interrupted > 50
