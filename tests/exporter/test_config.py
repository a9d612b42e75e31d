from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jmp.driver import ConfigError, Driver, export
from jmp.driver.schema import Schema, config_schema, describe
from jmp.errors import NotFound
from jmp.exporter import config
from jmp.exporter.config import Entry, ExporterConfig, check, load, read_text


class Power(Driver):
    port: int
    url: str = "http://localhost"
    image: Path | None = None
    password: str = field(default="", metadata={"secret": True})
    state: Literal["on", "off"] = "off"

    def __post_init__(self) -> None:
        if self.port > 65535:
            raise ConfigError(f"port {self.port} is more than 65535")

    @export
    def on(self) -> None: ...

    @export
    def off(self) -> None: ...


class Console(Driver):
    @export
    def send(self, data: bytes) -> None: ...


class Board(Driver):
    """Makes its own children."""

    def __post_init__(self) -> None:
        self.children["console"] = Console()

    @export
    def snapshot(self) -> None: ...


DRIVERS: dict[str, type[Driver]] = {"power": Power, "console": Console, "board": Board}

HEAD = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench1}
"""
FULL = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench1, labels: {board: rpi4}}
description: text
motd: text
endpoint: wss://controller
token: secret-token
tls: {ca: ca.pem, cert: cert.pem, key: /etc/key.pem, insecure: no}
listen: ["unix:/run/jmp/bench1.sock", "[::1]:4711", ":0"]
export:
  power:
    type: power
    config: {port: 1, image: disk.img, state: on}
    description: the strip
    methods_description: {on: feed it, off: starve it}
  soc:
    children:
      board: {type: board, children: {extra: {type: console}}}
  main: {ref: soc.board.console, description: the one to use}
  other: {ref: alias.extra}
  alias: {ref: soc.board}
hooks:
  beforeLease: {script: j power off, timeout: 5s, onFailure: endLease}
  afterLease: {script: j power off, interpreter: /bin/bash}
"""
FILE = Path("/lab/bench1.yaml")


def problems_of(text: str, **options: Any) -> list[str]:
    return [str(problem) for problem in read_text(text, FILE, DRIVERS, **options)[1]]


def test_everything_that_a_file_can_say(tmp_path: Path) -> None:
    path = tmp_path / "bench1.yaml"
    path.write_text(FULL)
    loaded = load(path, DRIVERS)
    assert loaded.path == path
    assert (loaded.metadata.name, loaded.metadata.labels) == ("bench1", {"board": "rpi4"})
    assert (loaded.tls.ca, loaded.tls.key, loaded.tls.insecure) == (tmp_path / "ca.pem", Path("/etc/key.pem"), False)
    assert loaded.addresses == ["unix:/run/jmp/bench1.sock", "[::1]:4711", ":0"]
    hooks = loaded.hooks
    assert hooks.before_lease is not None
    assert hooks.after_lease is not None
    assert (hooks.before_lease.timeout, hooks.before_lease.on_failure) == (timedelta(seconds=5), "endLease")
    assert (hooks.after_lease.timeout, hooks.after_lease.interpreter) == (timedelta(minutes=2), "/bin/bash")
    assert "secret-token" not in repr(loaded)


def test_a_tree_has_new_drivers_each_time(tmp_path: Path) -> None:
    path = tmp_path / "bench1.yaml"
    path.write_text(FULL)
    loaded = load(path, DRIVERS)
    first, second = loaded.tree(), loaded.tree()
    power = first.children["power"]
    assert isinstance(power.driver, Power)
    assert power.driver is not second.children["power"].driver
    assert (power.driver.port, power.driver.state, power.driver.image) == (1, "on", tmp_path / "disk.img")
    assert (power.type, power.description, power.help) == ("power", "the strip", {"on": "feed it", "off": "starve it"})
    board = first.children["soc"].children["board"]
    assert board.driver is not None
    assert set(board.children) == set(board.driver.children) == {"console", "extra"}
    assert (first.children["main"].ref, first.children["main"].description) == ("soc.board.console", "the one to use")


def test_the_smallest_file() -> None:
    loaded, problems = read_text(HEAD + "export: {power: {type: power, config: {port: 1}}}", FILE, DRIVERS)
    assert problems == []
    assert loaded is not None
    assert (loaded.addresses, loaded.motd, loaded.hooks.before_lease) == ([], None, None)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["1: the file is empty; `jmp exporter example` prints one to start from"]),
        ("# nothing\n", ["1: the file is empty; `jmp exporter example` prints one to start from"]),
        ("- a", ["1: expected a mapping with apiVersion, kind, metadata and export"]),
        ("a: [b", ["1: not YAML: line 1, column 6: while parsing a flow sequence: "
                   "expected ',' or ']', but got '<stream end>'"]),
        ("apiVersion: jmp/v2\nkind: exporter\nmetadata: {nam: x}\nexport: []\nmotd: 5\n", [
            "1: apiVersion: expected jmp/v1, got 'jmp/v2' (str) (did you mean 'jmp/v1'?)",
            "2: kind: expected Exporter, got 'exporter' (str) (did you mean 'Exporter'?)",
            "3: metadata.nam: unknown key 'nam' (did you mean 'name'?)",
            "3: metadata: missing key 'name' (str)",
            "4: export: expected dict of dict, got a list",
            "5: motd: expected str or None, got 5 (int)",
        ]),
        ("kind: Exporter", [
            "1: missing key 'apiVersion' (jmp/v1)", "1: missing key 'metadata' (dict)",
            "1: missing key 'export' (dict of dict)",
        ]),
        (HEAD + "export: {}", ["4: export: exports nothing: name at least one driver"]),
        (HEAD.replace("bench1", "'a b'") + "export: {c: {type: console}}", [
            "3: metadata: name 'a b' is not made of letters, digits, '.', '_' and '-'"]),
        (HEAD + "token: 12345\nexport: {c: {type: console}}", ["4: token: expected str or None"]),
        (HEAD + "listen: nowhere\nexport: {c: {type: console}}", [
            "4: listen: 'nowhere' is neither unix:PATH nor HOST:PORT"]),
        (HEAD + "listen:\n  - 'unix:'\n  - 'a:99999'\nexport: {c: {type: console}}", [
            "5: listen[0]: unix: needs a path", "6: listen[1]: 'a:99999' is neither unix:PATH nor HOST:PORT"]),
        (HEAD + "tls: {cert: x}\nexport: {c: {type: console}}", [
            "4: tls: cert and key belong together: give both or none"]),
        (HEAD + "hooks:\n  beforeLeas: {}\n  afterLease: {script: x, timeout: 0}\nexport: {c: {type: console}}", [
            "5: hooks.beforeLeas: unknown key 'beforeLeas' (did you mean 'beforeLease'?)",
            "6: hooks.afterLease: timeout must be more than 0"]),
        (HEAD + "hooks:\n  afterLease:\n    onFailure: endlease\n    timeout: soon\nexport: {c: {type: console}}", [
            "6: hooks.afterLease.onFailure: expected warn|endLease|exit, got 'endlease' (str) "
            "(did you mean 'endLease'?)",
            "7: hooks.afterLease.timeout: expected duration, got 'soon' (str)"]),
        (HEAD + "hooks: {afterLease: {file: gone.sh}}\nexport: {c: {type: console}}", [
            "4: hooks.afterLease.file: there is no file /lab/gone.sh"]),
        (HEAD + "hooks: {afterLease: {interpreter: x}}\nexport: {c: {type: console}}", [
            "4: hooks.afterLease: a hook needs either script or file"]),
    ],
)  # fmt: skip
def test_problems_of_a_file(text: str, problems: list[str]) -> None:
    assert problems_of(text) == [f"{FILE}:{problem}" for problem in problems]


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("power:\n  type: power\n  config:\n    prot: 1\n", [
            "8: power.config.prot: unknown key 'prot' (did you mean 'port'?)",
            "7: power.config: missing key 'port' (int)"]),
        ("power: {type: power}", ["5: power.config: missing key 'port' (int)"]),
        ("power:\n  type: power\n  config: {port: x, password: 5}\n", [
            "7: power.config.port: expected int, got 'x' (str)", "7: power.config.password: expected str"]),
        ("power: {type: power, config: {port: 70000}}", ["5: power.config: port 70000 is more than 65535"]),
        ("power: {type: pwer}", ["5: power.type: there is no driver of type 'pwer' (did you mean 'power'?)"]),
        ("c: {type: console, confg: {}}", ["5: c.confg: unknown key 'confg' (did you mean 'config'?)"]),
        ("c: {type: console}\n  c: {type: console}", ["6: c: this key is already given in line 5"]),
        ("c: {}", ["5: c: needs a type (a driver), children (a group) or a ref"]),
        ("c:", ["5: c: expected dict, got None"]),
        ("c: {config: {}, children: {d: {type: console}}}", [
            "5: c: config and methods_description belong to a driver: type is missing"]),
        ("c: {ref: d, type: console}\n  d: {type: console}", ["5: c: a ref has nothing but a description besides"]),
        ("c: {type: console, methods_description: {sned: x}}", [
            "5: c.methods_description.sned: console has no method 'sned' (did you mean 'send'?)"]),
        ("1c: {type: console}", ["5: 1c: a name is a letter and then letters, digits, '_' and '-'"]),
        ("a.b: {type: console}", ["5: ['a.b']: a name is a letter and then letters, digits, '_' and '-'"]),
        ("help: {type: console}", ["5: help: the name 'help' is taken by the client itself: choose another"]),
        ("b:\n  type: board\n  children:\n    console: {type: console}\n    snapshot: {type: console}\n", [
            "8: b.children.console: board has a child 'console' of its own: choose another name",
            "9: b.children.snapshot: board has a method 'snapshot': choose another name"]),
        ("g: {children: {c: {children: {d: {type: nothing}}}}}", [
            "5: g.children.c.children.d.type: there is no driver of type 'nothing' (known: board, console, power)"]),
    ],
)  # fmt: skip
def test_problems_of_the_tree(text: str, problems: list[str]) -> None:
    indented = "\n".join(line if line.startswith("  ") and index else f"  {line}" for index, line in lines(text))
    found = problems_of(HEAD + "export:\n" + indented, reserved=["help"])
    assert sorted(found) == sorted(re.sub(r"^(\d+): ", rf"{FILE}:\1: export.", p).replace(".[", "[") for p in problems)


def lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, those below the first of a block indented once more."""
    block = not re.match(r"\S+: ?\S", text) and len(text.splitlines()) > 1
    for index, line in enumerate(text.splitlines()):
        yield index, f"  {line}" if block and index else line


@pytest.mark.parametrize(
    ("tree", "problems"),
    [
        ("{a: {ref: gone}, b: {type: console}}", ["a.ref: there is no 'gone' (known: b)"]),
        ("{a: {ref: b.consle}, b: {type: board}}", ["a.ref: there is no 'b.consle' (did you mean 'b.console'?)"]),
        ("{a: {ref: ''}, b: {type: console}}", ["a.ref: there is no '' (known: b)"]),
        ("{a: {ref: a}}", ["a.ref: leads to no driver: a → a"]),
        ("{a: {ref: b}, b: {ref: a}}", ["a.ref: leads to no driver: a → b → a",
                                        "b.ref: leads to no driver: b → a → b"]),
        ("{a: {ref: a.x}}", ["a.ref: leads to no driver: a → a"]),
        ("{a: {children: {x: {ref: a}}}}", ["a.children.x.ref: holds itself: a → a.x → a"]),
        ("{a: {children: {x: {ref: b}}}, b: {children: {y: {ref: a}}}}", [
            "a.children.x.ref: holds itself: a → a.x → b → b.y → a"]),
        # What an unknown driver would have below it cannot be told, so only the driver is a problem.
        ("{a: {ref: b.anything}, b: {type: nothing}}", [
            "b.type: there is no driver of type 'nothing' (known: board, console, power)"]),
    ],
)  # fmt: skip
def test_refs_lead_to_drivers(tree: str, problems: list[str]) -> None:
    assert problems_of(f"{HEAD}export: {tree}") == [f"{FILE}:4: export.{problem}" for problem in problems]


def test_an_alias_may_be_part_of_a_path() -> None:
    assert problems_of(HEAD + "export: {a: {ref: b.console}, b: {ref: c}, c: {type: board}}") == []


def test_a_driver_that_cannot_be_imported_is_a_problem() -> None:
    def broken(name: str) -> type[Driver]:
        raise ConfigError("driver 'console' needs serial: install jmp-drivers[serial]")

    def missing(name: str) -> type[Driver]:
        raise ModuleNotFoundError("No module named 'serial'")

    text = HEAD + "export: {c: {type: console}}"
    assert [str(problem) for problem in read_text(text, FILE, broken)[1]] == [
        f"{FILE}:4: export.c.type: driver 'console' needs serial: install jmp-drivers[serial]"
    ]
    assert [str(problem) for problem in read_text(text, FILE, missing)[1]] == [
        f"{FILE}:4: export.c.type: driver 'console' cannot be imported: No module named 'serial'"
    ]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbf" + HEAD.encode() + b"export: {c: {type: console}}")
    assert [str(p) for p in check(tmp_path / "gone.yaml", DRIVERS)] == [
        f"{tmp_path}/gone.yaml:1: cannot be read: No such file or directory"
    ]
    assert [str(p) for p in check(tmp_path, DRIVERS)] == [f"{tmp_path}:1: cannot be read: Is a directory"]
    assert [str(p) for p in check(tmp_path / "latin.yaml", DRIVERS)] == [f"{tmp_path}/latin.yaml:2: not text in UTF-8"]
    assert check(tmp_path / "bom.yaml", DRIVERS) == []


def test_load_raises_with_the_first_problem(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(HEAD + "export: {c: {type: console}}\nzzz: 1\nyyy: 2\n")
    with pytest.raises(
        ConfigError, match=rf"^{path}:5: zzz: unknown key .* \(and 1 more: jmp exporter check {path}\)$"
    ):
        load(path, DRIVERS)


plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["a.b", "a", "on"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "type", "ref", "children", "config"]) | st.text(max_size=3), inner)
    ),
    max_leaves=10,
)
entries = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["power", "console", "board", "x"])}, optional={"config": plain_data}
    )
    | st.fixed_dictionaries({"ref": st.sampled_from(["a", "b", "a.b", "b.a.b", "b.console", ""])}),
    lambda inner: st.fixed_dictionaries({"children": st.dictionaries(st.sampled_from(["a", "b", "console"]), inner)}),
    max_leaves=6,
)
keys = sorted(config_schema(ExporterConfig)["properties"])


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(keys) | st.text(max_size=3), plain_data))
def test_any_yaml_data_can_be_checked(data: dict[str, Any]) -> None:
    valid = {
        "apiVersion": "jmp/v1",
        "kind": "Exporter",
        "metadata": {"name": "x"},
        "export": {"c": {"type": "console"}},
    }
    for text in (yaml.safe_dump(data), yaml.safe_dump({**valid, **data})):
        for problem in problems_of(text):
            assert "\n" not in problem


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), entries))
def test_any_tree_can_be_checked_and_a_good_one_built(tree: dict[str, Any]) -> None:
    loaded, problems = read_text(HEAD + yaml.safe_dump({"export": tree}), FILE, DRIVERS)
    if not problems:
        assert loaded is not None
        loaded.tree()


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_checked(text: str) -> None:
    assert problems_of(text)


# ---- finding files


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    user, system = tmp_path / "jmp" / "exporters", tmp_path / "etc"
    user.mkdir(parents=True)
    system.mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(config, "SYSTEM", system)
    return user, system


def test_a_users_file_hides_the_systems(places: tuple[Path, Path]) -> None:
    user, system = places
    for path in (user / "bench1.yaml", system / "bench1.yaml", system / "bench2.yaml", user / "notes.txt"):
        path.touch()
    assert config.list_configs() == {"bench1": user / "bench1.yaml", "bench2": system / "bench2.yaml"}
    assert config.find("bench1") == user / "bench1.yaml"
    assert config.name_or_path("bench2") == system / "bench2.yaml"
    with pytest.raises(NotFound, match=r"there is no exporter 'bench3' in .* or .* \(did you mean 'bench2'\?\)"):
        config.find("bench3")


def test_a_slash_or_suffix_makes_it_a_path(places: tuple[Path, Path]) -> None:
    path = places[0] / "x.yml"
    path.touch()
    assert config.name_or_path(str(path)) == path
    for text in ("gone.yaml", "./gone"):
        with pytest.raises(NotFound, match=f"there is no file {text}"):
            config.name_or_path(text)
    for text in (".", str(places[0])):
        with pytest.raises(NotFound, match=f"^{re.escape(text)} is a folder, not a configuration"):
            config.name_or_path(text)


def test_a_pipe_is_as_good_as_a_file() -> None:
    """As bash gives it: jmp shell --exporter-config <(sed … board.yaml)."""
    end, other = os.pipe()
    with open(end, "rb"), open(other, "w") as pipe:
        pipe.write(HEAD + "export:\n  power: {type: power, config: {port: 1}}\n")
        pipe.close()
        assert load(config.name_or_path(f"/dev/fd/{end}"), DRIVERS.__getitem__).metadata.name == "bench1"


def test_without_xdg_the_users_files_are_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert config.directories() == [Path("/home/me/.config/jmp/exporters"), Path("/etc/jmp/exporters")]


# ---- documentation

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def rows(schema: Schema, prefix: str) -> Iterator[str]:
    """The rows of the reference that a part of the format calls for."""
    for key, item in schema["properties"].items():
        default = item.get("default")
        shown = f"`{default}`" if default and not isinstance(default, dict) else ""
        need = "required" if key in schema["required"] else shown
        yield f"| `{prefix}{key}` | {describe(item).replace('|', ' &#124; ')} | {need} | {item['description']} |"


def test_the_reference_lists_every_key() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    expected = {
        "": ExporterConfig,
        "metadata.": config.Metadata,
        "export.NAME.": Entry,
        "hooks.WHEN.": config.Hook,
        "hooks.": config.Hooks,
        "tls.": config.Tls,
    }
    wanted = [row for prefix, cls in expected.items() for row in rows(config_schema(cls), prefix)]
    assert sorted(re.findall(r"^\| `.*", text, re.MULTILINE)) == sorted(wanted)
