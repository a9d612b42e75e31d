"""Selectors, as Kubernetes reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import BadValue
from jmp.wire.selector import Requirement, Selector, check_labels, parse

LABELS = {"board": "rpi4", "rack": "a", "example.com/rev": "1.2", "empty": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "board",
        "board=rpi4",
        "board==rpi4",
        " board = rpi4 ",
        "board!=rpi5",
        "other!=x",
        "!other",
        "! other",
        "rack in (a, b)",
        "rack in(a)",
        "rack notin (b,c)",
        "other notin (b)",
        "example.com/rev=1.2",
        "empty=",
        "empty=,board",
        "in!=x",
        "board=rpi4,rack in (a,b),!broken",
    ],
)
def test_what_matches(text: str) -> None:
    assert parse(text).matches(LABELS)
    assert parse(text).mismatch(LABELS) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("board=rpi5", "not board=rpi5: it has board=rpi4"),
        ("board!=rpi4", "not board!=rpi4: it has board=rpi4"),
        ("other", "not other: it has no label other"),
        ("other=x", "not other=x: it has no label other"),
        ("!board", "not !board: it has board=rpi4"),
        ("rack in (b,c)", "not rack in (b,c): it has rack=a"),
        ("rack notin (a,c)", "not rack notin (a,c): it has rack=a"),
        ("board,rack=b,other", "not rack=b: it has rack=a"),
    ],
)
def test_what_does_not_match_and_why(text: str, why: str) -> None:
    assert not parse(text).matches(LABELS)
    assert parse(text).mismatch(LABELS) == why


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("board rpi4", "character 7: expected =, !=, in or notin after 'board'"),
        ("=rpi4", "character 1: expected a label's name, not '='"),
        ("board=rpi4,", "character 12: expected a label's name"),
        ("board=rpi4 rack", "character 12: expected ','"),
        ("board in", "character 9: expected '('"),
        ("board in ()", "character 11: expected a label's value, not ')'"),
        ("board in (a", "character 12: expected ')'"),
        ("board=a&b", "character 8: expected ','"),
        ("board=-a", "character 7: expected a label's value, not '-a'"),
        ("!", "character 2: expected a label's name"),
        ("board>3", "character 6: expected =, !=, in or notin after 'board'"),
        ("bo\nard", "character 4: expected =, !=, in or notin after 'bo'"),
        (f"{'a' * 64}=b", f"character 1: expected a label's name, not '{'a' * 64}'"),
    ],
)
def test_what_is_no_selector_says_where(text: str, what: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(text)
    assert caught.value.message == f"selector {text!r}, {what}"


NAMES = st.from_regex(r"[a-z]([a-z0-9.-]{0,5}[a-z0-9])?", fullmatch=True)
REQUIREMENTS = st.one_of(
    st.builds(Requirement, NAMES, st.sampled_from(("exists", "missing"))),
    st.builds(Requirement, NAMES, st.sampled_from(("in", "notin")), st.lists(NAMES, min_size=1, max_size=3).map(tuple)),
)


@given(st.lists(REQUIREMENTS, max_size=4).map(tuple).map(Selector))
def test_what_is_shown_reads_as_the_same(selector: Selector) -> None:
    assert parse(str(selector)) == selector


@given(st.text(alphabet="ab=!(), in\n/", max_size=20))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        parse(text).matches(LABELS)
    except BadValue as error:
        assert "\n" not in error.message  # noqa: PT017


@pytest.mark.parametrize("labels", [{}, LABELS, {"a": ""}, {"a.b/c_d": "X-1"}])
def test_labels(labels: object) -> None:
    check_labels(labels)


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        ([], "labels are a mapping"),
        ({"": "x"}, "'' is no name for a label"),
        ({"-a": "x"}, "'-a' is no name for a label"),
        ({"a" * 64: "x"}, "no name for a label"),
        ({"A.B/c": "x"}, "no name for a label"),
        ({1: "x"}, "1 is no name for a label"),
        ({"a": 1}, "1 is no value for label a"),
        ({"a": "x y"}, "'x y' is no value for label a"),
        ({"a": "x\n"}, "no value for label a"),
    ],
)
def test_what_are_no_labels(labels: object, what: str) -> None:
    with pytest.raises(BadValue, match=what):
        check_labels(labels)
