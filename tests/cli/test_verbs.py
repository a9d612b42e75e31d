"""Words of a command line → a call → its output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from jmp.cli import output
from jmp.cli.verbs import execute
from jmp.driver import Driver, export, serve
from jmp.errors import BadValue, NotFound, UsageError


class Speed(Enum):
    SLOW = "slow"
    FAST = "fast"


class Bench(Driver):
    """Tells what it got."""

    @export
    def typed(self, count: int, ratio: float = 0.5, *, speed: Speed = Speed.SLOW, loud: bool = False) -> list[Any]:
        """Take values of several types.

        More about it.
        """
        return [count, ratio, speed.value, loud]

    @export
    def text(self, text: str, note: str | None = None) -> str:
        return f"{text}/{note}"

    @export
    def many(self, first: str, *rest: int, **named: str) -> dict[str, Any]:
        return {"first": first, "rest": list(rest), "named": named}

    @export
    def quiet(self, sound: bool = True, to: str = "") -> bool:
        return sound

    @export
    def lots(self, items: list[int]) -> int:
        return sum(items)

    @export
    def ask(self, headers: dict[str, str] | None = None, hosts: list[str] | None = None) -> dict[str, str]:
        return (headers or {}) | dict.fromkeys(hosts or [], "host")

    @export
    def raw(self) -> bytes:
        return b"\x00\xff"

    @export
    def nothing(self) -> None: ...

    @export
    def numbers(self, last: int = 3) -> Iterator[int]:
        yield from range(1, last + 1)

    @export
    def run(self) -> Iterator[dict[str, Any]]:
        yield {"stdout": b"out\n"}
        yield {"stderr": b"err\n"}
        yield {"exit_code": 3}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    with serve(Bench()) as client:
        yield client._wrapped


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ("text a", "a/None\n"),
        ("text a b", "a/b\n"),
        ("text a --note b", "a/b\n"),
        ("text --note=b a", "a/b\n"),
        ("text --note b --text a", "a/b\n"),
        ("text -- --a", "--a/None\n"),
        ("text --note= a", "a/\n"),
        ("text -", "-/None\n"),
        ("quiet", "true\n"),
        ("quiet --no-sound", "false\n"),
        ("quiet --sound=no", "false\n"),
        ("lots 1,2,3", "6\n"),
        ("lots [4,5]", "9\n"),
        ("lots --items 1 --items 2", "3\n"),
        ("nothing", ""),
        ("ask --headers A=x --headers B==2 --hosts a,b --hosts c", "A: x\nB: =2\na,b: host\nc: host\n"),
        ("numbers", "1\n2\n3\n"),
        ("numbers 1", "1\n"),
    ],
)
def test_arguments_and_output(bench: Any, line: str, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(bench, line.split(" ")) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("typed 7", [7, 0.5, "slow", False]),
        ("typed 0x10 2", [16, 2.0, "slow", False]),
        ("typed -3 --speed fast --loud", [-3, 0.5, "fast", True]),
        ("typed --count 1 --ratio 1e3 --no-loud", [1, 1000.0, "slow", False]),
        ("many a", {"first": "a", "rest": [], "named": {}}),
        ("many a 1 2 --some-key v", {"first": "a", "rest": [1, 2], "named": {"some_key": "v"}}),
    ],
)
def test_types(bench: Any, line: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(bench, [*line.split(), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == value


def test_forms_of_output(bench: Any, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    execute(bench, ["raw"])
    assert capsysbinary.readouterr().out == b"\x00\xff"
    execute(bench, ["raw", "-o", "json"])
    assert capsysbinary.readouterr().out == b'"AP8="\n'
    execute(bench, ["many", "a", "1", "--output", "yaml"])
    assert capsysbinary.readouterr().out == b"first: a\nrest:\n- 1\nnamed: {}\n"


def test_the_items_of_a_command_go_where_they_were_meant_to(bench: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert execute(bench, ["run"]) == 3
    assert tuple(capfd.readouterr()) == ("out\n", "err\n")


@pytest.mark.parametrize(
    ("line", "error", "said"),
    [
        ("txt a", NotFound, "did you mean 'text'"),
        ("text", UsageError, "text needs TEXT: text TEXT [--note TEXT]"),
        ("text a b c", UsageError, "takes no further argument 'c'"),
        ("text a --not b", UsageError, "has no option --not (did you mean 'note'?)"),
        ("text a --note", UsageError, "--note needs a value"),
        ("typed x", BadValue, "typed: count: expected int, got 'x'"),
        ("typed 1 --speed fas", BadValue, "did you mean 'fast'"),
        ("typed 1 0.5 fast", UsageError, "takes no further argument 'fast'"),
        ("many a b", BadValue, "rest: expected int"),
        ("text a -o xml", UsageError, "-o takes one of"),
        ("a.b", NotFound, "there is no driver 'a.b'"),
    ],
)
def test_what_is_wrong_is_said(bench: Any, line: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        execute(bench, line.split())
    assert said in str(caught.value)


@pytest.mark.parametrize("line", ["", "--help", "-h"])
def test_help(bench: Any, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(bench, line.split()) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Tells what it got.\n\nVerbs:\n")
    assert "typed COUNT [--ratio NUMBER] [--speed slow|fast] [--loud]  Take values of several types.\n" in printed
    assert printed.endswith("\nj VERB --help says more.\n")


def test_help_on_a_terminal_is_wrapped_where_words_end(
    bench: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "columns", lambda: 60)
    assert execute(bench, ["--help"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) < 60
    assert (
        "  typed COUNT [--ratio NUMBER] [--speed slow|fast] [--loud]\n                        Take values of several types.\n"
    ) in printed
    assert execute(bench, ["typed", "--help"]) == 0
    assert capsys.readouterr().out.startswith(
        "Usage: j typed COUNT [--ratio NUMBER] [--speed slow|fast]\n      [--loud]\n\n"
        "Take values of several types.\n\nMore about it.\n"
    )


def test_help_of_a_verb(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(bench, ["typed", "1", "--help"]) == 0
    assert capsys.readouterr().out == (
        "Usage: j typed COUNT [--ratio NUMBER] [--speed slow|fast] [--loud]\n\n"
        "Take values of several types.\n\nMore about it.\n\nArguments:\n"
        "  COUNT    int\n  --ratio  float; default: 0.5\n  --speed  slow|fast; default: slow\n  --loud\n"
    )
    assert execute(bench, ["ask", "--help"]) == 0
    assert capsys.readouterr().out == (
        "Usage: j ask [--headers NAME=VALUE] [--hosts TEXT,...]\n\n\n\nArguments:\n"
        "  --headers  NAME=VALUE; several: again\n  --hosts    str; several: again, or with commas\n"
    )
    assert execute(bench, ["quiet", "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Usage: j quiet [--no-sound] [--to TEXT]\n")
    assert "  --no-sound  sound is on without this\n  --to        str\n" in printed
