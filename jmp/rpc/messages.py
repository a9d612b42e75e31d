"""What crosses a stream of a call, sans-I/O. ``docs/protocol.md`` is the specification.

The caller opens a stream with a *request*, one value: ``[target, method, args, kwargs, options]``. For a method that takes a
byte stream, the caller's raw bytes follow. The answer is a sequence of *replies*, each one value, an array that begins
with a :class:`Reply`:

======  =================  ===================================================================================
RESULT  value              a unary call returned; nothing follows
ITEM    value              the next item of a streaming call
END                        a streaming call has no more items
READY                      a byte stream is open; raw bytes follow, until the stream ends
======  =================  ===================================================================================

A call that fails, at whatever point, ends with its stream being reset, code FAILED, and the error (:func:`describe`) as
the detail. A caller that gives up resets its stream.
"""

from __future__ import annotations

import traceback
from enum import IntEnum
from typing import Any, Final, NamedTuple

from jmp.errors import BY_CODE, DriverError, JmpError, ProtocolViolation
from jmp.wire import codec

MAX_VALUE: Final = 64 * 1024 * 1024
"""Bytes of one request or reply; what is larger belongs into a byte stream."""


MAX_TRACEBACK: Final = 16 * 1024
"""Characters of a remote traceback that are worth carrying: its end."""


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
        return codec.encode([self.target, self.method, list(self.args), self.kwargs, options])

    @classmethod
    def decode(cls, value: object) -> Request:
        """Raises :class:`~jmp.errors.ProtocolViolation` unless ``value`` has the shape of a request."""
        match value:
            case [str(target), str(method), list(args), dict(kwargs), dict(options)] if all(
                type(name) is str for name in kwargs
            ):
                timeout = options.get("timeout")
                if timeout is not None and (type(timeout) not in (int, float) or not timeout >= 0):
                    raise ProtocolViolation("a request's timeout is no number of seconds")
                return cls(target, method, tuple(args), kwargs, timeout)
        raise ProtocolViolation("a call does not begin with a request")


END: Final = codec.encode([int(Reply.END)])
READY: Final = codec.encode([int(Reply.READY)])


def result(value: object) -> bytes:
    return codec.encode([int(Reply.RESULT), value])


def item(value: object) -> bytes:
    return codec.encode([int(Reply.ITEM), value])


def read(value: object) -> tuple[Reply, Any]:
    """One reply's kind and its value, if it has one."""
    if isinstance(value, list) and value and type(value[0]) is int and value[0] in _REPLIES:
        return Reply(value[0]), value[1] if len(value) > 1 else None
    raise ProtocolViolation("an answer is no reply")


_REPLIES: Final = frozenset(Reply)


def describe(problem: BaseException, *, tracebacks: bool = True) -> bytes:
    """An exception as the detail of a reset: a map of ``code``, ``message`` and, if allowed, ``traceback``, encoded.

    An exception that is none of jmp's own crosses as ``driver``: its type and message become the message.
    """
    if isinstance(problem, JmpError):
        described = {"code": problem.code, "message": problem.message}
        remote = problem.remote_traceback
    else:
        text = " ".join(str(problem).split())
        name = type(problem).__name__
        described = {"code": DriverError.code, "message": f"{name}: {text}" if text else name}
        remote = "".join(traceback.format_exception(problem))
    if remote is not None and tracebacks:
        described["traceback"] = remote[-MAX_TRACEBACK:]
    described["message"] = described["message"][:MAX_TRACEBACK]
    return codec.encode({key: text.encode(errors="replace").decode() for key, text in described.items()})


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
    kind = BY_CODE.get(described.get("code", ""), JmpError)
    remote = described.get("traceback")
    return kind(str(described.get("message", "")), remote_traceback=remote if isinstance(remote, str) else None)
