"""Files that only their owner can read: keys, tokens, passphrases."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from jmp.errors import ConfigError

log = logging.getLogger(__name__)


def read_private(file: Path) -> bytes | None:
    """What :func:`write_private` wrote; None if it is missing. One that others could read is made private, and that is logged.

    Raises :class:`~jmp.errors.ConfigError`.
    """
    try:
        with file.open("rb") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                with suppress(OSError):  # somebody else's file, or one that is mounted read-only
                    os.fchmod(opened.fileno(), 0o600)
                    log.warning("%s could be read by others: that is changed, but the secret in it may be known", file)
            return opened.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error


def read_secret(file: Path | str, what: str) -> str:
    """The first line of a file that the user has named, ``-``: of standard input. ``what`` it is stands in the errors.

    Raises :class:`~jmp.errors.ConfigError`.
    """
    where = "standard input" if str(file) == "-" else str(file)
    try:
        text = sys.stdin.read() if str(file) == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is not text" if isinstance(error, UnicodeDecodeError) else error.strerror or error
        raise ConfigError(f"the {what} cannot be read from {where}: {why}") from None
    secret = text.strip().partition("\n")[0].strip()
    if not secret:
        raise ConfigError(f"{where} holds no {what}")
    return secret


def sync_directory(directory: Path) -> None:
    """Have its entries, a file that was renamed for example, on the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all; it is on the disk when this returns.

    Its directory is made if it is missing. Raises :class:`~jmp.errors.ConfigError`.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        new.unlink(missing_ok=True)  # of a process of the same number that was killed
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            new.replace(file)
        finally:
            new.unlink(missing_ok=True)
        sync_directory(file.parent)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}") from error
