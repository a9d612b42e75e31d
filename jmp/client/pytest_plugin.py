"""pytest: the connected device as a fixture. Loaded by every pytest run of its users, so it imports next to nothing.

Inside ``jmp shell`` the session is found by itself. Elsewhere ``--jmp-exporter`` (or the ini key ``jmp_exporter``) starts an
exporter for the run, each pytest-xdist worker its own, and ``--jmp-url`` connects to one that listens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("jmp", "device under test")
    group.addoption("--jmp-url", metavar="URL", help="Use the device of the exporter that listens there.")
    group.addoption("--jmp-exporter", metavar="NAME|FILE", help="Start this exporter for the run and use its device.")
    parser.addini("jmp_url", "As --jmp-url.", default="")
    parser.addini("jmp_exporter", "As --jmp-exporter.", default="")


@pytest.fixture(scope="session")
def dut_session(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The connected device, blocking; one connection for the whole run."""
    import jmp
    from jmp.errors import JmpError

    config = request.config
    url = config.getoption("--jmp-url") or config.getini("jmp_url") or None
    exporter = config.getoption("--jmp-exporter") or config.getini("jmp_exporter") or None
    try:
        connecting = jmp.connect(None if exporter else url, exporter=exporter)
        device = connecting.__enter__()
    except JmpError as error:
        pytest.fail(f"jmp: {error.message}; or give --jmp-exporter or --jmp-url", pytrace=False)
    try:
        yield device
    finally:
        connecting.__exit__(None, None, None)


@pytest.fixture
def dut(dut_session: Any) -> Any:
    """The connected device, blocking: its drivers are attributes (``dut.power.on()``)."""
    return dut_session
