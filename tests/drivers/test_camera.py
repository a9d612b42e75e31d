"""Cameras: a real ustreamer (without a camera it shows "no signal"), MJPEG over HTTP, programs; pictures held against Pillow."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp.client.images import read
from jmp.client.interfaces import client_class
from jmp.driver import ConfigError, DeviceError, serve
from jmp_drivers import _jpeg
from jmp_drivers._process import leashed
from jmp_drivers.camera import CommandCamera, HttpCamera, Ustreamer
from jmp_drivers.v4l2 import V4l2Camera
from tests.drivers.test_telnet import listening
from tests.fakes.bundled import problems_in
from tests.fakes.ports import free_port


def jpeg(colour: str, size: tuple[int, int] = (32, 24), **options: Any) -> bytes:
    file = BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, "jpeg", **options)
    return file.getvalue()


NOISE = PIL.Image.effect_noise((61, 47), 90)


def noise(**options: Any) -> bytes:
    file = BytesIO()
    NOISE.save(file, "jpeg", **options)
    return file.getvalue()


PICTURES = [
    jpeg("red"),
    noise(quality=100),
    noise(progressive=True),
    noise(restart_marker_blocks=1),
    jpeg("blue", comment=b"\xff\xd9"),
]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_pictures_are_cut_out_whatever_stands_between_and_in_whatever_pieces(data: st.DataObject) -> None:
    between = [b"", b"\r\n--boundary\r\nContent-Type: image/jpeg\r\n\r\n", b"\xff"]
    wanted = data.draw(st.lists(st.sampled_from(PICTURES), max_size=4))
    stream = b"".join(data.draw(st.sampled_from(between)) + each for each in wanted)
    pictures, found = _jpeg.Pictures(), []
    while stream:
        size = data.draw(st.sampled_from([1, 2, 3, 500, 10_000]))
        found += pictures.feed(stream[:size])
        stream = stream[size:]
    assert found == wanted


@given(st.binary())
def test_nothing_confuses_it(data: bytes) -> None:
    _jpeg.Pictures().feed(b"\xff\xd8\xff" + data)


def test_sizes() -> None:
    assert {_jpeg.size(each) for each in PICTURES} == {(32, 24), (61, 47)}
    for none in (b"", b"GIF", jpeg("red")[:10]):
        with pytest.raises(ValueError, match="no JPEG"):
            _jpeg.size(none)


async def test_ustreamer_without_a_camera(tmp_path: Path) -> None:
    absent = tmp_path / "video0"
    with trio.fail_after(60):
        async with serve(Ustreamer(device=absent, timeout=60)) as camera:
            with pytest.raises(DeviceError, match=r"the camera .*video0 has no signal: there is no such device"):
                await camera.screenshot()
        async with serve(Ustreamer(device=absent, no_signal="picture", timeout=60), class_of=client_class) as camera:
            assert await camera.size() == [640, 480]
            seen = read(await camera.screenshot(), "it")
            assert (seen.width, seen.height) == (640, 480)
            (tmp_path / "no-signal.jpg").write_bytes(await camera.screenshot())
            await camera.expect_image(tmp_path / "no-signal.jpg", timeout=60)
        async with serve(Ustreamer(device=absent, args=["--no-such-option"], timeout=60)) as camera:
            with pytest.raises(DeviceError, match=r"ustreamer ended with status 1: .*no-such-option"):
                await camera.screenshot()


async def test_a_camera_over_http_that_is_ustreamer() -> None:
    port = free_port()
    command = ["ustreamer", "--device", "/dev/no-such", "--host", "127.0.0.1", "--port", str(port)]
    login = ["--user", "u", "--passwd", "geheim"]
    base = f"http://127.0.0.1:{port}"
    with trio.fail_after(60):
        async with leashed([*command, *login]):
            await listening(port)
            places: list[dict[str, Any]] = [{"snapshot": f"{base}/snapshot"}, {"stream": f"{base}/stream"}]
            for urls in places:
                async with serve(HttpCamera(**urls, user="u", password="geheim", timeout=60)) as camera:
                    assert await camera.size() == [640, 480]
                    async with aclosing(camera.frames()) as frames:
                        assert _jpeg.size(await anext(frames)) == (640, 480)
                async with serve(HttpCamera(**urls, user="u", password="guess", timeout=60)) as camera:
                    with pytest.raises(DeviceError, match="answers 401") as caught:
                        await camera.screenshot()
                    assert "guess" not in str(caught.value)
        async with serve(HttpCamera(snapshot=f"{base}/snapshot")) as camera:
            with pytest.raises(DeviceError, match=rf"the camera at 127\.0\.0\.1:{port}: Connection refused"):
                await camera.screenshot()


@asynccontextmanager
async def streaming(frames: list[bytes], *, forever: bool) -> AsyncIterator[str]:
    """A server of MJPEG; its URL."""

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
            for frame in frames:
                await stream.send_all(b"--b\r\nContent-Type: image/jpeg\r\n\r\n" + frame + b"\r\n")
            if forever:
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/"
        nursery.cancel_scope.cancel()


async def test_frames_are_those_that_differ() -> None:
    red, blue = jpeg("red"), jpeg("blue")
    with trio.fail_after(60):
        async with (
            streaming([red, red, blue, blue, red], forever=True) as url,
            serve(HttpCamera(stream=url, timeout=60)) as camera,
            aclosing(camera.frames(interval=0)) as frames,
        ):
            assert [await anext(frames) for _ in range(3)] == [red, blue, red]
        async with (
            streaming([red], forever=False) as url,
            serve(HttpCamera(stream=url, timeout=60)) as camera,
            aclosing(camera.frames(interval=0)) as frames,
        ):
            assert await anext(frames) == red
            with pytest.raises(DeviceError, match="has ended its stream"):
                await anext(frames)
        async with streaming([], forever=True) as url, serve(HttpCamera(stream=url, timeout=0.2)) as camera:
            with pytest.raises(DeviceError, match=r"gave no picture within 0\.2 s"):
                await camera.screenshot()


async def test_a_command(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes(jpeg("red"))
    (tmp_path / "two.jpg").write_bytes(jpeg("blue"))
    with trio.fail_after(60):
        async with serve(
            CommandCamera(command="cat one.jpg two.jpg; exec sleep 1000", cwd=tmp_path, timeout=60)
        ) as camera:
            assert await camera.size() == [32, 24]
            async with aclosing(camera.frames(interval=0)) as frames:
                assert [await anext(frames) for _ in range(2)] == [jpeg("red"), jpeg("blue")]
        fails = [sys.executable, "-c", "import sys; sys.exit('no such camera')"]
        async with serve(CommandCamera(command=fails, timeout=60)) as camera:
            with pytest.raises(DeviceError, match="ended with status 1: no such camera"):
                await camera.screenshot()


def test_configurations_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"snapshot": "ftp://h/"},
        {"stream": "http:///x"},
        {"snapshot": "http://h/", "timeout": 0.0},
    ]
    for wrong in cases:
        with pytest.raises(ConfigError):
            HttpCamera(**wrong)
    with pytest.raises(ConfigError):
        CommandCamera(command="")
    for wrong in ({"resolution": "720p"}, {"fps": -1.0}, {"quality": 0}):
        with pytest.raises(ConfigError):
            V4l2Camera(**wrong)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/camera.md") == []
