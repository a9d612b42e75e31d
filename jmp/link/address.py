"""Where a link leads: ``unix:/path``, ``ws://host:port/path`` or ``wss://host:port/path``. Light imports only."""

from __future__ import annotations

from typing import NamedTuple

from jmp.errors import UsageError

_DEFAULT_PORTS = {"ws": 80, "wss": 443}


class Address(NamedTuple):
    """A URL, taken apart. ``path`` is the socket's path for ``unix``, and else the target of the HTTP request."""

    scheme: str
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        """As it is named in logs and errors."""
        return f"unix:{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        if self.scheme == "unix":
            return "localhost"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Address:
    """Take a URL apart. Raises :class:`~jmp.errors.UsageError`."""
    scheme, colon, rest = url.partition(":")
    if colon and scheme == "unix" and rest and "\0" not in rest:
        return Address("unix", "", 0, "/" + rest.lstrip("/") if rest.startswith("/") else rest)
    if scheme not in _DEFAULT_PORTS or not rest.startswith("//"):
        raise UsageError(f"{url!r} is not an address: use unix:/path, ws://host:port or wss://host:port")
    authority, slash, path = rest[2:].partition("/")
    if "@" in authority:
        raise UsageError("an address cannot hold a user name or password; give the passphrase or token on its own")
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        well_formed = bool(bracket) and "[" not in host and (not port or port.startswith(":"))
        port = port[1:]
    else:
        host, colon, port = authority.partition(":")
        well_formed = not colon or bool(port)
    host = _name(host)
    number = int(port) if port.isascii() and port.isdigit() else 0 if port else _DEFAULT_PORTS[scheme]
    if not well_formed or not host or not 0 < number < 65536 or "#" in path:
        raise UsageError(f"{url!r} is not an address: use {scheme}://host:port")
    return Address(scheme, host, number, slash + path or "/")


def _name(host: str) -> str:
    """The host as DNS, certificates and headers have it; ``""`` if it cannot be one."""
    try:
        name = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        return ""
    fits = all(0 < len(label) < 64 for label in name.removesuffix(".").split("."))
    return name if fits and name.isprintable() and " " not in name else ""
