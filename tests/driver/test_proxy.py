"""The generic client, made from a report that may be anything; and the same without an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.driver.proxy import Blocking, ByteStream, DriverClient, build, read_report, run, verb, verbs_of
from jmp.errors import ProtocolViolation
from jmp.rpc.messages import Kind

REPORT: dict[str, Any] = {
    "description": "",
    "children": {
        "board": {
            "description": "A board.",
            "type": "board",
            "interface": "x.board/v1",
            "state": "degraded",
            "reason": "unplugged",
            "methods": {
                "add": {
                    "kind": 0,
                    "doc": "Adds.\n\nMore.",
                    "parameters": [
                        {"name": "a", "schema": {"type": "integer"}},
                        {"name": "rest", "schema": {"type": "number"}, "kind": "var-positional"},
                        {"name": "b", "schema": {}, "required": False, "default": 2.5},
                    ],
                    "returns": {"type": "integer"},
                },
                "count": {"kind": 1, "doc": "", "parameters": [], "returns": {}},
                "open-it": {"kind": 2, "doc": "", "parameters": [], "returns": {}},
            },
            "children": {"usb-hub": {"description": "", "children": {"port": {"ref": "board", "description": ""}}}},
        },
        "alias": {"ref": "board", "description": "the same"},
    },
}
REPORT["children"]["board"]["children"]["usb-hub"]["children"]["port"]["ref"] = "alone"
REPORT["children"]["alone"] = {
    "description": "",
    "methods": {"hi": {"kind": 0}},
    "later versions": "may add keys",
}


class Recorder:
    """A backend that blocks, and answers with what it was asked."""

    def __init__(self) -> None:
        self.open_streams = 0

    async def call(self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return [target, method, args, kwargs]

    async def items(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncGenerator[Any, None]:
        try:
            self.open_streams += 1
            yield target
            yield method
        finally:
            self.open_streams -= 1

    def open(
        self, target: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, ahead: bool = False
    ) -> AbstractAsyncContextManager[ByteStream]:
        return self._open()

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[Any]:
        self.open_streams += 1
        try:
            yield Bytes()
        finally:
            self.open_streams -= 1

    async def run(self, function: Any, *args: Any) -> Any:
        return function(*args)


class Bytes:
    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return b"x"

    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...


def client() -> Any:
    return Blocking(build(Recorder(), read_report(REPORT)))


# ---- as its user sees it


def test_calls_go_where_the_driver_is() -> None:
    dut = client()
    assert dut.board.add(1, b=2) == ["board", "add", (1,), {"b": 2}]
    assert dut.alias.add() == ["board", "add", (), {}]
    assert dut.board.usb_hub.port.hi() == ["alone", "hi", (), {}]
    assert list(dut.board.count()) == ["board", "count"]


def test_refs_share_a_client() -> None:
    made = build(Recorder(), read_report(REPORT))
    assert made.alias is made.board


def test_what_is_shown() -> None:
    dut = client()
    assert repr(dut.board) == "<DriverClient board>"
    assert dut.board.__doc__ == "A board."
    assert dut.board.add.__doc__ == "add(a: int, *rest: float, b: any = 2.5)\n\nAdds.\n\nMore."
    assert {"add", "count", "usb-hub"} <= set(dir(dut.board))
    assert len(dir(dut.board)) == len(set(dir(dut.board)))
    node = read_report(REPORT).children["board"]
    assert (node.state, node.reason, node.interface, node.type) == ("degraded", "unplugged", "x.board/v1", "board")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("bord", "the device has no method or driver 'bord' (did you mean 'board'?)"),
        ("board.ad", "board has no method or driver 'ad' (did you mean 'add'?)"),
        ("board.usb_hub.prt", "board.usb-hub has no method or driver 'prt' (did you mean 'port'?)"),
    ],
)
def test_what_is_not_there(path: str, said: str) -> None:
    dut = client()
    *steps, last = path.split(".")
    for step in steps:
        dut = getattr(dut, step)
    with pytest.raises(AttributeError) as raised:
        getattr(dut, last)
    assert str(raised.value) == said
    assert not hasattr(dut, "_private")


# ---- client classes


class BoardClient(DriverClient):
    @verb
    async def twice(self, value: int) -> list[Any]:
        """Calls twice."""
        return [await self._backend.call("board", "add", (value,), {}) for _ in range(2)]

    async def not_a_verb(self) -> None: ...

    async def each(self) -> AsyncIterator[str]:
        async for item in self._backend.items("board", "count", (), {}):
            yield item.upper()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[DriverClient]:
        async with self._backend.open("board", "open-it", (), {}):
            yield self

    async def sleepy(self) -> None:
        await Never()


class Never:
    def __await__(self) -> Any:
        yield


def test_a_class_for_an_interface_is_written_once() -> None:
    backend = Recorder()
    dut: Any = Blocking(build(backend, read_report(REPORT), {"x.board/v1": BoardClient}.get))
    assert dut.board.twice(3) == 2 * [["board", "add", (3,), {}]]
    assert dut.board.add(1) == ["board", "add", (1,), {}]
    assert list(dut.board.each()) == ["BOARD", "COUNT"]
    with dut.board.session() as same:
        assert backend.open_streams == 1
        assert same.add(1)[1] == "add"
    assert backend.open_streams == 0
    assert list(verbs_of(build(backend, read_report(REPORT), {"x.board/v1": BoardClient}.get).board)) == ["twice"]


def test_leaving_a_loop_early_closes_what_it_ran_over() -> None:
    backend = Recorder()
    dut: Any = Blocking(build(backend, read_report(REPORT)))
    items = iter(dut.board.count())
    assert next(items) == "board"
    assert backend.open_streams == 1
    items.close()
    assert backend.open_streams == 0


def test_a_client_class_that_waits_for_something_else_is_told_so() -> None:
    dut: Any = Blocking(build(Recorder(), read_report(REPORT), {"x.board/v1": BoardClient}.get))
    with pytest.raises(RuntimeError, match="awaited something other than its backend"):
        dut.board.sleepy()


def test_run_gives_the_result_or_the_error() -> None:
    async def fine() -> int:
        return 5

    async def wrong() -> None:
        raise KeyError("x")

    assert run(fine()) == 5
    with pytest.raises(KeyError):
        run(wrong())


# ---- reports from anybody


@pytest.mark.parametrize(
    "report",
    [
        {"children": []},
        {"children": {"a": None}},
        {"children": {"a": {"ref": "nowhere"}}},
        {"children": {"a": {"ref": None}}},
        {"children": {"a": {"ref": "a"}}},
        {"methods": {"m": {}}},
        {"methods": {"m": {"kind": 9}}},
        {"methods": {"m": {"kind": 0, "parameters": [5]}}},
        {"methods": {"m": {"kind": 0, "parameters": [{"name": "x", "kind": "odd"}]}}},
        {"methods": 5},
    ],
)
def test_a_report_that_is_none(report: Any) -> None:
    with pytest.raises(ProtocolViolation):
        build(Recorder(), read_report(report))


def test_a_report_that_holds_itself() -> None:
    report = {"children": {"a": {"children": {"b": {"ref": "a"}}}}}
    with pytest.raises(ProtocolViolation, match="holds itself"):
        build(Recorder(), read_report(report))


def test_a_report_of_great_depth() -> None:
    report: dict[str, Any] = {}
    for _ in range(5000):
        report = {"children": {"a": report}}
    with pytest.raises(ProtocolViolation):
        build(Recorder(), read_report(report))


KEYS = st.sampled_from(
    ["children", "ref", "methods", "kind", "parameters", "name", "schema", "doc", "type", "a", "interface"]
)
anything = st.recursive(
    st.none() | st.integers() | st.text() | st.sampled_from(list(Kind)),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, anything))
def test_any_report_is_a_violation_or_makes_a_client(report: dict[str, Any]) -> None:
    try:
        made = build(Recorder(), read_report(report), {"a": DriverClient}.get)
    except ProtocolViolation:
        return
    dir(made)
    repr(made)
