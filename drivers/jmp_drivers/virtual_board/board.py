"""The board itself, without clock, file or task: events and the time go in, output and the next thing to wait for come out.

Theory of operation: in each :class:`State` one program runs (firmware, prompt, kernel, …); when it ends it returns the
state that follows. A program asks for what it needs by yielding effects (see ``program``). :meth:`Board.step` answers them
as far as the time, the typed input and the speed of the serial line allow, and says what it waits for then. Nothing
runs ahead of the line: while that is busy, programs stand still, as they do behind a real UART.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from jmp_drivers.virtual_board.firmware import SHARE, firmware, prompt
from jmp_drivers.virtual_board.program import (
    Effect,
    Interrupted,
    Program,
    ReadCard,
    ReadKey,
    ReadLine,
    Sleep,
    State,
    Stderr,
)
from jmp_drivers.virtual_board.shell import Shell
from jmp_drivers.virtual_board.system import System, kernel_log, stamped
from jmp_drivers.virtual_board.tty import CTRL_C, LineEditor, Signal

FULL_SPEED = 10_000_000
"""Bytes a second without a configured baud rate: fast for a console, and slow enough for its readers to keep up."""

BITS_PER_BYTE = 10
"""On the line, with start and stop bit."""

BURST = 0.005
"""Seconds of output that are handed out at once."""

INPUT_LIMIT = 64 * 1024
"""Typed bytes that wait for a program to read them."""

EFFECTS_PER_STEP = 8
"""Each is a few tenths of a millisecond of work at most; other tasks have their turn between steps."""


def _kernel(system: System) -> Program[State]:
    system.started = system.now
    log = kernel_log(system)
    scale = system.boot_time * (1 - SHARE) / log[-1][0]
    for stamp, text in log:
        yield Sleep(max(system.started + stamp * scale - system.now, 0.0))  # from the start: no delay adds up
        yield stamped(stamp, text)
    yield b"Starting syslogd: OK\nStarting network: OK\nStarting httpd: OK\n"
    return State.LOGIN


def _login(system: System) -> Program[State]:
    yield f"\n{system.image.name} {system.image.version} {system.hostname} ttyAMA0\n\n".encode()
    while True:
        yield f"{system.hostname} login: ".encode()
        try:
            user: str | None = yield ReadLine()
        except Interrupted:
            continue
        if user == "root" and not system.password:
            return State.SHELL
        if user:
            system.user = user
            return State.PASSWORD


def _password(system: System) -> Program[State]:
    yield b"Password: "
    try:
        password: str | None = yield ReadLine(echo=False)
    except Interrupted:
        return State.LOGIN
    if system.user == "root" and password == system.password:
        return State.SHELL
    yield b"\nLogin incorrect\n"
    return State.LOGIN


@dataclass(frozen=True)
class Row:
    """One state: what runs in it, what may follow, whether typed bytes are heard, and whether the network answers."""

    program: Callable[[System], Program[State]] | None
    leads_to: frozenset[State]
    hears: bool = True
    network: bool = False


def _row(
    program: Callable[[System], Program[State]] | None, *leads_to: State, hears: bool = True, network: bool = False
) -> Row:
    return Row(program, frozenset(leads_to), hears, network)


TABLE: dict[State, Row] = {
    State.OFF: _row(None, State.FIRMWARE, hears=False),
    State.FIRMWARE: _row(firmware, State.OFF, State.PROMPT, State.KERNEL),
    State.PROMPT: _row(prompt, State.OFF, State.FIRMWARE, State.KERNEL),
    State.KERNEL: _row(_kernel, State.OFF, State.LOGIN, hears=False),
    State.LOGIN: _row(_login, State.OFF, State.PASSWORD, State.SHELL, network=True),
    State.PASSWORD: _row(_password, State.OFF, State.LOGIN, State.SHELL, network=True),
    State.SHELL: _row(lambda system: Shell(system).run(), State.OFF, State.FIRMWARE, State.LOGIN, network=True),
}


@dataclass(frozen=True)
class Step:
    """What to do now: show ``output``, read ``card`` and give its bytes to :meth:`Board.card_data`, and call
    :meth:`Board.step` again at ``wake`` (infinity: after the next event only)."""

    output: bytes = b""
    wake: float = math.inf
    card: ReadCard | None = None


class Board:
    """See the module's text. ``baud`` is the serial line's speed in bits a second, None for :data:`FULL_SPEED`.

    Times are seconds of any clock that never goes back. After any event, :meth:`step` has to be called.
    """

    def __init__(self, system: System, baud: int | None = None) -> None:
        self.system = system
        self.state = State.OFF
        self._rate = baud / BITS_PER_BYTE if baud else FULL_SPEED
        self._burst = max(1, int(self._rate * BURST))
        self._line_free = -math.inf
        self._program: Program[State] | None = None
        self._pending: Effect | None = None
        self._deadline = math.inf
        self._input = bytearray()
        self._editor = LineEditor()
        self._output = bytearray()
        self._boots = 0

    @property
    def network(self) -> int | None:
        """Which boot's network answers now, counted from 1; None: none does."""
        return self._boots if TABLE[self.state].network else None

    def power_on(self, now: float) -> None:
        """Supply power; nothing happens if the board is running."""
        self.system.now = now
        if self.state is State.OFF:
            self._enter(State.FIRMWARE)

    def power_off(self, now: float) -> None:
        """Cut the power. What the board was about to say is lost."""
        self.system.now = now
        if self.state is not State.OFF:
            self._enter(State.OFF)
        self._output.clear()

    def type(self, data: bytes) -> int:
        """Bytes that arrive on the serial line; returns how many were taken: the rest is to be offered after a step.

        A board that is off, and the kernel as it boots, take everything and hear nothing.
        """
        if not TABLE[self.state].hears:
            return len(data)
        taken = data[: INPUT_LIMIT - len(self._input)]
        self._input += taken
        return len(taken)

    def card_data(self, request: ReadCard, data: bytes) -> None:
        """The answer to a step's ``card``; one that came too late, after a power cut or Ctrl-C, is ignored."""
        if request is self._pending:
            self._resume(data)

    def step(self, now: float) -> Step:
        """Go as far as possible."""
        self.system.now = now
        if now < self._line_free:
            return Step(wake=self._line_free)
        waits = False
        for _ in range(EFFECTS_PER_STEP):
            if len(self._output) >= self._burst:
                break
            if not self._advance():
                waits = True
                break
        output = bytes(self._output[: self._burst])
        if output:
            del self._output[: self._burst]
            started = max(self._line_free, now - BURST)  # a late call does not slow the line down
            self._line_free = started + len(output) / self._rate
        if self._output or not waits:
            return Step(output, wake=max(now, self._line_free))
        if isinstance(self._pending, ReadCard):
            return Step(output, card=self._pending)
        return Step(output, wake=self._deadline)

    def _enter(self, state: State) -> None:
        row = TABLE[self.state]
        if state not in row.leads_to:
            raise RuntimeError(f"virtual board: {self.state.value} cannot lead to {state.value}")
        if self._program is not None:
            self._program.close()
        if not (row.hears and TABLE[state].hears) or state is State.FIRMWARE:
            self._input.clear()
            self._editor = LineEditor()
        if state is State.LOGIN and not row.network:
            self._boots += 1
        self.state = state
        program = TABLE[state].program
        self._program = program(self.system) if program else None
        self._pending = None
        self._deadline = math.inf
        if self._program is not None:
            self._resume(None)

    def _resume(self, answer: object) -> None:
        """Answer the pending effect; the program runs up to its next one."""
        assert self._program is not None
        try:
            self._wait_for(self._program.send(answer))
        except StopIteration as end:
            self._enter(end.value)

    def _interrupt(self) -> None:
        """Ctrl-C: every program that reads lines either catches this or ends with a state."""
        assert self._program is not None
        try:
            self._wait_for(self._program.throw(Interrupted()))
        except StopIteration as end:
            self._enter(end.value)

    def _wait_for(self, effect: Effect) -> None:
        self._pending = effect
        self._deadline = self.system.now + effect.seconds if isinstance(effect, Sleep | ReadKey) else math.inf

    def _advance(self) -> bool:
        """Answer the pending effect if that can be done now; False: it has to wait."""
        effect = self._pending
        if isinstance(effect, ReadLine):
            return self._read_line(effect)
        if isinstance(effect, ReadKey) and self._input:
            del self._input[0]
            self._resume(True)
            return True
        if self.state is State.SHELL and (at := self._input.find(CTRL_C)) >= 0:
            del self._input[: at + 1]  # with what was typed ahead, as a terminal flushes it
            self._output += b"^C\r\n"
            self._interrupt()
            return True
        match effect:
            case bytes(data) | Stderr(data):
                self._output += data.replace(b"\n", b"\r\n")
                self._resume(None)
            case Sleep() | ReadKey() if self.system.now >= self._deadline:
                self._resume(False)
            case _:
                return False
        return True

    def _read_line(self, effect: ReadLine) -> bool:
        if not self._input:
            return False
        typed = self._editor.take(self._input, effect.echo)
        self._output += typed.echo
        if typed.what is Signal.INTERRUPT:
            self._interrupt()
        elif typed.what is Signal.END:
            self._resume(None)
        elif typed.what is not None:
            self._resume(typed.what)
        return typed.what is not None
