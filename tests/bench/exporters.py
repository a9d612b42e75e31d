"""Many exporters of a lab in one process, over real links. The environment's client configuration is an admin's.

python exporters.py FOLDER BOARD NAME...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path

import trio

import jmp
from jmp.client.config import ClientConfig, current
from jmp.client.lab import Lab, open_lab_trio
from jmp.driver.plugins import driver_class
from jmp.exporter import config as configuration
from jmp.exporter.lab import LabExporter, Memory
from jmp.link import websocket
from jmp.rpc.call import Caller
from jmp.rpc.reconnect import keep_connected
from jmp.wire.records import Desired, Observed, Phase, from_wire, to_wire

CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: {name}, labels: {{board: {board}}}}}
export:
  power: {{type: mock-power}}
  console: {{type: bench-console}}
"""
ABREAST = 32


async def main(folder: Path | None, board: str, names: list[str]) -> None:
    admin = current()
    left = iter(names)
    async with trio.open_nursery() as nursery, open_lab_trio(admin) as lab:
        async with trio.open_nursery() as adding:
            for _ in range(ABREAST):
                adding.start_soon(_add, folder, board, left, lab, admin, nursery)
        while any(one["state"] == "offline" for one in await lab.call("exporters") if one["name"] in names):  # noqa: ASYNC110
            await trio.sleep(0.1)  # answers are in seconds
        print("connected", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def _add(
    folder: Path | None, board: str, names: Iterator[str], lab: Lab, admin: ClientConfig, nursery: trio.Nursery
) -> None:
    for name in names:
        await lab.call("create", "exporter", name, {})
        token = (await lab.call("issue", name, "exporter"))["token"]

        async def dial(token: str = token) -> websocket.WebSocketLink:
            return await websocket.connect(admin.endpoint, token=token, ca=admin.tls.ca)

        if folder is None:
            nursery.start_soon(keep_connected, dial, partial(_attend, board))
            continue
        path = folder / f"{name}.yaml"
        path.write_text(CONFIG.format(name=name, board=board))
        config = configuration.load(path, driver_class)
        memory = Memory.load(folder / f"{name}.json")
        nursery.start_soon(LabExporter(config, memory, dial, endpoint=admin.endpoint, ca=admin.tls.ca).run)


async def _attend(board: str, caller: Caller) -> None:
    """Be ready at once for whoever shall have it, and free at once."""
    observed = Observed(epoch=0)
    registration = {
        "labels": {"board": board},
        "description": "",
        "version": jmp.__version__,
        "endpoints": [],
        "tree": {"description": "", "children": {}},
        "observed": to_wire(observed),
    }
    async with aclosing(caller.items("@lab", "attend", (registration,), {})) as items:
        async for item in items:
            if "desired" in item:
                desired = from_wire(Desired, item["desired"])
                lease = desired.grant.lease if desired.grant is not None else observed.lease
                phase = Phase.READY if desired.grant is not None else Phase.IDLE
                new = Observed(epoch=desired.epoch, lease=lease, phase=phase)
                if new != observed:
                    observed = new
                    await caller.call("@lab", "observe", (to_wire(observed),), {})


if __name__ == "__main__":
    trio.run(main, None if sys.argv[1] == "none" else Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
