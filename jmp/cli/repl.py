"""The prompt of a bare ``jmp shell``.

It is a process of its own, started by ``jmp shell`` inside the session as any command would be: it has a main thread for
signals and the terminal, needs no Trio, and cannot take the session down. Each verb is carried out here, over a connection
of its own, as ``j`` does it; so Ctrl-C ends a call at the driver by leaving the connection. Other lines are run by the user's
shell. One more connection, in a thread, brings news of the drivers.

Lines are decided in :mod:`jmp.cli.line`.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from jmp.cli import guarded, line, output, verbs
from jmp.cli.ending import POLITE, tell
from jmp.cli.line import Health, Kind, Step
from jmp.cli.verbs import Target
from jmp.client.connect import Dial, open_blocking
from jmp.driver.schema import did_you_mean
from jmp.environment import session_url
from jmp.errors import Cancelled, JmpError, LabError, NotFound, UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import StyleAndTextTuples

_NOT_KEPT: Final = frozenset({"_", "SHLVL", "PWD", "OLDPWD"})
"""Variables that a shell sets by itself."""
_RESTORED: Final = "\x1b[?2004l\x1b[?25h\x1b[0m"
"""No bracketed paste, a visible cursor, no colours."""


def main() -> int:
    """Be the prompt of the session in the environment; its exit code."""
    return guarded(_main)


def _main() -> int:
    url = session_url()
    if url is None:
        raise UsageError("there is no session here: start one with jmp shell")
    with _told_to_leave(), open_blocking(Dial(url)) as device:
        repl = Repl(url, device)
        if sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty()):
            return _Prompt(repl).run()
        return repl.script(iter(_stdin_line, ""))


@contextmanager
def _told_to_leave() -> Iterator[None]:
    """TERM and HUP leave the block by ``SystemExit``; however it is left, the terminal is as it was."""
    saved = _terminal_state()

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler: what is ignored would be ignored by commands as well
    try:
        yield
    except SystemExit:
        with suppress(OSError, ValueError):
            if sys.stdout.isatty():
                sys.stdout.write(f"{_RESTORED}\n")
                sys.stdout.flush()
        raise
    finally:
        _set_terminal(saved)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the block. Anywhere else it is for the command that runs, or comes as a key."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        _end_line()
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _terminal_state() -> Any:
    return termios.tcgetattr(0) if os.isatty(0) else None


def _set_terminal(state: Any) -> None:
    if state is not None:
        with suppress(termios.error):  # the terminal may have gone away
            termios.tcsetattr(0, termios.TCSADRAIN, state)


def _stdin_line() -> str:
    """The next line of standard input. No byte beyond is taken: what follows may be for the line's own command."""
    found = bytearray()
    while (byte := os.read(0, 1)) and byte != b"\n":
        found += byte
    return (found + byte).decode(errors="surrogateescape")


class _Leave(BaseException):
    """The line asks to leave, maybe with an exit code: no error, so that :func:`~jmp.cli.guarded` lets it pass."""

    def __init__(self, code: int | None) -> None:
        self.code = code


class Repl:
    """Carries out lines in the session at ``url``. ``code`` is the exit code of the last one."""

    def __init__(self, url: str, device: Any) -> None:
        self.url = url
        self.name = str(device.info.get("name", "")) or "device"
        self.device = Target("", device._wrapped)
        self.drivers = line.names_in(self.device)
        self.watch = Watch(device)
        self.code = 0

    def script(self, lines: Iterator[str]) -> int:
        """Carry out lines as ``sh`` does those of a script: whatever they end with, up to the last; its code is the result.

        Only an interrupted line ends it.
        """
        text = ""
        try:
            for more in lines:
                text += more
                if line.scan(text.removesuffix("\n")).open:
                    continue
                self.carry_out(text)
                text = ""
                self.watch.check()
                if self.code == Cancelled.exit_code:
                    return self.code
            self.carry_out(text)
        except _Leave as leave:
            return self.code if leave.code is None else leave.code
        return self.code

    def carry_out(self, text: str) -> None:
        """Carry out one line. Raises :class:`_Leave`; errors are printed."""
        step = line.decide(text, self.drivers)
        if step.kind is not Kind.NOTHING:
            terminal = _terminal_state()
            try:
                self.code = guarded(lambda: self._do(step))
            finally:
                _set_terminal(terminal)  # a program that was killed may have left it otherwise

    def _do(self, step: Step) -> int:
        match step.kind:
            case Kind.HELP:
                return self._help(step.words)
            case Kind.EXIT:
                raise _Leave(_exit_code(step.words))
            case Kind.VERB:
                with _interruptible(), open_blocking(Dial(self.url)) as device:
                    return verbs.execute(device._wrapped, step.words)
            case Kind.KEPT:
                return _run_and_keep(step.text)
            case _:
                return _run([os.environ.get("SHELL") or "/bin/sh", "-c", step.text]) if step.text else 0

    def _help(self, words: Sequence[str]) -> int:
        place, rest = verbs.locate(self.device, words)
        if not words:
            own = verbs.help_of(place, at_prompt=True)
            rows = verbs.aligned(list(line.BUILTIN.items()))
            sys.stdout.write("\n".join([own, "At this prompt:", *rows, *map(verbs.filled, _OTHER_LINES), ""]))
        elif not rest:
            sys.stdout.write(verbs.help_of(place, at_prompt=True))
        elif len(words) == 1 and rest[0] in line.BUILTIN:
            sys.stdout.write(f"{line.BUILTIN[rest[0]]}\n")
        else:
            known = place.verbs()
            if rest[0] not in known:
                names = [*known, *place.children, *(line.BUILTIN if not place.path else ())]
                raise NotFound(f"there is no help on {' '.join(words)!r}{did_you_mean(rest[0], names)}")
            sys.stdout.write(verbs.help_of_verb(place, known[rest[0]], at_prompt=True))
        sys.stdout.flush()
        return 0


_OTHER_LINES: Final = (
    "",
    "Any other line is run by your own shell, where j DRIVER VERB and pytest use this device too.",
    "!COMMAND is for the shell even if a driver has the command's name.",
)


def _exit_code(words: Sequence[str]) -> int | None:
    if not words:
        return None
    if len(words) > 1 or not words[0].isascii() or not words[0].isdigit() or int(words[0]) > 255:
        raise UsageError("exit takes an exit code from 0 to 255, or nothing")
    return int(words[0])


# ---- other lines


def _run(command: Sequence[str], **options: Any) -> int:
    """Run a command on this terminal; its exit code, 128 + N if signal N ended it. Ctrl-C is the command's."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        process = subprocess.Popen(command, **options)
    except OSError as error:
        raise UsageError(f"{command[0]} cannot be run ($SHELL says what runs lines): {error.strerror}") from error
    try:
        status = process.wait()
    except BaseException:
        for step in POLITE:
            if process.poll() is None:
                tell(process.pid, step)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(step.seconds if step.seconds < math.inf else None)
        raise
    if status == -signal.SIGINT:
        _end_line()
    return status if status >= 0 else 128 - status


def _run_and_keep(text: str) -> int:
    """Let ``sh`` run a line, and take over the folder and the environment that it ends with, if it succeeds."""
    with tempfile.TemporaryFile() as told:
        there = f"/dev/fd/{told.fileno()}"
        script = f'eval "$1" && env -0 >{there} && pwd >>{there}'
        code = _run(["/bin/sh", "-c", script, "sh", text], pass_fds=(told.fileno(),))
        told.seek(0)
        *variables, folder = map(os.fsdecode, told.read().split(b"\0"))
    if code != 0 or not variables:  # the line itself may have said exit
        return code
    new = dict(variable.split("=", 1) for variable in variables)
    for name in {*os.environ, *new} - _NOT_KEPT:
        if name in new:
            os.environ[name] = new[name]
        else:
            del os.environ[name]
    folder = folder.removesuffix("\n")
    if folder != os.environ.get("PWD"):
        os.environ["OLDPWD"] = os.environ.get("PWD", folder)
    os.chdir(folder)
    os.environ["PWD"] = folder
    return 0


def _end_line() -> None:
    """After the ``^C`` that the terminal has shown."""
    if sys.stderr.isatty():
        output.note("")


# ---- news


class Watch(threading.Thread):
    """Follows the states of the drivers, from now until the session is over. ``on_news`` is called in this thread."""

    def __init__(self, device: Any) -> None:
        super().__init__(name="jmp-watch", daemon=True)
        self._device = device
        self.health = Health()
        self.notices: deque[str] = deque()
        self.over = threading.Event()
        self.first = threading.Event()
        """Set once the states are known, or never will be."""
        self.on_news: Callable[[], None] = lambda: None
        self.start()

    def run(self) -> None:
        try:
            for states in self._device.states():
                told = self.health.update(states)
                self.notices.extend(told)
                self.first.set()
                if told:  # tries to open a driver again are none
                    self.on_news()
        except JmpError:
            pass  # the session is over, and that is what is told
        finally:
            self.over.set()
            self.first.set()
            self.on_news()

    def check(self) -> None:
        """Raises ``LabError`` if the session is over."""
        if self.over.is_set():
            raise LabError("the session is over: its exporter has stopped or cannot be reached any more")


# ---- the terminal


class _Prompt:
    """Lines from a person."""

    def __init__(self, repl: Repl) -> None:
        self.repl = repl
        self.session = self._session()

    def run(self) -> int:
        repl, app = self.repl, self.session.app
        output.note(verbs.filled(f"{repl.name}: help shows what there is, Tab completes, Ctrl-D leaves."))
        repl.watch.first.wait()
        repl.watch.on_news = self._wake
        rest = ""
        while True:
            repl.watch.check()
            self._begin_line()
            self._show_notices()
            try:
                text = self.session.prompt(default=rest, pre_run=lambda: self._in_loop(app.loop))
            except KeyboardInterrupt:
                rest = ""
                continue
            except EOFError:
                return 0
            try:
                rest = self._carry_out(line.split(text))
            except _Leave as leave:
                return leave.code or 0

    def _carry_out(self, lines: list[str]) -> str:
        """Carry out lines in order until one fails; what is left of them."""
        for number, text in enumerate(lines, 1):
            if len(lines) > 1:
                output.note(f"+ {text}")
            self.repl.carry_out(text)
            self.repl.watch.check()
            if self.repl.code != 0 and number < len(lines):
                left = lines[number:]
                lines_left = "1 line is" if len(left) == 1 else f"{len(left)} lines are"
                output.note(f"jmp: line {number} of {len(lines)} failed; {lines_left} left, at the prompt again")
                return "\n".join(left)
        return ""

    def _begin_line(self) -> None:
        """Go to the beginning of a line, and keep what is on this one: output need not end with a newline.

        As many blanks as a line is wide, after a mark: they wrap where something stands already, and there the mark stays.
        """
        if os.environ.get("TERM") != "dumb":
            out = self.session.output
            out.write_raw(f"\x1b[7m%\x1b[0m{' ' * (out.get_size().columns - 1)}\r \r")
            out.flush()

    def _show_notices(self) -> None:
        while self.repl.watch.notices:
            output.note(f"jmp: {self.repl.watch.notices.popleft()}")

    def _wake(self) -> None:
        """There is news: show it if the prompt stands, which it does as long as it has a loop. Called in the watching thread."""
        loop = self.session.app.loop
        if loop is not None:
            with suppress(RuntimeError):  # the prompt has just been answered; the next one shows it
                loop.call_soon_threadsafe(self._in_loop, loop)

    def _in_loop(self, loop: Any) -> None:
        from prompt_toolkit.application import run_in_terminal

        app = self.session.app
        if not app.is_running or app.is_done:
            return
        if self.repl.watch.over.is_set():
            app.exit(exception=LabError(_over(self.repl.watch)), style="class:aborting")
        elif self.repl.watch.notices:
            app.create_background_task(_awaited(run_in_terminal(self._show_notices)))
        app.invalidate()

    def _message(self) -> StyleAndTextTuples:
        parts: StyleAndTextTuples = [("class:name", self.repl.name)]
        if shown := self.repl.watch.health.shown():
            parts.append(("class:degraded", f" ({shown})"))
        if self.repl.code:
            parts.append(("class:code", f" [{self.repl.code}]"))
        return [*parts, ("", "> ")]

    def _session(self) -> PromptSession[str]:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.output import create_output
        from prompt_toolkit.styles import Style

        return PromptSession(
            self._message,
            multiline=True,  # Enter is bound below
            prompt_continuation=lambda width, number, soft: "> ".rjust(width) if not soft else "",
            completer=_completer(self.repl),
            complete_while_typing=False,
            auto_suggest=AutoSuggestFromHistory(),
            history=_history(),
            key_bindings=_keys(),
            enable_suspend=True,
            output=create_output(always_prefer_tty=True),
            style=Style.from_dict({"name": "bold", "degraded": "ansiyellow", "code": "ansired"}),
        )


async def _awaited(something: Any) -> None:
    await something


def _over(watch: Watch) -> str:
    try:
        watch.check()
    except LabError as error:
        return error.message
    return ""


def _keys() -> Any:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus, is_searching
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    keys = KeyBindings()

    @keys.add(Keys.BracketedPaste)
    def paste(event: Any) -> None:
        """Show what was pasted; nothing of it is carried out before Enter."""
        event.current_buffer.insert_text("\n".join(event.data.rstrip().splitlines()))

    @keys.add("enter", filter=has_focus(DEFAULT_BUFFER) & ~is_searching)
    def enter(event: Any) -> None:
        """Carry the line out, or go on with one that is not complete."""
        buffer = event.current_buffer
        if line.scan(buffer.text).open:
            buffer.cursor_position = len(buffer.text)
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    return keys


def _completer(repl: Repl) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    machine = line.Machine(lambda: _programs(os.environ.get("PATH", "")), line.files)

    class Lines(Completer):
        def get_completions(self, document: Any, _: Any) -> Iterator[Completion]:
            before = document.text_before_cursor
            for found in line.complete(before, repl.device, machine):
                position = found.start - len(before)
                yield Completion(found.text, position, display=found.shown, display_meta=found.about)

    return Lines()


_programs = cache(line.programs)


def _history() -> Any:
    """Lines of this and earlier sessions, in a file that only this user can read; of this one if there is no such place."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME") or ""
    folder = (Path(state) if os.path.isabs(state) else Path.home() / ".local/state") / "jmp"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(folder / "history", "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            os.fchmod(file.fileno(), 0o600)
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileHistory(folder / "history")
