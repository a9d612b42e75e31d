"""What a listener remembers of sources whose connections fail."""

from __future__ import annotations

import pytest

from jmp.link.sources import BURST, LONGEST, MOST, RATE, Sources


def test_a_few_failures_cost_nothing() -> None:
    sources = Sources()
    assert [sources.failed("a", 0.0) for _ in range(BURST)] == [False] * BURST
    assert sources.wait("a", 0.0) == 0
    assert sources.failed("a", 0.0), "from this one on others wait, which is said once"
    assert not sources.failed("a", 0.0)
    assert sources.wait("b", 0.0) == 0


def test_those_that_wait_come_one_after_the_other() -> None:
    sources = Sources()
    for _ in range(BURST):
        sources.failed("a", 0.0)
    waits = []
    for _ in range(5):
        sources.failed("a", 0.0)  # the one that waits
        waits.append(sources.wait("a", 0.0))
    assert waits == pytest.approx([(number + 0.5) / RATE for number in range(5)])


def test_failures_are_forgotten() -> None:
    sources = Sources()
    for _ in range(3 * BURST):
        sources.failed("a", 0.0)
    assert sources.wait("a", 0.0) == pytest.approx((2 * BURST - 0.5) / RATE)
    assert sources.wait("a", 2 * BURST / RATE) == 0
    for _ in range(10_000):
        sources.failed("a", 0.0)
    assert sources.wait("a", LONGEST) == 0
    for number in range(100):  # as many as it may have, for ever
        assert not sources.failed("b", number / RATE)


def test_who_is_let_in_makes_up_for_one_who_failed() -> None:
    sources = Sources()
    for _ in range(10 * BURST):
        sources.failed("a", 0.0)
        sources.succeeded("a", 0.0)
    assert sources.wait("a", 0.0) == 0
    assert len(sources) == 0


def test_no_more_than_so_many_are_remembered() -> None:
    sources = Sources()
    for number in range(2 * MOST):
        sources.failed(f"{number}", 0.0)
        for _ in range(BURST // 2):
            sources.failed("again and again", 0.0)
    assert len(sources) == MOST
    assert sources.wait("again and again", 0.0) > 0
