"""``jmp demo``: the main job, visibly, on the virtual board."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import trio

from jmp.cli.given import load
from jmp.cli.typed import new_app
from jmp.client.connect import Device, Dial, open_trio, who
from jmp.driver.proxy import ByteStream
from jmp.errors import DeviceError, Timeout
from jmp.exporter.config import ExporterConfig

app = new_app("Boot the virtual board, log in, run a command, power off.")

PATIENCE: Final = 60.0
"""Seconds that the board may take for each step; it takes two to boot."""


@app.command()
def demo() -> int:
    """Boot the virtual board, log in, run a command, power off.

    This is what `jmp shell --exporter-config board.yaml` does for a real board, with the example configuration
    virtual-board. Exit status 0 if all went well.
    """
    from jmp.exporter import examples

    with TemporaryDirectory(prefix="jmp-demo-") as directory:
        file = Path(directory, "virtual-board.yaml")
        file.write_text(examples.text("virtual-board"))
        return trio.run(_until_told, load(str(file)))


async def _until_told(config: ExporterConfig) -> int:
    """The demonstration, to its end or a signal; its exit code. The board is switched off and gone either way."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:

            async def play() -> None:
                await _demo(config)
                nursery.cancel_scope.cancel()

            nursery.start_soon(play)
            async for number in signals:
                nursery.cancel_scope.cancel()
                return 128 + number
    return 0


async def _demo(config: ExporterConfig) -> None:
    from jmp.exporter.session import open_session

    async with open_session(config, who()) as session, open_trio(Dial(session.url)) as device:
        await _use(device)


async def _use(device: Device) -> None:
    async with device.console.connect() as stream:
        console = _Console(stream)
        _say("j power on")
        await device.power.on()
        await console.until("login: ")
        await console.type("root")
        await console.until("# ")
        await console.type("uname -a; cat /etc/os-release")
        await console.until("# ")
        _say("j power off")
        await device.power.off()
        state = await device.power.state()
        _say("j power state")
        sys.stdout.write(f"{state}\n")
        if state != "off":
            raise DeviceError(f"the board is {state} after power off")


class _Console:
    """Shows what the board says, and waits for parts of it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._seen = ""

    async def until(self, text: str) -> None:
        with trio.move_on_after(PATIENCE):
            while text not in self._seen:
                data = await self._stream.receive_some()
                if not data:
                    raise DeviceError(f"the console ended before it said {text!r}")
                shown = data.decode(errors="replace").replace("\r\n", "\n")
                sys.stdout.write(shown)
                sys.stdout.flush()
                self._seen += shown
            self._seen = self._seen.partition(text)[2]
            return
        raise Timeout(f"the board did not say {text!r} within {PATIENCE:g} s")

    async def type(self, line: str) -> None:
        await self._stream.send_all(f"{line}\n".encode())


def _say(command: str) -> None:
    colour = ("\x1b[1;36m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    sys.stdout.write(f"\n{colour[0]}$ {command}{colour[1]}\n")
    sys.stdout.flush()
