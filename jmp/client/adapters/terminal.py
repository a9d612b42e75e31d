"""A console on the user's terminal, or between the programs of a pipe.

The terminal is raw meanwhile: every key goes to the device, but for the escape key, which begins a command to this program. One
thread shows what comes, one sends what was typed, and the caller's reads the keys, so that the escape key works even while the
device takes nothing. However it ends, the terminal is left as it was.
"""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from enum import Enum
from functools import partial
from queue import SimpleQueue
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from jmp.client.adapters.expect import control
from jmp.driver.proxy import Blocking, run
from jmp.errors import Busy, Cancelled, JmpError

if TYPE_CHECKING:
    from jmp.client.console import ConsoleClient

LAST_WORDS: Final = 1.0
"""Seconds that what was typed last has to get away, once the user quits."""
_AS_BEFORE: Final = b"\x1b[0m\x1b[?25h"
"""What a device may have left its terminal in is undone: colours, and a hidden cursor."""


class Command(Enum):
    """What follows the escape key, and what help says about it."""

    QUIT = "q", "quit"
    BREAK = "b", "send a break"
    ON = "1", "switch the power on"
    OFF = "0", "switch the power off"
    CYCLE = "c", "switch the power off and on"
    WRITE = "w", "write, in place of the client that does"
    STAMPS = "t", "begin each line with the time, or no longer"
    SUSPEND = "z", "suspend; fg comes back"
    HELP = "?", "this help"

    @property
    def key(self) -> bytes:
        return self.value[0].encode()


POWER: Final = {Command.ON: "on", Command.OFF: "off", Command.CYCLE: "cycle"}
"""What the commands ask of the power switch."""


class Keys:
    """Tells what is for the device from what is for this program. Pure."""

    def __init__(self, escape: bytes) -> None:
        self.escape = escape
        self._escaped = False
        # The escape key with and without Ctrl: twice quits, so the bare character sends it.
        self._literal = bytes([escape[0] + 0x40]).lower()

    def feed(self, typed: bytes) -> list[bytes | Command]:
        """What to send and what to do, in order."""
        found: list[bytes | Command] = []
        plain = bytearray()
        for key in (typed[index : index + 1] for index in range(len(typed))):
            if not self._escaped:
                self._escaped = key == self.escape
                if not self._escaped:
                    plain += key
                continue
            self._escaped = False
            if key.lower() == self._literal:
                plain += self.escape
                continue
            if plain:
                found.append(bytes(plain))
                plain.clear()
            if key == self.escape:
                found.append(Command.QUIT)
            else:
                found.append(next((each for each in Command if each.key == key.lower()), Command.HELP))
        if plain:
            found.append(bytes(plain))
        return found

    @property
    def name(self) -> str:
        return f"Ctrl-{chr(self.escape[0] + 0x40)}"

    def help(self, *, can_break: bool, has_power: bool = False, watch: bool = False) -> str:
        """One line per command."""
        missing = {
            *(() if can_break else (Command.BREAK,)),
            *(() if has_power else POWER),
            *(() if watch else (Command.WRITE,)),
        }
        lines = [f"{self.name} {each.value[0]}  {each.value[1]}" for each in Command if each not in missing]
        return "\n".join([*lines, f"{self.name} {self._literal.decode()}  send {self.name} itself"])


class Stamps:
    """Begins each line with the time at which its first byte was shown, while it is on. Pure."""

    def __init__(self, on: bool = False) -> None:
        self.on = on
        self._in_line = False

    def feed(self, data: bytes, now: datetime) -> bytes:
        """What to show for what came at ``now``."""
        stamp = now.strftime("[%H:%M:%S.%f").encode()[:-3] + b"] "
        out = bytearray()
        for line in io.BytesIO(data):  # splits at \n only, unlike splitlines()
            rest = line if self._in_line else line.lstrip(b"\r")  # a CR that follows the LF would hide the stamp
            out += line[: len(line) - len(rest)]
            if rest and not self._in_line and self.on:
                out += stamp
            out += rest
            self._in_line = self._in_line or bool(rest)
            if line.endswith(b"\n"):
                self._in_line = False
        return bytes(out)


class Role(Enum):
    """How one takes part in a console."""

    WRITE = "write, unless somebody else does"
    TAKE_OVER = "write, in place of who does"
    WATCH = "watch"


_TURNS: Final = {
    (Role.WRITE, Busy): Role.WATCH,
    (Role.TAKE_OVER, Busy): Role.WATCH,
    (Role.WATCH, Command.WRITE): Role.TAKE_OVER,
}
"""Role at a terminal, and how its connection ended → the role in which one goes on; whatever is not here ends the console."""


def interact(
    client: ConsoleClient, *, watch: bool, take_over: bool, replay: bool, escape: str, idle: float, timestamps: bool
) -> None:
    """Join the console with standard input and output, until either ends; see :meth:`ConsoleClient.interact`.

    At a terminal, one who may not write, or no longer, watches, and may then write in place of who does.
    """
    keys = Keys(control(escape).encode())
    attended = os.isatty(0)
    path = client._node.path
    stamps = Stamps(timestamps)
    role = Role.WATCH if watch else Role.TAKE_OVER if take_over else Role.WRITE
    replay = replay and (attended or watch)
    said = {
        Role.TAKE_OVER: "you write to this console now",
        Role.WATCH: f"another client writes to this console, you watch; {keys.name} w writes in its place",
    }
    try:
        with ExitStack() as terminal:
            suspend: Callable[[], None] | None = None
            while True:
                writes, over = role is not Role.WATCH, role is Role.TAKE_OVER
                with Blocking(client.connect(replay=replay, write=writes, take_over=over)) as stream:
                    if attended and suspend is None:  # before one sees what one may answer
                        suspend = terminal.enter_context(_attended())
                        only = "" if writes else f"; read-only, {keys.name} w writes"
                        _say(f"{path or 'console'}: {keys.name} q quits, {keys.name} ? helps{only}\r\n")
                    shown = _Shown(stream, stamps)
                    left = None
                    try:
                        if suspend is not None:
                            left = _at_terminal(client, stream, shown, keys, writes, suspend)
                        elif writes:
                            _in_pipe(stream, shown, idle)
                        else:
                            shown.join()
                    finally:
                        stream.aclose()
                        shown.join(LAST_WORDS)
                turn = _TURNS.get((role, left or type(shown.error))) if attended else None
                if turn is None:
                    if shown.error is not None:
                        raise shown.error
                    return
                role, replay = turn, replay and not shown.began
                _say(f"\r\n[{said[role]}]\r\n")
    except Busy:
        words = path.replace(".", " ")
        raise Busy(
            f"another client is writing to {path or 'this console'}; `j {words} --watch` shows it without writing, "
            f"`j {words} --take-over` writes in its place"
        ) from None


class _Shown(threading.Thread):
    """Writes what the console says to standard output, from now on until it ends."""

    def __init__(self, stream: Any, stamps: Stamps) -> None:
        super().__init__(name="jmp-console-output", daemon=True)
        self._stream = stream
        self.stamps = stamps
        self.error: Exception | None = None
        self.news = threading.Condition()  # notified for every piece and at the end
        self.began = self.over = False
        self.woken, self._wake = os.pipe()
        """``woken`` is readable once it is over."""
        sys.stdout.flush()
        self.start()

    def run(self) -> None:
        try:
            while data := self._stream.receive_some():
                self.began = True
                write_all(1, self.stamps.feed(data, datetime.now()))  # the user's own time
                with self.news:
                    self.news.notify_all()
        except Cancelled:
            pass  # closed on this side
        except (JmpError, OSError) as error:
            self.error = error
        finally:
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """Let the waiting thread go, to raise ``error``."""
        with self.news:
            if self.over:
                return
            self.over = True
            self.error = self.error or error
            os.close(self._wake)
            self.news.notify_all()


def _in_pipe(stream: Any, shown: _Shown, idle: float) -> None:
    """Standard input to the console; at its end, once nothing has come for ``idle`` seconds, it is over."""
    while shown.woken not in (ready := select.select([0, shown.woken], [], [])[0]):
        if 0 in ready:
            data = os.read(0, 64 * 1024)
            if not data:
                break
            stream.send_all(data)
    else:
        return
    stream.send_eof()
    with shown.news:
        while not shown.over and shown.news.wait(idle):
            pass


@contextmanager
def _attended() -> Iterator[Callable[[], None]]:
    """The terminal for the block, raw; gives the function that suspends this program. Afterwards it is as it was."""
    with raw_terminal(0) as suspend:
        try:
            yield suspend
        finally:
            if os.isatty(1):
                with suppress(OSError):
                    write_all(1, _AS_BEFORE)
            _say("\r\n")


def _at_terminal(
    client: ConsoleClient, stream: Any, shown: _Shown, keys: Keys, writes: bool, suspend: Callable[[], None]
) -> Command | None:
    """Do what the keys say, until the console ends (None), or the command that leaves this."""
    can_break = "send_break" in client._node.methods and writes
    power = client._power() if writes else None
    typed = _Typed(stream, shown)
    try:
        while shown.woken not in (ready := select.select([0, shown.woken], [], [])[0]):
            data = os.read(0, 4096) if 0 in ready else b""
            if not data:
                return Command.QUIT  # the terminal has gone away
            for each in keys.feed(data):
                if isinstance(each, bytes):
                    if writes:
                        typed.put(partial(stream.send_all, each))
                elif each is Command.QUIT or (each is Command.WRITE and not writes):
                    return each
                elif each is Command.BREAK and can_break:
                    typed.put(partial(_asked, "break", client.send_break))
                elif each in POWER and power is not None:
                    order = POWER[each]
                    typed.put(partial(_asked, f"{power} {order}", partial(client._backend.call, power, order, (), {})))
                elif each is Command.STAMPS:
                    shown.stamps.on = not shown.stamps.on
                elif each is Command.SUSPEND:
                    suspend()
                else:
                    told = keys.help(can_break=can_break, has_power=power is not None, watch=not writes)
                    _say(f"\r\n{told}\n".replace("\n", "\r\n"))
    finally:
        typed.finish()
    return None


def _asked(what: str, call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Ask something of a driver. What goes wrong is said, and the console goes on."""
    _say(f"\r\n[{what}]\r\n")
    try:
        run(call())
    except JmpError as error:
        _say(f"\r\n[{what}: {error.message}]\r\n")


class _Typed(threading.Thread):
    """Does what was typed, in order, however long the device makes it wait."""

    def __init__(self, stream: Any, shown: _Shown) -> None:
        super().__init__(name="jmp-console-input", daemon=True)
        self._shown = shown
        self._todo: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.start()

    def put(self, action: Callable[[], object]) -> None:
        self._todo.put(action)

    def run(self) -> None:
        try:
            while (action := self._todo.get()) is not None:
                action()
        except Cancelled:
            pass  # the console has ended; how, the other thread learns
        except JmpError as error:
            self._shown.end(error)

    def finish(self) -> None:
        self._todo.put(None)
        self.join(LAST_WORDS)


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[Callable[[], None]]:
    """A terminal that passes every key on, for the block; also if that ends by a signal, or is suspended meanwhile.

    Gives the function that suspends this program.
    """
    saved = termios.tcgetattr(descriptor)

    def restore() -> None:
        with suppress(termios.error):  # the terminal may have gone away
            termios.tcsetattr(descriptor, termios.TCSANOW, saved)

    def make_raw(*_: object) -> None:
        tty.setraw(descriptor, termios.TCSANOW)

    def suspend(*_: object) -> None:
        restore()
        os.kill(0, signal.SIGSTOP)  # the whole job, as Ctrl-Z does; goes on below at SIGCONT
        make_raw()

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {
        signal.SIGTERM: leave,
        signal.SIGHUP: leave,
        signal.SIGTSTP: suspend,
        signal.SIGCONT: make_raw,
    }
    previous: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # only there can signals be handled
            for number, handler in handlers.items():
                previous[number] = signal.signal(number, handler)
        make_raw()
        yield suspend
    finally:
        restore()
        for number, handler in previous.items():
            signal.signal(number, handler)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``, waiting where the descriptor does not."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
