"""What crosses a stream of a call, sans-I/O. ``docs/protocol.md`` is the specification.

The caller opens a stream with a *request*, one value: ``[target, method, args, kwargs, options]``. For a method that takes a
byte stream, the caller's raw bytes follow. The answer is a sequence of *replies*, each one value, an array that begins
with a :class:`Reply`:

======  =================  ===================================================================================
RESULT  value              a unary call returned; nothing follows
ITEM    value              the next item of a streaming call
END                        a streaming call has no more items
READY                      the method has begun; raw bytes follow, until the stream ends
======  =================  ===================================================================================

A call that fails, at whatever point, ends with its stream being reset, code FAILED, and the error (:func:`describe`) as
the detail. A caller that gives up resets its stream.
"""

from __future__ import annotations

import math
import traceback
from enum import IntEnum
from typing import Any, Final, NamedTuple

from jmp.errors import BY_CODE, BadValue, Busy, Cancelled, DriverError, JmpError, ProtocolViolation
from jmp.wire import codec
from jmp.wire.frames import Reset

MAX_VALUE: Final = 64 * 1024 * 1024
"""Bytes of one request or reply; what is larger belongs into a byte stream."""


MAX_TRACEBACK: Final = 16 * 1024
"""Characters of a remote traceback that are worth carrying: its end."""


FATES: Final = {
    True: "it had reached the other side, which had begun it",
    False: "it had not been sent, so it was not executed",
    None: "whether it was executed is not known",
}
"""What a caller is told of a call that has no answer because the link is gone for good, by what is known of the request."""


class Reply(IntEnum):
    RESULT = 0
    ITEM = 1
    END = 2
    READY = 3


class Kind(IntEnum):
    """What a method answers with."""

    CALL = 0
    """One value."""
    ITEMS = 1
    """A stream of values."""
    BYTES = 2
    """A byte stream in both directions."""


class Request(NamedTuple):
    """One call."""

    target: str
    """Whose method: the path of a driver in the exporter's tree (``board.power``), or a role's own object (``@session``)."""
    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    timeout: float | None = None
    """Seconds, from its arrival, after which the call is cancelled and fails with ``timeout``."""

    def encode(self) -> bytes:
        options = {} if self.timeout is None else {"timeout": self.timeout}
        try:
            return _encode([self.target, self.method, list(self.args), self.kwargs, options])
        except BadValue:
            for name, value in [*enumerate(self.args, 1), *self.kwargs.items()]:
                try:
                    codec.encode(value)
                except BadValue as error:
                    where = f"{self.target}.{self.method}: argument {name!r}".lstrip(".")
                    raise BadValue(f"{where}: {error.message}") from None
            raise

    @classmethod
    def decode(cls, value: object) -> Request:
        """Raises :class:`~jmp.errors.ProtocolViolation` unless ``value`` has the shape of a request."""
        if type(value) is list and tuple(map(type, value)) == _SHAPE:
            target, method, args, kwargs, options = value
            if not kwargs or all(type(name) is str for name in kwargs):
                return cls(target, method, tuple(args), kwargs, _seconds(options.get("timeout")) if options else None)
        raise ProtocolViolation("a call does not begin with a request")


_SHAPE: Final = (str, str, list, dict, dict)


def _seconds(timeout: object) -> float | None:
    if timeout is None:
        return None
    if type(timeout) in (int, float):
        try:
            seconds = float(timeout)  # type: ignore[arg-type]  # a number
        except OverflowError:
            seconds = math.nan
        if seconds >= 0:
            return seconds
    raise ProtocolViolation("a request's timeout is no number of seconds")


def _encode(value: object) -> bytes:
    data = codec.encode(value)
    if len(data) + 2 > MAX_VALUE:  # a reply has two bytes more
        raise BadValue(
            f"a value is larger than {MAX_VALUE >> 20} MiB in all; what is that large belongs into a byte stream"
        )
    return data


END: Final = codec.encode([int(Reply.END)])
READY: Final = codec.encode([int(Reply.READY)])


def result(value: object) -> bytes:
    return _ARRAY_OF_TWO + bytes([Reply.RESULT]) + _encode(value)


def item(value: object) -> bytes:
    return _ARRAY_OF_TWO + bytes([Reply.ITEM]) + _encode(value)


_ARRAY_OF_TWO: Final = b"\x92"  # put together here so that an error names the place in the value, not in the reply


def read(value: object) -> tuple[Reply, Any]:
    """One reply's kind and its value, if it has one."""
    if isinstance(value, list) and value and type(value[0]) is int and (reply := _REPLIES.get(value[0])) is not None:
        return reply, value[1] if len(value) > 1 else None
    raise ProtocolViolation("an answer is no reply")


def whole(data: bytes) -> tuple[Reply, Any] | None:
    """The reply that ``data`` is, neither less nor more, as that of nearly every call; None: look closely."""
    if len(data) > _SHORT:
        return None
    try:
        return read(codec.decode(data))
    except ProtocolViolation:
        return None


_SHORT: Final = 4096
_REPLIES: Final[dict[int, Reply]] = {int(reply): reply for reply in Reply}


def describe(problem: BaseException, *, tracebacks: bool = True) -> bytes:
    """An exception as the detail of a reset: a map of ``code``, ``message`` and, if allowed, ``traceback``, encoded.

    An exception that is none of jmp's own crosses as ``driver``: its type and message become the message.
    """
    own = isinstance(problem, JmpError)
    message = _text(problem)
    if message is None:
        message = f"{type(problem).__name__}: its message cannot be shown"
    elif not own:
        message = f"{type(problem).__name__}: {' '.join(message.split())}".removesuffix(": ")
    described = {
        "code": problem.code if isinstance(problem, JmpError) else DriverError.code,
        "message": message[:MAX_TRACEBACK],
    }
    remote = getattr(problem, "remote_traceback", None) if own else "".join(traceback.format_exception(problem))
    if remote is not None and tracebacks:
        described["traceback"] = remote[-MAX_TRACEBACK:]
    return codec.encode({key: text.encode(errors="replace").decode() for key, text in described.items()})


def _text(problem: BaseException) -> str | None:
    try:
        return problem.message if isinstance(problem, JmpError) else str(problem)
    except Exception:  # noqa: BLE001  # anybody's code; that it fails must not hide that something has failed
        return None


def revive(detail: bytes) -> JmpError | None:
    """The exception that :func:`describe` described, None if ``detail`` describes none.

    A code that this version does not know gives a plain ``JmpError``.
    """
    if not detail:
        return None
    try:
        described = codec.decode(detail)
    except ProtocolViolation:
        return None
    if not isinstance(described, dict):
        return None
    kind = BY_CODE.get(str(described.get("code")), JmpError)
    remote = described.get("traceback")
    return kind(str(described.get("message", "")), remote_traceback=remote if isinstance(remote, str) else None)


def from_reset(name: str, code: int, detail: bytes) -> JmpError:
    """What the caller of the method ``name`` raises when its stream was reset."""
    if (error := revive(detail)) is not None:
        return error
    if code == Reset.REFUSED:
        return Busy(f"{name} was refused: too many calls are open there, or it is about to stop; try again later")
    kind = ProtocolViolation if code == Reset.FLOW else Cancelled
    return kind(f"{name} was ended by the other side: {Reset(code).name if code in set(Reset) else code}")
