"""A VNC server's screen, keyboard and pointer: a real X server's, TigerVNC."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.images import read
from jmp.client.interfaces import client_class
from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp.errors import Refused
from jmp_drivers import _keys
from jmp_drivers.vnc import Vnc
from tests.fakes.bundled import problems_in
from tests.fakes.x11 import X11, xtigervnc

RED, GREEN, BLUE = 0xFF0000, 0x00FF00, 0x0000FF


@pytest.fixture
def x11(tmp_path: Path) -> Iterator[X11]:
    with xtigervnc(tmp_path / "vnc") as server:
        yield server


def on(driver: Vnc) -> Any:
    return serve(driver, class_of=client_class)


def pixel(picture: bytes, x: int, y: int) -> int:
    image = read(picture, "the screen")
    return int.from_bytes(image.rgb[3 * (y * image.width + x) :][:3], "big")


def colours(picture: bytes) -> set[bytes]:
    """All that a picture has."""
    rgb = read(picture, "it").rgb
    return {rgb[at : at + 3] for at in range(0, len(rgb), 3)}


def test_the_screen_is_seen_as_it_is(x11: X11, tmp_path: Path) -> None:
    x11.fill(GREEN)
    x11.fill(BLUE, 10, 20, 30, 40)
    with on(Vnc(path=tmp_path / "vnc")) as vnc:
        assert vnc.size() == [320, 200]
        picture = vnc.screenshot()
        assert [pixel(picture, *at) for at in ((9, 20), (10, 20), (39, 59), (40, 59), (319, 199))] == [
            GREEN, BLUE, BLUE, GREEN, GREEN,
        ]  # fmt: skip
        x11.fill(RED)
        assert pixel(vnc.screenshot(), 10, 20) == RED
        assert vnc.screenshot(tmp_path / "shot.png") is None
        assert pixel((tmp_path / "shot.png").read_bytes(), 0, 0) == RED


async def test_frames_come_as_the_screen_changes(x11: X11, tmp_path: Path) -> None:
    x11.fill(RED)
    with trio.fail_after(60):
        async with on(Vnc(path=tmp_path / "vnc")) as vnc:
            seen = []
            async with aclosing(vnc.frames(interval=0)) as frames:
                async for frame in frames:
                    if (colour := pixel(frame, 100, 100)) not in seen:
                        seen.append(colour)
                        if len(seen) == 3:
                            break
                        await trio.to_thread.run_sync(x11.fill, (GREEN, BLUE)[len(seen) - 1])
                assert seen == [RED, GREEN, BLUE]
                while len(colours(frame)) > 1:  # it is painted bit by bit
                    frame = await anext(frames)
                with trio.move_on_after(0.3) as patience:
                    await anext(frames)
                assert patience.cancelled_caught, "nothing comes while nothing changes"


def test_keys_and_pointer_arrive(x11: X11, tmp_path: Path) -> None:
    x11.listen()
    with on(Vnc(path=tmp_path / "vnc")) as vnc:
        vnc.type("aB!\né€", interval=0)
        keys = [keysym for _, keysym, _ in x11.pressed(8)]
        assert [key for key in keys if key != _keys.SHIFT] == [0x61, 0x42, 0x21, 0xFF0D, 0xE9, 0x010020AC]
        vnc.press("ctrl+alt+delete", "f12", hold=0)
        assert [keysym for _, keysym, _ in x11.pressed(4)] == [0xFFE3, 0xFFE9, 0xFFFF, 0xFFC9]
        vnc.move(30, 40)
        vnc.click(50, 60, button="right", count=2)
        vnc.drag(1, 2, 70, 80)
        vnc.scroll(-1)
        assert x11.pressed(4) == [
            ("button", 3, (50, 60)), ("button", 3, (50, 60)), ("button", 1, (1, 2)), ("button", 4, (70, 80)),
        ]  # fmt: skip
        assert x11.pointer() == (70, 80)
        with pytest.raises(BadValue, match="320, 0 is not on the screen, which is 320 x 200 pixels"):
            vnc.move(320, 0)
        with pytest.raises(BadValue, match=r"there is no key 'contrl'.*ctrl|control"):
            vnc.press("contrl+c")
        with pytest.raises(BadValue, match=r"press\('ctrl\+c'\) presses one"):
            vnc.type("\x03")


def test_a_password_lets_in_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    made = subprocess.run(["tigervncpasswd", "-f"], input=b"pass word", capture_output=True, check=True)
    (tmp_path / "passwd").write_bytes(made.stdout)
    options = ("-SecurityTypes", "VncAuth", "-rfbauth", str(tmp_path / "passwd"))
    with xtigervnc(tmp_path / "vnc", *options) as x11:
        x11.fill(BLUE)
        with on(Vnc(path=tmp_path / "vnc", password="pass word")) as vnc:
            assert pixel(vnc.screenshot(), 1, 1) == BLUE
        with on(Vnc(path=tmp_path / "vnc")) as vnc, pytest.raises(Refused, match="asks for a password, and none is"):
            vnc.screenshot()
        with on(Vnc(path=tmp_path / "vnc", password="guess")) as vnc, pytest.raises(Refused) as caught:
            vnc.screenshot()
        assert "lets nobody in with this password" in str(caught.value)
        assert "guess" not in str(caught.value)


def test_a_server_that_goes_is_noticed_and_its_return_too(tmp_path: Path) -> None:
    with on(Vnc(path=tmp_path / "vnc")) as vnc:
        with pytest.raises(DeviceError, match=r"cannot connect to unix:.*/vnc: No such file or directory"):
            vnc.size()
        with xtigervnc(tmp_path / "vnc"):
            assert vnc.size() == [320, 200]
            frames = iter(vnc.frames())
            next(frames)
        with pytest.raises(DeviceError, match=r"unix:.*/vnc closed the connection"):
            next(frames)
        with xtigervnc(tmp_path / "vnc", size="160x100"):
            assert vnc.size() == [160, 100]


def test_its_server_can_be_reached_as_well(x11: X11, tmp_path: Path) -> None:
    with (
        on(Vnc(path=tmp_path / "vnc")) as vnc,
        vnc.forward() as bound,
        socket.create_connection((bound.host, bound.port)) as port,
    ):
        assert port.recv(12) == b"RFB 003.008\n"


async def test_impostors_and_silence_are_told() -> None:
    async def talk(words: bytes, stream: trio.SocketStream) -> None:
        await stream.send_all(words)
        await trio.sleep_forever()

    cases = {
        b"HTTP/1.1 400 Bad Request\r\n": "does not speak VNC",
        b"RFB 003.008\n\0\0\0\0\4busy": "refuses the connection: busy",
        b"RFB 003.008\n\1\23": "a kind that is not known here (19)",
        b"RFB 003.003\n\0\0\0\1\0\0\0\0" + bytes(16) + b"\0\0\0\0": "a screen of 0 x 0 pixels",
        b"": "did not answer within 0.5 s",
    }
    with trio.fail_after(60):
        for words, problem in cases.items():
            async with trio.open_nursery() as nursery:
                (listener,) = await nursery.start(partial(trio.serve_tcp, partial(talk, words), 0, host="127.0.0.1"))
                port = listener.socket.getsockname()[1]
                async with on(Vnc(host="127.0.0.1", port=port, timeout=60 if words else 0.5)) as vnc:
                    with pytest.raises((DeviceError, Refused)) as caught:
                        await vnc.screenshot()
                    assert problem in str(caught.value)
                nursery.cancel_scope.cancel()


def test_configurations_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [
        {},
        {"host": "h", "path": Path("/p")},
        {"host": "h", "port": 0},
        {"host": "h", "timeout": 0.0},
    ]
    for wrong in cases:
        with pytest.raises(ConfigError):
            Vnc(**wrong)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/vnc.md") == []
