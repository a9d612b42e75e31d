"""What a user writes: a boot loader that is interrupted, a Linux that is logged in to. test_boot.py runs it."""

import re
import socket
from typing import Any
from urllib.request import urlopen

PASSWORD = "dut"
BOOT = 300.0
"""Seconds that a busy machine may take to boot."""


def log_in(console: Any) -> None:
    console.expect("dut login: ")
    console.sendline("root")
    console.expect("Password: ")
    console.sendline(PASSWORD)
    console.expect("dut# ")


def test_boot_loader(dut: Any) -> None:
    with dut.loader.console.expect(prompt=r"\n=> ", timeout=BOOT) as console:
        dut.loader.power.on()
        for _ in range(2):
            console.expect("Hit any key to stop autoboot")
            console.send(" ")
            console.expect(r"\n=> ")
            assert re.search(r"U-Boot 20\d\d\.\d\d", console.run("version"))
            assert "fdtcontroladdr=" in console.run("printenv fdtcontroladdr")
            dut.loader.power.cycle(wait=0)
    dut.loader.power.off()
    assert dut.loader.power.state() == "off"


def test_linux(dut: Any) -> None:
    with dut.linux.console.expect(prompt="dut# ", timeout=BOOT) as console:
        dut.linux.power.on()
        log_in(console)
        assert console.run("uname -sm").strip() == "Linux aarch64"
        console.run("echo lost > /root/file")
        assert console.run("cat /root/file").strip() == "lost"

        dut.linux.power.cycle(wait=0)
        log_in(console)
        assert "No such file" in console.run("cat /root/file")

        with dut.linux.web.forward() as web, urlopen(f"http://{web}/index.html", timeout=BOOT) as answer:
            assert answer.read() == b"hello from the dut\n"
        with dut.linux.echo.forward() as echo, socket.create_connection((echo.host, echo.port), timeout=BOOT) as there:
            there.sendall(b"over and out")
            there.shutdown(socket.SHUT_WR)
            assert there.makefile("rb").read() == b"over and out"

        console.sendline("poweroff -f")
        console.expect(r"\[the guest switched the machine off\]")
    assert dut.linux.power.state() == "off"
