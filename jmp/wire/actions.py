"""Which methods of a device somebody may use: patterns such as ``power.*`` and ``storage.write``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from jmp.errors import BadValue


def allowed(allow: Iterable[str], deny: Iterable[str], action: str) -> bool:
    """Whether ``action``, the path of a driver, a dot and the name of a method, is allowed: ``deny`` wins.

    In a pattern ``*`` stands for any number of characters, dots included, and nothing else is special. A pattern without a
    dot is the path of a driver, and means all that is in it and below.
    """
    return any(_matcher(pattern)(action) for pattern in allow) and not any(
        _matcher(pattern)(action) for pattern in deny
    )


def check(pattern: str) -> None:
    """Raise ``BadValue`` for what no method can match: a misspelt ``deny`` would forbid nothing."""
    if re.fullmatch(r"[\w.*-]+", pattern) is None:
        raise BadValue(f"{pattern!r} is no pattern of methods: write it as power.*, storage.write or storage")


@cache
def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    text = ".*".join(re.escape(part) for part in pattern.split("*"))
    if "." not in pattern and not pattern.endswith("*"):
        text += r"\..*"
    return re.compile(text, re.DOTALL).fullmatch
