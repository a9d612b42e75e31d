from __future__ import annotations

import pytest

from tests.real.linux_image import LinuxImage, linux_image

collect_ignore = ["boot"]  # a user's test file: test_boot.py runs it with the device


@pytest.fixture(scope="session")
def linux() -> LinuxImage:
    """A small Linux for arm64 to boot."""
    return linux_image()
