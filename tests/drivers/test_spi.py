"""The driver of SPI chips, as far as it needs no bus; tests/lab/inside/spi_bus.py has one."""

from __future__ import annotations

from pathlib import Path

import pytest

from jmp.driver import ConfigError
from jmp_drivers.spi import Spi
from tests.fakes.bundled import problems_in


def test_configurations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="speed must be 1 Hz or more, not 0"):
        Spi(device=Path("/dev/spidev0.0"), speed=0)


def test_examples_in_the_documentation_are_valid() -> None:
    assert problems_in("docs/drivers/spi.md") == []
