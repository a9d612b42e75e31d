"""jmp scan on a machine with devices, and while they are plugged in and out."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path

import trio

from tests.exporter.test_scan import JMP, Lines

UDC = Path("/sys/kernel/config/usb_gadget/dut/UDC")


async def test_what_is_plugged_in() -> None:
    command = [*JMP, "scan", "--watch", "-o", "table"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with trio.fail_after(60):
        proposed = await trio.run_process([*JMP, "scan", "--name", "lab"], capture_stdout=True)
        text = proposed.stdout.decode()
        assert "  # Lab Virtual DUT (1d6b:0104), serial number LAB0001, USB port 1-1\n" in text
        assert "  console:\n    type: serial\n    config:\n      url: /dev/ttyACM0\n" in text
        assert "  gpio:\n    type: gpio\n    config:\n      chip: /dev/gpiochip0\n" in text
        Path("/run/lab.yaml").write_text(text)
        await trio.run_process([*JMP, "exporter", "check", "/run/lab.yaml"], capture_stdout=True)
        use = [*JMP, "shell", "--exporter-config", "/run/lab.yaml", "--", "j", "gpio", "set", "LED", "on"]
        await trio.run_process(use)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(partial(trio.run_process, command, check=False, **pipes))
            told, news = Lines(process.stdout), Lines(process.stderr)
            assert "/dev/ttyACM0" in await news.next()
            UDC.write_text("\n")
            while not (line := await told.next()).startswith("gone\tconsole\tserial\t/dev/ttyACM0"):
                assert line.startswith("gone\t")
            UDC.write_text("dummy_udc.0")
            while not (line := await told.next()).startswith("appeared\tconsole\tserial\t/dev/ttyACM0"):
                assert line.startswith("appeared\t")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
