"""docs/protocol.md says what the code does: every name and number in its tables, and its example runs."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest
import trio

from jmp.controller.serve import DESKS
from jmp.driver.driver import _MARK
from jmp.driver.tree import State
from jmp.errors import BY_CODE
from jmp.exporter import config as configuration
from jmp.exporter import hold, serve, session
from jmp.link import resume, rfc6455, websocket
from jmp.mux.protocol import VERSION
from jmp.rpc import messages
from jmp.wire import codec, frames
from jmp.wire.records import Role
from jmp_drivers.power import MockPower

TEXT = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "TiB": 2**40, "s": 1}


def rows(*head: str) -> Iterator[list[str]]:
    """The rows of the one table whose head begins so, backquotes removed."""
    found = re.findall(rf"^\| {re.escape(' | '.join(head))} [^\n]*\n\|[-| ]+\n((?:\|.*\n)+)", TEXT, re.MULTILINE)
    assert len(found) == 1, head
    for line in found[0].splitlines():
        yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize(
    ("head", "enum"),
    [("kind", frames.Kind), ("reset", frames.Reset), ("reply", messages.Reply), ("kind of method", messages.Kind)],
)
def test_numbers(head: str, enum: type[IntEnum]) -> None:
    assert {name: int(number) for name, number, *_ in rows(head, "#")} == {item.name: int(item) for item in enum}


def test_what_ends_say_of_their_session() -> None:
    told = {name: int(number) for name, number, *_ in rows("before a message", "#")}
    assert told == {name: getattr(resume, name) for name in ("RESUME", "ACK")}
    assert not told.keys() & frames.Kind.__members__.keys()
    assert {*range(10, 12)} == {*told.values()}
    assert {int(code) for code in re.findall(r"`(10\d\d)`", TEXT)} == resume.PASSING_CODES


def test_elements_of_frames() -> None:
    types = {"map": dict, "bin": bytes, "bool": bool, "int": int, "str": str}
    for _, number, elements, _ in rows("kind", "#"):
        told = tuple(types[element.rpartition(": ")[2]] for element in elements.split(", ") if element)
        assert told == frames._TYPES[int(number)]


def test_extension_types() -> None:
    told = {name: int(number) for name, number, _ in rows("extension", "#")}
    assert told == {name: value for name, value in vars(codec).items() if name.startswith("EXT_")}


def test_errors() -> None:
    told = [tuple(row) for row in rows("code", "fault", "class")]
    assert sorted(told) == sorted((code, error.fault.value, error.__name__) for code, error in BY_CODE.items())


def test_limits() -> None:
    told: dict[str, set[str]] = {}
    for name, value, where, _ in rows("name", "value", "in"):
        number, _, unit = value.partition(" ")
        told.setdefault(where, set()).add(name)
        if where.endswith(".serve") and name.islower():
            assert inspect.signature(websocket.serve).parameters[name].default == int(number)
        else:
            assert getattr(importlib.import_module(where), name) == float(number) * UNITS[unit], name
    for module in told.keys() - {"jmp.link.websocket.serve"}:
        own = importlib.import_module(module)
        names = {
            name
            for name, hint in vars(own).get("__annotations__", inspect.get_annotations(own)).items()
            if not name.startswith("_") and "Final" in str(hint) and type(getattr(own, name)) in (int, float)
        }
        internal = {"EXT_", "FAREWELL_SECONDS", "MAX_OUTPUT", "MAX_PAIRS"}
        assert {name for name in names if not name.startswith(tuple(internal))} == told[module], module


def test_version_and_subprotocol() -> None:
    assert f"The protocol's version is {VERSION[0]}.{VERSION[1]} (`VERSION`)" in TEXT
    assert TEXT.startswith(f"# The protocol: {rfc6455.SUBPROTOCOL}\n")
    assert f"`{rfc6455.ERROR_HEADER}: busy`" in TEXT


def test_http_statuses_and_close_codes() -> None:
    sources = "".join(
        inspect.getsource(importlib.import_module(name))
        for name in (
            "jmp.link.rfc6455",
            "jmp.link.websocket",
            "jmp.link.sessions",
            "jmp.mux.connection",
            "jmp.mux.stream",
            "jmp.exporter.hold",
            "jmp.router.serve",
        )
    )
    assert {row[0] for row in rows("status", "meaning")} == {
        *re.findall(r'"(4\d\d|503) [A-Z]', inspect.getsource(websocket))
    }
    assert {row[0] for row in rows("close code")} == {"1000", *re.findall(r"\b(10(?:0[1-9]|1[1-4]))\b", sources)} - {
        *("1004", "1005", "1006")  # never sent
    }


def methods(cls: type) -> dict[str, str]:
    """The exported methods of a role's object, each with its parameters."""
    found = {}
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if hasattr(function, _MARK):
            signature = inspect.signature(function)
            shown = [item.replace(annotation=inspect.Parameter.empty) for item in signature.parameters.values()]
            plain = signature.replace(parameters=shown[1:], return_annotation=inspect.Signature.empty)
            found[name] = f"{name}{plain}"
    return found


def test_methods_of_a_session() -> None:
    told: dict[str, list[str]] = {}
    for at, method, _ in rows("at", "method"):
        told.setdefault(at, []).append(method)
    classes: dict[str, type] = {"Exporter": serve._Visit, "Visit": hold.Visit, "Session": session.Session}
    assert {at: sorted(methods(cls).values()) for at, cls in classes.items()} == {
        at: sorted(listed) for at, listed in told.items()
    }


def test_methods_of_a_lab() -> None:
    told = {role: set(re.findall(r"\b[a-z]+\b", listed)) for role, listed in rows("role", "methods")}
    everybody = told.pop("everybody")
    told["admin"] -= {"those", "of", "a", "client"}
    told["admin"] |= told["client"]
    assert {Role(role): listed | everybody for role, listed in told.items()} == {
        role: set(methods(desk)) for role, desk in DESKS.items()
    }


CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  power: {type: mock-power}
  again: {ref: power}
"""


def loaded(directory: Path) -> configuration.ExporterConfig:
    (directory / "bench.yaml").write_text(CONFIG)
    return configuration.load(directory / "bench.yaml", {"mock-power": MockPower})


async def test_keys_of_the_report(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with session.open_session(loaded(tmp_path), "me") as running:
            report = await running.report()
    tree = report["tree"]
    assert {key for key, _ in rows("key", "value")} == {
        *tree["children"]["again"],
        *tree["children"]["power"],
        "children",
    }
    assert set(tree) == {"description", "children"}
    assert all(f"`{key}`" in TEXT for key in report)
    assert all(f"`{state.value}`" in TEXT for state in State)


async def test_the_example_talks_to_a_real_exporter(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n([\s\S]*?)```", TEXT)
    (tmp_path / "client.py").write_text(code)
    with trio.fail_after(60):
        listeners = await serve.listen("127.0.0.1:0")
        url = f"ws://{serve.address_of(listeners[0])}"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve.serve_exporter, loaded(tmp_path), [], listeners)

            async def call(*arguments: str) -> tuple[str, str]:
                argv = [sys.executable, str(tmp_path / "client.py"), url, *arguments]
                done = await trio.run_process(argv, capture_stdout=True, capture_stderr=True, check=False)
                return done.stdout.decode(), done.stderr.decode()

            assert await call("power", "state") == ("bench ['again', 'power']\noff\n", "")
            _, problem = await call("power", "explode")
            assert problem.endswith(
                "RuntimeError: not-found: 'power' has no method 'explode' (known: cycle, cycles, off, on, state)\n"
            )
            nursery.cancel_scope.cancel()
