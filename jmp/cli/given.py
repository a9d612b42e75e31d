"""What a command is given by its name or in a file: an exporter's configuration."""

from __future__ import annotations

from jmp.client.connect import RESERVED
from jmp.driver.plugins import driver_class
from jmp.exporter import config as configuration
from jmp.exporter.config import ExporterConfig


def load(exporter: str) -> ExporterConfig:
    """The configuration with this name or in this file, checked."""
    return configuration.load(configuration.name_or_path(exporter), driver_class, reserved=RESERVED)
