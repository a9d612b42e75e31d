"""Many busy consoles through one router, and the time that a key's echo takes meanwhile.

python consoles.py SECONDS EXPORTER...    the environment's client configuration says who
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import deque

import trio

from jmp.client.config import ClientConfig, current
from jmp.client.connect import Dial, open_trio
from jmp.client.lab import Lab, open_lab_trio
from jmp.wire.records import Want

PRESS_EVERY = 0.1
"""Seconds between two keys on one console."""
SETTLE = 2.0
"""Seconds before it counts."""


class Typist:
    """Everything that is seen on the consoles."""

    def __init__(self) -> None:
        self.counting = False
        self.bytes = 0
        self.echoes: list[float] = []

    async def use(self, lab: Lab, config: ClientConfig, exporter: str) -> None:
        lease = await lab.wait_granted((await lab.acquire([Want(exporter=exporter)], 3600.0)).id)
        way = await lab.meet(lease.id, None, "router")
        url = way["endpoints"][0].get("url") or config.endpoint
        dial = Dial(url, way["token"], way["endpoints"][0].get("fingerprint"), config.tls.ca, True)
        async with open_trio(dial, wait=None) as dut, dut.console.connect() as stream, trio.open_nursery() as nursery:
            pressed: deque[float] = deque()

            async def press() -> None:
                while True:
                    await trio.sleep(PRESS_EVERY)
                    pressed.append(time.perf_counter())
                    await stream.send_all(b"k")

            nursery.start_soon(press)
            while True:
                data = await stream.receive_some()
                echoes = [time.perf_counter() - pressed.popleft() for _ in range(data.count(b"k"))]
                if self.counting:
                    self.bytes += len(data)
                    self.echoes += echoes


async def main(seconds: float, exporters: list[str]) -> None:
    typist = Typist()
    config = current()
    async with open_lab_trio(config) as lab, trio.open_nursery() as nursery:
        for exporter in exporters:
            nursery.start_soon(typist.use, lab, config, exporter)
        await trio.sleep(SETTLE)
        typist.counting = True
        print("counting", flush=True)
        await trio.sleep(seconds)
        typist.counting = False
        echoes = sorted(typist.echoes)
        figures = {
            "p50": statistics.median(echoes) * 1e3,
            "p99": echoes[len(echoes) * 99 // 100] * 1e3,
            "rate": typist.bytes / seconds / 1e6 / len(exporters),
        }
        print(json.dumps(figures), flush=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, float(sys.argv[1]), sys.argv[2:])
