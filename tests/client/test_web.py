"""A console and a screen in a real browser, and who else may not get at them."""

from __future__ import annotations

import hashlib
import socket
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


def request(page: Any, path: str = "", **headers: str) -> bytes:
    """What a request of a program is answered."""
    host, port = page.url.split("/")[2].split(":")
    lines = {"Host": f"{host}:{port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    target = path if path.startswith("/") else f"/{page.url.split('/')[3]}/{path}"
    text = f"GET {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items()) + "\r\n"
    with socket.create_connection((host, int(port))) as sock:
        sock.settimeout(10)
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
    with trio.fail_after(30):
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
