"""One serial console and many readers: the exporter and each reader a process of dist/jmp, socat the cable."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from tests.e2e.product import j, numbered, serving, session

pytestmark = [pytest.mark.real, pytest.mark.zipapp]

RING = 4096
BENCH = f"""\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: bench}}
export:
  console: {{type: serial, config: {{url: ./port, history_size: {RING}}}}}
"""


@contextmanager
def cable(folder: Path) -> Iterator[int]:
    """A pair of ptys: ``port`` is the exporter's end, the file descriptor is the board."""
    ends = [f"pty,raw,echo=0,link={folder / name}" for name in ("port", "board")]
    with subprocess.Popen(["socat", "-d", "-d", *ends], stderr=subprocess.PIPE, text=True) as socat:
        assert socat.stderr is not None
        for line in socat.stderr:
            if "starting data transfer" in line:
                break
        board = os.open(folder / "board", os.O_RDWR | os.O_NOCTTY)
        try:
            yield board
        finally:
            os.close(board)
            socat.terminate()


@contextmanager
def reader(host: str) -> Iterator[IO[bytes]]:
    """What a process prints that shows the console."""
    with subprocess.Popen(
        j("console", "pipe"), stdout=subprocess.PIPE, env={**os.environ, "JMP_HOST": host}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout
        finally:
            process.terminate()


def say(board: int, lines: bytes) -> None:
    while lines:
        lines = lines[os.write(board, lines) :]


def test_every_reader_gets_every_line_and_a_late_one_the_ring_buffer_first(folder: Path) -> None:
    (folder / "bench.yaml").write_text(BENCH)
    first = b"".join(b"line %05d of ten thousand\r\n" % number for number in range(5000))
    second = b"".join(b"line %05d of ten thousand\r\n" % number for number in range(5000, 10_000))
    with (
        cable(folder) as board,
        serving(folder / "bench.yaml") as served,
        session(served) as host,
        reader(host) as one,
        reader(host) as two,
    ):
        say(board, b"ready\r\n")
        for each in (one, two):
            assert numbered(each, b"ready\r\n") == b"ready\r\n"
        say(board, first)
        for each in (one, two):
            assert numbered(each, b"line 04999 of ten thousand\r\n") == first
        with reader(host) as late:
            assert late.read(RING) == first[-RING:]
            say(board, second)
            for each in (one, two, late):
                assert numbered(each, b"line 09999 of ten thousand\r\n") == second
