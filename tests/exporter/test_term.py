"""When a lease's time is over at its exporter."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from jmp.exporter.term import Term
from jmp.wire.records import Grant

T = 1000.0
ALONE = Grant(lease="l1", client="ada", duration=60.0, remaining=900.0)
ONE_OF_TWO = replace(ALONE, alone=False)
OVER = "its time was over"


def test_a_device_that_is_not_ready_in_time_is_not_waited_for() -> None:
    assert Term(ALONE, T).due(-inf) == (T + 900, "its exporter did not get ready in time")


def test_the_limit_for_that_is_as_the_controller_says() -> None:
    term = Term(ALONE, T)
    term.renew(replace(ALONE, remaining=100.0), T + 50)
    assert term.due(-inf)[0] == T + 150


def test_a_device_alone_lasts_from_when_it_is_ready_whatever_remains_by_the_controllers_clock() -> None:
    term = Term(ALONE, T)
    term.ready(T + 10)
    assert term.due(-inf) == (T + 70, OVER)
    term.renew(replace(ALONE, remaining=3600.0), T + 20)
    assert term.due(-inf) == (T + 70, OVER)
    term.renew(replace(ALONE, duration=90.0, remaining=0.0), T + 20)
    assert term.due(-inf) == (T + 100, OVER)


def test_one_of_several_lasts_from_when_all_were_ready() -> None:
    term = Term(ONE_OF_TWO, T)
    term.ready(T + 10)
    term.renew(replace(ONE_OF_TWO, running=0.5), T + 40)
    assert term.due(-inf) == (T + 39.5 + 60, OVER)


def test_what_is_told_first_counts_and_an_extension_is_added_to_it() -> None:
    term = Term(ONE_OF_TWO, T)
    term.ready(T + 10)
    term.renew(replace(ONE_OF_TWO, running=0.0), T + 40)
    for running in (0.0, 3600.0, None):
        term.renew(replace(ONE_OF_TWO, running=running), T + 45)
        assert term.due(-inf) == (T + 100, OVER)
    term.renew(replace(ONE_OF_TWO, duration=70.0, running=5.0), T + 45)
    assert term.due(-inf) == (T + 110, OVER)


def test_it_never_began_before_this_device_was_ready() -> None:
    term = Term(ONE_OF_TWO, T)
    term.ready(T + 10)
    term.renew(replace(ONE_OF_TWO, running=3600.0), T + 40)
    assert term.due(-inf) == (T + 70, OVER)


def test_an_exporter_that_has_forgotten_that_it_was_ready_adds_nothing() -> None:
    term = Term(replace(ONE_OF_TWO, remaining=50.0, running=10.0), T)
    term.ready(T + 5)
    assert term.due(-inf) == (T + 50, OVER)


def test_who_is_cut_off_before_all_were_ready_ends_when_any_such_lease_would_be_over() -> None:
    term = Term(ONE_OF_TWO, T)
    term.ready(T + 10)
    assert term.due(-inf) == (T + 900 + 60, OVER)


@pytest.mark.parametrize(("used", "due"), [(-inf, T + 25), (T + 12, T + 25), (T + 30, T + 35)])
def test_nobody_has_to_use_it_before_its_time_runs(used: float, due: float) -> None:
    grant = replace(ONE_OF_TWO, idle_limit=5.0)
    term = Term(grant, T)
    term.ready(T + 10)
    assert term.due(used) == (T + 960, OVER)
    term.renew(replace(grant, running=0.0), T + 20)
    assert term.due(used) == (due, "nobody used it for 5s")


def test_a_limit_beyond_its_end_is_none() -> None:
    term = Term(replace(ALONE, idle_limit=5.0), T)
    term.ready(T)
    assert term.due(T + 58) == (T + 60, OVER)
