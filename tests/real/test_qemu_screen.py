"""The screen and the keyboard of a machine under QEMU, worked through the driver."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
import trio

from jmp.client.images import Picture, read
from jmp.client.interfaces import client_class
from jmp.driver import serve
from jmp.errors import DeviceError
from jmp_drivers.qemu import Qemu
from jmp_drivers.qemu.driver import Image

pytestmark = pytest.mark.real

PAINTER = bytes.fromhex(
    "b81300 cd10"  # mov ax,13h; int 10h: 320 x 200 pixels, a byte each
    "6800a0 07"  # push 0a000h; pop es: where they are
    "b80404"  # mov ax,0404h: red
    "31ff b9007d f3ab"  # xor di,di; mov cx,32000; rep stosw: fill the screen
    "30e4 cd16"  # xor ah,ah; int 16h: wait for a key
    "baf803 ee"  # mov dx,3f8h; out dx,al: send it to the serial port
    "240f 88c4 ebed"  # and al,0fh; mov ah,al; jmp to the xor: its last digit is the next colour
)
"""A boot sector that fills the screen with the colour that the last key stands for, and sends each key to the console."""
RED, CYAN = b"\xa8\0\0", b"\0\xa8\xa8"


async def test_a_program_on_the_screen_is_seen_and_typed_to(tmp_path: Path) -> None:
    image = tmp_path / "painter.img"
    image.write_bytes((PAINTER.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    with trio.fail_after(600):
        machine = Qemu(arch="x86_64", vnc=True, network=False, disk=Image(path=image))
        async with serve(machine, class_of=client_class) as client:
            with pytest.raises(DeviceError, match="the virtual machine is off: switch it on first"):
                await client.vnc.screenshot()
            await client.power.on()
            async with aclosing(client.vnc.frames()) as frames:
                async for frame in frames:
                    if read(frame, "").rgb[:3] == RED:
                        break
            # Each of the 320 x 200 pixels is four on QEMU's screen.
            assert await client.vnc.size() == [640, 400]
            await client.vnc.type("aB3")
            expected = tmp_path / "cyan.png"
            expected.write_bytes(Picture(640, 400, CYAN * 640 * 400).png())
            # Not all of it: QEMU's own pictures of this mode are a key late in some of the lower lines (7.2).
            await client.vnc.expect_image(expected, timeout=200, region="0,0,640,360")
            assert await client.console.history() == b"aB3"
            await client.power.off()
            with pytest.raises(DeviceError, match="the virtual machine is off"):
                await client.vnc.screenshot()
            await client.power.on()
            assert len(await client.vnc.size()) == 2, "and on again"
