from __future__ import annotations

import pytest

from tests.real.linux_image import LinuxImage, linux_image


@pytest.fixture(scope="session")
def linux() -> LinuxImage:
    """A small Linux for arm64 to boot."""
    return linux_image()
