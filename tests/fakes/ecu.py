"""An electronic control unit on a CAN bus or behind a DoIP gateway, whose protocols (ISO-TP, UDS, DoIP) are scapy's."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from scapy.contrib.automotive import doip, uds
from scapy.contrib.cansocket_python_can import PythonCANSocket
from scapy.contrib.isotp import ISOTPSoftSocket
from scapy.packet import Packet

VIN = b"WVWZZZ1KZ8W000001"
SEED, KEY = b"\x11\x22\x33\x44", b"\x44\x33\x22\x11"


class _Refusal(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


_NOT_SUPPORTED, _OUT_OF_RANGE, _DENIED = 0x11, 0x31, 0x33


class Ecu:
    """What it answers to a request."""

    def __init__(self) -> None:
        self.session = 1
        self.unlocked = False
        self.alive = 0
        self.faults = [(0x123456, 0x2F)]
        self.data = {0xF190: VIN, 0x0100: b"\x00"}

    def answer(self, request: Packet) -> Packet | None:
        """The answer; none to what asks for none."""
        asked = request.payload
        try:
            said = uds.UDS() / self._do(asked)
        except _Refusal as refusal:
            return uds.UDS() / uds.UDS_NR(requestServiceId=request.service, negativeResponseCode=refusal.code)
        assert said.answers(request), f"{said!r} is no answer to {request!r}"
        return None if isinstance(asked, uds.UDS_TP) and asked.subFunction & 0x80 else said

    def _do(self, asked: Packet) -> Packet:
        match asked:
            case uds.UDS_DSC():
                self.session = asked.diagnosticSessionType
                return uds.UDS_DSCPR(diagnosticSessionType=self.session, sessionParameterRecord=b"\x00\x32\x01\xf4")
            case uds.UDS_ER():
                self.session, self.unlocked = 1, False
                return uds.UDS_ERPR(resetType=asked.resetType)
            case uds.UDS_CDTCI():
                self.faults.clear()
                return uds.UDS_CDTCIPR()
            case uds.UDS_RDTCI(reportType=0x02):
                records = [
                    uds.DTCAndStatusRecord(dtc=uds.DTC(code.to_bytes(3, "big")), status=status)
                    for code, status in self.faults
                ]
                return uds.UDS_RDTCIPR(reportType=2, DTCStatusAvailabilityMask=0xFF, DTCAndStatusRecord=records)
            case uds.UDS_RDBI(identifiers=[identifier]):
                if identifier not in self.data:
                    raise _Refusal(_OUT_OF_RANGE)
                return uds.UDS_RDBIPR(dataIdentifier=identifier) / self.data[identifier]
            case uds.UDS_RMBA(memoryAddressLen=4, memorySizeLen=4):
                return uds.UDS_RMBAPR(dataRecord=bytes(range(asked.memorySize4)))
            case uds.UDS_SA() if asked.securityAccessType & 1:
                return uds.UDS_SAPR(securityAccessType=asked.securityAccessType, securitySeed=SEED)
            case uds.UDS_SA():
                self.unlocked = asked.securityKey == KEY
                if not self.unlocked:
                    raise _Refusal(_DENIED)
                return uds.UDS_SAPR(securityAccessType=asked.securityAccessType)
            case uds.UDS_WDBI():
                if not self.unlocked:
                    raise _Refusal(_DENIED)
                self.data[asked.dataIdentifier] = bytes(asked.payload)
                return uds.UDS_WDBIPR(dataIdentifier=asked.dataIdentifier)
            case uds.UDS_RC():
                return uds.UDS_RCPR(
                    routineControlType=asked.routineControlType, routineIdentifier=asked.routineIdentifier
                ) / (b"\x2a")
            case uds.UDS_TP():
                self.alive += 1
                return uds.UDS_TPPR()
        raise _Refusal(_NOT_SUPPORTED)


@contextmanager
def on_can(ecu: Ecu, **bus: Any) -> Iterator[None]:
    """The unit on a bus, given as python-can takes it: it listens to 0x7e0 and answers as 0x7e8."""
    ended = threading.Event()

    def run() -> None:
        while not ended.is_set():
            for _ in ISOTPSoftSocket.select([isotp], 0.05):
                if (request := isotp.recv()) is not None and (answer := ecu.answer(request)) is not None:
                    isotp.send(answer)

    with (
        closing(PythonCANSocket(**bus)) as can,
        closing(ISOTPSoftSocket(can, tx_id=0x7E8, rx_id=0x7E0, basecls=uds.UDS)) as isotp,
    ):
        isotp.impl.fc_timeout = isotp.impl.cf_timeout = 60  # of a machine that is busy, not of a bus
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def behind_gateway(ecu: Ecu, address: int = 0x0E00, port: int = 0) -> Iterator[int]:
    """A DoIP gateway on loopback, with the unit behind it; yields its port."""

    def answers(request: Packet) -> Iterator[Packet]:
        if request.payload_type == 0x0005:
            yield doip.DoIP(
                payload_type=0x0006,
                logical_address_tester=request.source_address,
                logical_address_doip_entity=address,
                routing_activation_response=0x10,
            )
        elif request.payload_type == 0x8001:
            ends = {"source_address": request.target_address, "target_address": request.source_address}
            if request.target_address != address:
                yield doip.DoIP(payload_type=0x8003, nack_code=3, **ends)
                return
            yield doip.DoIP(payload_type=0x8002, ack_code=0, **ends)
            if (answer := ecu.answer(request[uds.UDS])) is not None:
                yield doip.DoIP(payload_type=0x8001, **ends) / answer

    def serve(connection: socket.socket) -> None:
        stream = doip.DoIPSSLStreamSocket(connection)  # which leaves TLS to the socket
        while (request := stream.recv()) is not None:
            for answer in answers(request):
                stream.send(answer)

    with socket.create_server(("127.0.0.1", port)) as listener:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                with connection, suppress(OSError):
                    serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            thread.join()
