"""Why a connection failed, in a few words."""

from __future__ import annotations

import os


def reason(error: BaseException | None) -> str:
    """``Connection refused``, say. Trio hides it below one error for all the addresses that it tried."""
    cause = error.__cause__ if error is not None else None
    causes = [error, *(cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause])]
    for each in reversed(causes):
        if isinstance(each, OSError) and each.errno is not None:
            return each.strerror or os.strerror(each.errno)
    return str(error or "it was closed")
