"""A server's log on standard error: lines for people, or JSON objects, each with what it is about.

A leaf. ``about`` wraps work for a lease; whatever is logged in it, also by drivers and in their threads, says which lease it was.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final, Literal

LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS: Final = ("text", "json")

_about: ContextVar[Mapping[str, str]] = ContextVar("about")


@contextmanager
def about(subject: Mapping[str, str]) -> Iterator[None]:
    """Lines that are logged in the block, or in tasks and threads started in it, are about ``subject``, as it is then."""
    token = _about.set(subject)
    try:
        yield
    finally:
        _about.reset(token)


def subject_of(
    lease: str, client: str, exporter: str, tags: Iterable[str], context: Mapping[str, str]
) -> dict[str, str]:
    """What a line about a lease has: its id, who has it, where, its tags, and its context's own keys."""
    own = {"lease": lease, "client": client, "exporter": exporter, "tags": ",".join(tags)}
    return {key: value for key, value in {**context, **own}.items() if value}


def log_to_stderr(level: str, form: Literal["text", "json"] | str = "text") -> None:
    """Log to standard error from ``level`` on. Both are as in ``LEVELS`` and ``FORMATS``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=LEVELS[level], handlers=[handler])


class _Text(logging.Formatter):
    """``TIME LEVEL LOGGER: MESSAGE KEY=VALUE …``, with what the message does not say itself."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return line + "".join(f" {key}={value}" for key, value in _about.get({}).items() if value not in record.message)


class _Json(logging.Formatter):
    """One object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``exception``, and what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        own = {"time": time.replace("+00:00", "Z"), "level": record.levelname.lower(), "logger": record.name}
        line = {**_about.get({}), **own, "message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps({**{key: line[key] for key in own}, **line}, ensure_ascii=False)
