"""Why a connection failed, in a few words."""

from __future__ import annotations

import os
import socket
import ssl


def reason(error: BaseException | None) -> str:
    """``Connection refused``, say. Trio hides it below one error for all the addresses that it tried."""
    cause = error.__cause__ if error is not None else None
    causes = [error, *(cause.exceptions if isinstance(cause, BaseExceptionGroup) else [cause])]
    for each in reversed(causes):
        if isinstance(each, socket.gaierror | ssl.SSLError):  # their numbers are no errno
            return each.strerror or str(each)
        if isinstance(each, OSError) and each.errno is not None:
            return os.strerror(each.errno)  # its own text names the address again
    return str(error or "it was closed")
