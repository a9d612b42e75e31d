"""How fast the local path is: `python -m pytest -s tests/bench/bench_local.py` prints the figures. Not part of the test suite.

Each comparison is a ratio within one run, so that it holds on slow and on busy machines.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import Served, jmp, serving
from tests.e2e.streams import (
    GIB,
    MIB,
    answer_digest,
    connect,
    digest_of,
    download,
    flood,
    listening,
    peer,
    send_blocks,
    upload,
    write_config,
)

CALLS = 1000


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"\n{what}: {time.perf_counter() - began:.2f} s", end="")


def median_call(dut: Any) -> float:
    """Seconds that a small call takes."""

    def one() -> float:
        began = time.perf_counter()
        dut.power.state()
        return time.perf_counter() - began

    return statistics.median(one() for _ in range(CALLS))


@pytest.fixture(params=["unix", "tls"])
def bench(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Served, socket.socket]]:
    listen = ("--listen=127.0.0.1:0",) if request.param == "tls" else ()
    with listening() as server, serving(write_config(folder, server.getsockname()[1]), *listen) as served:
        yield served, server


def test_rate(bench: tuple[Served, socket.socket]) -> None:
    served, server = bench
    blocks = GIB // MIB
    expected = digest_of(blocks)
    with connect(served) as dut:
        before = served.resident()
        with peer(server, send_blocks(blocks)), timed("1 GiB from the device"):
            assert download(dut) == expected
        with peer(server, answer_digest), timed("1 GiB to the device"):
            assert upload(dut, blocks) == expected
        print(f"\nexporter's memory grew by {(served.peak() - before) / MIB:.1f} MiB at most")


def test_a_slow_reader_slows_no_calls(bench: tuple[Served, socket.socket]) -> None:
    served, server = bench
    with peer(server, flood), connect(served) as dut:
        median_call(dut)  # warm
        alone = median_call(dut)
        with dut.data.connect() as slow:
            slow.receive_some()
            beside = sip(dut, slow)
    print(
        f"\ncall alone {alone * 1e6:.0f} µs, beside a slow reader {beside * 1e6:.0f} µs: {beside / alone:.2f}", end=""
    )
    assert beside < 2 * alone


def sip(dut: Any, stream: Any) -> float:
    """Seconds that a call takes while a stream is read slowly: a little after each tenth call."""

    def one(number: int) -> float:
        if number % 10 == 0:
            stream.receive_some(1024)
        began = time.perf_counter()
        dut.power.state()
        return time.perf_counter() - began

    return statistics.median(map(one, range(CALLS)))


@pytest.mark.parametrize("command", [("version",), ("--help",), ("exporter", "example", "virtual-board")])
def test_start(folder: Path, command: tuple[str, ...]) -> None:
    jmp(*command)  # unpacks
    with timed(f"jmp {' '.join(command)}"):
        assert jmp(*command).returncode == 0
