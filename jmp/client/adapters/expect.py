"""pexpect on a console: patterns, ``before``/``after``/``match``, ``EOF`` and ``TIMEOUT`` are pexpect's own.

:class:`Console` *is* a pexpect object whose reading and writing go over a byte stream that blocks; :class:`TrioConsole` has the
same names with ``await``, and shares pexpect's matching. Where pexpect raises ``TIMEOUT`` or ``EOF`` they raise
:class:`ExpectTimeout` or :class:`ExpectEOF`, which are also errors of jmp and say what was awaited and what came last.
"""
# ruff: noqa: ASYNC109  # the names are pexpect's, its time-outs among them

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from pexpect.exceptions import EOF, TIMEOUT
from pexpect.expect import Expecter, searcher_re, searcher_string
from pexpect.spawnbase import SpawnBase

from jmp.driver.proxy import Blocking
from jmp.errors import DeviceError, Timeout, UsageError
from jmp.rpc.blocking import fail_after

if TYPE_CHECKING:
    from jmp.client.console import ConsoleClient

    Spawn = SpawnBase[Any]
else:
    Spawn = SpawnBase  # generic for type checkers only

Text = Any
"""``str``, or ``bytes`` where the console was opened without an encoding."""

SHOWN_LINES: Final = 6
"""How many of the last lines an error shows."""
GLANCE: Final = 0.001
"""Seconds that a time-out of 0 gives: what has come already is still taken."""


class ExpectTimeout(Timeout, TIMEOUT):
    """What was expected on a console did not come in time."""


class ExpectEOF(DeviceError, EOF):
    """The console ended before it said what was expected."""


class _Base(Spawn):
    """pexpect's buffers, patterns and results, without a way to read."""

    # Of pexpect's own, but not in its stubs:
    _decoder: Any
    _encoder: Any
    _log: Callable[[Text, str], None]
    _coerce_send_string: Callable[[Text], Text]
    _coerce_expect_string: Callable[[Text], Text]

    def __init__(
        self, name: str, *, timeout: float | None, prompt: str | None, encoding: str | None, errors: str
    ) -> None:
        super().__init__(timeout=timeout, maxread=64 * 1024, encoding=encoding, codec_errors=errors)
        self.name = name
        self.prompt = prompt
        # pexpect waits here and there for the sake of local processes.
        self.delaybeforesend = None
        self.delayafterread = None
        self.closed = False

    def _take(self, data: bytes) -> Text:
        """Received bytes as pexpect wants them. Raises ``EOF`` for none."""
        if not data:
            self.flag_eof = True
            raise EOF("the console ended")
        text = self._decoder.decode(data, final=False)
        self._log(text, "read")
        return text

    def _give(self, text: str | bytes) -> bytes:
        """What to send for ``text``."""
        coerced = self._coerce_send_string(text)
        self._log(coerced, "send")
        return bytes(self._encoder.encode(coerced, final=False))

    def _line(self, line: str | bytes) -> Text:
        return self._coerce_send_string(line) + self.linesep

    def _prompt(self, prompt: Any) -> Any:
        chosen = self.prompt if prompt is None else prompt
        if chosen is None:
            raise UsageError("run needs to know the prompt: run(command, prompt=...), or expect(prompt=...)")
        return chosen

    def _output(self, command: str | bytes) -> Text:
        """What lies before the prompt, without the command's echo, with plain line ends."""
        sent = self._coerce_send_string(command)
        newline: Any = "\n" if isinstance(sent, str) else b"\n"
        said: Any = self.before
        output = said.replace("\r\n" if isinstance(sent, str) else b"\r\n", newline)
        first, _, rest = output.partition(newline)
        # A shell may ask the terminal where its cursor is after the prompt (busybox does): that is not output either.
        controls = r"\r|\x1b\[[0-?]*[ -/]*[@-~]"
        if re.sub(controls if isinstance(sent, str) else controls.encode(), sent[:0], first).strip() == sent.strip():
            return rest
        return output

    @contextmanager
    def _explained(self, patterns: Any) -> Iterator[None]:
        """Turn pexpect's errors into those that say what was awaited."""
        began = time.monotonic()
        try:
            yield
        except (ExpectTimeout, ExpectEOF):
            raise
        except TIMEOUT:
            seconds = time.monotonic() - began
            raise ExpectTimeout(
                f"{self.name} did not say {_shown(patterns)} within {round(seconds, 1):g} s; {self._last()}"
            ) from None
        except EOF:
            raise ExpectEOF(f"{self.name} ended before it said {_shown(patterns)}; {self._last()}") from None

    def _last(self) -> str:
        """The last lines that came since the last match."""
        seen = self.before or ""
        text = seen.decode(errors="replace") if isinstance(seen, bytes) else str(seen)
        lines = [clean for line in text.splitlines() if (clean := _printable(line))]
        if not lines:
            return "it said nothing"
        return "\n    ".join(["it said last:", *lines[-SHOWN_LINES:]])


class Console(_Base):
    """A console to talk to, for threads: a pexpect object."""

    def __init__(self, stream: Any, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._stream = stream

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> Text:
        """At most ``size`` bytes of what comes. Raises ``TIMEOUT`` if nothing does in ``timeout`` seconds, ``EOF``."""
        with nullcontext() if timeout is None else fail_after(max(timeout, GLANCE)):
            try:
                data = self._stream.receive_some(size)
            except Timeout as error:
                raise TIMEOUT(error.message) from None
        return self._take(data)

    def expect_list(self, pattern_list: Any, *args: Any, **options: Any) -> Any:
        """As :meth:`expect`, with compiled patterns."""
        with self._explained(pattern_list):
            return super().expect_list(pattern_list, *args, **options)

    def expect_exact(self, pattern_list: Any, *args: Any, **options: Any) -> Any:
        """As :meth:`expect`, with plain text instead of patterns."""
        with self._explained(pattern_list):
            return super().expect_exact(pattern_list, *args, **options)

    def send(self, s: str | bytes) -> int:
        """Send text; how many bytes that were."""
        data = self._give(s)
        self._stream.send_all(data)
        return len(data)

    def sendline(self, s: str | bytes = "") -> int:
        """Send a line, ended by ``linesep``."""
        return self.send(self._line(s))

    def sendcontrol(self, char: str) -> int:
        """Send a control character: ``sendcontrol("c")``."""
        return self.send(control(char))

    def run(self, command: str, *, prompt: Any = None, timeout: float | None = -1) -> Text:
        """Send a command, wait for the prompt, and return what was said between the two."""
        awaited = self._prompt(prompt)
        self.sendline(command)
        self.expect(awaited, timeout=timeout)
        return self._output(command)


class TrioConsole:
    """A console to talk to, under Trio: the names of :class:`Console`, with ``await``."""

    def __init__(self, stream: Any, name: str, **options: Any) -> None:
        self._state = _Base(name, **options)
        self._stream = stream

    @property
    def before(self) -> Any:
        """What came before the match; all that came, if there was none."""
        return self._state.before

    @property
    def after(self) -> Any:
        """What matched, or ``EOF`` or ``TIMEOUT``."""
        return self._state.after

    @property
    def match(self) -> Any:
        """The match object, or the text, or ``EOF`` or ``TIMEOUT``."""
        return self._state.match

    @property
    def match_index(self) -> int | None:
        return self._state.match_index

    @property
    def buffer(self) -> Any:
        """What came after the match."""
        return self._state.buffer

    @property
    def timeout(self) -> float | None:
        """Seconds that :meth:`expect` waits by default."""
        return self._state.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._state.timeout = seconds

    @property
    def linesep(self) -> Any:
        """What ends a line that is sent."""
        return self._state.linesep

    @linesep.setter
    def linesep(self, text: Any) -> None:
        self._state.linesep = text

    @property
    def prompt(self) -> str | None:
        """The pattern that :meth:`run` waits for by default."""
        return self._state.prompt

    @prompt.setter
    def prompt(self, pattern: str | None) -> None:
        self._state.prompt = pattern

    @property
    def logfile(self) -> Any:
        """Gets all that is sent and received, if set."""
        return self._state.logfile

    @logfile.setter
    def logfile(self, file: Any) -> None:
        self._state.logfile = file

    async def expect(self, pattern: Any, timeout: float | None = -1, searchwindowsize: int | None = -1) -> int:
        """Wait for one of the patterns; its index. Cancelled, what came stays for the next one."""
        return await self.expect_list(self._state.compile_pattern_list(pattern), timeout, searchwindowsize)

    async def expect_list(
        self, pattern_list: Any, timeout: float | None = -1, searchwindowsize: int | None = -1
    ) -> int:
        """As :meth:`expect`, with compiled patterns."""
        with self._state._explained(pattern_list):
            return await self._seek(searcher_re(pattern_list), timeout, searchwindowsize)

    async def expect_exact(
        self, pattern_list: Any, timeout: float | None = -1, searchwindowsize: int | None = -1
    ) -> int:
        """As :meth:`expect`, with plain text instead of patterns."""
        single = isinstance(pattern_list, str | bytes | type)
        patterns = [pattern_list] if single else list(pattern_list)
        exact = [item if isinstance(item, type) else self._state._coerce_expect_string(item) for item in patterns]
        with self._state._explained(pattern_list):
            return await self._seek(searcher_string(exact), timeout, searchwindowsize)

    async def _seek(self, searcher: Any, timeout: float | None, window: int | None) -> int:
        """pexpect's ``expect_loop``, waiting as Trio does."""
        import trio

        expecter: Expecter[Any] = Expecter(self._state, searcher, window)
        seconds = self._state.timeout if timeout == -1 else timeout
        found: int | None = None
        try:
            found = expecter.existing_data()
            with trio.CancelScope(
                deadline=float("inf") if seconds is None else trio.current_time() + max(seconds, GLANCE)
            ):
                while found is None:
                    data = await self._stream.receive_some(self._state.maxread)
                    found = expecter.new_data(self._state._take(data))
            return expecter.timeout() if found is None else found
        except EOF as error:
            return expecter.eof(error)
        except TIMEOUT:
            raise
        except BaseException:
            expecter.errored()
            raise

    async def send(self, s: str | bytes) -> int:
        """Send text; how many bytes that were."""
        data = self._state._give(s)
        await self._stream.send_all(data)
        return len(data)

    async def sendline(self, s: str | bytes = "") -> int:
        """Send a line, ended by ``linesep``."""
        return await self.send(self._state._line(s))

    async def sendcontrol(self, char: str) -> int:
        """Send a control character: ``sendcontrol("c")``."""
        return await self.send(control(char))

    async def run(self, command: str, *, prompt: Any = None, timeout: float | None = -1) -> Text:
        """Send a command, wait for the prompt, and return what was said between the two."""
        awaited = self._state._prompt(prompt)
        await self.sendline(command)
        await self.expect(awaited, timeout=timeout)
        return self._state._output(command)

    async def read(self) -> Text:
        """All that comes until the console ends; what pexpect calls ``read()`` without a size."""
        await self.expect(EOF, timeout=None)
        return self.before

    async def readline(self) -> Text:
        """The next line with its end, or what is left when the console ends."""
        if await self.expect([self._state.crlf, EOF]) == 0:
            return self.before + self._state.crlf
        return self.before


class Expecting:
    """A console to talk to, for the time of a ``with`` (:class:`Console`) or ``async with`` (:class:`TrioConsole`) block."""

    def __init__(self, client: ConsoleClient, *, replay: bool, **options: Any) -> None:
        self._connection: AbstractAsyncContextManager[Any] = client.connect(replay=replay)
        self._blocking: AbstractContextManager[Any] = Blocking(self._connection)
        self._name = client._node.path or "console"
        self._options = options

    def __enter__(self) -> Console:
        return Console(self._blocking.__enter__(), self._name, **self._options)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._blocking.__exit__(kind, error, traceback)

    async def __aenter__(self) -> TrioConsole:
        return TrioConsole(await self._connection.__aenter__(), self._name, **self._options)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._connection.__aexit__(kind, error, traceback)


def control(char: str) -> str:
    """The character that a key gives together with Ctrl."""
    if len(char) == 1 and "@" <= char.upper() <= "_":
        return chr(ord(char.upper()) - 0x40)
    raise UsageError(f"there is no control character {char!r}; letters and any of @ [ \\ ] ^ _ have one")


def _shown(patterns: Any) -> str:
    """Patterns as an error names them."""
    each = patterns if isinstance(patterns, list | tuple) else [patterns]
    names = [
        repr(item.pattern) if isinstance(item, re.Pattern) else "its end" if item is EOF else repr(item)
        for item in each
        if item is not TIMEOUT
    ]
    return " or ".join(names) or "anything"


def _printable(line: str) -> str:
    """A line without what would move the cursor."""
    bare = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.", "", line)
    return "".join(char if char.isprintable() else " " for char in bare).strip()[-160:]
