"""The kernel's simulated camera, seen through ffmpeg and through ustreamer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio

from jmp.client.images import read
from jmp.client.interfaces import client_class
from jmp.driver import DeviceError, Driver, serve
from jmp_drivers import _jpeg, v4l2
from jmp_drivers._process import leashed
from jmp_drivers.camera import Ustreamer
from jmp_drivers.v4l2 import V4l2Camera
from tests.fakes.patience import fails, works

CAMERA = Path("/dev/video0")
PLUG = Path("/sys/bus/platform/drivers/vivid")
PATIENCE = 60.0
"""Seconds for a picture: programs start slowly in a machine that is run by a busy one."""


@asynccontextmanager
async def served(driver: Driver) -> AsyncIterator[Any]:
    with trio.fail_after(200):
        async with serve(driver, class_of=client_class) as client:
            yield client


@asynccontextmanager
async def unplugged() -> AsyncIterator[None]:
    (PLUG / "unbind").write_text("vivid.0")
    try:
        yield
    finally:
        (PLUG / "bind").write_text("vivid.0")


def running(program: str) -> bool:
    return any(program.encode() in each.read_bytes().split(b"\0")[0] for each in Path("/proc").glob("[0-9]*/cmdline"))


async def test_pictures_through_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v4l2, "_LINGER", 0.2)
    async with served(
        V4l2Camera(device=CAMERA, timeout=PATIENCE, resolution="320x180", filters="crop=160:90:0:0")
    ) as camera:
        assert not running("ffmpeg")
        assert await camera.size() == [160, 90]
        # Its first bars are white and yellow.
        seen = read(await camera.screenshot(), "it")
        pixel = seen.rgb[3 * (40 * 160 + 60) : 3 * (40 * 160 + 60) + 3]
        assert pixel[0] > 180
        assert pixel[1] > 180
        async with aclosing(camera.frames(interval=0)) as one, aclosing(camera.frames(interval=0.01)) as other:
            for _ in range(2):
                assert _jpeg.size(await anext(one)) == _jpeg.size(await anext(other)) == (160, 90)
            assert running("ffmpeg")
        while running("ffmpeg"):  # noqa: ASYNC110  # it lets the camera go when nobody looks any more
            await trio.sleep(0.02)
        assert await camera.size() == [160, 90]
        assert running("ffmpeg")
    assert not running("ffmpeg")


async def test_what_ffmpeg_says() -> None:
    async with served(V4l2Camera(device=Path("/dev/video1"))) as camera:
        with pytest.raises(DeviceError, match=r"^the camera /dev/video1: Inappropriate ioctl for device$"):
            await camera.screenshot()
    async with served(V4l2Camera(device=CAMERA, timeout=PATIENCE, format="h264")) as camera:
        with pytest.raises(DeviceError, match=r"^the camera /dev/video0: Invalid argument$"):
            await camera.screenshot()
    other = [
        "ffmpeg",
        "-loglevel",
        "quiet",
        "-nostdin",
        "-f",
        "v4l2",
        "-i",
        str(CAMERA),
        "-f",
        "null",
        "-progress",
        "pipe:1",
        "-",
    ]
    async with served(V4l2Camera(device=CAMERA, timeout=PATIENCE)) as camera:
        async with leashed(other, stdout=PIPE) as process:
            assert process.stdout is not None
            await process.stdout.receive_some(1)  # it has begun
            with pytest.raises(DeviceError, match=r"^the camera /dev/video0: Device or resource busy$"):
                await camera.screenshot()
        assert (await camera.size())[0] > 0


async def test_a_camera_that_is_absent_goes_and_returns() -> None:
    async with unplugged(), served(V4l2Camera(device=CAMERA, timeout=PATIENCE)) as camera:
        with pytest.raises(DeviceError, match="there is no camera /dev/video0"):
            await camera.screenshot()
    async with served(V4l2Camera(device=CAMERA, timeout=PATIENCE)) as camera, aclosing(camera.frames()) as frames:
        await anext(frames)
        async with unplugged():
            await fails(frames.__anext__, "the camera /dev/video0")
            await fails(camera.screenshot, "the camera /dev/video0 is gone|there is no camera /dev/video0")
        assert (await works(camera.size))[0] > 0


async def test_ustreamer() -> None:
    async with served(Ustreamer(device=CAMERA, timeout=PATIENCE, resolution="640x360")) as camera:
        assert await works(camera.size) == [640, 360]
        async with aclosing(camera.frames(interval=0)) as frames:
            assert len({await anext(frames) for _ in range(3)}) == 3
        async with unplugged():
            while True:
                try:
                    await camera.screenshot()
                except DeviceError as error:
                    assert error.message == "the camera /dev/video0 has no signal: there is no such device"  # noqa: PT017
                    break
                await trio.sleep(0.05)
        assert await works(camera.size) == [640, 360]
