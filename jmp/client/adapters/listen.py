"""Where a forwarded port listens on this machine."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from jmp.errors import LabError, UsageError


@dataclass(frozen=True)
class Bound:
    """Where a port listens; as text, ``HOST:PORT`` or ``unix:PATH``."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse(text: str) -> Bound:
    """Read ``PORT`` (on 127.0.0.1), ``HOST:PORT``, ``[HOST]:PORT`` or ``unix:PATH``; port 0 is one that is free.

    Raises :class:`~jmp.errors.UsageError`.
    """
    scheme, _, path = text.partition(":")
    if scheme == "unix" and path and "\0" not in path:
        return Bound(path=path)
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon:
        host = "127.0.0.1"
    if host and port.isascii() and port.isdigit() and int(port) < 65536:
        return Bound(host, int(port))
    raise UsageError(f"cannot listen at {text!r}: write PORT, HOST:PORT, [HOST]:PORT or unix:PATH")


@contextmanager
def listening(text: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, Bound]]:
    """A listening socket (a bound one, for datagrams) for the time of the block; blocks to look up a host's name.

    Only this user can connect to a Unix socket. Its file is gone after the block, and one that a program left that is no
    more is replaced. Raises :class:`~jmp.errors.UsageError`, or ``LabError`` if somebody else listens there.
    """
    wanted = parse(text)
    try:
        sock = _bind(wanted, kind)
    except UnicodeError:
        raise UsageError(f"cannot listen at {text}: this is no host's name") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = (
                "there is such a file"
                if wanted.path
                else "the port is in use; choose another, or 0 for one that is free"
            )
            raise LabError(f"cannot listen at {text}: {_in_use(wanted) or what}") from error
        raise UsageError(f"cannot listen at {text}: {error.strerror or error}") from error
    with sock:
        if not wanted.path:
            host, port = sock.getsockname()[:2]
            yield sock, Bound(host, port)
            return
        mine = os.stat(wanted.path)
        try:
            yield sock, wanted
        finally:
            with suppress(OSError):
                if os.path.samestat(mine, os.stat(wanted.path)):
                    os.unlink(wanted.path)


def _bind(wanted: Bound, kind: socket.SocketKind) -> socket.socket:
    if wanted.path:
        if kind is not socket.SOCK_STREAM:
            raise UsageError(f"cannot listen at {wanted}: datagrams are forwarded to HOST:PORT only")
        family, address = socket.AF_UNIX, wanted.path
        if _is_left_behind(wanted.path):
            os.unlink(wanted.path)
    else:
        found = socket.getaddrinfo(wanted.host, wanted.port, type=kind, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]  # type: ignore[assignment]
    sock = socket.socket(family, kind)
    try:
        if kind is socket.SOCK_STREAM and not wanted.path:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last one may linger
        sock.bind(address)
        if wanted.path:
            os.chmod(wanted.path, 0o600)  # nobody can connect before it listens
        if kind is socket.SOCK_STREAM:
            sock.listen(128)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _in_use(wanted: Bound) -> str:
    """Who has a Unix socket's path."""
    with suppress(OSError):
        if wanted.path and stat.S_ISSOCK(os.stat(wanted.path).st_mode):
            return "another program listens there; choose another path"
    return ""


def _is_left_behind(path: str) -> bool:
    """Whether there is a socket's file but no program behind it."""
    with suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.setblocking(False)
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    return True
    return False
