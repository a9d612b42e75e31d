"""An outlet of a PDU, which is net-snmp's own agent with the outlet table of an APC."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import trio

from jmp.driver import BadValue, DeviceError, schema, serve
from jmp_drivers.snmp import Measure, SnmpPower
from tests.fakes.bundled import problems_in

BASE = "1.3.6.1.4.1.318.1.1.4.4.2.1.3"
OUTLET = f"{BASE}.4"
AMPERES = f"{BASE}.100"

PDU = """
import sys
from pathlib import Path
base, state = "." + sys.argv[2], Path(sys.argv[1])
def line(): return sys.stdin.readline().rstrip("\\n")
def say(*words): print("\\n".join(words), flush=True)
while order := sys.stdin.readline():
    order = order.strip()
    if not order:
        continue  # the agent sends two empty lines after a value
    if order == "PING":
        say("PONG")
        continue
    oid = line()
    if order == "set":
        kind, value = line().split(None, 1)
        if oid != base + ".4" or kind != "integer":
            say("not-writable")
        elif value.strip('"') not in "12":
            say("wrong-value")
        else:
            state.write_text(value.strip('"'))
            say("DONE")
    elif order == "get" and oid == base + ".4":
        say(oid, "integer", state.read_text())
    elif order == "get" and oid == base + ".100":
        say(oid, "gauge", "5" if state.read_text() == "1" else "0")
    elif order == "get" and oid == base + ".101":
        say(oid, "string", "outlet four")
    else:
        say("NONE")
"""


def free_port() -> int:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@asynccontextmanager
async def pdu(folder: Path, port: int) -> AsyncIterator[Path]:
    """The agent at work; yields the file with the outlet's state."""
    (folder / "pdu.py").write_text(PDU)
    state = folder / "state"
    if not state.exists():
        state.write_text("2")
    (folder / "snmpd.conf").write_text(
        f"agentAddress udp:127.0.0.1:{port}\nrocommunity public 127.0.0.1\nrwcommunity s3cret 127.0.0.1\n"
        "createUser lab SHA s3cret-auth AES s3cret-priv\nrwuser lab priv\n"
        f"pass_persist .{BASE} {sys.executable} {folder}/pdu.py {state} {BASE}\n"
    )
    argv = ["/usr/sbin/snmpd", "-f", "-Le", "-C", "-c", f"{folder}/snmpd.conf", "-p", f"{folder}/pid", "-I", "-smux"]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, argv, stderr=PIPE, check=False, env={"SNMP_PERSISTENT_DIR": str(folder)})
        process: trio.Process = await nursery.start(run)
        assert process.stderr is not None
        said = b""
        while b"NET-SNMP version" not in said:
            said += await process.stderr.receive_some() or pytest.fail(f"snmpd ended: {said.decode()}")
        yield state
        process.kill()
        nursery.cancel_scope.cancel()


def outlet(port: int, **more: Any) -> SnmpPower:
    given: dict[str, Any] = {
        "oid": OUTLET,
        "community": "s3cret",
        "timeout": 60,
        "measures": {"current": Measure(AMPERES, 0.1)},
    } | more
    return SnmpPower(host=f"127.0.0.1:{port}", **given)


async def test_it_is_switched_and_measures(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with pdu(tmp_path, port := free_port()) as state, serve(outlet(port)) as power:
            assert await power.state() == "off"
            await power.on()
            assert (state.read_text(), await power.state()) == ("1", "on")
            assert await power.reading() == {"current": 0.5}
            await power.cycle(wait=0)
            assert state.read_text() == "1"
            async with aclosing(power.readings(interval=0.01)) as readings:
                assert await anext(readings) == {"current": 0.5}
                await power.off()
                while (await anext(readings))["current"]:  # one may have been under way
                    pass
            async with aclosing(power.readings(interval=0)) as readings:
                with pytest.raises(BadValue, match="interval must be more than 0"):
                    await anext(readings)


async def test_version_3_encrypts(tmp_path: Path) -> None:
    how = {"version": "3", "user": "lab", "auth_passphrase": "s3cret-auth"}
    with trio.fail_after(60):
        async with pdu(tmp_path, port := free_port()) as state:
            async with serve(outlet(port, **how, privacy_passphrase="s3cret-priv")) as power:
                await power.on()
                assert state.read_text() == "1"
            async with serve(outlet(port, **how, privacy_passphrase="s3cret-wrong", timeout=2)) as power:
                with pytest.raises(DeviceError) as failure:
                    await power.off()
                assert "s3cret" not in f"{failure.value!r} {failure.value.remote_traceback}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"community": "public"}, r"noAccess|not.?[Ww]ritable|readOnly|noSuchName"),
        ({"on_value": 7}, r"wrongValue"),
        ({"oid": f"{BASE}.100"}, r"notWritable"),
    ],
)
async def test_what_the_pdu_refuses_is_told(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with trio.fail_after(60):
        async with pdu(tmp_path, port := free_port()), serve(outlet(port, **config)) as power:
            with pytest.raises(DeviceError, match=rf"^PDU 127\.0\.0\.1:{port}: .*({message})"):
                await power.on()


@pytest.mark.parametrize(
    ("oid", "message"), [(f"{BASE}.9", "No Such"), (f"{BASE}.101", "is no number but 'outlet four'")]
)
async def test_what_is_no_outlet_degrades_the_driver(tmp_path: Path, oid: str, message: str) -> None:
    with trio.fail_after(60):
        async with pdu(tmp_path, port := free_port()), serve(outlet(port, oid=oid)) as power:
            with pytest.raises(DeviceError, match=f"degraded: .*{message}"):
                await power.on()


async def test_absent_then_there_then_gone_then_back(tmp_path: Path) -> None:
    opened = trio.Event()

    class Watched(SnmpPower):
        async def open(self) -> None:
            await super().open()
            opened.set()

    port = free_port()
    driver = Watched(host=f"127.0.0.1:{port}", oid=OUTLET, community="s3cret", timeout=0.5)
    with trio.fail_after(60):
        async with AsyncExitStack() as session:
            power = await session.enter_async_context(serve(driver))
            with pytest.raises(DeviceError, match=r"degraded: PDU .*: no answer within 0\.5 s; it may be off"):
                await power.on()
            async with pdu(tmp_path, port) as state:
                driver.timeout = 60
                await opened.wait()
                await power.on()
                assert state.read_text() == "1"
            driver.timeout = 0.5
            with pytest.raises(DeviceError, match=r"^PDU .*: no answer within 0\.5 s"):
                await power.off()
            async with pdu(tmp_path, port) as state:
                driver.timeout = 60
                await power.off()
                assert state.read_text() == "2"


@pytest.mark.parametrize(
    "config",
    [
        {"oid": "sysDescr.0"},
        {"host": "-v"},
        {"on_value": 2},
        {"timeout": 0},
        {"version": "3"},
        {"user": "lab"},
        {"privacy_passphrase": "s3cret12"},
        {"community": 's3cret"\nmibs ALL'},
        {"measures": {"power": {"oid": "x"}}},
    ],
)
def test_configuration_is_checked_and_shows_no_secret(config: dict[str, Any]) -> None:
    driver, problems = schema.load(SnmpPower, {"host": "pdu", "oid": OUTLET} | config)
    assert driver is None
    assert problems
    assert "s3cret" not in str(problems)


def test_documented_configuration_is_valid() -> None:
    assert problems_in("docs/drivers/power.md") == []
