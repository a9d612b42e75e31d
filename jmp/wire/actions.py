"""Which methods of a device somebody may use: patterns such as ``power.*`` and ``storage.write``."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from jmp.errors import BadValue


def allowed(allow: Iterable[str], deny: Iterable[str], action: str) -> bool:
    """Whether ``action``, the path of a driver, a dot and the name of a method, is allowed: ``deny`` wins.

    In a pattern ``*`` stands for any number of characters, dots included, and nothing else is special. A pattern without a
    dot is the path of a driver, and means all that is in it and below. However many asterisks there are, it is decided soon.
    """
    return any(_matcher(pattern)(action) for pattern in allow) and not any(
        _matcher(pattern)(action) for pattern in deny
    )


def check(pattern: str) -> None:
    """Raise ``BadValue`` for what no method can match: a misspelt ``deny`` would forbid nothing."""
    if re.fullmatch(r"[\w.*-]+", pattern) is None:
        raise BadValue(f"{pattern!r} is no pattern of methods: write it as power.*, storage.write or storage")


@lru_cache(maxsize=4096)
def _matcher(pattern: str) -> Callable[[str], re.Match[str] | None]:
    if "." not in pattern and not pattern.endswith("*"):
        pattern += ".*"
    literal = re.sub(r"[?[]", r"[\g<0>]", pattern)  # which mean something to fnmatch
    return re.compile(fnmatch.translate(literal)).match
