"""What this process asks of its devices, call by call, for those who want to know: pytest's reports of failing tests.

Connections that are opened while :data:`taps` holds something are watched; the others cost nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from jmp.driver.proxy import ByteStream

B = TypeVar("B")


@dataclass(eq=False)
class Call:
    """One call of a driver's method. It is told when it begins, and completed in place."""

    text: str
    """``power.cycle(wait=1.0)``, with long values shortened."""
    began: float = field(default_factory=time.monotonic)
    seconds: float | None = None
    """How long it took; None while it goes on."""
    answer: str = ""
    """Its result, or its error, in short; "" for None."""

    def __str__(self) -> str:
        took = "still going on" if self.seconds is None else f"{self.seconds:.3f} s"
        return f"{self.text}{self.answer and f' → {self.answer}'}  ({took})"


taps: Final[list[Callable[[Call], None]]] = []
"""Called with every call that begins, in the calling thread."""


_SECRETS: Final = frozenset({"key", "passphrase", "password", "secret", "token"})


class _Short(Repr):
    """Values as a line of a report shows them. Of bytes only how many there are: nobody reads an image. Secrets by no means."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_bytes(self, value: bytes, level: int) -> str:
        return f"<{len(value)} bytes>"

    repr_bytearray = repr_memoryview = repr_bytes

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        return super().repr_dict(
            {key: "***" if key in _SECRETS and item else item for key, item in value.items()}, level
        )


_short = _Short().repr
_SECRET: Final = frozenset({"headers", "passphrase", "password", "token"})


def described(target: str, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """A call as it would be written. What belongs to the device as a whole (``reset``) has no target."""
    shown = [
        *map(_short, args),
        *(f"{name}={'***' if name in _SECRET else _short(value)}" for name, value in kwargs.items()),
    ]
    name = method if target.startswith("@") else f"{target}.{method}"
    return f"{name}({', '.join(shown)})"


def watched(caller: B) -> B:
    """``caller``, a :class:`~jmp.driver.proxy.Backend` of either kind, whose calls are told to :data:`taps`, if there are any."""
    if taps:
        # In place: client classes look at the type of their backend to tell which world they are in.
        for name, watch in (("call", _watched_call), ("items", _watched_items), ("open", _watched_open)):
            setattr(caller, name, watch(getattr(caller, name)))
    return caller


@contextmanager
def _told(target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Call]:
    call = Call(described(target, method, args, kwargs))
    for tap in list(taps):
        tap(call)
    try:
        yield call
    except GeneratorExit:
        raise  # whoever took items wants no more of them
    except BaseException as error:
        if not call.answer:
            message = " ".join(str(error).split())
            call.answer = f"{type(error).__name__}: {message}"[:160].removesuffix(": ")
        raise
    finally:
        call.seconds = time.monotonic() - call.began


def _watched_call(call: Callable[..., Any]) -> Callable[..., Any]:
    async def watched_call(target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with _told(target, method, args, kwargs) as told:
            value = await call(target, method, args, kwargs)
            told.answer = "" if value is None else _short(value)
            return value

    return watched_call


def _watched_items(items: Callable[..., AsyncGenerator[Any, None]]) -> Callable[..., AsyncGenerator[Any, None]]:
    async def watched_items(
        target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        with _told(target, method, args, kwargs) as told:
            async with aclosing(items(target, method, args, kwargs)) as source:
                count = 0
                async for item in source:
                    count += 1
                    told.answer = f"{count} {'item' if count == 1 else 'items'}, the last {_short(item)}"
                    yield item

    return watched_items


def _watched_open(
    opened: Callable[..., AbstractAsyncContextManager[ByteStream]],
) -> Callable[..., AbstractAsyncContextManager[ByteStream]]:
    @asynccontextmanager
    async def watched_open(
        target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, ahead: bool = False
    ) -> AsyncIterator[ByteStream]:
        with _told(target, method, args, kwargs) as told:
            stream: ByteStream | None = None
            try:
                async with opened(target, method, args, kwargs, ahead=ahead) as stream:
                    told.answer = "a byte stream"
                    yield stream
            finally:
                if stream is not None and not stream.opened:
                    told.answer = ""

    return watched_open
