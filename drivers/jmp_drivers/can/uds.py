"""UDS (ISO 14229): diagnosis of an electronic control unit, over ISO-TP on CAN or over Ethernet (DoIP)."""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Any, ClassVar, Literal, TypeVar

import isotp
import trio
from doipclient.client import DoIPClient
from doipclient.connectors import DoIPClientUDSConnector
from udsoncan import DidCodec, MemoryLocation
from udsoncan.client import Client
from udsoncan.configs import default_client_config
from udsoncan.connections import BaseConnection, PythonIsoTpConnection
from udsoncan.exceptions import ConfigError as UdsConfigError
from udsoncan.exceptions import (
    InvalidResponseException,
    NegativeResponseException,
    TimeoutException,
    UnexpectedResponseException,
)
from udsoncan.Request import Request
from udsoncan.typing import ClientConfig

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, export
from jmp_drivers._hex import Data, to_bytes
from jmp_drivers.can.isotp import IsoTpOptions

T = TypeVar("T")

_KEEP_ALIVE = 2.0  # seconds between two signs of life in a session that the unit would leave after 5 (S3server)
_SESSIONS = {"default": 1, "programming": 2, "extended": 3, "safety": 4}
_RESETS = {"hard": 1, "key": 2, "soft": 3}
_ROUTINES = {"start": 1, "stop": 2, "results": 3}


for _name in ("UdsClient", "Connection", "doipclient"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # what goes wrong is told to the caller


class _Gateway(DoIPClient):
    """One that closes its sockets when it cannot connect."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        try:
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
        except BaseException:
            for name in ("_tcp_sock", "_udp_sock"):
                if (sock := getattr(self, name, None)) is not None:
                    sock.close()
            raise


class _Raw(DidCodec):
    """Data of an identifier as it is."""

    def encode(self, *values: Any) -> bytes:
        return bytes(values[0])

    def decode(self, string_value: bytes) -> bytes:
        return string_value

    def __len__(self) -> int:
        raise DidCodec.ReadAllRemainingData


class Diagnosis(Driver):
    """What one does with a unit, however it is reached."""

    interface: ClassVar[str | None] = "jmp.uds/v1"

    @abstractmethod
    def _connect(self) -> BaseConnection:
        """Blocks. Raises `DeviceError`."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Blocks."""

    @property
    @abstractmethod
    def _unit(self) -> str:
        """What messages call it."""

    @property
    @abstractmethod
    def _patience(self) -> float:
        """Seconds that an answer may take."""

    async def open(self) -> None:
        self._turn = threading.Lock()
        self._session = 1
        self._client = await trio.to_thread.run_sync(self._open_client)
        self.nursery.start_soon(self._keep_alive)

    def _open_client(self) -> Client:
        connection = self._connect()
        config: ClientConfig = {
            **default_client_config,
            "data_identifiers": {"default": _Raw},
            "request_timeout": self._patience,
            "p2_timeout": self._patience,
            "use_server_timing": False,
        }
        client = Client(connection, config=config)
        client.open()
        return client

    async def close(self) -> None:
        def leave() -> None:
            self._client.close()
            self._disconnect()

        await trio.to_thread.run_sync(leave)

    @export
    def request(self, data: Data) -> bytes:
        """Send a request as it is, service id and all; the positive answer as it is."""
        content = to_bytes(data)
        if not content:
            raise BadValue("a request has at least the service's id")
        request = Request.from_payload(content)
        if request.service is None:
            raise BadValue(f"there is no service {content[0]:#04x}")
        return bytes(self._do(lambda: self._client.send_request(request)).original_payload or b"")

    @export
    def session(self, kind: Literal["default", "programming", "extended", "safety"]) -> None:
        """Change the diagnostic session. It is kept alive until it is changed again."""
        self._do(lambda: self._client.change_session(_SESSIONS[kind]))
        self._session = _SESSIONS[kind]

    @export
    def restart(self, kind: Literal["hard", "key", "soft"] = "hard") -> None:
        """Let the unit start again."""
        self._do(lambda: self._client.ecu_reset(_RESETS[kind]))
        self._session = 1

    @export
    def read(self, identifier: int) -> bytes:
        """The data of an identifier (DID), such as 0xf190, the vehicle's number."""
        answer = self._do(lambda: self._client.read_data_by_identifier(_word(identifier)))
        return bytes(answer.service_data.values[identifier])

    @export
    def write(self, identifier: int, data: Data) -> None:
        """Write the data of an identifier."""
        self._do(lambda: self._client.write_data_by_identifier(_word(identifier), to_bytes(data)))

    @export
    def read_memory(self, address: int, size: int) -> bytes:
        """Read from the unit's memory."""
        try:
            location = MemoryLocation(address, size, 32, 32)
        except ValueError as error:
            raise BadValue(str(error)) from error
        return bytes(self._do(lambda: self._client.read_memory_by_address(location)).service_data.memory_block)

    @export
    def routine(
        self, identifier: int, data: Data = b"", control: Literal["start", "stop", "results"] = "start"
    ) -> bytes:
        """Start or stop a routine, or ask for its results: what it says."""
        answer = self._do(
            lambda: self._client.routine_control(_word(identifier), _ROUTINES[control], to_bytes(data) or None)
        )
        return bytes(answer.service_data.routine_status_record)

    @export
    def seed(self, level: int = 1) -> bytes:
        """Ask for the seed of a security level; it is all zeros when the level is unlocked."""
        return bytes(self._do(lambda: self._client.request_seed(level)).service_data.seed)

    @export
    def unlock(self, key: Data, level: int = 1) -> None:
        """Unlock a security level with the key that belongs to its seed."""
        self._do(lambda: self._client.send_key(level, to_bytes(key)))

    @export
    def faults(self, mask: int = 0xFF) -> list[dict[str, Any]]:
        """The trouble codes (DTC) whose status has a bit of mask: `code`, and `status` as a byte."""
        answer = self._do(lambda: self._client.get_dtc_by_status_mask(mask))
        return [{"code": f"{dtc.id:06X}", "status": dtc.status.get_byte_as_int()} for dtc in answer.service_data.dtcs]

    @export
    def clear_faults(self, group: int = 0xFFFFFF) -> None:
        """Clear the trouble codes of a group, or all."""
        self._do(lambda: self._client.clear_dtc(group))

    def _do(self, action: Callable[[], Any]) -> Any:
        with self._turn, self._told():
            return action()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except NegativeResponseException as error:
            answer = error.response
            what = answer.service.get_name() if answer.service else "it"
            raise DeviceError(f"{self._unit} refuses {what}: {answer.code_name} ({answer.code:#04x})") from error
        except isotp.BlockingSendFailure as error:  # a request of several frames, which somebody has to take
            raise DeviceError(f"{self._unit} does not take the request: {error}") from error
        except TimeoutException as error:
            raise DeviceError(f"{self._unit} did not answer within {self._patience:g} s") from error
        except (InvalidResponseException, UnexpectedResponseException) as error:
            raise DeviceError(f"{self._unit} answers something else: {error}") from error
        except (ValueError, UdsConfigError) as error:
            raise BadValue(str(error)) from error
        except (OSError, RuntimeError) as error:
            reason = f"{self._unit} is gone: {error}"
            self.lost(reason)
            raise DeviceError(reason) from error

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(_KEEP_ALIVE)
            if self._session != 1:
                try:
                    await trio.to_thread.run_sync(self._do, self._live)
                except DeviceError as error:
                    self.log.warning("the session is not kept alive: %s", error.message)

    def _live(self) -> None:
        with self._client.suppress_positive_response:
            self._client.tester_present()


def _word(identifier: int) -> int:
    if not 0 <= identifier <= 0xFFFF:
        raise BadValue(f"identifier must be 0 to 0xffff, not {identifier:#x}")
    return identifier


class Uds(Diagnosis, IsoTpOptions):
    """Diagnosis (UDS) of a control unit on a CAN bus."""

    def _connect(self) -> BaseConnection:
        return PythonIsoTpConnection(self._open_stack())  # which starts it

    def _disconnect(self) -> None:
        self._bus.shutdown()

    @property
    def _unit(self) -> str:
        return f"unit {self.rx:#x} on {self._name}"

    @property
    def _patience(self) -> float:
        return self.timeout


class Doip(Diagnosis):
    """Diagnosis (UDS) of a control unit behind a DoIP gateway, over Ethernet."""

    host: str = field(metadata={"doc": "address of the gateway"})
    unit: int = field(metadata={"doc": "logical address of the unit, as in 0x0e00"})
    port: int = 13400
    tester: int = field(default=0x0E80, metadata={"doc": "logical address of this side"})
    version: int = field(default=2, metadata={"doc": "of the protocol: 2 is ISO 13400-2:2012, 3 that of 2019"})
    timeout: float = field(default=2.0, metadata={"doc": "seconds that an answer may take"})

    def __post_init__(self) -> None:
        for name, value in (("unit", self.unit), ("tester", self.tester)):
            if not 0 <= value <= 0xFFFF:
                raise ConfigError(f"{name} must be 0 to 0xffff, not {value:#x}")

    def _connect(self) -> BaseConnection:
        try:
            self._gateway = _Gateway(
                self.host,
                self.unit,
                tcp_port=self.port,
                client_logical_address=self.tester,
                protocol_version=self.version,
            )
        except (OSError, ConnectionError, TimeoutError, ValueError) as error:
            said = "no answer" if isinstance(error, TimeoutError) else getattr(error, "strerror", None) or str(error)
            raise DeviceError(f"DoIP gateway {self.host}:{self.port}: {said}") from error
        connection: BaseConnection = DoIPClientUDSConnector(self._gateway)  # type: ignore[no-untyped-call]
        return connection

    def _disconnect(self) -> None:
        self._gateway.close()  # type: ignore[no-untyped-call]

    @property
    def _unit(self) -> str:
        return f"unit {self.unit:#06x} behind {self.host}"

    @property
    def _patience(self) -> float:
        return self.timeout
