from __future__ import annotations

import pytest

from tests.real.linux_image import LinuxImage, linux_image

collect_ignore = ["boot", "story"]  # users' test files: test_boot.py and test_story.py run them with the device


@pytest.fixture(scope="session")
def linux() -> LinuxImage:
    """A small Linux for arm64 to boot."""
    return linux_image()
