"""What a command is given by its name or in a file: an exporter's configuration, a passphrase."""

from __future__ import annotations

from pathlib import Path

from jmp.client.connect import RESERVED
from jmp.driver.plugins import driver_class
from jmp.errors import ConfigError
from jmp.exporter import config as configuration
from jmp.exporter.config import ExporterConfig


def load(exporter: str) -> ExporterConfig:
    """The configuration with this name or in this file, checked."""
    return configuration.load(configuration.name_or_path(exporter), driver_class, reserved=RESERVED)


def read_passphrase(file: Path) -> str:
    """The first line of a file. Raises ``ConfigError``."""
    try:
        text = file.read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the passphrase cannot be read from {file}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not text:
        raise ConfigError(f"{file} holds no passphrase: its first line is empty")
    return text
