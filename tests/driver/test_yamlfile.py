from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp.driver import yamlfile


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("52:54:00:12:34:56", "52:54:00:12:34:56"),
        ("0644", "0644"),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", 1000),
        ("-3", -3),
        ("1e3", 1000.0),
        ("1.50", 1.5),
        (".inf", float("inf")),
        ("1.2.3", "1.2.3"),
        ("2026-01-01", "2026-01-01"),
        ("~", None),
        ("", None),
        ("<<", "<<"),
        ("!!binary aGk=", b"hi"),
        ("{on: 1}", {"on": 1}),
        ("[a, {b: c}]", ["a", {"b": "c"}]),
    ],
)
def test_scalars_mean_what_people_mean(text: str, value: Any) -> None:
    document = yamlfile.read(text)
    assert document.problems == []
    assert (document.data, type(document.data)) == (value, type(value))


def test_every_place_has_its_line() -> None:
    document = yamlfile.read("a:\n  b: 1\n  c:\n    - x\n    - y: z\n'd e': 2\n")
    assert document.lines == {"": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c[0]": 4, "a.c[1]": 5, "a.c[1].y": 5, "['d e']": 6}
    assert document.line("a.c[1].missing.deeper") == 5
    assert document.line("nowhere") == 1


def test_merge_keys() -> None:
    document = yamlfile.read("x: &x {a: 1, b: 2}\ny: &y {c: 3}\nz: {<<: [*x, *y], b: 9}\n")
    assert document.problems == []
    assert document.data["z"] == {"a": 1, "b": 9, "c": 3}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "a: this key is already given in line 1"),
        ("a: [b", "not YAML: line 1, column 6: while parsing a flow sequence: expected ',' or ']', "
         "but got '<stream end>'"),
        ("a: 1\n---\nb: 2", "not YAML: line 2, column 1: expected a single document in the stream: "
         "but found another document"),
        ("a: &a [*a]", "not YAML: line 1, column 4: an alias stands for what is around it"),
        ("a\n\x01", "not YAML: line 2 has a character that must not be in a text file"),
        ("a: !!python/object:os.system {}", "a: unknown tag tag:yaml.org,2002:python/object:os.system"),
        ("a: !x y", "a: unknown tag !x"),
        ("a: !!int x", "a: not a value of type int"),
        ('a: "\\U00110000"', "not YAML: chr() arg not in range(0x110000)"),
        ("? [a]\n: b", "a key must be a plain value"),
        ("<<: 5", "<< needs a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, problem: str) -> None:
    assert [str(problem) for problem in yamlfile.read(text).problems] == [problem]


def test_sizes_are_bounded() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    assert "too large" in str(yamlfile.read(laughs).problems)
    assert "too deeply" in str(yamlfile.read("[" * 100 + "]" * 100).problems)
    assert "too deeply" in str(yamlfile.read("[" * 1000).problems)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab:-[]{},&*!<?|>'\"%#@\n \t~.019eéx\\U\x00"), max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    document = yamlfile.read(text)
    for problem in document.problems:
        assert "\n" not in problem.message
