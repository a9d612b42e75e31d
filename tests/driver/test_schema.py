from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum, IntFlag
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NewType, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp.driver.schema import (
    Parameter,
    Schema,
    bind,
    check,
    config_schema,
    describe,
    did_you_mean,
    duration,
    join,
    load,
    parameters_of,
    parse,
    plain,
    result_of,
    schema_of,
    understood,
)
from jmp.errors import BadValue, ConfigError, ProtocolViolation

if TYPE_CHECKING:
    from somewhere import Elsewhere  # type: ignore[import-not-found]  # a driver may do this too


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


class Opaque(Enum):
    LEFT = (0, 1)
    RIGHT = (1, 0)


class Bits(IntFlag):
    A = 1
    B = 2


@dataclass(kw_only=True)
class Port:
    number: int
    host: str = "localhost"


@dataclass(kw_only=True)
class Chain:
    next: Chain | None = None


Baud = NewType("Baud", int)

STR: Schema = {"type": "string"}
INT: Schema = {"type": "integer"}

HINTS: list[tuple[object, Schema, str]] = [
    (str, STR, "str"),
    (int, INT, "int"),
    (float, {"type": "number"}, "float"),
    (bool, {"type": "boolean"}, "bool"),
    (bytes, {"type": "string", "format": "binary"}, "bytes"),
    (None, {"type": "null"}, "None"),
    (Path, {"type": "string", "format": "path"}, "path"),
    (datetime, {"type": "string", "format": "date-time"}, "time"),
    (timedelta, {"type": "string", "format": "duration"}, "duration"),
    (Any, {}, "any"),
    (object, {}, "any"),
    (Callable[[], None], {}, "any"),
    ("not a hint", {}, "any"),
    (Literal["on", "off"], {"enum": ["on", "off"]}, "on|off"),
    (Mode, {"enum": ["fast", "slow"]}, "fast|slow"),
    (Opaque, {"enum": ["LEFT", "RIGHT"]}, "LEFT|RIGHT"),
    (Bits, {"enum": ["A", "B"]}, "A|B"),
    (list, {"type": "array"}, "list"),
    (list[str], {"type": "array", "items": STR}, "list of str"),
    (set[int], {"type": "array", "items": INT}, "list of int"),
    (tuple[str, ...], {"type": "array", "items": STR}, "list of str"),
    (tuple[int, str], {"type": "array", "prefixItems": [INT, STR]}, "(int, str)"),
    (dict[str, int], {"type": "object", "additionalProperties": INT}, "dict of int"),
    (Mapping[str, Any], {"type": "object"}, "dict"),
    (dict[int, str], {"type": "object", "propertyNames": INT, "additionalProperties": STR}, "dict of str"),
    (dict, {"type": "object", "propertyNames": {}}, "dict"),
    (int | None, {"anyOf": [INT, {"type": "null"}]}, "int or None"),
    (Optional[int], {"anyOf": [INT, {"type": "null"}]}, "int or None"),  # noqa: UP045
    (int | Any, {}, "any"),
    (Annotated[int, "seconds"], INT, "int"),
    (Baud, INT, "int"),
    (
        Port,
        {
            "type": "object",
            "properties": {"number": INT, "host": {**STR, "default": "localhost"}},
            "required": ["number"],
            "additionalProperties": False,
        },
        "dict",
    ),
    (
        Chain,
        {"type": "object", "properties": {"next": {}}, "required": [], "additionalProperties": False},
        "dict",
    ),
]


@pytest.mark.parametrize(("hint", "schema", "name"), HINTS)
def test_hint_to_schema(hint: object, schema: Schema, name: str) -> None:
    assert schema_of(hint) == schema
    assert describe(schema) == name
    assert understood(schema) == schema


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (str, ["", "x"], [1, b"x", None]),
        (int, [0, -1, 2**200], [True, 1.0, "1", None]),
        (float, [1, 1.5, math.nan], [True, "1", None]),
        (bool, [True], [1, "true"]),
        (bytes, [b"x", bytearray(b"x")], ["x"]),
        (Path, ["/a", Path("/a")], [1, b"/a"]),
        (timedelta, [timedelta(1)], [1, "1s"]),
        (datetime, [datetime(2026, 1, 1, tzinfo=UTC)], ["2026-01-01"]),
        (Mode, ["fast"], ["FAST", 1, None, {}]),
        (Literal[1, "1"], [1, "1"], [True, 1.0]),
        (list[int], [[], [1], (1,)], [[1, "a"], "ab", {}]),
        (tuple[int, str], [[1, "a"]], [[1], ["a", 1], [1, "a", 2]]),
        (dict[str, int], [{}, {"a": 1}], [{"a": "x"}, {1: 1}, []]),
        (dict[int, int], [{1: 1}], [{"a": 1}]),
        (dict[str, Any], [{}, {"a": None, "b": {1: 2}}], [{1: 1}, {"a": 1, 2: 1}, []]),
        (int | None, [None, 1], ["1"]),
        (Port, [{"number": 1}], [{}, {"number": "1"}, {"number": 1, "hst": "x"}, 1]),
        (Any, [None, 1, "x", [], object()], []),
    ],
)
def test_check_is_strict(hint: object, good: list[Any], bad: list[Any]) -> None:
    schema = schema_of(hint)
    assert [value for value in good if check(schema, value)] == []
    assert [value for value in bad if not check(schema, value)] == []


@pytest.mark.parametrize(
    ("hint", "value", "problems"),
    [
        (int, "abc", ["x: expected int, got 'abc' (str)"]),
        (int, None, ["x: expected int, got None"]),
        (int, {}, ["x: expected int, got a dict"]),
        (int, "a" * 1000, [f"x: expected int, got '{'a' * 59}… (str)"]),
        (Mode, "fats", ["x: expected fast|slow, got 'fats' (str) (did you mean 'fast'?)"]),
        (list[list[int]], [[1], [1, "a"]], ["x[1][1]: expected int, got 'a' (str)"]),
        (dict[str, int], {"a b": "c"}, ["x['a b']: expected int, got 'c' (str)"]),
        (
            Port,
            {"numbr": 1},
            ["x.numbr: unknown key 'numbr' (did you mean 'number'?)", "x: missing key 'number' (int)"],
        ),
        (list[int] | None, [1, "a"], ["x[1]: expected int, got 'a' (str)"]),
        (list[int] | None, "a", ["x: expected list of int or None, got 'a' (str)"]),
        (int | list[str], 1.5, ["x: expected int or list of str, got 1.5 (float)"]),
    ],
)
def test_problems_say_where_and_what(hint: object, value: Any, problems: list[str]) -> None:
    assert [str(problem) for problem in check(schema_of(hint), value, "x")] == problems


def test_a_number_too_long_to_print_can_be_refused() -> None:
    assert [str(problem) for problem in check(STR, 10**5000)] == ["expected str, got a huge number (int)"]


def test_names_of_places() -> None:
    assert join("", "a") == "a"
    assert join("a.b", "c-d") == "a.b.c-d"
    assert join("a", 3) == "a[3]"
    assert join("a", "x.y") == "a['x.y']"


def test_did_you_mean() -> None:
    assert did_you_mean("prot", ["port", "host"]) == " (did you mean 'port'?)"
    assert did_you_mean("zzz", ["port", "host"]) == " (known: host, port)"
    assert did_you_mean(5, ["port"]) == " (known: port)"
    assert did_you_mean("x", []) == ""
    assert did_you_mean("zzz", [f"name{i}" for i in range(99)]).endswith(", …)")


# ---- text


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (str, "1", "1"),
        (int, "12", 12),
        (int, "-0x1F", -31),
        (int, "010", 10),
        (float, "1e3", 1000.0),
        (bool, "ON", True),
        (bool, "no", False),
        (bytes, "é", "é".encode()),
        (Path, "a/b", "a/b"),
        (timedelta, "1h30m", timedelta(minutes=90)),
        (datetime, "2026-01-02T03:04:05+00:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        (Mode, "slow", "slow"),
        (Literal[1, True, None], "true", True),
        (list[int], "1,2", [1, 2]),
        (list[int], "", []),
        (list[int], ["1", "2"], [1, 2]),
        (list[int], ["1,2"], [1, 2]),
        (list[str], ["a,b", "c"], ["a,b", "c"]),
        (list[str], [], []),
        (list[timedelta], "[1s, 2 m]", [timedelta(seconds=1), timedelta(minutes=2)]),
        (tuple[int, str], "1,x", [1, "x"]),
        (dict[str, timedelta], '{"a": "5s"}', {"a": timedelta(seconds=5)}),
        (dict[str, timedelta], "a=5s", {"a": timedelta(seconds=5)}),
        (dict[str, str], ["Accept: a, b", "X==1:2"], {"Accept": "a, b", "X": "=1:2"}),
        (dict[str, str] | None, ["a=1", "b="], {"a": "1", "b": ""}),
        (dict[int, str], "0x10=x", {16: "x"}),
        (Port, ["number=5", "host=on"], {"number": 5, "host": "on"}),
        (list[str] | None, ["a,b", "c"], ["a,b", "c"]),
        (Port, "{number: 5, host: on}", {"number": 5, "host": "on"}),
        (int | None, "none", None),
        (dict[str, str] | None, "a=b", {"a": "b"}),
        (int | None, "5", 5),
        (str | None, "none", "none"),
        (str | int, "5", 5),
        (str | int, "x", "x"),
        (Any, "5", 5),
        (Any, "text: with colon", "text: with colon"),
        (Any, "{broken", "{broken"),
        (Any, "[1, a]", [1, "a"]),
    ],
)
def test_parse(hint: object, text: str | list[str], value: Any) -> None:
    parsed = parse(schema_of(hint), text)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("hint", "text", "message"),
    [
        (int, "1.5", "expected int, got '1.5' (str)"),
        (int, ["1", "2"], "expected one value (int), got 2"),
        (bool, "maybe", "expected on or off, got 'maybe'"),
        (float, "", "expected float, got '' (str)"),
        (timedelta, "soon", "expected a duration such as 1.5s, 2m or 1h30m, got 'soon'"),
        (timedelta, "9" * 400, f"expected a duration such as 1.5s, 2m or 1h30m, got '{'9' * 59}…"),
        (datetime, "tomorrow", "expected time, got 'tomorrow' (str)"),
        (Mode, "slwo", "expected fast|slow, got 'slwo' (str) (did you mean 'slow'?)"),
        (int | None, "x", "expected int or None, got 'x' (str)"),
        (None, "x", "expected None, got 'x' (str)"),
        (tuple[int, str], "1", "expected (int, str), got 1 values"),
        (dict[str, int], "{a: b}", "a: expected int, got 'b' (str)"),
        (dict[str, int], "a=b", "a: expected int, got 'b' (str)"),
        (dict[str, str], "hush", "expected NAME=VALUE"),
        (dict[str, str] | None, "hush", "expected NAME=VALUE"),
        (dict[str, str], ["a=1", "=2"], "expected NAME=VALUE"),
        (Port, "host=x", "missing key 'number' (int)"),
        (list[int], "[1, x]", "[1]: expected int, got 'x' (str)"),
    ],
)
def test_parse_refuses(hint: object, text: str | list[str], message: str) -> None:
    with pytest.raises(BadValue) as caught:
        parse(schema_of(hint), text)
    assert caught.value.message == message


@settings(deadline=None)
@given(st.sampled_from([hint for hint, _, _ in HINTS]), st.text())
def test_parse_gives_what_fits_or_a_bad_value(hint: object, text: str) -> None:
    schema = schema_of(hint)
    with contextlib.suppress(BadValue):
        assert check(schema, parse(schema, text)) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("1.5s", 1.5), ("500ms", 0.5), ("2m", 120), ("1h 30m", 5400), ("2d", 172800), ("90", 90)]
)
def test_duration(text: str, seconds: float) -> None:
    assert duration(text).total_seconds() == seconds


# ---- parameters


class Methods:
    def list(self) -> list[str]:  # hides the builtin within the class, which annotations must not notice
        return []

    def all_kinds(
        self,
        first: int,
        /,
        mode: Mode = Mode.FAST,
        *rest: Path,
        wait: Annotated[float, "seconds to wait"] = 1.0,
        **more: list[str],  # type: ignore[valid-type]
    ) -> None: ...

    async def connect(self, stream: object, host: str = "") -> None: ...

    def unknowable(self, x: Elsewhere, y: int) -> Elsewhere: ...

    def unwritable(self, x: object = Path, y: int = "z") -> None: ...  # type: ignore[assignment]

    def plain_items(self) -> Iterator[int]:
        yield 1

    async def items(self) -> AsyncIterator[dict[str, bytes]]:
        yield {}

    async def port(self) -> Port:
        return Port(number=1)


def test_parameters_of() -> None:
    assert parameters_of(Methods.all_kinds, owner=Methods) == [
        Parameter("first", INT, "positional-only"),
        Parameter("mode", {"enum": ["fast", "slow"]}, required=False, default="fast"),
        Parameter("rest", {"type": "string", "format": "path"}, "var-positional", required=False),
        Parameter("wait", {"type": "number"}, "keyword-only", False, 1.0, "seconds to wait"),
        Parameter("more", {"type": "array", "items": STR}, "var-keyword", required=False),
    ]
    assert [parameter.name for parameter in parameters_of(Methods.connect, stream=True)] == ["host"]
    assert [parameter.name for parameter in parameters_of(Methods().connect, stream=True)] == ["host"]
    assert [parameter.schema for parameter in parameters_of(Methods.unknowable)] == [{}, INT]
    assert [parameter.default for parameter in parameters_of(Methods.unwritable)] == [None, None]


def test_result_of() -> None:
    assert result_of(Methods.list) == {"type": "array", "items": STR}
    assert result_of(Methods.plain_items) == INT
    assert result_of(Methods.items) == schema_of(dict[str, bytes])
    assert result_of(Methods.port) == schema_of(Port)
    assert result_of(Methods.unknowable) == {}


def test_parameters_travel() -> None:
    for parameter in parameters_of(Methods.all_kinds, owner=Methods):
        assert Parameter.from_wire(json.loads(json.dumps(parameter.to_wire()))) == parameter


@pytest.mark.parametrize("data", [None, {}, {"name": 1}, {"name": "x", "kind": "newer"}, {"name": "x", "kind": []}])
def test_what_is_no_parameter_is_a_violation(data: object) -> None:
    with pytest.raises(ProtocolViolation):
        Parameter.from_wire(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["type", "object", "array"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "enum", "anyOf", "items", "prefixItems", "properties", "required", "additionalProperties"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(json_values, json_values, st.text(max_size=8))
def test_any_foreign_schema_can_be_used(foreign: object, value: object, text: str) -> None:
    schema = understood(foreign)
    assert understood(schema) == schema
    describe(schema)
    check(schema, value)
    with contextlib.suppress(BadValue):
        parse(schema, text)


def test_bind_gives_methods_what_they_ask_for() -> None:
    parameters = parameters_of(Methods.all_kinds, owner=Methods)
    assert bind(parameters, [1, "slow", "/a"], {"wait": 2, "x": ["y"]}, "a.b") == (
        [1, Mode.SLOW, Path("/a")],
        {"wait": 2, "x": ["y"]},
    )
    travelled = [Parameter.from_wire(parameter.to_wire()) for parameter in parameters]
    assert bind(travelled, [1, "slow", "/a"], {}, "a.b") == ([1, "slow", "/a"], {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ([], {}, "missing argument 'first' (int)"),
        ([], {"first": 1}, "unexpected argument 'first' (known: mode, wait); missing argument 'first' (int)"),
        (["a"], {}, "argument 'first': expected int, got 'a' (str)"),
        ([1], {"moed": 1}, "unexpected argument 'moed' (did you mean 'mode'?)"),
        ([1, "fast"], {"mode": "fast"}, "argument 'mode' was given twice"),
        ([1, "fast", 3], {}, "takes at most 2 positional arguments, got 3"),
        ([1], {"wait": "x", "mode": "y"}, "argument 'wait': expected float, got 'x' (str); argument 'mode': "
         "expected fast|slow, got 'y' (str)"),
    ],
)  # fmt: skip
def test_bind_names_what_is_wrong(args: list[Any], kwargs: dict[str, Any], message: str) -> None:
    parameters = [p for p in parameters_of(Methods.all_kinds, owner=Methods) if not p.kind.startswith("var")]
    with pytest.raises(BadValue) as caught:
        bind(parameters, args, kwargs, "power.cycle")
    assert caught.value.message == f"power.cycle: {message}"


# ---- load


@dataclass(kw_only=True)
class Config:
    port: Port
    file: Path = Path("default")
    mode: Mode = Mode.FAST
    wait: timedelta = timedelta(seconds=1)
    since: datetime | None = None
    pair: tuple[int, str] = (1, "a")
    names: set[str] = field(default_factory=set)
    on: bool = False
    state: Literal["on", "off"] = "off"
    magic: bytes = b""
    either: bool | str = False
    more: dict[str, Port] = field(default_factory=dict)
    on_failure: str = field(default="warn", metadata={"key": "onFailure", "doc": "what then"})
    password: str = field(default="", metadata={"secret": True})
    anything: Elsewhere = None
    made: list[str] = field(init=False, default_factory=list)
    _private: int = 0

    def __post_init__(self) -> None:
        if self.port.number == 13:
            raise ConfigError("port 13 brings bad luck")


def test_load_converts() -> None:
    data = {
        "port": {"number": 1},
        "file": "images/disk.img",
        "mode": "slow",
        "wait": "2m",
        "since": "2026-01-01T00:00:00+00:00",
        "pair": [2, "b"],
        "names": ["x", "x"],
        "on": "yes",
        "state": "on",
        "magic": "é",
        "either": "on",
        "more": {"b": {"number": 2, "host": "h"}},
        "onFailure": "exit",
        "anything": {"at": "all"},
    }
    config, problems = load(Config, data, base=Path("/base"))
    assert problems == []
    assert config == Config(
        port=Port(number=1),
        file=Path("/base/images/disk.img"),
        mode=Mode.SLOW,
        wait=timedelta(minutes=2),
        since=datetime(2026, 1, 1, tzinfo=UTC),
        pair=(2, "b"),
        names={"x"},
        on=True,
        state="on",
        magic="é".encode(),
        either="on",
        more={"b": Port(number=2, host="h")},
        on_failure="exit",
        anything={"at": "all"},
    )


def test_paths_start_at_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for text, expected in [("a", "/base/a"), ("/a", "/a"), ("~/a", "/home/me/a")]:
        config, _ = load(Config, {"port": {"number": 1}, "file": text}, base=Path("/base"))
        assert config is not None
        assert config.file == Path(expected)


def test_load_collects_every_problem() -> None:
    data = {
        "port": {"numbr": 1},
        "file": 3,
        "mode": "fats",
        "wait": "soon",
        "pair": [1],
        "names": "x",
        "on": "maybe",
        "more": {"b": {"number": "2"}, 5: {"number": 1}},
        "on_failure": "exit",
        "password": 1234,
        "made": [],
        "_private": 1,
        7: 8,
    }
    config, problems = load(Config, data, "here")
    assert config is None
    assert [str(problem) for problem in problems[:-2]] == [
        "here.port.numbr: unknown key 'numbr' (did you mean 'number'?)",
        "here.port: missing key 'number' (int)",
        "here.file: expected path, got 3 (int)",
        "here.mode: expected fast|slow, got 'fats' (str) (did you mean 'fast'?)",
        "here.wait: expected duration, got 'soon' (str)",
        "here.pair: expected 2 items, got 1",
        "here.names: expected list of str, got 'x' (str)",
        "here.on: expected bool, got 'maybe' (str)",
        "here.more[5]: as a key: expected str, got 5 (int)",
        "here.more.b.number: expected int, got '2' (str)",
        "here.on_failure: unknown key 'on_failure' (did you mean 'onFailure'?)",
        "here.password: expected str",
        "here.made: unknown key 'made' (did you mean 'mode'?)",
    ]
    assert [problem.where for problem in problems[-2:]] == ["here._private", "here[7]"]


def test_what_the_class_refuses_is_a_problem() -> None:
    config, problems = load(Config, {"port": {"number": 13}}, "here")
    assert (config, [str(problem) for problem in problems]) == (None, ["here: port 13 brings bad luck"])


def test_config_schema_tells_keys_docs_and_defaults() -> None:
    properties = config_schema(Config)["properties"]
    assert properties["onFailure"] == {"type": "string", "default": "warn", "description": "what then"}
    assert properties["mode"]["default"] == "fast"
    assert not {"made", "_private", "on_failure"} & set(properties)
    assert config_schema(Config)["required"] == ["port"]


def test_plain_is_what_load_reads() -> None:
    config = Config(port=Port(number=1), mode=Mode.SLOW, names={"x"}, more={"a": Port(number=2)})
    again, problems = load(Config, plain(config))
    assert (again, problems) == (config, [])
    assert plain(Opaque.LEFT) == "LEFT"


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted(config_schema(Config)["properties"])) | st.text(max_size=3) | st.integers(),
        json_values | st.floats() | st.binary() | st.timedeltas() | st.datetimes(),
    )
)
def test_load_never_raises(data: dict[Any, Any]) -> None:
    config, problems = load(Config, data)
    assert (config is None) == bool(problems)
