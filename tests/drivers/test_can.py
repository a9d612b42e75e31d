"""CAN and what is spoken on it, on python-can's own buses: within the process, and multicast on loopback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import can
import pytest
import trio

from jmp.driver import BadValue, ConfigError, DeviceError, serve
from jmp_drivers.can.bus import Can
from jmp_drivers.can.isotp import IsoTp
from jmp_drivers.can.uds import Diagnosis, Doip, Uds
from tests.fakes.ecu import KEY, SEED, VIN, Ecu, behind_gateway, on_can
from tests.fakes.patience import works
from tests.fakes.ports import free_port


@pytest.fixture
def channel() -> str:
    """A bus of this test's own."""
    return str(uuid4())


def bus(channel: str, **more: Any) -> can.BusABC:
    return can.Bus(interface="virtual", channel=channel, **more)


async def watched(client: Any, count: int, send: Callable[[], None], *arguments: Any) -> list[dict[str, Any]]:
    """The first frames that a watcher gets, while they are sent."""
    seen: list[dict[str, Any]] = []
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            async for frame in client.watch(*arguments):
                seen.append({key: value for key, value in frame.items() if key != "time"})
                if len(seen) == count:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(read)
        while True:
            await trio.to_thread.run_sync(send)
            await trio.sleep(0.02)
    return seen


async def test_frames(channel: str) -> None:
    other = bus(channel)
    with trio.fail_after(60):
        async with serve(Can(adapter="virtual", channel=channel, fd=True)) as client:
            await client.send(0x123, "61 62:63")  # as on a command line
            await client.send(0x18DAF110, bytes(64), fd=True)
            await client.send(0x7, remote=True)
            frames = [other.recv(60) for _ in range(3)]
            assert [
                (each.arbitration_id, each.is_extended_id, each.is_fd, len(each.data)) for each in frames if each
            ] == [
                (0x123, False, False, 3),
                (0x18DAF110, True, True, 64),
                (0x7, False, False, 0),
            ]

            def send() -> None:
                for number in (0x200, 0x301, 0x302):
                    other.send(can.Message(arbitration_id=number, data=b"x", is_extended_id=False))

            assert await watched(client, 2, send, 0x300, 0x700) == [
                {"id": 0x301, "data": b"x"},
                {"id": 0x302, "data": b"x"},
            ]
            assert (await watched(client, 1, send))[0]["id"] in (0x200, 0x301, 0x302)
            await client.repeat(0x55, b"1", period=0.005)
            while (frame := other.recv(60)) and frame.data != b"1":
                pass
            assert frame
            await client.repeat(0x55, b"2", period=0.005)
            while (frame := other.recv(60)) and frame.data != b"2":
                pass
            assert frame
            await client.stop()
            with pytest.raises(DeviceError, match=r"nothing with the id 0x99 came within 0\.05 s"):
                await client.request(0x12, b"", 0x99, seconds=0.05)
            with pytest.raises(BadValue, match="pairs of hexadecimal digits"):
                await client.send(0x123, "hello")
            for wrong in ({"id": 0x800, "extended": False}, {"id": 1, "data": bytes(9)}, {"id": 1 << 30}):
                with pytest.raises(BadValue, match="no frame can be so"):
                    await client.send(**wrong)
    other.shutdown()


async def test_a_question_has_its_answer(channel: str) -> None:
    other = bus(channel)

    def answer(frame: can.Message) -> None:
        if frame.arbitration_id == 0x12:
            other.send(can.Message(arbitration_id=0x99, data=bytes(frame.data)[::-1], is_extended_id=False))

    notifier = can.Notifier(other, [answer], timeout=0.05)
    with trio.fail_after(60):
        async with serve(Can(adapter="virtual", channel=channel)) as client:
            assert await client.request(0x12, b"abc", 0x99, seconds=60) == b"cba"
    notifier.stop()
    other.shutdown()


async def test_between_two_processes_by_multicast() -> None:
    options: dict[str, str | int | float | bool] = {"port": free_port(), "hop_limit": 0}
    how: dict[str, Any] = {"adapter": "udp_multicast", "channel": "239.74.163.2", "options": options}
    with trio.fail_after(60):
        async with serve(Can(**how)) as one, serve(Can(**how)) as two:
            seen = []
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    async for frame in two.watch():
                        seen.append(frame["data"])
                        nursery.cancel_scope.cancel()

                nursery.start_soon(read)
                await one.repeat(0x1, b"hello", period=0.02)
            assert seen == [b"hello"]


async def test_a_bus_that_is_not_there() -> None:
    async with serve(Can(channel="can7")) as client:
        with pytest.raises(DeviceError, match=r"CAN bus can7 \(socketcan\): there is no such interface"):
            await client.send(1)
    for config, message in (({"adapter": "socketcam"}, "none of python-can's"), ({"bitrate": 0}, "more than 0")):
        given: dict[str, Any] = config
        with pytest.raises(ConfigError, match=message):
            Can(**given)


def test_messages_longer_than_a_frame(channel: str) -> None:
    how: dict[str, Any] = {"adapter": "virtual", "channel": channel}
    with (
        on_can(Ecu(), interface="virtual", channel=channel),
        serve(IsoTp(**how, tx=0x7E0, rx=0x7E8, padding=0xCC, timeout=60)) as client,
    ):
        assert client.request(b"\x22\xf1\x90") == b"\x62\xf1\x90" + VIN
        client.send(b"\x2e\x01\x00" + bytes(500))
        assert client.receive() == b"\x7f\x2e\x33"
        with pytest.raises(DeviceError, match=r"0x7e8 did not send a message within 0\.05 s"):
            client.receive(0.05)
        with pytest.raises(BadValue, match="at least one byte"):
            client.send(b"")
    alone = serve(IsoTp(**how, tx=0x7E0, rx=0x7E8, timeout=0.2))
    with alone as client, pytest.raises(DeviceError, match="0x7e8 does not take the message"):
        client.send(bytes(100))
    for wrong, message in (
        ({"tx": 1, "rx": 1}, "differ"),
        ({"tx": -1, "rx": 1}, "id of CAN"),
        ({"tx": 1, "rx": 2, "padding": 256}, "a byte"),
    ):
        given: dict[str, Any] = wrong
        with pytest.raises(ConfigError, match=message):
            IsoTp(**given)


@pytest.fixture(params=["can", "doip"])
def unit(request: pytest.FixtureRequest, channel: str) -> Iterator[tuple[Diagnosis, Ecu]]:
    """The same unit on a bus and behind a gateway."""
    ecu = Ecu()
    with ExitStack() as stack:
        if request.param == "can":
            stack.enter_context(on_can(ecu, interface="virtual", channel=channel))
            yield Uds(adapter="virtual", channel=channel, tx=0x7E0, rx=0x7E8, timeout=60), ecu
        else:
            port = stack.enter_context(behind_gateway(ecu))
            yield Doip(host="127.0.0.1", port=port, unit=0x0E00, timeout=60), ecu


def test_diagnosis(unit: tuple[Diagnosis, Ecu]) -> None:
    driver, ecu = unit
    with serve(driver) as client:
        assert client.read(0xF190) == VIN
        client.session("extended")
        assert ecu.session == 3
        with pytest.raises(DeviceError, match=r"refuses WriteDataByIdentifier: SecurityAccessDenied \(0x33\)"):
            client.write(0x0100, b"\x07")
        assert client.seed() == SEED
        with pytest.raises(DeviceError, match="refuses SecurityAccess"):
            client.unlock(b"\x00", 2)
        client.unlock(KEY, 2)
        client.write(0x0100, b"\x07")
        assert client.read(0x0100) == b"\x07"
        assert client.faults() == [{"code": "123456", "status": 0x2F}]
        client.clear_faults()
        assert client.faults() == []
        assert client.routine(0x0203) == b"\x2a"
        assert client.read_memory(0x1000, 4) == b"\x00\x01\x02\x03"
        assert client.request(b"\x22\xf1\x90") == b"\x62\xf1\x90" + VIN
        with pytest.raises(DeviceError, match=r"RequestOutOfRange \(0x31\)"):
            client.read(0xF191)
        with pytest.raises(BadValue, match="0 to 0xffff"):
            client.read(0x10000)
        client.restart()
        assert ecu.session == 1


async def test_a_session_is_kept_alive(unit: tuple[Diagnosis, Ecu]) -> None:
    driver, ecu = unit

    async def lives() -> None:
        if not ecu.alive:
            raise DeviceError("no sign yet")

    with trio.fail_after(60):
        async with serve(driver) as client:
            await client.session("extended")
            await works(lives)
            assert await client.read(0xF190) == VIN


def test_a_unit_that_does_not_answer(channel: str) -> None:
    silent = Uds(adapter="virtual", channel=channel, tx=0x7E0, rx=0x7E8, timeout=0.1)
    with (
        serve(silent) as client,
        pytest.raises(DeviceError, match=r"unit 0x7e8 on CAN bus .* did not answer within 0\.1 s"),
    ):
        client.read(0xF190)
    with serve(silent) as client, pytest.raises(DeviceError, match=r"unit 0x7e8 .* does not take the request"):
        client.read_memory(0x1000, 4)  # several frames
    talk = IsoTp(adapter="virtual", channel=channel, tx=0x7E0, rx=0x7E8, timeout=0.1)
    for seconds in (-1.0, math.nan, math.inf):
        with serve(talk) as client, pytest.raises(BadValue, match="seconds must be 0 seconds or more"):
            client.receive(seconds)
    nobody = serve(Doip(host="127.0.0.1", port=free_port(), unit=1))
    with nobody as client, pytest.raises(DeviceError, match=r"DoIP gateway 127\.0\.0\.1:\d+: Connection refused"):
        client.read(0xF190)
    with behind_gateway(Ecu()) as port:
        other = serve(Doip(host="127.0.0.1", port=port, unit=0x0F00, timeout=0.5))
        with other as client, pytest.raises(DeviceError, match="unit 0x0f00 behind 127"):
            client.read(0xF190)
    with pytest.raises(ConfigError, match="unit must be"):
        Doip(host="a", unit=0x10000)
