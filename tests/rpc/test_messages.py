"""Requests, replies and errors ↔ bytes."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import BY_CODE, BadValue, Busy, Cancelled, DeviceError, DriverError, JmpError, ProtocolViolation
from jmp.rpc import messages
from jmp.rpc.messages import Reply, Request
from jmp.wire import codec
from jmp.wire.frames import Reset


@pytest.mark.parametrize("timeout", [None, 0, 1.5, math.inf])
def test_requests_arrive_as_they_left(timeout: float | None) -> None:
    request = Request("board.power", "cycle", (1, None, b""), {"wait": 2.5}, timeout)
    assert Request.decode(codec.decode(request.encode())) == request


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["target", "method", [], {}],
        ["target", "method", [], {}, {}, {}],
        [b"target", "method", [], {}, {}],
        ["target", None, [], {}, {}],
        ["target", "method", (), {}, {}],
        ["target", "method", [], {1: 2}, {}],
        ["target", "method", [], {}, {"timeout": "soon"}],
        ["target", "method", [], {}, {"timeout": True}],
        ["target", "method", [], {}, {"timeout": -1}],
        ["target", "method", [], {}, {"timeout": math.nan}],
        ["target", "method", [], {}, {"timeout": 10**400}],
    ],
)
def test_what_is_no_request(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        Request.decode(value)


def test_a_later_version_may_add_options() -> None:
    assert Request.decode(["t", "m", [], {}, {"timeout": 1, "trace": "x"}]) == Request("t", "m", (), {}, 1)


def test_replies() -> None:
    assert messages.read(codec.decode(messages.result([1]))) == (Reply.RESULT, [1])
    assert messages.read(codec.decode(messages.item(None))) == (Reply.ITEM, None)
    assert messages.read(codec.decode(messages.END)) == (Reply.END, None)
    assert messages.read(codec.decode(messages.READY)) == (Reply.READY, None)
    assert messages.read([int(Reply.READY), None, "added later"]) == (Reply.READY, None)


@pytest.mark.parametrize("value", [None, [], [4], [-1], [True], ["RESULT"], (0, 1), {}])
def test_what_is_no_reply(value: object) -> None:
    with pytest.raises(ProtocolViolation, match="an answer is no reply"):
        messages.read(value)


@pytest.mark.parametrize(
    "make", [messages.result, messages.item, lambda value: Request("t", "m", (value,), {}).encode()]
)
def test_what_is_too_large_is_refused_where_it_would_leave(make: Any) -> None:
    with pytest.raises(BadValue, match=r"larger than 64 MiB.*byte stream"):
        make(bytes(messages.MAX_VALUE))
    assert len(make(bytes(messages.MAX_VALUE - 100))) <= messages.MAX_VALUE


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"wait": object()}, "power.cycle: argument 'wait': a value of type object cannot be carried"),
        ((1, [2, 1j]), {}, "power.cycle: argument 2: a value of type complex at [1] cannot be carried"),
    ],
)
def test_an_argument_that_cannot_be_carried_is_named(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(BadValue) as raised:
        Request("power", "cycle", args, kwargs).encode()
    assert raised.value.message.startswith(message)


# ---- errors


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_every_error_crosses(kind: type[JmpError]) -> None:
    error = messages.revive(messages.describe(kind("what is wrong", remote_traceback="there")))
    assert type(error) is kind
    assert (error.message, error.remote_traceback) == ("what is wrong", "there")


def test_codes_are_unique() -> None:
    assert len({kind.code for kind in BY_CODE.values()}) == len(list(descendants(JmpError)))


def descendants(kind: type[JmpError]) -> list[type[JmpError]]:
    found = [kind] if kind.__module__ == "jmp.errors" else []
    return found + [deeper for child in kind.__subclasses__() for deeper in descendants(child)]


class Brand(DeviceError):
    """A third party's own."""


class Later(JmpError):
    code = "of-a-later-version"


class Broken(DeviceError):
    def __init__(self) -> None:  # forgets its base class
        pass


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def crossed(problem: BaseException, **options: bool) -> JmpError:
    error = messages.revive(messages.describe(problem, **options))
    assert error is not None
    return error


def test_errors_of_others() -> None:
    assert type(crossed(Brand("x"))) is DeviceError
    assert type(crossed(Later("x"))) is JmpError
    assert crossed(Later("x")).message == "x"


def test_an_unexpected_exception_crosses_with_its_type_and_message() -> None:
    try:
        raise KeyError("a\n  b")
    except KeyError as problem:
        error = crossed(problem)
        bare = crossed(problem, tracebacks=False)
    assert type(error) is type(bare) is DriverError
    assert error.message == bare.message == r"KeyError: 'a\n b'"
    assert error.remote_traceback is not None
    assert "test_an_unexpected_exception" in error.remote_traceback
    assert bare.remote_traceback is None
    assert crossed(ZeroDivisionError()).message == "ZeroDivisionError"
    assert crossed(ValueError("two\nlines")).message == "ValueError: two lines"


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Mute(), "Mute: its message cannot be shown"),
        (Broken(), "Broken: its message cannot be shown"),
        (ValueError("\ud800"), "ValueError: ?"),
        (DeviceError(b"bytes"), "b'bytes'"),  # type: ignore[arg-type]  # as careless authors do
    ],
)
def test_whatever_is_raised_can_be_described(problem: Exception, message: str) -> None:
    assert crossed(problem).message == message


def test_long_texts_are_cut() -> None:
    error = crossed(DeviceError("x" * 100_000, remote_traceback="y" * 100_000 + "end"))
    assert len(error.message) == messages.MAX_TRACEBACK
    assert error.remote_traceback is not None
    assert len(error.remote_traceback) == messages.MAX_TRACEBACK
    assert error.remote_traceback.endswith("end")


@given(
    st.binary()
    | st.dictionaries(
        st.sampled_from(["code", "message", "traceback", "more"]),
        st.none() | st.text() | st.integers() | st.lists(st.integers()),
    ).map(codec.encode)
)
def test_a_description_may_be_anything(detail: bytes) -> None:
    assert isinstance(messages.revive(detail), JmpError | None)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (
            Reset.REFUSED,
            Busy,
            "a.b was refused: too many calls are open there, or it is about to stop; try again later",
        ),
        (Reset.FLOW, ProtocolViolation, "a.b was ended by the other side: FLOW"),
        (Reset.CANCELLED, Cancelled, "a.b was ended by the other side: CANCELLED"),
        (Reset.FAILED, Cancelled, "a.b was ended by the other side: FAILED"),
        (77, Cancelled, "a.b was ended by the other side: 77"),
    ],
)
def test_a_reset_without_a_description(code: int, kind: type[JmpError], message: str) -> None:
    error = messages.from_reset("a.b", code, b"")
    assert type(error) is kind
    assert error.message == message


def test_a_reset_with_one() -> None:
    error = messages.from_reset("a.b", Reset.FAILED, messages.describe(DeviceError("gone")))
    assert type(error) is DeviceError
