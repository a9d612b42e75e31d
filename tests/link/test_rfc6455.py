"""Conversations with the codec and the client's handshake: by hand, at random, and with two other implementations."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import wsproto
import wsproto.events
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import CloseCode
from websockets.frames import Frame as TheirFrame
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

import jmp
from jmp.errors import Busy, LabError, LinkLost, ProtocolViolation, Refused, UsageError
from jmp.link.rfc6455 import MAX_HEAD, MAX_MESSAGE, ClientHandshake, Closed, Codec, Violation, accept_token

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, key: bytes = b"", rsv: int = 0) -> bytes:
    """A frame as section 5.2 draws it, from first principles."""
    masked = 0x80 if key else 0
    size = len(payload)
    if size < 126:
        length = bytes([masked | size])
    elif size < 65536:
        length = bytes([masked | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([masked | 127]) + size.to_bytes(8, "big")
    if any(key):
        payload = bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + length + key + payload


def read(codec: Codec, data: bytes) -> list[bytes]:
    """All messages that are complete after ``data``."""
    codec.feed(data)
    messages = []
    while (message := codec.next_message()) is not None:
        messages.append(message)
    return messages


def client(*, mask: bool = True, max_message: int = MAX_MESSAGE) -> Codec:
    return Codec(client=True, mask=mask, max_message=max_message)


def server(*, max_message: int = MAX_MESSAGE) -> Codec:
    return Codec(client=False, max_message=max_message)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("mask", [True, False])
def test_lengths_both_ways(size: int, mask: bool) -> None:
    message = random.Random(size).randbytes(size)
    here, there = client(mask=mask), server()
    assert read(there, b"".join(here.encode([message]))) == [message]
    assert read(here, b"".join(there.encode([message[:7], memoryview(message)[7:]]))) == [message]


def test_key_of_a_client() -> None:
    plain = b"".join(client(mask=False).encode([b"abc"]))
    assert plain == b"\x82\x83" + bytes(4) + b"abc"
    keys = {b"".join(client().encode([b"abc"]))[2:6] for _ in range(20)}
    assert len(keys) == 20


def test_parts_are_not_joined() -> None:
    parts = [b"head", b"x" * 70000]
    for codec in (server(), client(mask=False)):
        assert all(one is other for one, other in zip(codec.encode(parts)[1:], parts, strict=True))


def test_any_key_is_undone() -> None:
    data = bytes(range(256)) * 3
    assert read(server(), frame(BINARY, data, key=b"\x01\x02\xfe\xff") + frame(BINARY, data[:5], key=b"key!")) == [
        data,
        data[:5],
    ]


def test_fragments_with_control_frames_between() -> None:
    codec = client()
    data = (
        frame(BINARY, b"on", fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, b"", fin=False)
        + frame(PONG, b"unasked")
        + frame(CONTINUATION, b"e")
        + frame(BINARY, b"two")
    )
    assert read(codec, data) == [b"one", b"two"]
    assert read(server(), codec.take_replies()) == []  # a pong needs no answer
    assert codec.take_replies() == b""


def test_ping_is_answered_with_its_payload() -> None:
    codec = server()
    assert read(codec, frame(PING, b"x" * 125, key=b"abcd")) == []
    assert codec.has_replies
    assert codec.take_replies() == frame(PONG, b"x" * 125)
    assert not codec.has_replies


def test_flood_of_pings_answers_the_latest() -> None:
    codec = client(mask=False)
    read(codec, b"".join(frame(PING, b"%d" % number) for number in range(10_000)))
    replies = codec.take_replies()
    assert replies.endswith(b"9999")
    assert len(replies) < 1000


def test_closing() -> None:
    here, there = client(mask=False), server()
    with pytest.raises(Closed, match="1001 going away") as closed:
        read(there, here.encode_close(1001, "going away"))
    assert (closed.value.close_code, closed.value.reason) == (1001, "going away")
    assert there.ended
    assert there.encode_close() == b""  # already queued in answer
    with pytest.raises(Closed) as closed:
        read(here, there.take_replies())
    assert closed.value.close_code == 1001
    assert here.take_replies() == b""  # it was the first to say so
    with pytest.raises(Closed):  # and so it stays
        read(here, frame(BINARY, b"late"))


def test_messages_before_the_close_arrive() -> None:
    codec = client()
    codec.feed(frame(BINARY, b"last") + frame(CLOSE))
    assert codec.next_message() == b"last"
    with pytest.raises(Closed) as closed:
        codec.next_message()
    assert (closed.value.close_code, closed.value.reason) == (1005, "")
    assert server_sees(codec) == b"\x03\xe8"  # 1000 in answer to no code


def server_sees(codec: Codec) -> bytes:
    """The payload of the one frame that a client's codec queued."""
    reply = codec.take_replies()
    key, payload = reply[2:6], reply[6:]
    return bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


def test_after_our_close_pings_are_not_answered() -> None:
    codec = client()
    codec.encode_close()
    assert read(codec, frame(PING) + frame(BINARY, b"was under way")) == [b"was under way"]
    assert codec.take_replies() == b""


def test_long_reason_is_cut_at_a_character() -> None:
    with pytest.raises(Closed) as closed:
        read(server(), client().encode_close(1000, "é" * 100))
    assert closed.value.reason == "é" * 61


LENGTH = {126: 2, 127: 8}


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (frame(BINARY, rsv=4), 1002, "reserved bit"),
        (frame(PING, rsv=1), 1002, "reserved bit"),
        (frame(3), 1002, "opcode 3"),
        (frame(15), 1002, "opcode 15"),
        (frame(TEXT, b"hello"), 1003, "text"),
        (frame(TEXT, b"hello", fin=False), 1003, "text"),
        (frame(CONTINUATION, b"x"), 1002, "nothing to continue"),
        (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), 1002, "before the one before"),
        (frame(PING, fin=False), 1002, "fragmented"),
        (frame(CLOSE, fin=False), 1002, "fragmented"),
        (frame(PONG, b"x" * 126), 1002, "too long"),
        (b"\x89\x7f", 1002, "too long"),
        (b"\x82\x7e\x00\x7d", 1002, "more bytes than needed"),
        (b"\x82\x7f" + (65535).to_bytes(8, "big"), 1002, "more bytes than needed"),
        (b"\x82\x7f" + (1 << 63).to_bytes(8, "big"), 1002, "negative"),
        (b"\x82\x7f" + (1 << 62).to_bytes(8, "big"), 1009, "longer than 1000 bytes"),
        (frame(BINARY, bytes(1001))[:4], 1009, "longer"),
        (frame(BINARY, bytes(600), fin=False) + frame(CONTINUATION, bytes(401), fin=False)[:4], 1009, "longer"),
        (frame(CLOSE, b"\x03"), 1002, "half a close code"),
        *((frame(CLOSE, code.to_bytes(2, "big")), 1002, f"close code {code}") for code in (0, 999, 1004, 1005, 1006)),
        *((frame(CLOSE, code.to_bytes(2, "big")), 1002, f"close code {code}") for code in (1015, 2999, 5000, 65535)),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007, "UTF-8"),
        (frame(BINARY, b"x", key=b"mask"), 1002, "server's frame was masked"),
    ],
)
def test_violations(data: bytes, code: int, message: str) -> None:
    codec = client(max_message=1000)
    with pytest.raises(Violation, match=message) as violation:
        read(codec, data)
    assert violation.value.close_code == code
    assert server_sees(codec) == code.to_bytes(2, "big")
    with pytest.raises(Violation):
        read(codec, frame(BINARY, b"no more"))
    assert codec.take_replies() == b""


def test_unmasked_client_is_refused() -> None:
    codec = server()
    with pytest.raises(Violation, match="not masked"):
        read(codec, frame(BINARY, b"x"))
    assert codec.take_replies() == frame(CLOSE, b"\x03\xea")


def test_longest_message_fits_whole_and_fragmented() -> None:
    codec = client(max_message=1000)
    whole = frame(BINARY, bytes(1000))
    halves = frame(BINARY, bytes(500), fin=False) + frame(PING, bytes(100)) + frame(CONTINUATION, bytes(500))
    assert read(codec, whole + halves) == [bytes(1000)] * 2


FRAGMENTED = st.lists(st.binary(max_size=200) | st.just(b"long" * 16_500), min_size=1, max_size=3)
UNHURRIED = settings(deadline=None, max_examples=60)


@UNHURRIED
@given(st.lists(FRAGMENTED, max_size=5), st.data())
def test_any_splitting_gives_the_same_messages(messages: list[list[bytes]], data: st.DataObject) -> None:
    stream = b""
    pings = 0
    for fragments in messages:
        for place, fragment in enumerate(fragments):
            fin = place == len(fragments) - 1
            stream += frame(CONTINUATION if place else BINARY, fragment, fin=fin, key=data.draw(st.sampled_from(KEYS)))
            if data.draw(st.booleans()):
                stream += frame(PING, key=b"ping")
                pings += 1
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    codec = server()
    received = []
    replies = b""
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += read(codec, stream[start:end])
        replies += codec.take_replies()
    assert received == [b"".join(fragments) for fragments in messages]
    assert replies.count(frame(PONG)) <= pings


KEYS = [b"\0\0\0\0", b"abcd", b"\xff\x00\x01\x80"]


def test_byte_by_byte() -> None:
    stream = b"".join(frame(BINARY, bytes(size), key=b"abcd") for size in (0, 1, 125, 126, 70_000, 5))
    codec = server()
    assert [len(message) for byte in stream for message in read(codec, bytes([byte]))] == [0, 1, 125, 126, 70_000, 5]


@UNHURRIED
@given(st.lists(st.binary(max_size=100), max_size=30), st.booleans())
def test_garbage_raises_nothing_else(chunks: list[bytes], is_client: bool) -> None:
    codec = Codec(client=is_client, max_message=1000)
    for chunk in chunks:
        try:
            for message in read(codec, chunk):
                assert len(message) <= 1000
        except (Violation, Closed):
            assert codec.ended
    assert len(codec.take_replies()) <= 8 * 131


@UNHURRIED
@given(st.data())
def test_bit_flips_raise_nothing_else(data: st.DataObject) -> None:
    stream = bytearray(b"".join(frame(BINARY, b"payload", key=b"abcd") + frame(PING, key=b"abcd") for _ in range(5)))
    for place in data.draw(st.lists(st.integers(0, len(stream) - 1), min_size=1, max_size=3)):
        stream[place] ^= 1 << data.draw(st.integers(0, 7))
    codec = server(max_message=1000)
    try:
        read(codec, bytes(stream))
    except (Violation, Closed):
        assert codec.ended


@pytest.mark.parametrize(
    "piece",
    [
        frame(CONTINUATION, b"", fin=False),
        frame(PING, b"x" * 125),
        frame(PONG, b"x" * 125),
        frame(CONTINUATION, b"", fin=False) + frame(PING),
    ],
)
def test_memory_is_bounded(piece: bytes) -> None:
    codec = client(max_message=1 << 20)
    read(codec, frame(BINARY, bytes(1000), fin=False))
    chunk = piece * 200
    read(codec, chunk)
    tracemalloc.start()
    try:
        for _ in range(30):
            read(codec, chunk)
        assert tracemalloc.get_traced_memory()[0] < 1 << 16
    finally:
        tracemalloc.stop()


# Conformance with the sans-I/O half of the package `websockets`.


def their_server() -> tuple[ServerProtocol, Codec]:
    theirs = ServerProtocol(subprotocols=[Subprotocol("jmp.v1")])
    handshake = ClientHandshake("lab.example:443", "/", token="secret")
    theirs.receive_data(handshake.request.encode() if isinstance(handshake.request, str) else handshake.request)
    request = theirs.events_received()[0]
    response = theirs.accept(request)  # type: ignore[arg-type]
    theirs.send_response(response)
    assert handshake.feed(b"".join(theirs.data_to_send())) == b""
    assert theirs.state is State.OPEN
    return theirs, Codec(client=True)


def their_messages(theirs: ServerProtocol | ClientProtocol, data: bytes) -> list[bytes]:
    theirs.receive_data(data)
    events = theirs.events_received()
    return [bytes(event.data) for event in events if isinstance(event, TheirFrame) and event.opcode == BINARY]


def test_conversation_with_another_server() -> None:
    theirs, codec = their_server()
    for size in (0, 125, 126, 65535, 65536):
        data = random.Random(size).randbytes(size)
        assert their_messages(theirs, b"".join(codec.encode([data]))) == [data]
        theirs.send_binary(data)
        assert read(codec, b"".join(theirs.data_to_send())) == [data]
    theirs.send_binary(b"fr", fin=False)
    theirs.send_ping(b"between")
    theirs.send_continuation(b"ag", fin=True)
    assert read(codec, b"".join(theirs.data_to_send())) == [b"frag"]
    theirs.receive_data(codec.take_replies())
    assert [(event.opcode, event.data) for event in theirs.events_received() if isinstance(event, TheirFrame)] == [
        (PONG, b"between")
    ]
    theirs.send_close(CloseCode.GOING_AWAY, "maintenance")
    with pytest.raises(Closed, match="1001 maintenance"):
        read(codec, b"".join(theirs.data_to_send()))
    theirs.receive_data(codec.take_replies())
    assert theirs.close_rcvd is not None
    assert theirs.close_rcvd.code == 1001


def test_another_server_judges_our_violations_alike() -> None:
    theirs, codec = their_server()
    theirs.send_text(b"text")
    with pytest.raises(Violation):
        read(codec, b"".join(theirs.data_to_send()))
    theirs.receive_data(codec.take_replies())
    assert theirs.close_rcvd is not None
    assert theirs.close_rcvd.code == 1003


def test_conversation_with_another_client() -> None:
    theirs = ClientProtocol(parse_uri("ws://lab.example/"), subprotocols=[Subprotocol("jmp.v1")])
    theirs.send_request(theirs.connect())
    ours = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    ours.receive_data(b"".join(theirs.data_to_send()))
    assert isinstance(next(ours.events()), wsproto.events.Request)
    theirs.receive_data(ours.send(wsproto.events.AcceptConnection(subprotocol="jmp.v1")))
    theirs.events_received()
    codec = Codec(client=False)
    for size in (0, 125, 126, 65535, 65536):
        data = random.Random(size).randbytes(size)
        assert their_messages(theirs, b"".join(codec.encode([data]))) == [data]
        theirs.send_binary(data)
        assert read(codec, b"".join(theirs.data_to_send())) == [data]
    their_messages(theirs, codec.encode_close(4001, "taken over"))
    assert theirs.close_rcvd is not None
    assert (theirs.close_rcvd.code, theirs.close_rcvd.reason) == (4001, "taken over")
    with pytest.raises(Closed):
        read(codec, b"".join(theirs.data_to_send()))


# The client's half of the opening handshake.


def accepting(handshake: ClientHandshake, **changes: str) -> bytes:
    key = handshake.request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    fields = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec_WebSocket_Accept": accept_token(key),
        "Sec_WebSocket_Protocol": "jmp.v1",
        **changes,
    }
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items() if value]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode()


def test_accept_token_of_the_rfc() -> None:
    assert accept_token(b"dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_request() -> None:
    request = ClientHandshake("lab:1", "/x?y", token="t0k", headers=[("Jmp-Thing", "1")]).request
    lines = request.split(b"\r\n")
    assert lines[:2] == [b"GET /x?y HTTP/1.1", b"Host: lab:1"]
    assert {b"Authorization: Bearer t0k", b"Jmp-Thing: 1", b"Sec-WebSocket-Protocol: jmp.v1"} <= set(lines)
    assert lines[-2:] == [b"", b""]
    assert b"Authorization" not in ClientHandshake("lab").request


@pytest.mark.parametrize("token", ["line\r\nX: y", "\0", "naïve"])
def test_header_cannot_be_smuggled_in(token: str) -> None:
    with pytest.raises(UsageError, match="'Authorization' header") as error:
        ClientHandshake("lab", token=token)
    assert token not in str(error.value)


@pytest.mark.parametrize("path", ["/a b", "/ü", "/\n"])
def test_bad_path(path: str) -> None:
    with pytest.raises(UsageError, match="not a path"):
        ClientHandshake("lab", path)


def test_response_byte_by_byte_and_what_follows() -> None:
    handshake = ClientHandshake("lab")
    response = accepting(handshake, connection="keep-alive, Upgrade")
    assert [handshake.feed(bytes([byte])) for byte in response[:-1]] == [None] * (len(response) - 1)
    assert handshake.feed(response[-1:] + b"frames") == b"frames"


@pytest.mark.parametrize(
    "changes",
    [
        {"Sec_WebSocket_Accept": "wrong"},
        {"Sec_WebSocket_Accept": ""},
        {"Upgrade": "h2c"},
        {"Connection": "close"},
        {"Sec_WebSocket_Protocol": "chat"},
        {"Sec_WebSocket_Protocol": ""},
        {"Sec_WebSocket_Extensions": "permessage-deflate"},
    ],
)
def test_wrong_upgrade(changes: dict[str, str]) -> None:
    handshake = ClientHandshake("lab")
    with pytest.raises(ProtocolViolation, match="this is not a jmp"):
        handshake.feed(accepting(handshake, **changes))


@pytest.mark.parametrize("data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x15\x03\x01", b"HTTP/1.0 200 OK\r\n\r\n", b"\r\n\r\n"])
def test_another_protocol_is_found_at_once(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match=r"this is not a jmp: its response is not HTTP/1\.1"):
        ClientHandshake("lab").feed(data)


def test_endless_response() -> None:
    handshake = ClientHandshake("lab")
    assert handshake.feed(b"HTTP/1.1 101 X") is None
    for _ in range(MAX_HEAD // 1000):
        assert handshake.feed(b"x" * 1000) is None
    with pytest.raises(ProtocolViolation, match="too long"):
        handshake.feed(b"x" * 1000)


@pytest.mark.parametrize("received", [b"", b"HT", b"HTTP/1.1 101 Swi"])
def test_response_cut_short(received: bytes) -> None:
    handshake = ClientHandshake("lab")
    assert not received or handshake.feed(received) is None
    with pytest.raises(LinkLost):
        handshake.feed(b"")


TEXT_PLAIN = "Content-Type: text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("status", "lines", "error", "message"),
    [
        ("401 Unauthorized", [TEXT_PLAIN], Refused, "the réason"),
        ("403 Forbidden", [TEXT_PLAIN], Refused, "the réason"),
        ("403 Forbidden", ["Content-Type: text/html"], Refused, "403 Forbidden"),
        ("503 Service Unavailable", [TEXT_PLAIN, "Jmp-Error: busy"], Busy, "the réason"),
        ("503 Service Unavailable", [TEXT_PLAIN, "Jmp-Error: lab"], LabError, "cannot serve now: the réason"),
        ("502 Bad Gateway", [], LabError, "cannot serve now: 502 Bad Gateway"),
        ("404 Not Found", [TEXT_PLAIN], ProtocolViolation, "not a jmp: it answered '404 Not Found'"),
        ("200 OK", [], ProtocolViolation, "not a jmp: it answered '200 OK'"),
    ],
)
@pytest.mark.parametrize("with_length", [True, False])
def test_refusals(status: str, lines: list[str], error: type[LabError], message: str, with_length: bool) -> None:
    body = "the réason\n".encode()
    handshake = ClientHandshake("lab")
    if with_length:
        lines = [*lines, f"content-length: {len(body)}"]
    assert handshake.feed("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()) is None
    with pytest.raises(error, match=message) as caught:  # noqa: PT012, the end of input is needed in one of two cases
        handshake.feed(body)
        handshake.feed(b"")
    assert type(caught.value) is error


def test_reason_is_cleaned_and_bounded() -> None:
    handshake = ClientHandshake("lab")
    head = f"HTTP/1.1 401 No\r\n{TEXT_PLAIN}\r\nContent-Length: 999999999\r\n\r\n".encode()
    with pytest.raises(Refused) as refused:
        handshake.feed(head + b"\x1b[31mred\nx" + b"y" * 10_000)
    assert "\x1b" not in refused.value.message
    assert "\n" not in refused.value.message
    assert len(refused.value.message) <= 4096


def test_a_status_plays_no_tricks_either() -> None:
    with pytest.raises(Refused) as refused:
        ClientHandshake("lab").feed(b"HTTP/1.1 401 \x1b[2J\nred\x9b\r\nContent-Length: 0\r\n\r\n")
    assert refused.value.message == "401  [2J red "


@UNHURRIED
@given(st.binary(max_size=300), st.booleans())
def test_garbage_response(data: bytes, looks_right: bool) -> None:
    handshake = ClientHandshake("lab")
    with pytest.raises((ProtocolViolation, Refused, LabError)):  # noqa: PT012
        handshake.feed((b"HTTP/1.1 101 X\r\n" if looks_right else b"") + (data or b"x"))
        handshake.feed(b"")


def test_no_heavy_imports() -> None:
    heavy = {"trio", "ssl", "http", "wsproto", "h11", "asyncio", "urllib.parse", "logging", "msgpack"}
    root = str(Path(jmp.__file__).parents[1])
    code = f"import sys; sys.path.append({root!r}); import jmp.link.blocking; print({heavy!r} & set(sys.modules))"
    # -S: the import hook of an editable install brings modules of its own.
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
