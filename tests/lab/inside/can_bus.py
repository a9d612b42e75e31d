"""CAN through the kernel (SocketCAN), whose own ISO-TP is at the other end."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

import can
import isotp
import pytest
import trio

from jmp.driver import DeviceError, serve
from jmp_drivers.can.bus import Can
from jmp_drivers.can.isotp import IsoTp
from jmp_drivers.can.uds import Uds
from tests.drivers.test_can import watched
from tests.fakes.ecu import VIN, Ecu, on_can
from tests.fakes.patience import fails, works


async def test_frames() -> None:
    other = can.Bus(interface="socketcan", channel="vcan0", fd=True)
    with trio.fail_after(240):
        async with serve(Can(channel="vcan0", fd=True)) as client:
            await client.send(0x123, bytes(64), fd=True)
            frame = other.recv(60)
            assert frame is not None
            assert (frame.arbitration_id, frame.is_fd, len(frame.data)) == (0x123, True, 64)

            def send() -> None:
                other.send(can.Message(arbitration_id=0x18DA00F1, data=b"abc"))

            assert (await watched(client, 1, send))[0] == {"id": 0x18DA00F1, "data": b"abc", "extended": True}
            await client.repeat(0x55, b"x", period=0.01)  # the kernel does it (BCM)
            for _ in range(3):
                while (frame := other.recv(60)) is None or frame.arbitration_id != 0x55:
                    pass
            await client.stop()
    other.shutdown()


def test_the_kernels_iso_tp_is_at_the_other_end() -> None:
    with closing(isotp.socket()) as other, serve(IsoTp(channel="vcan0", tx=0x7E0, rx=0x7E8, timeout=60)) as client:
        other.bind("vcan0", isotp.Address(txid=0x7E8, rxid=0x7E0))
        client.send(bytes(range(200)))
        assert other.recv() == bytes(range(200))
        other.send(bytes(300))
        assert client.receive() == bytes(300)


def test_diagnosis() -> None:
    unit = on_can(Ecu(), interface="socketcan", channel="vcan0")
    with unit, serve(Uds(channel="vcan0", tx=0x7E0, rx=0x7E8, timeout=60)) as client:
        assert client.read(0xF190) == VIN


async def test_an_interface_that_is_absent_goes_down_and_comes_back() -> None:
    with trio.fail_after(240):
        async with serve(Can(channel="can7")) as client:
            with pytest.raises(DeviceError, match=r"CAN bus can7 \(socketcan\): there is no such interface"):
                await client.send(1)
        async with serve(Can(channel="vcan0")) as client:
            await trio.run_process(["ip", "link", "set", "vcan0", "down"])
            await fails(lambda: client.send(1), "the interface is down")
            await trio.run_process(["ip", "link", "set", "vcan0", "up"])
            await works(lambda: client.send(1))


async def test_conversations_outlive_an_interface_that_goes_down() -> None:
    def unit() -> AbstractContextManager[None]:
        return on_can(Ecu(), interface="socketcan", channel="vcan0")

    with trio.fail_after(240):
        async with (
            serve(IsoTp(channel="vcan0", tx=0x7E1, rx=0x7E9, timeout=20)) as talk,
            serve(Uds(channel="vcan0", tx=0x7E0, rx=0x7E8, timeout=20)) as diagnosis,
        ):
            with unit():
                await talk.send(b"hello")
                assert await diagnosis.read(0xF190) == VIN
            await trio.run_process(["ip", "link", "set", "vcan0", "down"])
            for call in (lambda: talk.send(b"anybody"), lambda: diagnosis.read(0xF190)):
                await fails(call, r"CAN bus vcan0 \(socketcan\): .*(is|Network is) down")
            await trio.run_process(["ip", "link", "set", "vcan0", "up"])
            with unit():
                await works(lambda: talk.send(b"again"))
                assert await works(lambda: diagnosis.read(0xF190)) == VIN
