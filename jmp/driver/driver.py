"""``Driver``: one class per kind of device. Its annotated fields are the configuration, its exported methods the interface.

The report, the client and the command line are made from it, so nothing is written twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, dataclass_transform, overload

import trio

from jmp.driver.machine import Machine, Service, Suggestion
from jmp.driver.schema import Parameter, Schema, parameters_of, result_of
from jmp.errors import BadValue, Cancelled
from jmp.rpc.messages import Kind
from jmp.rpc.serve import waits_for_nothing

F = TypeVar("F", bound=Callable[..., Any])

_MARK = "__jmp_export__"
_STREAM = "__jmp_exportstream__"


@overload
def export(function: F) -> F: ...
@overload
def export(*, name: str) -> Callable[[F], F]: ...
def export(function: F | None = None, *, name: str | None = None) -> F | Callable[[F], F]:
    """Let clients call this method.

    ``async def`` runs on Trio and is cancelled with its caller. A plain ``def`` runs in a worker thread; so does each step of a
    plain generator. A generator streams its items. ``name`` is what clients call it, its own name unless given.
    """

    def mark(marked: F) -> F:
        setattr(marked, _MARK, name or marked.__name__)
        return marked

    return mark(function) if function is not None else mark


def exportstream(function: F) -> F:
    """Let clients open a byte stream to this method: ``async def connect(self, stream: Stream, …)``.

    The stream ends when the method returns, and is reset when it raises. A plain ``def`` runs in a worker thread and gets a
    :class:`~jmp.driver.tree.ThreadStream`.
    """
    setattr(function, _STREAM, True)
    return export(function)


@dataclass(frozen=True)
class Export:
    """One exported method, bound to its driver."""

    name: str
    kind: Kind
    function: Callable[..., Any]
    threaded: bool
    """It blocks, so it runs in a worker thread."""
    doc: str
    parameters: tuple[Parameter, ...]
    returns: Schema
    at_once: bool = False
    """It waits for nothing (:func:`jmp.rpc.serve.waits_for_nothing`)."""


@dataclass(frozen=True)
class _Marked:
    """What :class:`Export` says, for the class: worked out once."""

    attribute: str
    name: str
    kind: Kind
    threaded: bool
    doc: str
    parameters: tuple[Parameter, ...]
    returns: Schema
    at_once: bool


def _marked(cls: type[Driver]) -> tuple[_Marked, ...]:
    if "_jmp_marked" not in vars(cls):
        cls._jmp_marked = tuple(_find(cls))
    return cls._jmp_marked


def _find(cls: type[Driver]) -> Iterator[_Marked]:
    for attribute in dir(cls):
        if attribute.startswith("__"):
            continue
        versions = [vars(base)[attribute] for base in cls.__mro__ if attribute in vars(base)]
        name = next((getattr(version, _MARK) for version in versions if hasattr(version, _MARK)), None)
        if name is None or not callable(versions[0]):
            continue  # an override needs no mark of its own: that of the interface counts
        yield _describe(cls, attribute, name, stream=any(hasattr(version, _STREAM) for version in versions))


def _describe(cls: type, attribute: str, name: str, *, stream: bool) -> _Marked:
    function = getattr(cls, attribute)
    threaded = not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))
    if stream:
        kind = Kind.BYTES
    elif inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        kind = Kind.ITEMS
    else:
        kind = Kind.CALL
    parameters = tuple(parameters_of(function, stream=stream, owner=cls))
    docs = (vars(base)[attribute].__doc__ for base in cls.__mro__ if attribute in vars(base))
    doc = inspect.cleandoc(next(filter(None, docs), ""))
    returns = {} if stream else result_of(function, owner=cls)
    return _Marked(attribute, name, kind, threaded, doc, parameters, returns, waits_for_nothing(function))


def export_of(name: str, function: Callable[..., Any], *, doc: str = "") -> Export:
    """An :class:`Export` of any bound method or function, for drivers whose methods come from their configuration."""
    target = inspect.unwrap(function)
    is_async = inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target)
    is_items = inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target)
    parameters = tuple(parameters_of(function))
    if not inspect.ismethod(function):
        raise TypeError("export_of takes a bound method")
    kind = Kind.ITEMS if is_items else Kind.CALL
    return Export(
        name, kind, function, not is_async, doc or inspect.getdoc(target) or "", parameters, result_of(target)
    )


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class _Configured:
    """Makes every subclass a keyword-only dataclass, without an equality or a repr that could show a secret."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        doc = cls.__doc__
        dataclass(kw_only=True, eq=False, repr=False)(cls)
        cls.__doc__ = doc  # a dataclass without one gets its signature instead


class Driver(_Configured):
    """One device, or one aspect of one. A new instance is made for every session.

    Subclasses annotate their configuration as fields and mark what clients may call with :func:`export` and
    :func:`exportstream`. ``open`` and ``close`` may be plain or asynchronous. What each may raise decides who is blamed:
    ``DeviceError`` the device, ``UsageError`` and ``BadValue`` the caller, anything else the driver.
    """

    _jmp_marked: ClassVar[tuple[_Marked, ...]]
    interface: ClassVar[str | None] = None
    """Id of what clients may rely on, such as ``jmp.power/v1``; see :mod:`jmp.driver.interfaces`."""

    children: dict[str, Driver] = field(init=False, default_factory=dict)
    """Drivers below this one: opened before it, closed after it. A composite may add its own in ``__post_init__``."""
    nursery: trio.Nursery = field(init=False)
    """Lives from before ``open`` until ``close`` has returned; then it is cancelled."""
    log: logging.Logger = field(init=False, default=logging.getLogger("jmp.driver"))
    """Named after the driver's place in the tree."""
    lost: Callable[[str], None] = field(init=False, default=lambda reason: None)
    """``self.lost(reason)`` from a task or thread of the driver's: the device is gone. Calls under way fail, the driver is
    closed, and opened again with back-off."""

    def open(self) -> Any:
        """Get hold of the device. Raise ``DeviceError`` if it is not there: the driver is degraded and tried again."""

    def close(self) -> Any:
        """Let go of the device. Always called after ``open`` has succeeded; may take 10 seconds."""

    def reset(self) -> Any:
        """Bring the device back to a known state; called when a client asks for it."""

    @classmethod
    def suggest(cls, machine: Machine) -> Iterable[Suggestion]:
        """What there is on the machine that this driver is for: ``jmp scan`` proposes it. Looks only, opens nothing.

        A subclass does not inherit it, since its configuration may be another.
        """
        return ()

    services: ClassVar[tuple[str, ...]] = ()
    """Types of services (DNS-SD) by which its devices tell of themselves in a network, such as ``_ssh._tcp``."""

    @classmethod
    def recognise(cls, service: Service) -> Iterable[Suggestion]:
        """What a service that a device in the network tells of is for this driver: ``jmp scan --network`` proposes it.

        It is one of ``services``. A subclass does not inherit it, since its configuration may be another.
        """
        return ()

    def exports(self) -> dict[str, Export]:
        """What clients may call. Extend it for methods that come from the configuration."""
        return {
            marked.name: Export(
                marked.name,
                marked.kind,
                getattr(self, marked.attribute),
                marked.threaded,
                marked.doc,
                marked.parameters,
                marked.returns,
                marked.at_once,
            )
            for marked in _marked(type(self))
        }

    async def invoke(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of this driver's own methods whether it is plain (then in a worker thread) or asynchronous."""
        function = getattr(self, name)
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        return await in_thread(function, *args, **kwargs)

    @classmethod
    def summary(cls) -> str:
        """The first line of the class's documentation, or of its interface's; empty if it has none."""
        docs = (base.__doc__ for base in cls.__mro__[: cls.__mro__.index(Driver)])
        return inspect.cleandoc(next(filter(None, docs), "")).partition("\n")[0].replace("``", "'")


# ---- blocking methods in worker threads

_caller_gone: ContextVar[threading.Event | None] = ContextVar("jmp_caller_gone", default=None)


async def in_thread(
    function: Callable[..., Any], *args: Any, limiter: trio.CapacityLimiter | None = None, **kwargs: Any
) -> Any:
    """Run a blocking function in a worker thread.

    A thread cannot be stopped from outside. Cancellation returns at once; the function runs on until it
    returns or calls :func:`sleep` or :func:`cancelled`, and holds ``limiter`` until then.
    """
    gone = threading.Event()
    token = _caller_gone.set(gone)
    try:
        return await trio.to_thread.run_sync(lambda: function(*args, **kwargs), abandon_on_cancel=True, limiter=limiter)
    except trio.Cancelled:
        gone.set()
        raise
    finally:
        _caller_gone.reset(token)


def cancelled() -> bool:
    """Whether the caller of the plain method that asks has given up: then clean up and return soon."""
    gone = _caller_gone.get()
    return gone is not None and gone.is_set()


def sleep(seconds: float) -> None:
    """Wait, in a plain method. Raises :class:`~jmp.errors.Cancelled` as soon as the caller gives up."""
    gone = _caller_gone.get() or threading.Event()
    if gone.wait(seconds):
        raise Cancelled("the caller gave up")


def check_seconds(name: str, value: float) -> None:
    """Raise ``BadValue`` unless a caller's argument is a time that one can wait, before anything else is done."""
    if not 0 <= value < math.inf:
        raise BadValue(f"{name} must be 0 seconds or more, not {value:g}")
