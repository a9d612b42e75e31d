"""A test that hangs has failed. In CI one that was skipped has, too: there, everything that the tests need is installed."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from trio.testing import MockClock

from tests.fakes import hangs, ports
from tests.fakes.clocks import leaping

if TYPE_CHECKING:
    from tests.fakes.kube import Cluster

# Hypothesis tries the same examples every time, and does not mind a slow machine.
settings.register_profile(
    "jmp", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("jmp")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def _without_skip(report: Report) -> Report:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid}: skipped, which CI takes for a failure. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _without_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _without_skip((yield))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(hangs)
    # Programs inherit that a signal is ignored, as whoever runs the tests in the background or by nohup does; no handler of ours.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    try:
        return (yield)
    finally:
        ports.release()


LONG = ("bench", "e2e", "kube", "lab", "real", "sim")
"""Folders of tests that take seconds each: of clusters, machines and whole labs."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each worker of pytest-xdist begins with its share of what takes long: none is alone with that at the end."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    if workers == 1:
        return
    groups: dict[object, list[pytest.Item]] = {"cluster": []}  # first, while nobody takes its tests, and starts another
    short = []
    for item in items:
        if item.path.parent.name not in LONG:
            short.append(item)
        elif "cluster" in getattr(item, "fixturenames", ()):
            groups["cluster"].append(item)
        else:
            groups.setdefault(item if item.path.parent.name == "sim" else item.path, []).append(item)
    long = list(groups.values())
    # The scheduler gives each worker as many in a row; later they take from one another what has not begun.
    each = len(items) // workers
    items.clear()
    for worker in range(workers):
        items += (item for group in long[worker::workers] for item in group)
        count = max((worker + 1) * each - len(items), 0) if worker + 1 < workers else len(short)
        items += short[:count]
        del short[:count]


@pytest.fixture
def autojump_clock() -> MockClock:
    """In place of pytest-trio's."""
    return leaping()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Kubernetes API server; each test has a namespace of its own."""
    from tests.fakes import kube

    with kube.cluster(tmp_path_factory.mktemp("kube")) as made:
        yield made
