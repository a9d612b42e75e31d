"""What a driver author writes, and what is made of it: configuration, exports, threads."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from jmp.driver import Driver, Stream, cancelled, export, exportstream, sleep
from jmp.driver.driver import export_of, in_thread
from jmp.driver.interfaces import Power
from jmp.errors import Cancelled
from jmp.rpc.messages import Kind


@dataclass
class Port:
    number: int


class Lamp(Driver):
    """A ``lamp``: on or off.

    And more about it.
    """

    interface = "x.lamp/v1"
    pin: int
    port: Port = field(default_factory=lambda: Port(1))
    inverted: bool = False
    _lit: bool = False

    def __post_init__(self) -> None:
        self.level = int(self.inverted)

    @export
    def on(self, level: float = 1.0) -> None:
        """Light it."""
        self._lit = True

    @export(name="is-on")
    async def is_on(self) -> bool:
        return self._lit

    @export
    def blink(self) -> Iterator[bool]:
        yield True

    @export
    async def watch(self) -> AsyncIterator[bool]:
        yield self._lit

    @exportstream
    async def connect(self, stream: Stream, host: str = "") -> None:
        """Talk to it."""

    def helper(self) -> None:
        """Not for clients."""


# ---- configuration


def test_fields_are_keyword_only_configuration() -> None:
    lamp = Lamp(pin=3, inverted=True)
    assert (lamp.pin, lamp.inverted, lamp.level, lamp.port) == (3, True, 1, Port(1))
    with pytest.raises(TypeError):
        Lamp(3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pin"):
        Lamp()  # type: ignore[call-arg]


def test_drivers_are_themselves_and_show_nothing() -> None:
    class Secret(Driver):
        token: str

    assert Secret(token="hush") != Secret(token="hush")
    assert "hush" not in repr(Secret(token="hush"))
    assert len({Secret(token="a"), Secret(token="a")}) == 2
    assert Lamp(pin=1).children is not Lamp(pin=1).children


def test_the_summary_is_the_first_line() -> None:
    assert Lamp.summary() == "A 'lamp': on or off."

    class Bare(Driver):
        pass

    class Kettle(Power):
        """Boils."""

    assert (Bare.summary(), Kettle.summary(), Driver.summary()) == ("", "Boils.", "")


# ---- exports


def test_exports_are_what_was_marked() -> None:
    exports = Lamp(pin=1).exports()
    assert {name: (item.kind, item.threaded) for name, item in exports.items()} == {
        "on": (Kind.CALL, True),
        "is-on": (Kind.CALL, False),
        "blink": (Kind.ITEMS, True),
        "watch": (Kind.ITEMS, False),
        "connect": (Kind.BYTES, False),
    }
    assert exports["on"].doc == "Light it."
    assert [parameter.to_wire() for parameter in exports["connect"].parameters] == [
        {"name": "host", "schema": {"type": "string"}, "required": False, "default": ""}
    ]
    assert exports["watch"].returns == {"type": "boolean"}


def test_an_override_needs_no_mark_and_keeps_the_interfaces_text() -> None:
    class Relay(Power):
        async def on(self) -> None:
            pass

        async def off(self) -> None:
            pass

        async def state(self) -> Any:
            return "on"

    exports = Relay().exports()
    assert set(exports) == {"on", "off", "cycle", "state"}
    assert exports["on"].doc
    assert Relay.interface == "jmp.power/v1"


def test_an_override_may_be_plain_where_the_interface_is_not() -> None:
    class Base(Driver):
        @export
        @abstractmethod
        async def on(self) -> None:
            """From above."""

    class Plain(Base):
        def on(self) -> None:  # type: ignore[override]  # Base's callers are ours
            pass

    (item,) = Plain().exports().values()
    assert (item.threaded, item.doc) == (True, "From above.")


def test_what_hides_an_export_with_something_else_takes_it_away() -> None:
    class Mute(Lamp):
        blink = None  # type: ignore[assignment]

    assert "blink" not in Mute(pin=1).exports()


async def test_methods_that_come_from_the_configuration() -> None:
    class Buttons(Driver):
        labels: list[str]

        def exports(self) -> dict[str, Any]:
            return super().exports() | {
                label: export_of(label, self.press, doc=f"Press {label}.") for label in self.labels
            }

        def press(self, seconds: float = 0.1) -> str:
            return f"{seconds}"

    exports = Buttons(labels=["reset", "boot"]).exports()
    assert {name: item.doc for name, item in exports.items()} == {"reset": "Press reset.", "boot": "Press boot."}
    assert exports["boot"].threaded
    assert exports["boot"].function(2.5) == "2.5"
    with pytest.raises(TypeError, match="bound method"):
        export_of("x", lambda: None)


async def test_invoke_is_for_both_kinds() -> None:
    lamp = Lamp(pin=1)
    await lamp.invoke("on", level=0.5)
    assert await lamp.invoke("is_on") is True


# ---- threads


async def test_sleep_ends_as_soon_as_the_caller_gives_up() -> None:
    inside, said = threading.Event(), list[str]()
    over = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def work() -> None:
        inside.set()
        try:
            sleep(1000)
        except Cancelled as error:
            said.append(f"{error}, {cancelled()}")
            token.run_sync_soon(over.set)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_thread, work)
        await trio.to_thread.run_sync(inside.wait, 20)
        nursery.cancel_scope.cancel()
    await over.wait()
    assert said == ["the caller gave up, True"]


async def test_a_helper_thread_of_the_method_sleeps_undisturbed() -> None:
    """What is known of the caller does not leak into calls that come later, nor out of the thread."""
    assert not cancelled()
    with trio.move_on_after(0):
        await in_thread(lambda: None)
    assert await in_thread(cancelled) is False
    await in_thread(sleep, 0)
    assert not cancelled()


async def test_what_a_thread_raises_comes_out() -> None:
    def fail(reason: str) -> None:
        raise ValueError(reason)

    with pytest.raises(ValueError, match="because"):
        await in_thread(fail, reason="because")
