"""Machines, their processes and disks, and what connects them: the world that a simulated lab lives in.

Theory of operation. Everything real runs under Trio's mocked clock, and whatever is drawn comes from one seed: the scheduler's
order, delays, faults, what users do, ids and tokens. So a seed is a whole history, and the same seed is the same history.

A :class:`Process` is the task tree of one role on one machine. Tasks know theirs by :data:`PROCESS`, which they inherit. Killed,
its links break and its tasks are cancelled; what these still do on their way out (a farewell, a hook) has no effect any more,
because everything that has one asks :attr:`Process.alive` first. What outlives it is its machine's ``disk``.

The product is not changed for this: :meth:`World.laws` puts the world's links in place of sockets, and hooks that are noted in
place of programs.
"""

from __future__ import annotations

import logging
import random
import secrets
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from jmp.errors import Busy, JmpError, LabError, LinkLost, Refused
from jmp.exporter import session
from jmp.exporter.config import Hook
from jmp.exporter.hooks import HookFailed, Print
from jmp.link import Link, websocket
from jmp.link.memory import MemoryLink, memory_links
from jmp.link.websocket import UpgradeRequest

START: Final = 1_800_000_000.0
"""The time of the day at which each history begins."""
CLUSTER: Final = "cluster"
"""The machine of the API server, if there is one."""
CONNECT_SECONDS: Final = 30.0
"""After which the system gives up to connect to a machine that does not answer."""

BUSY: Final = 20_000
"""Turns of the scheduler that never take place at one moment of time: most are below a hundred."""

Main = Callable[["Process"], Awaitable[None]]
Handler = Callable[[Any, Any], Awaitable[object]]


class Event(NamedTuple):
    """One line of a history."""

    time: float
    who: str
    what: str
    detail: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.time:9.3f} {self.who:<10} {self.what:<12} {' '.join(map(str, self.detail))}"


@dataclass(eq=False)
class Machine:
    """What outlives processes: a disk, and a clock that may be wrong."""

    name: str
    offset: float = 0.0
    disk: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None


class Process:
    """One role's process."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.alive = True
        self.stopping = False
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        self.about: Any = None
        """The role's object, for those who look in from outside."""
        self.held: list[trio.lowlevel.Task] | None = None
        """While it is paused: what would run otherwise."""
        self.dying: Callable[[bool], None] = lambda silently: None
        """What its machine does when it is killed, or, ``silently``, loses its power."""

    @property
    def name(self) -> str:
        return self.machine.name

    def clock(self) -> float:
        """This machine's wall clock."""
        return START + trio.current_time() + self.machine.offset

    def note(self, what: str, *detail: Any) -> None:
        """Let it be part of the history, if this process still lives."""
        if self.alive:
            self.world.note(self.name, what, *detail)

    async def run(self, main: Main) -> None:
        """Live: the root of its tasks."""
        PROCESS.set(self)
        self.world.note(self.name, "starts")
        try:
            with self.scope:
                await main(self)
        except* JmpError as errors:
            self.world.note(self.name, "fails", str(_leaf(errors)))
        except* Exception as errors:  # noqa: BLE001  # a process's root: what would be a traceback is a finding
            self.world.found(f"{self.name} crashed: {''.join(traceback.format_exception(errors))}")
        finally:
            if self.alive:
                self.world.note(self.name, "ends")
            self.die()

    def die(self, *, silently: bool = False) -> None:
        """End at once, as SIGKILL does: the system breaks its connections; or, ``silently``, as without power."""
        if not self.alive:
            return
        self.alive = False
        self.dying(silently)
        self.resume()
        for cable in self.world.cables_of(self):
            if silently:
                cable.stall()
            else:
                cable.near.cut()
        self.scope.cancel()
        self.over.set()

    def stop(self) -> None:
        """End in order, as SIGTERM does."""
        self.stopping = True
        self.scope.cancel()

    def pause(self) -> None:
        """Do nothing more until :meth:`resume`, as after SIGSTOP: the time goes on, and what comes waits."""
        if self.alive and self.held is None:
            self.held = []

    def resume(self) -> None:
        """Go on, as after SIGCONT."""
        held, self.held = self.held, None
        trio._core._run.GLOBAL_RUN_CONTEXT.runner.runq.extend(held or ())
        self.world.moved()


PROCESS: Final[ContextVar[Process]] = ContextVar("PROCESS")


def _hold_back(runner: Any, task: trio.lowlevel.Task, *arguments: Any, original: Callable[..., None]) -> None:
    """In place of Trio's ``Runner.reschedule``: a task whose process is paused is not run yet."""
    original(runner, task, *arguments)
    process = task.context.get(PROCESS)
    if process is not None and process.held is not None:
        process.held.append(runner.runq.pop())


@dataclass(eq=False)
class Cable:
    """One connection between two processes."""

    near: MemoryLink
    far: MemoryLink
    dialler: Process
    listener: Process

    @property
    def over(self) -> bool:
        return self.near._end is not None and self.far._end is not None

    def stall(self) -> None:
        self.near.stall()
        self.far.stall()

    def resume(self) -> None:
        if (
            self.dialler.alive and self.listener.alive
        ):  # a machine without power does not come back with its connections
            self.near.resume()
            self.far.resume()


@dataclass(eq=False)
class _Listener:
    url: str
    process: Process
    authenticate: Callable[[UpgradeRequest], Awaitable[Any]]
    arrivals: trio.MemorySendChannel[tuple[Link, Any]]


class World:
    """All of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.history: list[Event] = []
        self.findings: list[str] = []
        self.machines: dict[str, Machine] = {}
        self.cables: list[Cable] = []
        self.slowest = self.rng.choice((0.001, 0.02, 0.3))
        """Seconds that a message is under way at most, between two machines that are well."""
        self.faults = True
        """Whether anything may go wrong; in the end nothing does, and all has to come right."""
        self.nursery: trio.Nursery
        """Of what belongs to no process."""
        self._listeners: list[_Listener] = []
        self._apart: set[frozenset[str]] = set()
        self._mended = trio.lowlevel.ParkingLot()
        self.downtime: tuple[float, ...] = (0.05, 1.0, 3.0, 12.0)

    # ---- what is found out

    def note(self, who: str, what: str, *detail: Any) -> None:
        """Let it be part of the history."""
        self.history.append(Event(round(trio.current_time(), 6), who, what, detail))

    def found(self, what: str) -> None:
        """Something that must not be."""
        self.note("world", "FINDING", what)
        self.findings.append(what)

    # ---- machines

    def machine(self, name: str) -> Machine:
        """The machine of this name, made when it is first asked for."""
        return self.machines.setdefault(name, Machine(name))

    async def keep(self, name: str, main: Main, nursery: trio.Nursery) -> None:
        """Start a role's process, and another one whenever it is over, as a machine's init does; until cancelled."""
        machine = self.machine(name)
        while True:
            process = machine.process = Process(self, machine)
            # What is left of a process that was killed must not end with this task: hence its own nursery.
            nursery.start_soon(process.run, main)
            await process.over.wait()
            await trio.sleep(self.rng.choice(self.downtime) if self.faults else 0.05)

    def alive(self, name: str) -> Process | None:
        """The process of a machine, if one runs there."""
        process = self.machines[name].process if name in self.machines else None
        return process if process is not None and process.alive else None

    def outside(self, function: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Start something that belongs to no process."""
        Context().run(self.nursery.start_soon, function, *arguments)

    def cables_of(self, process: Process) -> list[Cable]:
        """The connections of a process."""
        return [cable for cable in self.cables if process in (cable.dialler, cable.listener)]

    # ---- the network

    def latency(self) -> float:
        """Seconds that something is under way now."""
        return self.rng.random() * self.slowest

    def part(self, one: str, other: str) -> None:
        """Let nothing get from one machine to the other, either way."""
        self._apart.add(frozenset((one, other)))
        for cable in self.cables:
            if {cable.dialler.name, cable.listener.name} == {one, other}:
                cable.stall()

    def mend(self, one: str, other: str) -> None:
        """Undo :meth:`part`."""
        self._apart.discard(frozenset((one, other)))
        for cable in self.cables:
            if {cable.dialler.name, cable.listener.name} == {one, other}:
                cable.resume()
        self.moved()

    def moved(self) -> None:
        """Who waits for somebody may get to them now."""
        self._mended.unpark_all()

    async def reach(self, one: str, other: str) -> None:
        """Wait until one machine can be reached from the other."""
        while frozenset((one, other)) in self._apart:
            await self._mended.park()

    def mend_all(self) -> None:
        """Let everything be well from now on."""
        self.faults = False
        for machine in self.machines.values():
            machine.disk.pop("full", None)
            if machine.process is not None:
                machine.process.resume()
        self._apart.clear()
        self.slowest = 0.01
        for cable in self.cables:
            cable.near.delay = cable.far.delay = self.latency()
            cable.resume()
        self.moved()

    async def connect(
        self,
        url: str,
        *,
        token: str | None = None,
        fingerprint: str | None = None,
        ca: object = None,
        headers: object = (),
        max_message: int = 0,
    ) -> Link:
        """In place of :func:`jmp.link.websocket.connect`. Of several who listen there it is one or the other."""
        here = PROCESS.get()
        await trio.sleep(self.latency())
        found = [listener for listener in self._listeners if listener.url == url]
        listener = self.rng.choice(found) if found else None
        there = listener.process.name if listener is not None else url.removeprefix("wss://")
        with trio.move_on_after(CONNECT_SECONDS) as patience:
            await self.reach(here.name, there)
            if listener is None or not listener.process.alive or not here.alive:
                raise LabError(f"cannot reach {url}: Connection refused")
            while listener.process.held is not None:
                await self._mended.park()
            identity = await self._let_in(listener, UpgradeRequest(here.name, token, {}))
            await trio.sleep(self.latency())
            if not listener.process.alive or not here.alive:
                raise LinkLost("the other side ended the connection without a good-bye")
            return self._join(here, url, listener, identity)
        assert patience.cancelled_caught
        raise LabError(f"cannot reach {url}: Connection timed out")

    async def _let_in(self, listener: _Listener, request: UpgradeRequest) -> Any:
        """What the client is told of a refusal, see :class:`jmp.link.rfc6455.ClientHandshake`."""
        try:
            return await listener.authenticate(request)
        except (Refused, Busy):
            raise
        except JmpError as error:
            raise LabError(error.message) from error

    def _join(self, here: Process, url: str, listener: _Listener, identity: Any) -> Link:
        near, far = memory_links()
        near.peer, far.peer = url, here.name
        near.delay, far.delay = self.latency(), self.latency()
        self.cables = [cable for cable in self.cables if not cable.over]
        self.cables.append(Cable(near, far, here, listener.process))
        listener.arrivals.send_nowait((far, identity))
        return near

    async def listen(
        self,
        url: str,
        authenticate: Callable[[UpgradeRequest], Awaitable[Any]],
        handler: Handler,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """In place of :func:`jmp.link.websocket.serve`."""
        send, receive = trio.open_memory_channel[tuple[Link, Any]](1000)
        listener = _Listener(url, PROCESS.get(), authenticate, send)
        self._listeners.append(listener)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for link, identity in receive:
                    nursery.start_soon(self._serve, handler, link, identity)
        finally:
            self._listeners.remove(listener)

    async def _serve(self, handler: Handler, link: Link, identity: Any) -> None:
        try:
            await handler(link, identity)
        except* JmpError:
            pass  # which the log would get
        except* Exception as errors:  # noqa: BLE001  # a connection's root, as in websocket.serve
            self.found(f"a connection from {link.peer} failed: {''.join(traceback.format_exception(errors))}")
        finally:
            await link.aclose(1011)

    # ---- hooks

    async def run_hook(self, name: str, hook: Hook, environ: Mapping[str, str], output: Print) -> None:
        """In place of :func:`jmp.exporter.hooks.run_hook`: takes a while, and fails now and then."""
        process = PROCESS.get()
        lease, client = environ["JMP_LEASE"], environ["JMP_CLIENT"]
        process.note(name, lease, client)
        takes, fails = self.rng.choice((0.0, 0.1, 2.0)), self.faults and self.rng.random() < 0.05
        with trio.CancelScope(shield=True) as scope:
            if not process.alive:
                return
            if name == "beforeLease":
                scope.shield = False
            await trio.sleep(takes)
        process.note(f"{name}-over", lease, client)
        if fails:
            raise HookFailed(f"hook {name} failed with exit status 1", hook)

    # ---- the laws of this world

    @contextmanager
    def laws(self) -> Iterator[None]:
        """Let nothing but this world's seed decide, and nothing but this world be reached, for the length of a block."""
        draw = random.Random(self.seed + 1)
        trio._core._run._r.seed(self.seed)
        reschedule = trio._core._run.Runner.reschedule
        before = random.getstate()
        random.seed(self.seed)

        def token_hex(size: int = 16) -> str:
            return draw.randbytes(size).hex()

        async def no_socket(session: object, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()

        def environment(directory: object, url: str, environ: object = None, **more: str) -> dict[str, str]:
            return more

        with ExitStack() as stack:
            for place, name, value in (
                (trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
                (trio._core._run.Runner, "reschedule", partialmethod(_hold_back, original=reschedule)),
                (secrets, "token_hex", token_hex),
                (secrets, "token_bytes", draw.randbytes),
                (secrets, "choice", draw.choice),
                (secrets, "randbelow", draw.randrange),
                (websocket, "connect", self.connect),
                (session, "run_hook", self.run_hook),
                (session, "session_environment", environment),
                (session, "session_directory", partial(nullcontext, Path("/nowhere"))),
                (session, "_listen", no_socket),
            ):
                stack.enter_context(replaced(place, name, value))
            handler = _Findings(self)
            logging.getLogger("jmp").addHandler(handler)
            stack.callback(logging.getLogger("jmp").removeHandler, handler)
            try:
                yield
            finally:
                random.setstate(before)


class Turns(trio.abc.Instrument):
    """Ends a history in which somebody is busy for ever: the scheduler turns, and the time stands still."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._at, self._turns = 0.0, 0

    def before_io_wait(self, timeout: float) -> None:
        """At the end of each turn."""
        now = trio.current_time()
        self._turns = self._turns + 1 if now == self._at else 0
        self._at = now
        if self._turns == BUSY:
            self._world.found(f"somebody is busy for ever: {BUSY} turns of the scheduler, and it is still {now:.3f}")
            self._world.nursery.cancel_scope.cancel()


class _Findings(logging.Handler):
    """A traceback in the log is a bug, whatever became of it."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            problem = "".join(traceback.format_exception(record.exc_info[1]))
            self._world.found(f"logged: {record.getMessage()}: {problem}")


@contextmanager
def replaced(place: Any, name: str, value: Any) -> Iterator[None]:
    """``place.name`` is ``value`` for the length of a block."""
    before = vars(place)[name]
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
