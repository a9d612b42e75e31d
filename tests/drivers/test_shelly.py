"""A Shelly that speaks the real protocol; its authentication is proved against curl."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from jmp.driver import BadValue, DeviceError, schema, serve
from jmp_drivers._digest import authorization
from jmp_drivers.shelly import Shelly
from tests.fakes.bundled import problems_in

REALM = "shellyplugsg3-aabbccddeeff"


@dataclass
class Plug:
    """One switch, as the documentation of its RPC has it."""

    password: str | None = None
    on: bool = False
    metered: bool = True
    page: str | None = None
    host: str = ""

    def answer(self, target: str, header: str) -> tuple[int, dict[str, Any]]:
        if self.password is not None and not self.knows(target, header):
            return 401, {"code": 401, "message": "Unauthorized"}
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        if query["id"] != "0":
            return 500, {"code": -105, "message": f"Argument 'id', value {query['id']} not found!"}
        match url.path:
            case "/rpc/Switch.Set":
                before, self.on = self.on, {"true": True, "false": False}[query["on"]]
                return 200, {"was_on": before}
            case "/rpc/Switch.GetStatus":
                measured = {
                    "apower": 11.5 * self.on,
                    "voltage": 230.0,
                    "current": 0.05 * self.on,
                    "aenergy": {"total": 134.5, "by_minute": [0.0, 0.0, 0.0], "minute_ts": 1632600459},
                }
                temperature = {"tC": 49.5, "tF": 121.1}
                status = {"id": 0, "source": "HTTP_in", "output": self.on, "temperature": temperature}
                return 200, status | (measured if self.metered else {})
        return 404, {"code": 404, "message": f"No handler for {url.path.rpartition('/')[2]}"}

    def knows(self, target: str, header: str) -> bool:
        """Whether the answer to the challenge shows the password (RFC 7616, 3.4.1)."""
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', header))
        if given.get("username") != "admin" or given["uri"] != target or given["realm"] != REALM:
            return False
        first, second = (
            hashlib.sha256(part.encode()).hexdigest() for part in (f"admin:{REALM}:{self.password}", f"GET:{target}")
        )
        told = f"{first}:{given['nonce']}:{given['nc']}:{given['cnonce']}:auth:{second}"
        expected = hashlib.sha256(told.encode()).hexdigest()
        return bool(given["response"] == expected)


@contextmanager
def listening(plug: Plug, port: int = 0) -> Iterator[Plug]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, answer = plug.answer(self.path, self.headers.get("Authorization", ""))
            body = (plug.page or json.dumps(answer)).encode()
            self.send_response(status)
            if status == 401:
                self.send_header(
                    "WWW-Authenticate", f'Digest qop="auth", realm="{REALM}", nonce="60dc2c2a", algorithm=SHA-256'
                )
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        plug.host = f"127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield plug
        finally:
            server.shutdown()
            thread.join()


async def test_it_is_switched_and_measures() -> None:
    with listening(Plug()) as plug, trio.fail_after(60):
        async with serve(Shelly(host=plug.host)) as power:
            assert await power.state() == "off"
            await power.on()
            assert plug.on
            assert await power.reading() == {"voltage": 230.0, "current": 0.05, "power": 11.5, "energy": 0.1345}
            await power.cycle(wait=0)
            assert (plug.on, await power.state()) == (True, "on")
            async with aclosing(power.readings(interval=0.01)) as readings:
                assert (await anext(readings))["power"] == 11.5
                await power.off()
                while (await anext(readings))["power"]:  # one may have been under way
                    pass
            assert not plug.on
            async with aclosing(power.readings(interval=0)) as readings:
                with pytest.raises(BadValue, match="interval must be more than 0"):
                    await anext(readings)


async def test_password_is_never_sent_and_a_wrong_one_is_told() -> None:
    with listening(Plug(password="s3cret")) as plug, trio.fail_after(60):
        url = f"http://{plug.host}/rpc/Switch.Set?id=0&on=true"
        for password, status in (("wrong", "401"), ("s3cret", "200")):
            curl = ["curl", "-s", "--noproxy", "*", "-w", "%{http_code}", "--digest", "-u", f"admin:{password}", url]
            done = await trio.run_process(curl, capture_stdout=True)
            assert done.stdout.decode().endswith(status)
        async with serve(Shelly(host=plug.host, password="s3cret")) as power:
            assert await power.state() == "on"
            await power.off()
            assert not plug.on
            plug.password = "changed"
            with pytest.raises(DeviceError, match=r"^Switch\.Set at 127.*: it does not take this password$") as failure:
                await power.on()
            assert "s3cret" not in f"{failure.value!r} {failure.value.remote_traceback}"
        async with serve(Shelly(host=plug.host)) as power:
            with pytest.raises(DeviceError, match="it wants a password: give one"):
                await power.state()


async def test_absent_one_degrades_the_driver_until_it_is_there() -> None:
    opened = trio.Event()

    class Watched(Shelly):
        async def open(self) -> None:
            await super().open()
            opened.set()

    with listening(Plug()) as plug:
        host, port = plug.host, int(plug.host.rpartition(":")[2])
    with trio.fail_after(60):
        async with serve(Watched(host=host)) as power:
            with pytest.raises(DeviceError, match=r"degraded: Switch\.GetStatus at 127.*: Connection refused$"):
                await power.on()
            with listening(Plug(), port) as plug:
                await opened.wait()
                await power.on()
                assert plug.on


async def test_one_that_goes_away_in_use_is_told_and_its_return_suffices() -> None:
    with trio.fail_after(60):
        async with AsyncExitStack() as session:
            with listening(Plug()) as plug:
                power = await session.enter_async_context(serve(Shelly(host=plug.host)))
            with pytest.raises(DeviceError, match=r"^Switch\.Set at 127.*: Connection refused$"):
                await power.on()
            with listening(plug, int(plug.host.rpartition(":")[2])):
                await power.on()
                assert plug.on


@pytest.mark.parametrize(
    ("plug", "switch", "message"),
    [
        (Plug(), 3, "Argument 'id', value 3 not found!"),
        (Plug(page="<html>"), 0, "the answer is not a Shelly's"),
        (Plug(metered=False), 0, "measures nothing: this model has no meter"),
    ],
)
async def test_what_it_cannot_do_is_told(plug: Plug, switch: int, message: str) -> None:
    with listening(plug), trio.fail_after(60):
        async with serve(Shelly(host=plug.host, switch=switch)) as power:
            with pytest.raises(DeviceError, match=message):
                await power.reading()


@pytest.mark.parametrize(
    "challenge", ["", 'Basic realm="x"', 'Digest realm="x", nonce="y", qop="auth-int"', "Digest a"]
)
def test_challenges_that_cannot_be_met(challenge: str) -> None:
    with pytest.raises(ValueError):
        authorization(challenge, method="GET", uri="/", username="admin", password="x", cnonce="c")


@pytest.mark.parametrize(
    "config", [{"host": "http://plug"}, {"host": "a@b"}, {"host": ""}, {"host": "a", "switch": -1}, {}]
)
def test_configuration_is_checked(config: dict[str, Any]) -> None:
    driver, problems = schema.load(Shelly, config)
    assert driver is None
    assert problems


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/power.md") == []
