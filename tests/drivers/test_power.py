from __future__ import annotations

import base64
import json
import math
import os
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, schema, serve
from jmp_drivers.power import CommandPower, HttpPower, MockPower, Request
from tests.fakes.bundled import driver_class, problems_in

# ---- mock-power


async def test_mock_power_remembers_its_state_and_counts_cycles() -> None:
    with trio.fail_after(60):
        async with serve(MockPower()) as power:
            assert await power.state() == "off"
            await power.on()
            await power.on()
            assert (await power.state(), await power.cycles()) == ("on", 1)
            await power.cycle(wait=0)
            assert (await power.state(), await power.cycles()) == ("on", 2)
            await power.off()
            assert await power.state() == "off"


@pytest.mark.parametrize("wait", [-1.0, math.nan, math.inf])
async def test_a_wait_that_cannot_be_leaves_it_on(wait: float) -> None:
    with trio.fail_after(60):
        for driver in (
            MockPower(initial=True),
            CommandPower(on_command="true", off_command="true", cycle_command="true"),
        ):
            async with serve(driver) as power:
                await power.on()
                with pytest.raises(BadValue, match="wait must be 0 seconds or more, not"):
                    await power.cycle(wait)
                assert await power.state() == "on"


def test_mock_power_through_the_blocking_client() -> None:
    with serve(MockPower(initial=True)) as power:
        assert power.state() == "on"
        power.off()
        assert power.state() == "off"


# ---- command-power


async def test_commands_are_lists_or_shell_texts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    driver = CommandPower(
        on_command=["sh", "-c", 'echo "outlet 1 is $1" > state', "sh", "ON"],
        off_command="echo 'outlet 1 is OFF' > state",
        state_command=["cat", "state"],
        cwd=tmp_path,
    )
    with trio.fail_after(60):
        async with serve(driver) as power:
            await power.on()
            assert state.read_text() == "outlet 1 is ON\n"
            assert await power.state() == "on"
            await power.off()
            assert await power.state() == "off"
            await power.cycle(wait=0)
            assert await power.state() == "on"


async def test_without_a_state_command_the_last_order_that_succeeded_is_told() -> None:
    with trio.fail_after(60):
        async with serve(CommandPower(on_command="true", off_command="false")) as power:
            assert await power.state() == "unknown"
            await power.on()
            assert await power.state() == "on"
            with pytest.raises(DeviceError):
                await power.off()
            assert await power.state() == "unknown"


@pytest.mark.parametrize(
    ("text", "state"),
    [("Port 2: 0103 power", "on"), ("Port 2: 0000 off", "off"), ("?", "unknown"), ("power off", "unknown")],
)
async def test_patterns_tell_the_state(text: str, state: str) -> None:
    driver = CommandPower(
        on_command="true", off_command="true", state_command=["echo", text], on_pattern="power", off_pattern="off"
    )
    with trio.fail_after(60):
        async with serve(driver) as power:
            assert await power.state() == state


async def test_cycle_command_gets_the_wait(tmp_path: Path) -> None:
    driver = CommandPower(
        on_command="false", off_command="false", cycle_command="echo $JMP_WAIT > waited", cwd=tmp_path
    )
    with trio.fail_after(60):
        async with serve(driver) as power:
            await power.cycle(2.5)
            assert await power.state() == "on"
    assert (tmp_path / "waited").read_text() == "2.5\n"


async def test_failing_command_is_told_with_its_status_and_last_words() -> None:
    driver = CommandPower(on_command="seq 5 >&2; exit 3", off_command=["no-such-tool"])
    with trio.fail_after(60):
        async with serve(driver) as power:
            with pytest.raises(DeviceError, match=r"^the command for 'on' failed with exit status 3: 3 \| 4 \| 5$"):
                await power.on()
            with pytest.raises(DeviceError, match="cannot start no-such-tool: no such program"):
                await power.off()


async def test_command_out_of_time_is_ended() -> None:
    driver = CommandPower(on_command="sleep 1000", off_command="true", timeout=0.1)
    with trio.fail_after(60):
        async with serve(driver) as power:
            with pytest.raises(DeviceError, match=r"^the command for 'on' did not end within 0\.1 s$"):
                await power.on()


async def test_caller_giving_up_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    ready = tmp_path / "fifo"

    os.mkfifo(ready)
    driver = CommandPower(
        on_command=f"trap 'echo TERM > signalled; exit' TERM; sleep 1000 & echo $$ > {ready}; wait",
        off_command="true",
        cwd=tmp_path,
    )
    with trio.fail_after(60):
        async with serve(driver) as power, trio.open_nursery() as nursery:
            nursery.start_soon(power.on)
            group = int(await trio.Path(ready).read_text())
            nursery.cancel_scope.cancel()
    assert (tmp_path / "signalled").read_text() == "TERM\n"
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"on": "true"}, "missing key 'off'"),
        ({"on": [], "off": "true"}, "on: the command is empty"),
        ({"on": "true", "off": "true", "on_pattern": "("}, r"on_pattern: '\(' is no regular expression"),
        ({"on": 1, "off": "true"}, "expected"),
    ],
)
def test_command_power_checks_its_configuration(config: dict[str, Any], problem: str) -> None:
    driver, problems = schema.load(CommandPower, config)
    assert driver is None
    assert [each for each in problems if pytest.RaisesExc(ValueError, match=problem).matches(ValueError(each.message))]


# ---- http-power


@dataclass
class Relay:
    """A network relay as a Shelly and a Tasmota would answer, on a real HTTP server."""

    url: str = ""
    on: bool = False
    requests: list[tuple[str, str, bytes, dict[str, str]]] = field(default_factory=list)
    password: str | None = None
    silent: threading.Event | None = None

    def answer(self, method: str, target: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        self.requests.append((method, target, body, headers))
        if self.silent is not None:
            self.silent.wait()
        if self.password is not None:
            expected = base64.b64encode(f"lab:{self.password}".encode()).decode()
            if headers.get("Authorization") != f"Basic {expected}":
                return 401, "who are you?"
        url = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        match method, url.path:
            case "GET", "/rpc/Switch.Set":
                before, self.on = self.on, query["on"] == "true"
                return 200, json.dumps({"was_on": before})
            case "GET", "/rpc/Switch.GetStatus":
                return 200, json.dumps({"id": 0, "source": "http", "output": self.on, "apower": 0.0})
            case "GET", "/cm":
                match unquote(query["cmnd"]).split():
                    case ["Power", order]:
                        self.on = order == "On"
                    case ["Status", "8"]:
                        measured = {"Total": 3.185, "ApparentPower": 7, "Power": 3, "Voltage": 230, "Current": 0.024}
                        return 200, json.dumps({"StatusSNS": {"Time": "2026-01-01T00:00:00", "ENERGY": measured}})
                return 200, json.dumps({"POWER": "ON" if self.on else "OFF"})
            case "PATCH", "/outlets/3":
                self.on = bool(json.loads(body)["on"])
                return 204, ""
        return 404, "no such\n  page"


@contextmanager
def relay() -> Iterator[Relay]:
    device = Relay()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = device.answer(self.command, self.path, body, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            with suppress(BrokenPipeError):  # the driver has given up
                self.wfile.write(text.encode())

        do_GET = do_PATCH = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        device.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield device
        finally:
            server.shutdown()
            thread.join()


def shelly(device: Relay, **config: Any) -> HttpPower:
    return HttpPower(
        on_request=f"{device.url}/rpc/Switch.Set?id=0&on=true",
        off_request=f"{device.url}/rpc/Switch.Set?id=0&on=false",
        state_request=f"{device.url}/rpc/Switch.GetStatus?id=0",
        on_pattern=r'"output":\s*true',
        off_pattern=r'"output":\s*false',
        **config,
    )


async def test_shelly() -> None:
    with relay() as device, trio.fail_after(60):
        async with serve(shelly(device)) as power:
            assert await power.state() == "off"
            await power.on()
            assert device.on
            assert await power.state() == "on"
            await power.cycle(wait=0)
            assert await power.state() == "on"
            await power.off()
            assert not device.on


async def test_what_it_measures_is_read_if_the_configuration_says_how() -> None:
    with relay() as device, trio.fail_after(60):
        status = f"{device.url}/cm?cmnd=Status%208"
        async with serve(shelly(device, reading_request=status)) as power:
            assert await power.reading() == {"power": 3.0, "voltage": 230.0, "current": 0.024}
            async with aclosing(power.readings(interval=0.01)) as readings:
                assert [(await anext(readings))["voltage"] for _ in range(3)] == [230.0] * 3
        patterns = {"energy": r'"Total":\s*(\S+),', "pressure": "Pressure (.)"}
        async with serve(shelly(device, reading_request=status, reading_patterns=patterns)) as power:
            assert await power.reading() == {"energy": 3.185}
        async with serve(shelly(device, reading_request=f"{device.url}/rpc/Switch.Set?on=true")) as power:
            with pytest.raises(
                DeviceError, match=r'the answer has no voltage and no current and no power: {"was_on": false}'
            ):
                await power.reading()
        async with serve(shelly(device, reading_request=status, reading_patterns={"x": "(Time)"})) as power:
            with pytest.raises(DeviceError, match="the answer has 'Time' for x, in which there is no number"):
                await power.reading()
        async with serve(shelly(device)) as power:
            with pytest.raises(AttributeError):
                await power.readings()
    printed = CommandPower(
        on_command="true", off_command="true", reading_command="echo 'Voltage: -12.1 V, current=0.34'"
    )
    async with serve(printed) as power:
        assert await power.reading() == {"voltage": -12.1, "current": 0.34}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"power": "("}, "reading_patterns.power: '\\(' is no regular"),
        ({"power": "x"}, "reading_patterns.power: put the number"),
    ],
)
def test_patterns_of_readings_that_cannot_be(patterns: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CommandPower(on_command="true", off_command="true", reading_command="true", reading_patterns=patterns)


async def test_tasmota_answers_what_is_expected() -> None:
    with relay() as device, trio.fail_after(60):
        driver = HttpPower(
            on_request=Request(f"{device.url}/cm?cmnd=Power%20On", expect='"ON"'),
            off_request=Request(f"{device.url}/cm?cmnd=Power%20Off", expect='"ON"'),
            state_request=f"{device.url}/cm?cmnd=Power",
        )
        async with serve(driver) as power:
            await power.on()
            assert await power.state() == "on"
            with pytest.raises(DeviceError, match=r"""the answer does not match '"ON"': \{"POWER": "OFF"\}$"""):
                await power.off()
            assert await power.state() == "off"


async def test_method_headers_and_body_are_sent_and_the_last_order_is_remembered() -> None:
    with relay() as device, trio.fail_after(60):
        outlet = f"{device.url}/outlets/3"
        driver = HttpPower(
            on_request=Request(outlet, "PATCH", {"Content-Type": "application/json"}, '{"on": 1}'),
            off_request=Request(outlet, "PATCH", {"Content-Type": "application/json"}, '{"on": 0}'),
        )
        async with serve(driver) as power:
            assert await power.state() == "unknown"
            await power.on()
            assert await power.state() == "on"
        ((method, target, body, headers),) = device.requests
        assert (method, target, body, headers["Content-Type"]) == (
            "PATCH",
            "/outlets/3",
            b'{"on": 1}',
            "application/json",
        )
        assert headers["Host"] == urlsplit(outlet).netloc


async def test_password_is_sent_and_never_shown() -> None:
    with relay() as device, trio.fail_after(60):
        device.password = "s3cret"
        async with serve(shelly(device, username="lab", password="s3cret")) as power:
            await power.on()
            assert device.on
        wrong = shelly(device, username="lab", password="wr0ng")
        async with serve(wrong) as power:
            with pytest.raises(
                DeviceError, match=r"GET .*/rpc/Switch\.Set: the answer is 401 Unauthorized: who are"
            ) as failure:
                await power.on()
        shown = f"{failure.value!r} {failure.value.remote_traceback} {wrong!r} {wrong._requests!r}"
        assert "wr0ng" not in shown
        assert base64.b64encode(b"lab:wr0ng").decode() not in shown
        assert "on=true" not in str(failure.value)  # some relays take the password in the query


@pytest.mark.parametrize(
    "config",
    [
        {"on": "http://lab:s3cret@relay/on", "off": "http://relay/off"},
        {"on": {"url": 5, "headers": {"Authorization": "s3cret"}}, "off": "http://relay/off"},
        {"on": {"url": "s3cret"}, "off": "http://relay/off"},
        {"on": "http://relay/on", "off": "http://relay/off", "username": "lab", "password": ["s3cret"]},
        {"on": "http://relay/on", "off": "http://relay/off", "password": "s3cret"},
        {"on": "ftp://relay/on?s3cret", "off": "http://relay/off"},
        {"on": "http://relay:s3cret/on", "off": "http://relay/off"},
        {"on": {"url": "http://relay/on", "expect": "("}, "off": "http://relay/off"},
    ],
)
def test_http_power_checks_its_configuration_and_shows_no_secret(config: dict[str, Any]) -> None:
    driver, problems = schema.load(HttpPower, config)
    assert driver is None
    assert problems
    assert "s3cret" not in str(problems)


async def test_wrong_status_is_told_in_one_line() -> None:
    with relay() as device, trio.fail_after(60):
        async with serve(HttpPower(on_request=f"{device.url}/nowhere", off_request=device.url)) as power:
            with pytest.raises(
                DeviceError, match=r"^GET http://127.*/nowhere: the answer is 404 Not Found: no such page$"
            ):
                await power.on()


async def test_refused_connection_is_told() -> None:
    with relay() as device:
        url = device.url
    with trio.fail_after(60):
        async with serve(HttpPower(on_request=url, off_request=url)) as power:
            with pytest.raises(DeviceError, match=r"^GET http://127\.0\.0\.1:\d+: Connection refused$"):
                await power.on()


async def test_silent_relay_is_given_up() -> None:
    with relay() as device, trio.fail_after(60):
        device.silent = threading.Event()
        async with serve(shelly(device, timeout=0.1)) as power:
            with pytest.raises(DeviceError, match=r"/rpc/Switch\.GetStatus: no answer within 0\.1 s$"):
                await power.state()
        device.silent.set()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "it does not speak HTTP properly"),
        (b"", "it does not speak HTTP properly"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (1024 * 1024 + 1), "its answer is longer than"),
    ],
)
async def test_what_is_no_relay_is_told(answer: bytes, message: str) -> None:
    async def impostor(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        try:
            await stream.send_all(answer)
            await stream.aclose()
        except trio.BrokenResourceError:
            pass

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, impostor, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}/on"
            async with serve(HttpPower(on_request=url, off_request=url)) as power:
                with pytest.raises(DeviceError, match=message):
                    await power.on()
            nursery.cancel_scope.cancel()


# ---- all


def test_documented_configurations_are_valid() -> None:
    assert problems_in("docs/drivers/power.md") == []
    assert problems_in("jmp/examples/power.yaml") == []
    assert driver_class("mock-power") is MockPower
