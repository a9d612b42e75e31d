"""Runs a tree of drivers for one session.

Each node has one task that keeps its driver: opens it, waits until the session ends or the device is lost, closes it, and in
the latter case opens it again, with back-off. A driver that cannot be opened is *degraded*: its calls fail at once with the
reason, while all others work. Children are opened before and closed after their parent.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, TypeVar

import trio

from jmp.driver.driver import Driver, Export, cancelled, in_thread
from jmp.driver.schema import bind, did_you_mean
from jmp.errors import Cancelled, DeviceError, JmpError, NotFound, Refused
from jmp.groups import ungrouped
from jmp.rpc import messages
from jmp.rpc.messages import Kind
from jmp.rpc.serve import Method

GRACE: Final = 10.0
"""Seconds that a driver's ``close`` may take."""
PATIENCE: Final = 60.0
"""Seconds that a driver's ``open`` may take until the others are let go on without it. It opens on."""
RETRY: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before the next attempts to open a degraded driver; the last one repeats."""

log = logging.getLogger("jmp.driver")
T = TypeVar("T")


class State(Enum):
    """Where a driver is in its life."""

    CLOSED = "closed"
    OPENING = "opening"
    READY = "ready"
    DEGRADED = "degraded"


LEGAL: Final[dict[State, frozenset[State]]] = {
    State.CLOSED: frozenset({State.OPENING}),
    State.OPENING: frozenset({State.READY, State.DEGRADED, State.CLOSED}),
    State.READY: frozenset({State.DEGRADED, State.CLOSED}),
    State.DEGRADED: frozenset({State.OPENING, State.CLOSED}),
}


@dataclass(eq=False)
class Node:
    """One place in the tree: a driver, a composite without one, or a ``ref`` to another place."""

    driver: Driver | None = None
    type: str | None = None
    """The name under which the driver is registered."""
    children: dict[str, Node] = field(default_factory=dict)
    ref: str | None = None
    description: str = ""
    help: dict[str, str] = field(default_factory=dict)
    """Method name → text that replaces the driver's own."""
    state: State = State.CLOSED
    reason: str = ""
    """Why it is degraded."""
    path: str = ""
    barred: str = ""
    """Why it may not be opened at all."""

    @classmethod
    def of(cls, driver: Driver, *, type: str | None = None) -> Node:
        """The node of a driver, with those of the children that it made itself."""
        return cls(driver, type, {name: cls.of(child) for name, child in driver.children.items()})

    def add(self, children: dict[str, Node]) -> None:
        """Put nodes below this one; its driver sees theirs as its children."""
        self.children |= children
        if self.driver is not None:
            self.driver.children |= {name: node.driver for name, node in children.items() if node.driver is not None}


class Tree:
    """The drivers of one session below ``root``, which has no name of its own.

    ``changed`` is called with a node when its state has changed.
    """

    def __init__(self, root: Node, *, changed: Callable[[Node], None] = lambda node: None) -> None:
        self.root = root
        self._changed = changed
        self._keepers: dict[str, _Keeper] = {}
        self._exports: dict[str, dict[str, Export]] = {}
        self._found: dict[tuple[str, str], tuple[_Keeper, Export]] = {}
        """Methods that were called, by the path and name that they were called by: as many as there are at most."""
        for path, node in _walk(root, ""):
            node.path = path
            if node.driver is not None:
                self._exports[path] = node.driver.exports()

    # ---- running

    async def start(self, nursery: trio.Nursery) -> None:
        """Open every driver, at the same time but children first, and keep them open until ``nursery`` is cancelled.

        Returns once each driver is open or degraded, or has been opening for 60 s. Raises nothing of the drivers' own.
        """
        await self._start(self.root, None, nursery)

    @ungrouped
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """:meth:`start` for the length of a block."""
        async with trio.open_nursery() as nursery:
            await self.start(nursery)
            yield
            nursery.cancel_scope.cancel()

    async def _start(self, node: Node, parent: _Keeper | None, nursery: trio.Nursery) -> None:
        keeper = parent
        if node.driver is not None:
            keeper = self._keepers[node.path] = _Keeper(node, node.driver, parent, self._set)
        async with trio.open_nursery() as starting:
            for child in node.children.values():
                starting.start_soon(self._start, child, keeper, nursery)
        if node.driver is not None and keeper is not None:
            await nursery.start(keeper.run)

    def _set(self, node: Node, state: State, reason: str = "") -> None:
        if state not in LEGAL[node.state]:
            raise RuntimeError(f"{node.path}: a {node.state.value} driver cannot become {state.value}")
        node.state, node.reason = state, reason
        self._changed(node)

    # ---- calls

    def find(self, path: str) -> Node:
        """The node at ``path``, refs followed. Raises :class:`~jmp.errors.NotFound` with the nearest name."""
        node = self.root
        for step in path.split(".") if path else ():
            node = self._deref(node)
            if step not in node.children:
                raise NotFound(f"there is no driver {path!r} here{did_you_mean(path, self.paths())}")
            node = node.children[step]
        return self._deref(node)

    def _deref(self, node: Node) -> Node:
        return node if node.ref is None else self.find(node.ref)

    def paths(self) -> list[str]:
        """Every path in the tree, refs included."""
        return [path for path, _ in _walk(self.root, "") if path]

    def method(self, path: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Method:
        """What carries out a call, its arguments bound.

        Raises ``NotFound``, ``BadValue``, ``DeviceError`` (degraded) or ``Refused`` (barred).
        """
        if (found := self._found.get((path, name))) is not None:
            keeper, export = found
            positional, named = bind(export.parameters, args, kwargs, f"{path}.{name}")
            return keeper.method(export, positional, named)
        node = self.find(path)
        exports = self._exports.get(node.path, {})
        if name not in exports:
            what = f"{path!r} has no method {name!r}" if exports else f"{path!r} is a group without methods of its own"
            known = exports or [f"{path}.{child}" for child in node.children]
            raise NotFound(what + did_you_mean(name, known))
        export = exports[name]
        positional, named = bind(export.parameters, args, kwargs, f"{path}.{name}".lstrip("."))
        keeper = self._keepers[node.path]
        if path == node.path:  # by refs there may be any number of paths
            self._found[path, name] = keeper, export
        return keeper.method(export, positional, named)

    async def reset(self, path: str = "") -> None:
        """Reset the driver at ``path`` and those below it, children first; all that are ready."""
        for _, node in reversed(list(_walk(self.find(path), path))):
            if node.driver is not None and node.state is State.READY:
                await self._keepers[node.path].reset()

    # ---- report

    def report(self) -> dict[str, Any]:
        """The tree as the client gets it; see ``docs/protocol.md``."""
        return self._report(self.root)

    def _report(self, node: Node) -> dict[str, Any]:
        if node.ref is not None:
            return {"ref": self.find(node.ref).path, "description": node.description}
        driver = node.driver
        report: dict[str, Any] = {"description": node.description or (type(driver).summary() if driver else "")}
        if driver is not None:
            report |= {
                "type": node.type or type(driver).__name__,
                "interface": driver.interface,
                "state": node.state.value,
                "reason": node.reason,
                "methods": {
                    export.name: {
                        "kind": int(export.kind),
                        "doc": node.help.get(export.name, export.doc),
                        "parameters": [parameter.to_wire() for parameter in export.parameters],
                        "returns": export.returns,
                    }
                    for export in self._exports[node.path].values()
                },
            }
        if node.children:
            report["children"] = {name: self._report(child) for name, child in node.children.items()}
        return report


def _walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """The node and all below it, parents first."""
    yield path, node
    for name, child in node.children.items():
        yield from _walk(child, f"{path}.{name}" if path else name)


class _Keeper:
    """Keeps one driver open while the session lasts."""

    def __init__(
        self, node: Node, driver: Driver, parent: _Keeper | None, set_state: Callable[[Node, State, str], None]
    ) -> None:
        self._node = node
        self._driver = driver
        self._parent = parent
        self._set_state = set_state
        self._threads = trio.CapacityLimiter(1)
        self._calls: set[trio.CancelScope] = set()
        self._calls_over = trio.lowlevel.ParkingLot()
        self._gone = trio.Event()
        self._reason = ""
        self._open = False
        self._closed = trio.Event()
        self._closed.set()
        driver.log = log.getChild(node.path or type(driver).__name__)
        driver.lost = self._lost

    def _set(self, state: State, reason: str = "") -> None:
        self._set_state(self._node, state, reason)

    # ---- life

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        self._trio = trio.lowlevel.current_trio_token()
        if self._node.barred:
            self._set(State.OPENING)
            self._set(State.DEGRADED, self._node.barred)
            task_status.started()
            return
        attempts = 0
        while True:
            self._gone = trio.Event()
            if await self._open_once(task_status if attempts == 0 else trio.TASK_STATUS_IGNORED):
                attempts = 0
            delay = RETRY[min(attempts, len(RETRY) - 1)]
            attempts += 1
            self._driver.log.info("next attempt in %g s", delay)
            await trio.sleep(delay)

    async def _open_once(self, task_status: trio.TaskStatus[None]) -> bool:
        """Open the driver, keep it until it is lost, close it. False if it could not even be opened."""
        started = _once(task_status.started)
        reason = ""
        self._open = False
        self._set(State.OPENING)
        self._closed = trio.Event()
        try:
            try:
                async with shielded() as life, trio.open_nursery() as nursery:
                    self._driver.nursery = nursery
                    try:
                        with life:
                            with _told_after(PATIENCE, started, nursery):
                                await self._run_open()
                            self._set(State.READY)
                            started()
                            await self._gone.wait()
                    finally:
                        self._gone.set()
                        await self._close(after_parent=life.cancel_called)
                    nursery.cancel_scope.cancel()
                reason = self._reason
            except* Exception as errors:  # noqa: BLE001  # a driver's root: nothing of one driver's may reach the others
                reason = self._why(errors)
        except BaseException:
            self._set(State.CLOSED)
            raise
        finally:
            self._closed.set()
        self._set(State.DEGRADED, reason)
        started()
        return self._open

    def _why(self, error: BaseException) -> str:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        described = messages.revive(messages.describe(error, tracebacks=False))
        reason = (described.message if described is not None else "") or type(error).__name__
        if isinstance(error, JmpError):
            self._driver.log.warning("%s: %s", "lost" if self._open else "cannot be opened", reason)
        else:
            what = "a task of the driver" if self._open else "open()"
            self._driver.log.error("%s failed", what, exc_info=error)
        return reason

    async def _run_open(self) -> None:
        function = self._driver.open
        if type(self._driver).open is Driver.open:
            await trio.lowlevel.checkpoint()
            self._open = True
        elif inspect.iscoroutinefunction(function):
            await function()
            self._open = True
        else:
            await in_thread(self._open_in_thread, limiter=self._threads)

    def _open_in_thread(self) -> None:
        self._driver.open()
        self._open = True  # said here, because the thread goes on when the session has ended meanwhile

    async def _close(self, *, after_parent: bool) -> None:
        """Close the driver if it is open; ``after_parent``, which may use it, when the whole session ends. Is never cancelled."""
        with trio.CancelScope(shield=True):
            if after_parent and self._parent is not None:
                await self._parent._closed.wait()
            for call in self._calls:
                call.cancel()
            with trio.move_on_after(GRACE):
                while self._calls:
                    await self._calls_over.park()
            with trio.move_on_after(GRACE) as scope:
                if not self._open:
                    async with self._threads:  # a thread that is opening it cannot be stopped
                        pass
                if self._open:
                    try:
                        await self.hook("close")
                    except Exception:  # a driver's root
                        self._driver.log.exception("close() failed")
        if scope.cancelled_caught:
            self._driver.log.error("did not close within %g s: given up; the device may be left in use", GRACE)

    async def reset(self) -> None:
        """Reset the driver; fails if it is lost meanwhile."""
        with trio.CancelScope() as scope:
            over = self._begun(scope)
            try:
                await self.hook("reset")
            finally:
                error = over()
        if scope.cancelled_caught and error is not None:
            raise error

    async def hook(self, name: str) -> None:
        function = getattr(self._driver, name)
        if getattr(type(self._driver), name) is getattr(Driver, name):
            await trio.lowlevel.checkpoint()
        elif inspect.iscoroutinefunction(function):
            await function()
        else:
            await in_thread(function, limiter=self._threads)

    def _lost(self, reason: str) -> None:
        if not trio.lowlevel.in_trio_run():
            self._trio.run_sync_soon(self._lost, reason)
        elif self._node.state is State.READY and not self._gone.is_set():
            self._driver.log.warning("lost: %s", reason)
            self._reason = reason or "the driver gave no reason"
            self._gone.set()
            for call in self._calls:
                call.cancel()

    # ---- calls

    def method(self, export: Export, args: list[Any], kwargs: dict[str, Any]) -> Method:
        if self._node.state is not State.READY:
            where = self._node.path or "the driver"
            if self._node.barred:
                raise Refused(f"{where} cannot be used: {self._node.barred}")
            why = f": {self._node.reason}" if self._node.reason else ""
            raise DeviceError(f"{where} is {self._node.state.value}{why}")
        if self._gone.is_set():
            raise self._failure()
        function = partial(export.function, *args, **kwargs)
        if export.kind is Kind.CALL:
            call = partial(in_thread, function, limiter=self._threads) if export.threaded else function
            return Method(export.kind, call, self._begun, export.at_once)
        if export.kind is Kind.ITEMS:
            items = partial(_steps, function, self._threads) if export.threaded else function
            return Method(export.kind, items, self._begun)

        def use(stream: trio.abc.HalfCloseableStream) -> Awaitable[None]:
            if export.threaded:
                return in_thread(export.function, ThreadStream(stream), *args, **kwargs)
            result: Awaitable[None] = export.function(stream, *args, **kwargs)
            return result

        return Method(export.kind, use, self._begun)

    def _begun(self, scope: trio.CancelScope) -> Callable[[], JmpError | None]:
        """A call begins in ``scope``, which is cancelled if the device is lost meanwhile."""
        if self._gone.is_set():
            raise self._failure()
        self._calls.add(scope)

        def over() -> JmpError | None:
            self._calls.discard(scope)
            if self._calls_over:
                self._calls_over.unpark_all()
            return self._failure() if self._gone.is_set() and scope.cancel_called else None

        return over

    def _failure(self) -> JmpError:
        return DeviceError(f"{self._node.path or 'the driver'} was lost: {self._reason or 'it is being closed'}")


@asynccontextmanager
async def shielded() -> AsyncIterator[trio.CancelScope]:
    """Lets a block end in order: it is not cancelled itself, but the scope is that it gets, which is for it to enter.

    After the block the cancellation goes on.
    """
    scope = trio.CancelScope()
    async with trio.open_nursery() as outside:
        outside.start_soon(_pass_on, scope)
        with trio.CancelScope(shield=True):
            yield scope
        outside.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()


async def _pass_on(scope: trio.CancelScope) -> None:
    """Cancel ``scope``, which is shielded from it, when this task is cancelled."""
    try:
        await trio.sleep_forever()
    finally:
        scope.cancel()


def _once(function: Callable[[], object]) -> Callable[[], None]:
    """``function``, of which only the first call counts."""
    calls = iter([function])

    def call() -> None:
        for first in calls:
            first()

    return call


@contextmanager
def _told_after(seconds: float, tell: Callable[[], None], nursery: trio.Nursery) -> Iterator[None]:
    """Call ``tell`` if the block takes longer than ``seconds``."""
    scope = trio.CancelScope()

    async def wait() -> None:
        with scope:
            await trio.sleep(seconds)
            tell()

    nursery.start_soon(wait)
    try:
        yield
    finally:
        scope.cancel()


async def _steps(
    function: Callable[[], Generator[T, None, None]], limiter: trio.CapacityLimiter
) -> AsyncGenerator[T, None]:
    """A plain generator, each step in a worker thread."""
    generator = await in_thread(function, limiter=limiter)
    over = object()
    try:
        while (item := await in_thread(next, generator, over, limiter=limiter)) is not over:
            yield item
    finally:
        with trio.move_on_after(GRACE, shield=True):
            await in_thread(generator.close, limiter=limiter)


_GAVE_UP: Final = "the caller gave up"


class ThreadStream:
    """A byte stream as a plain method sees it: every method waits, and raises ``Cancelled`` when the caller has given up."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream

    def send_all(self, data: bytes) -> None:
        """Send all of ``data``, waiting for the client to keep up."""
        self._run(self._stream.send_all, data)

    def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Wait for bytes from the client; ``b""`` at the end of its input."""
        return self._run(self._stream.receive_some, max_bytes)

    def send_eof(self) -> None:
        """Tell the client that nothing more will come."""
        self._run(self._stream.send_eof)

    def __iter__(self) -> Iterator[bytes | bytearray]:
        return iter(self.receive_some, b"")

    def _run(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        if cancelled():
            raise Cancelled(_GAVE_UP)
        try:
            return trio.from_thread.run(function, *args)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if cancelled():
                raise Cancelled(_GAVE_UP) from error
            raise
