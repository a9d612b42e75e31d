"""U-Boot: what is particular to a board's. The client does the talking, over the board's console."""

from __future__ import annotations

import math
import re
from dataclasses import field
from typing import Any

from jmp.driver import ConfigError, export
from jmp.driver.interfaces import BootLoader

_PATTERNS = ("prompt", "autoboot", "starting")


class UBoot(BootLoader):
    """U-Boot on a board's console: its prompt, commands with their status, environment, kernels by TFTP.

    Its children are refs to the board's: ``console``, and if there are any, ``power`` and ``tftp``.
    """

    prompt: str = field(default="=> ", metadata={"doc": "regular expression of the prompt, from a line's beginning on"})
    autoboot: str = field(
        default=r"(?i)(?:hit|press)\b.{0,40}\bautoboot|autoboot in \d+",
        metadata={"doc": "regular expression of what it says when it can be interrupted"},
    )
    stop: str = field(default=" ", metadata={"doc": "what interrupts it, a password say"})
    repeat: float = field(
        default=0.0,
        metadata={"doc": "seconds between one `stop` and the next, for a board that leaves no time; 0: none"},
    )
    starting: str = field(
        default=r"Starting kernel|## Transferring control",
        metadata={"doc": "regular expression of the last that it says when it starts a kernel"},
    )
    boot_timeout: float = field(default=60.0, metadata={"doc": "seconds from power-on to the prompt"})
    timeout: float = field(default=30.0, metadata={"doc": "seconds that a command may take"})
    network: str = field(
        default="setenv autoload no; dhcp", metadata={"doc": "command that gets an address, if there is none"}
    )
    tftp_window: int = field(
        default=0, metadata={"doc": "blocks that it has sent at once by TFTP; 0: as its environment says, which is one"}
    )

    def __post_init__(self) -> None:
        for key in _PATTERNS:
            try:
                re.compile(getattr(self, key))
            except re.error as error:
                raise ConfigError(f"{key}: {getattr(self, key)!r} is no regular expression: {error}") from error
        if not self.stop:
            raise ConfigError("stop must not be empty: it is what interrupts U-Boot")
        for key in ("boot_timeout", "timeout"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{key} must be more than 0 seconds, not {getattr(self, key):g}")
        if not 0 <= self.repeat < math.inf:
            raise ConfigError(f"repeat must be 0 or more seconds, not {self.repeat:g}")

        if not 0 <= self.tftp_window <= 65535:
            raise ConfigError(f"tftp_window must be 0 to 65535 blocks, not {self.tftp_window}")

    @export
    async def settings(self) -> dict[str, Any]:
        keys = (*_PATTERNS, "stop", "repeat", "boot_timeout", "timeout", "network", "tftp_window")
        return {key: getattr(self, key) for key in keys}
