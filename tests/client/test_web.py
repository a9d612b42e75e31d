"""A console and a screen in a real browser, and who else may not get at them."""

from __future__ import annotations

import hashlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.images import read
from jmp.client.interfaces import client_class
from jmp.driver import UsageError, serve
from jmp_drivers.command_console import CommandConsole
from jmp_drivers.vnc import Vnc
from tests.fakes.browser import Browser, browser
from tests.fakes.bundled import ROOT
from tests.fakes.x11 import xtigervnc

CONSOLE = "stty raw -echo; printf 'welcome\\r\\n$ '; exec cat"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


def on(driver: Any) -> Any:
    return serve(driver, class_of=client_class)


LINES = "Array.from({length: 24}, (_, i) => terminal.buffer.active.getLine(i)?.translateToString(true)).join('\\n')"


def test_a_console_in_the_browser(chromium: Browser, tmp_path: Path) -> None:
    with on(CommandConsole(command=CONSOLE)) as console, console.web() as page:
        chromium.open(page.url)
        chromium.until("document.getElementById('state').textContent == 'connected'")
        chromium.until(f"{LINES}.includes('welcome')")
        chromium.type("Hello, board!")
        chromium.until(f"{LINES}.includes('$ Hello, board!')")
        (tmp_path / "console.png").write_bytes(chromium.screenshot())
        # A second one cannot write as well, and is told why it ends.
        chromium.open(page.url)
        chromium.until("document.getElementById('state').textContent == 'connected'")
        chromium.run("globalThis.second = new WebSocket(location.href.replace('http', 'ws') + 'stream'); 0")
        chromium.run("second.onclose = (end) => { globalThis.end = end.reason }; 0")
        chromium.until("globalThis.end?.includes('another client is writing')")
    chromium.until("document.getElementById('state').className == 'bad'")
    assert chromium.complaints == []


def test_whose_place_is_taken_watches_and_can_write_again(chromium: Browser) -> None:
    state = "document.getElementById('state').textContent"
    with on(CommandConsole(command=CONSOLE)) as console, console.web() as page:
        with console.connect() as writer:
            chromium.open(page.url)  # it may not write, and looks on
            chromium.until(f"{state} == 'connected, another client writes'")
            writer.send_all(b"first ")
            chromium.until(f"{LINES}.includes('$ first ')")
            chromium.type("lost")
            chromium.run("document.getElementById('write').click()")
            chromium.until(f"{state} == 'connected' && document.getElementById('write').hidden")
            chromium.type("second ")
            chromium.until(f"{LINES}.includes('$ first second ')")
        with console.connect(take_over=True) as writer:
            writer.send_all(b"third ")
            chromium.until(f"{LINES}.includes('you go on reading]')")
            chromium.type("l")  # it learns of it so
            chromium.until(f"{state} == 'connected, another client writes'")
            chromium.until(f"{LINES}.includes('$ first second third ')")
    chromium.until("document.getElementById('state').className == 'bad'")
    assert chromium.complaints == []


def test_a_console_that_is_only_watched(chromium: Browser) -> None:
    with on(CommandConsole(command=CONSOLE)) as console, console.connect(), console.web(watch=True) as page:
        chromium.open(page.url)
        chromium.until(f"{LINES}.includes('welcome')")
        assert chromium.run("document.getElementById('state').textContent") == "connected, read-only"


def test_a_screen_in_the_browser(chromium: Browser, tmp_path: Path) -> None:
    with xtigervnc(tmp_path / "vnc") as x11:
        x11.fill(0x0000FF)
        x11.listen()
        with on(Vnc(path=tmp_path / "vnc")) as vnc, vnc.novnc() as page:
            chromium.open(page.url)
            chromium.until("document.getElementById('state').textContent == 'connected'")
            blue = "[...document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data].join() == '0,0,255,255'"
            chromium.until(blue)
            seen = read(chromium.screenshot(), "the page")
            middle = 3 * (seen.width * (seen.height // 2) + seen.width // 3)
            assert seen.rgb[middle : middle + 3] == b"\0\0\xff"
            chromium.type("a")
            assert x11.pressed(1)[0][:2] == ("key", 0x61)
    chromium.until("document.getElementById('state').className == 'bad'")
    assert chromium.complaints == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A screen whose server wants a password."""
    folder = tmp_path_factory.mktemp("vnc")
    secret = subprocess.run(["tigervncpasswd", "-f"], input=b"pass word", capture_output=True, check=True).stdout
    (folder / "password").write_bytes(secret)
    with xtigervnc(folder / "vnc", "-SecurityTypes", "VncAuth", "-rfbauth", f"{folder}/password") as x11:
        x11.fill(0x00FF00)
        yield folder / "vnc"


GREEN = "[...document.querySelector('canvas').getContext('2d').getImageData(5, 5, 1, 1).data].join() == '0,255,0,255'"


def test_a_screens_password_stays_with_the_exporter(chromium: Browser, guarded: Path) -> None:
    with on(Vnc(path=guarded, password="pass word")) as vnc, vnc.novnc() as page:
        chromium.open(page.url)
        chromium.run("globalThis.asked = 0; globalThis.prompt = () => { asked++; return null; }; 0")
        chromium.until("document.getElementById('state').textContent == 'connected'")
        chromium.until(GREEN)
        assert chromium.run("asked") == 0
    with on(Vnc(path=guarded, password="guess")) as vnc, vnc.novnc() as page:
        chromium.open(page.url)
        chromium.until("document.getElementById('state').textContent.includes('lets nobody in with this password')")
    chromium.open("about:blank")


@pytest.mark.parametrize("version", [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n"])
async def test_viewers_of_all_versions_are_asked_for_nothing(guarded: Path, version: bytes) -> None:
    with trio.fail_after(60):
        async with on(Vnc(path=guarded, password="pass word")) as vnc, vnc.view() as stream:
            received = b""

            async def take(size: int) -> bytes:
                nonlocal received
                while len(received) < size:
                    data = await stream.receive_some()
                    assert data
                    received += data
                taken, received = received[:size], received[size:]
                return taken

            assert await take(12) == b"RFB 003.008\n"
            await stream.send_all(version)
            if version == b"RFB 003.003\n":
                assert await take(4) == b"\0\0\0\1"
            else:
                assert await take(2) == b"\1\1"
                await stream.send_all(b"\1")
                if version > b"RFB 003.007\n":
                    assert await take(4) == bytes(4)
            await stream.send_all(b"\1")
            assert await take(4) == (320).to_bytes(2, "big") + (200).to_bytes(2, "big")


async def test_who_is_no_viewer_is_told(guarded: Path) -> None:
    with trio.fail_after(60):
        async with on(Vnc(path=guarded, password="pass word")) as vnc, vnc.view() as stream:
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert await stream.receive_some() == b"RFB 003.008\n"
            with pytest.raises(UsageError, match="it does not speak VNC"):
                await stream.receive_some()


def request(page: Any, path: str = "", **headers: str) -> bytes:
    """What a request of a program is answered."""
    host, port = page.url.split("/")[2].split(":")
    lines = {"Host": f"{host}:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    target = path if path.startswith("/") else f"/{page.url.split('/')[3]}/{path}"
    text = f"GET {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    with socket.create_connection((host, int(port))) as sock:
        sock.settimeout(60)
        sock.sendall(text.encode())
        return b"".join(iter(lambda: sock.recv(65536), b""))


UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def test_strangers_get_nothing() -> None:
    with on(CommandConsole(command=CONSOLE)) as console, console.web() as page:
        origin = page.url.rpartition("/")[0].rpartition("/")[0]
        assert request(page).startswith(b"HTTP/1.1 200")
        assert b"script-src 'self'" in request(page)
        for path in ("/", "/console.html", "/guess/", "/guess/console.html"):
            assert request(page, path).startswith(b"HTTP/1.1 404")
        for path in ("../page.py", "page.py", "server.py", "vendor", "vendor/../page.js", "//etc/passwd", "no.js"):
            assert request(page, path).startswith(b"HTTP/1.1 404")
        assert request(page, Host="evil.example").startswith(b"HTTP/1.1 421")
        assert request(page, "stream", **UPGRADE).startswith(b"HTTP/1.1 403")
        assert request(page, "stream", **UPGRADE, Origin="http://evil.example").startswith(b"HTTP/1.1 403")
        assert request(page, "stream", **UPGRADE, Origin=origin, Host="evil.example").startswith(b"HTTP/1.1 421")
        assert request(page, "/guess/stream", **UPGRADE, Origin=origin).startswith(b"HTTP/1.1 404")
        for listen in ("0.0.0.0:0", "unix:/tmp/x", "192.0.2.1:80"):
            with pytest.raises(UsageError, match="only this machine may reach it"):
                console.web(listen)


async def test_under_trio() -> None:
    with trio.fail_after(60):
        async with on(CommandConsole(command=CONSOLE)) as console, console.web() as page:
            assert (await trio.to_thread.run_sync(request, page)).startswith(b"HTTP/1.1 200")


def test_files_of_others_are_unchanged() -> None:
    vendor = ROOT / "jmp/client/web/vendor"
    lines = [line.split("  ") for line in (vendor / "SHA256SUMS").read_text().splitlines()]
    listed = {name: digest for digest, name in lines}
    there = {
        str(path.relative_to(vendor)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in ("novnc", "xterm")
        for path in (vendor / folder).rglob("*")
        if path.is_file()
    }
    assert there == listed
