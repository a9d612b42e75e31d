"""Byte streams through an exporter process: much at once, and readers that do not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.product import serving
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

pytestmark = pytest.mark.zipapp


def test_a_gibibyte_each_way_through_bounded_memory(folder: Path) -> None:
    blocks = GIB // MIB
    expected = digest_of(blocks)
    with listening() as server, serving(write_config(folder, server.getsockname()[1])) as served:
        with connect(served) as dut:
            dut.power.on()
            before = served.resident()
            with peer(server, send_blocks(blocks)):
                assert download(dut) == expected
            with peer(server, answer_digest):
                assert upload(dut, blocks) == expected
        assert served.peak() - before < 64 * MIB


def test_a_reader_that_does_not_read_holds_up_nobody_else(folder: Path) -> None:
    with listening() as server, serving(write_config(folder, server.getsockname()[1])) as served:
        with peer(server, flood), connect(served) as dut:
            before = served.resident()
            with dut.data.connect() as stuck:
                assert stuck.receive_some()
                for _ in range(200):  # more calls than would fit behind what is not being read
                    dut.power.on()
                with dut.echo.connect() as echo:
                    for _ in range(64):
                        echo.send_all(bytes(4096))
                        received = 0
                        while received < 4096:
                            received += len(echo.receive_some())
                assert dut.power.state() == "on"
        assert served.peak() - before < 64 * MIB
