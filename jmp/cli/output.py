"""What commands print: for people on a terminal, plain for pipes, and as data where that is asked for."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import sys
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, time, timedelta
from typing import Any, Final, Literal

from jmp.errors import JmpError

Format = Literal["table", "json", "yaml", "name"]
Wide = Literal["table", "wide", "json", "yaml", "name"]

COLOUR: Final = {
    **dict.fromkeys(("ready", "free", "good", "enabled"), "green"),
    **dict.fromkeys(("opening", "queued", "preparing", "leased", "ending", "cleaning"), "yellow"),
    **dict.fromkeys(("degraded", "offline", "disabled", "expired", "revoked"), "red"),
    **dict.fromkeys(("closed", "ended"), "dim"),
}
"""Style of a state, of drivers, leases and exporters."""

PATIENCE: Final = 1.0
"""Seconds that something may take before it is worth a look, a progress bar for example."""


def is_terminal() -> bool:
    """Whether a person looks at what goes to standard output."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def columns() -> int | None:
    """How wide the terminal is that standard output is shown on; None if it goes elsewhere: nothing is wrapped then."""
    return shutil.get_terminal_size().columns if is_terminal() else None


def folded(text: str) -> str:
    """Its lines, each broken between words where it is longer than the terminal is wide."""
    import textwrap

    width = max(shutil.get_terminal_size().columns - 1, 20)
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines()
    )


def plain(value: Any) -> Any:
    """A value as JSON and YAML have it: bytes as text, or base64 if they are none; times in ISO 8601; timedeltas in seconds."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str | int | float | bool) else str(plain(key)): plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return value


def data(value: Any, form: Format) -> str:
    """``value`` as JSON or YAML, with a final newline."""
    if form == "json":
        return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=True) + "\n"
    import yaml

    text: str = yaml.safe_dump(plain(value), sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text.removesuffix("...\n")


def print_value(value: Any, form: Wide | None = None) -> None:
    """Print what a call returned: nothing for None, bytes as they are, text as a line, the rest as YAML."""
    if form in ("json", "yaml"):
        sys.stdout.write(data(value, form))
    elif isinstance(value, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(value)
        sys.stdout.buffer.flush()
    elif isinstance(value, str | int | float | bool):
        sys.stdout.write(f"{str(value).lower() if isinstance(value, bool) else value}\n")
    elif value is not None:
        sys.stdout.write(data(value, "yaml"))
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows: aligned and coloured on a terminal, tab-separated without a heading in a pipe; ``empty`` if there are none."""
    if not rows:
        sys.stderr.write(empty + "\n")
    elif is_terminal():
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column.upper())
        for row in rows:
            table.add_row(*(f"[{COLOUR[cell]}]{cell}[/]" if cell in COLOUR else _escaped(cell) for cell in row))
        Console().print(table)
    else:
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")


def print_listing(
    records: Sequence[Mapping[str, Any]], form: Format, columns: Sequence[str], *, key: str, empty: str
) -> None:
    """Print records: ``columns`` of them as a table, all of them as data, or their ``key`` only."""
    if form in ("json", "yaml"):
        print_value(list(records), form)
    elif form == "name":
        sys.stdout.writelines(f"{record[key]}\n" for record in records)
    else:
        print_table(columns, [[str(record[column]) for column in columns] for record in records], empty=empty)


def print_details(pairs: Sequence[tuple[str, str]]) -> None:
    """Print what is known of one thing: a line for each, aligned on a terminal, tab-separated in a pipe."""
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        sys.stdout.write(f"{name:{width}}  {value}\n" if is_terminal() else f"{name}\t{value}\n")


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


_prompts = 0  # that have the terminal at present, in processes that this one has started


@contextmanager
def beside_prompt() -> Iterator[None]:
    """While this block lasts, a program of ours has the terminal whose prompt stands below what is told."""
    global _prompts  # the terminal is the process's, too
    _prompts += 1
    try:
        yield
    finally:
        _prompts -= 1


def note(text: str) -> None:
    """Tell the user something that is no result: a line on standard error."""
    if _prompts and sys.stderr.isatty():
        text = text.replace("\n", "\r\n")
        sys.stderr.write(f"\r\x1b[J{text}\r\n")
        sys.stderr.flush()
        _draw_prompt()
    else:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class LinkStatus:
    """Tells about a session's link that was lost, and that the session goes on: one line that is renewed on a terminal.

    Elsewhere, as in the log of a CI job, a loss that is made good within `PATIENCE` is not worth a word.
    """

    def __init__(self) -> None:
        self._late: threading.Timer | None = None
        self._told = False

    def __call__(self, lost: JmpError | None, seconds: float) -> None:
        """As ``told`` of a link that lasts."""
        if sys.stderr.isatty():  # which may be anybody's now, in raw mode even: hence the returns
            said = "link lost, resuming…" if lost is not None else f"resumed after {seconds:.1f} s\r\n"
            sys.stderr.write(f"\r\x1b[Kjmp: {said}")
            sys.stderr.flush()
            if lost is None and _prompts:
                _draw_prompt()
        elif lost is not None:
            self._late = threading.Timer(PATIENCE, self._say, [f"jmp: link lost, resuming… ({lost.message})"])
            self._late.daemon = True
            self._late.start()
        elif self._late is not None:
            self._late.cancel()
            self._late.join()
            if self._told:
                self._told = False
                note(f"jmp: resumed after {seconds:.1f} s")

    def _say(self, text: str) -> None:
        self._told = True
        note(text)


def _draw_prompt() -> None:
    """Have whoever has the terminal draw again what stood where something was told: as if its size had changed."""
    with suppress(OSError):  # it is not this process's own
        os.killpg(os.tcgetpgrp(sys.stderr.fileno()), signal.SIGWINCH)


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on standard error, if that is a terminal; the function takes bytes done and bytes in all, if known.

    It appears with a call of the function after a second: what is done or fails before leaves only what it says.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = shown.add_task(title, total=None)

    begun = clock.monotonic()

    def show(done: int, total: int | None) -> None:
        if clock.monotonic() - begun >= PATIENCE:
            shown.start()  # does nothing to one that is there
        shown.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        shown.stop()
