"""What a user writes: a board boots from the network, is flashed, boots from its disk, is looked at. test_story.py runs it."""

import base64
import os
import subprocess
from pathlib import Path
from typing import Any

from jmp.client.images import compare, read
from tests.fakes.browser import browser

IMAGES = Path(os.environ["STORY"])
REFERENCE = Path(__file__).with_name("login.png")
REGION = "0,0,400,64"
BOOT = 240.0
"""Seconds that a busy machine may take to boot."""


def ssh(port: Any, command: str) -> str:
    """What a command prints on the board, by the ssh of this machine."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "IdentitiesOnly=yes")
    words = [word for option in options for word in ("-o", option)]
    argv = ["ssh", "-F", "none", *words, "-i", str(IMAGES / "key"), "-p", str(port.port), f"root@{port.host}", command]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=BOOT).stdout


def test_from_the_network(dut: Any) -> None:
    """U-Boot gets its kernel by TFTP from the exporter, Linux boots, one logs in by SSH through a port forward."""
    with dut.u_boot.attach() as u_boot:
        dut.power.on()
        u_boot.interrupt()
        u_boot.boot(IMAGES / "Image", initrd=IMAGES / "initrd.gz", args=os.environ["STORY_APPEND"])
        u_boot.console.expect("dut login: ", timeout=BOOT)
    with dut.board.ssh.forward() as port:
        assert ssh(port, "uname -sm") == "Linux aarch64\n"
        assert ssh(port, "test -e /etc/disk || echo from the network") == "from the network\n"
        assert int(ssh(port, "cat /sys/block/vda/size")) * 512 == 2 << 30
        url = dut.http.put(IMAGES / "data.sha256")
        assert ssh(port, f"wget -q -O - {url}") == os.environ["STORY_DATA"]


def test_from_its_disk(dut: Any) -> None:
    """A disk image of 1 GiB, packed with zstd, is flashed, verified, and booted by U-Boot on its own."""
    result = dut.storage.flash(IMAGES / "disk.img.zst", power="power")
    assert result["bytes"] == 1 << 30
    assert dut.storage.digest(result["bytes"]) == result["sha256"]
    with dut.board.console.expect(prompt="dut# ", timeout=BOOT) as console:
        dut.power.on()
        console.expect("Starting kernel", timeout=BOOT)
        console.expect("dut login: ", timeout=BOOT)
    with dut.board.ssh.forward() as port:
        assert ssh(port, "cat /etc/disk") == "This is the disk's own system.\n"
        assert ssh(port, "sha256sum /data").split()[0] == os.environ["STORY_DATA"]


def test_its_screen(dut: Any, tmp_path: Path) -> None:
    """The login prompt is on the screen as it was when somebody looked at it, and a real browser draws the same."""
    dut.screen.expect_image(REFERENCE, region=REGION, timeout=BOOT, save=tmp_path)
    whole = read(dut.screen.screenshot(), "the screen")
    with dut.screen.novnc() as page, browser() as chromium:
        chromium.open(page.url)
        chromium.until("document.getElementById('state').textContent == 'connected'")
        canvas = "document.querySelector('canvas')"
        chromium.until(f"{canvas}.width == {whole.width} && {canvas}.height == {whole.height}")
        lit = f"new Uint32Array({canvas}.getContext('2d').getImageData(0, 0, 400, 64).data.buffer)"
        chromium.until(f"{lit}.some(pixel => pixel != 0xff000000 && pixel != 0)")
        drawn = chromium.run(f"{canvas}.toDataURL('image/png').split(',')[1]")
        assert chromium.complaints == []
    assert compare(whole, read(base64.b64decode(drawn), "the browser"), 8).share == 0
