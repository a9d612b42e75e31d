"""Names and addresses as configurations have them."""

from __future__ import annotations

from urllib.parse import urlsplit

from jmp.driver import ConfigError


def host_and_port(text: str, key: str) -> tuple[str, int | None]:
    """``HOST`` or ``HOST:PORT``, taken apart. Raises `ConfigError`, which names the key."""
    try:
        parts = urlsplit(f"//{text}")
        if parts.hostname and parts.netloc == text and "@" not in text and parts.port != 0:
            return parts.hostname, parts.port
    except ValueError:  # a port that is no number
        pass
    raise ConfigError(f"{key} must be a name or address, or HOST:PORT")
