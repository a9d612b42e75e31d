"""What reads bytes of strangers, or of those who were let in: for each, what it may do with them.

A target takes any bytes. What it raises beyond what it says it raises is a bug, and so is what an assertion here finds: that more
is held than was sent, that what was read differs when it comes in other pieces, that it cannot be written again.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import math
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, cast

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jmp.client.config import ClientConfig
from jmp.driver import Driver, export, schema, yamlfile
from jmp.errors import JmpError, LinkLost, ProtocolViolation, Refused
from jmp.exporter import config as exporter_config
from jmp.exporter import mdns
from jmp.link import address, pages, resume
from jmp.link.rfc6455 import ClientHandshake, Codec
from jmp.link.websocket import UpgradeRequest, _Rejected, _Server, _Shown
from jmp.mux.protocol import MAX_STREAMS, Mux, Role
from jmp.rpc import messages
from jmp.rpc.messages import Request
from jmp.wire import actions, codec, duration, frames, records, selector, tokens

Target = Callable[[bytes], None]

CORPUS: Final = Path(__file__).with_name("corpus")
"""A folder for each target, with what was worth keeping: valid input, and what found something or got far."""


def pieces(data: bytes) -> Iterator[bytes]:
    """The bytes after the first, in pieces that the first one chooses the size of, as a network delivers them."""
    size = (data[0] if data else 0) or 1 << 20
    for begin in range(1, len(data), size):
        yield data[begin : begin + size]


def say(error: JmpError) -> None:
    """What people are told is one line without tricks."""
    assert error.message.isprintable(), error.message


def at_once(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run what never has to wait."""
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
        raise AssertionError("it waited for something")


# ---- before anybody is known


class _Pipe:
    """What a listener reads from and writes to."""

    def __init__(self, data: bytes) -> None:
        self.incoming = pieces(data)
        self.written = bytearray()

    async def receive(self) -> bytes:
        return next(self.incoming, b"")

    receive_some = receive

    def write(self, parts: Any) -> None:
        self.written += b"".join(parts)

    async def send_all(self, data: bytes) -> None:
        self.written += data

    async def flush(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def send_eof(self) -> None:
        pass


KEY: Final = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
JWKS: Final = {
    "keys": [
        {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": "k",
            "x": base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).rstrip(b"=").decode(),
        }
    ]
}
VERIFIER: Final = tokens.Verifier(JWKS, frozenset(), clock=lambda: 1_800_000_000.0)


async def _authenticate(request: UpgradeRequest) -> object:
    if request.token is None:
        raise Refused("a token is needed")
    return VERIFIER.identity(request.token)


@functools.cache
def _listener() -> _Server[Any]:
    async def handler(link: object, identity: object) -> None:
        raise AssertionError

    return _Server(_authenticate, handler, None, 1 << 20, 64, 64, 10.0, {"/ca.pem": ("text/plain", b"ca")})


def handshake(data: bytes) -> None:
    """The opening handshake, as a listener reads it."""
    pipe = _Pipe(data)
    with contextlib.suppress(LinkLost, _Rejected, _Shown):
        at_once(_listener()._welcome(pipe, "peer"))  # type: ignore[arg-type]  # what it uses of a pipe
    assert not pipe.written or pipe.written.startswith(b"HTTP/1.1 ")


def answer(data: bytes) -> None:
    """The answer to it, as a client reads it."""
    client = ClientHandshake("localhost", token="secret")
    try:
        for piece in pieces(data):
            if client.feed(piece) is not None:
                return
        client.feed(b"")
    except JmpError as error:
        say(error)


def page(data: bytes) -> None:
    """HTTP requests to the listener for probes and metrics."""
    pipe = _Pipe(data)
    server = pages._Server({"/healthz": pages.healthz})
    trio.run(server._converse, cast(trio.SocketStream, pipe))
    assert not pipe.written or pipe.written.startswith(b"HTTP/1.1 ")


def websocket(data: bytes) -> None:
    """Frames of RFC 6455, as either side reads them; they come out the same however they were cut."""
    for client in (False, True):
        ends = []
        for cut in (data, b"\x00" + data[1:]):
            reader = Codec(client=client, max_message=1000)
            read: list[object] = []
            try:
                for piece in pieces(cut):
                    reader.feed(piece)
                    while (message := reader.next_message()) is not None:
                        read.append(message)
                        assert len(message) <= 1000
            except (LinkLost, ProtocolViolation) as error:
                read.append(str(error))
            ends.append(read)
            assert len(reader.take_replies()) <= 8 * 140
        assert ends[0] == ends[1]


def token(data: bytes) -> None:
    """Tokens, signed well or not."""
    text = data.decode("latin-1")
    for read in (VERIFIER.identity, VERIFIER.session, tokens.peek):
        with contextlib.suppress(Refused):
            read(text)


def claims(data: bytes) -> None:
    """What a token says once its signature is good: the controller's own, but of another version perhaps."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = f"{part(json.dumps({'alg': 'EdDSA', 'kid': 'k'}).encode())}.{part(data)}"
    whole = f"{signed}.{part(KEY.sign(signed.encode()))}"
    for read in (VERIFIER.identity, VERIFIER.session, tokens.peek):
        with contextlib.suppress(Refused):
            read(whole)


def resumed(data: bytes) -> None:
    """The first message of a link, that may go on with a session, and those that follow it."""
    for made in (resume.Resume(), resume.Resume(b"k" * 32)):
        made.attach()
        made.put((b"one",))
        made.put((b"two",))
        with contextlib.suppress(ProtocolViolation, LinkLost):
            for piece in pieces(data):
                made.receive(piece)
                while made.take(ack=True):
                    pass
    with contextlib.suppress(ProtocolViolation):
        resume.opening_of(data)


# ---- of those who were let in


def mux(data: bytes) -> None:
    """Messages of frames: what is open and what is held stays within its limits."""
    for role in (Role.LISTENER, Role.DIALLER):
        core = Mux(role)
        mine = core.open(b"hello")
        core.outgoing()
        try:
            for message in pieces(data):
                core.receive(message)
                assert core.streams <= MAX_STREAMS + 1
                assert core.credit(mine) >= 0
                core.outgoing()
        except ProtocolViolation as error:
            say(error)


def frame(data: bytes) -> None:
    """The frames of one message; those that are known can be written again."""
    try:
        read = frames.unpack(data)
    except ProtocolViolation:
        return
    assert len(read) <= len(data)


def value(data: bytes) -> None:
    """Values; whatever was read can be written, and is the same then."""
    try:
        read = codec.decode(data)
    except ProtocolViolation:
        return
    again = codec.decode(codec.encode(read))
    assert again == read or "nan" in repr(read)  # which equals nothing


def call(data: bytes) -> None:
    """The beginning of a stream: a call, or an answer to one."""
    for read in (Request.decode, messages.read):
        decoder = codec.Decoder(10_000)
        with contextlib.suppress(ProtocolViolation):
            for piece in pieces(data):
                decoder.feed(piece)
                for item in decoder:
                    read(item)
                assert len(decoder._buffer) - decoder._position <= 10_000 + len(piece)
    messages.revive(data)


def record(data: bytes) -> None:
    """Records, as controller and exporter tell them each other."""
    try:
        plain = codec.decode(data)
    except ProtocolViolation:
        return
    for kind in (records.Lease, records.Desired, records.Observed, records.Presence, records.Policy):
        with contextlib.suppress(ProtocolViolation):
            made: Any = records.from_wire(kind, plain)
            assert records.from_wire(kind, records.to_wire(made)) == made or "nan" in repr(made)


# ---- what people write


class Thing(Driver):
    """A driver with something of everything to configure."""

    port: int
    name: str = "thing"
    options: dict[str, float] | None = None

    @export
    async def on(self) -> None:
        """Nothing."""


def text(data: bytes) -> str:
    """What is left of it as text."""
    return data.decode("utf-8", "replace")


def exporter(data: bytes) -> None:
    """An exporter's configuration: what is wrong is said, with its line."""
    found, problems = exporter_config.read_text(text(data), Path("/nowhere/x.yaml"), {"thing": Thing})
    assert (found is None) <= bool(problems)
    lines = len(text(data).splitlines()) + 1
    for problem in problems:
        assert "\n" not in problem.message
        assert 1 <= problem.line <= lines


def client(data: bytes) -> None:
    """A client's."""
    document = yamlfile.read(text(data))
    if not document.problems:
        schema.load(ClientConfig, document.data or {}, base=Path("/nowhere"))


def choice(data: bytes) -> None:
    """Selectors; one that was read and written is the same."""
    with contextlib.suppress(JmpError):
        read = selector.parse(text(data))
        assert selector.parse(str(read)) == read
        read.matches({"board": "rpi4", "rack": "1"})
        read.mismatch({"board": "rpi4", "rack": "1"})


def times(data: bytes) -> None:
    """Durations, times of the day, addresses, patterns of methods."""
    said = text(data)
    with contextlib.suppress(JmpError):
        assert duration.parse(said) >= 0
    with contextlib.suppress(JmpError):
        assert math.isfinite(duration.moment(said, 1_800_000_000.0))
    with contextlib.suppress(JmpError):
        read = address.parse(said)
        assert address.parse(str(read)) == read
    actions.allowed((said,), (said,), "power.on")


def announced(data: bytes) -> None:
    """What devices in the network tell of themselves, a message in each piece."""
    search = mdns.Search(["_ssh._tcp", "_shelly._tcp"])
    for piece in pieces(data):
        search.take(piece)
    for each in search.open():
        assert len(mdns.question([each])) < len(data) + 64
    assert search.missing() == []
    for service in search.services():
        assert f"{service.about('SSH')}{service.host}{service.properties}".isprintable()
        assert 0 <= service.port < 65536


TARGETS: Final[dict[str, Target]] = {
    function.__name__: function
    for function in (
        handshake, answer, page, websocket, token, claims, resumed,
        mux, frame, value, call, record,
        exporter, client, choice, times, announced,
    )
}  # fmt: skip
