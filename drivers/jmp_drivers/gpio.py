"""GPIO lines of the exporter's machine, through the kernel's character devices (libgpiod)."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import gpiod
import trio
from gpiod.line import Bias, Direction, Drive, Edge, Value

from jmp.driver import BadValue, ConfigError, DeviceError, Driver, Machine, Suggestion, export
from jmp.driver.interfaces import Power, PowerState
from jmp.driver.schema import did_you_mean

T = TypeVar("T")

_CONSUMER = "jmp"  # what gpioinfo shows
_UNREAD = 4096  # changes of lines that a watcher may leave unread

_BIAS = {"up": Bias.PULL_UP, "down": Bias.PULL_DOWN, "none": Bias.DISABLED, None: Bias.AS_IS}
_DRIVE = {"push-pull": Drive.PUSH_PULL, "open-drain": Drive.OPEN_DRAIN, "open-source": Drive.OPEN_SOURCE}


@dataclass(frozen=True)
class Line:
    """One line of the chip."""

    line: int | str = field(metadata={"doc": "its number, or its name"})
    direction: Literal["in", "out"] | None = field(
        default=None, metadata={"doc": "without it, as it is, and `out` once it is set"}
    )
    active_low: bool = field(default=False, metadata={"doc": "it is on when its voltage is low"})
    bias: Literal["up", "down", "none"] | None = field(default=None, metadata={"doc": "the chip's own resistor"})
    drive: Literal["push-pull", "open-drain", "open-source"] = "push-pull"
    initial: bool | None = field(
        default=None, metadata={"doc": "of an output: what it is set to when a session begins"}
    )

    def __post_init__(self) -> None:
        if isinstance(self.line, int) and self.line < 0:
            raise ConfigError(f"line must be 0 or more, not {self.line}")
        if self.initial is not None and self.direction != "out":
            raise ConfigError("initial is for outputs: say direction: out as well")

    def settings(self, direction: Direction, value: Value = Value.INACTIVE) -> gpiod.LineSettings:
        """Inputs tell when they change. Resistor and drive are for a line whose direction is said: so the kernel wants it."""
        return gpiod.LineSettings(
            direction=direction,
            edge_detection=Edge.BOTH if direction is Direction.INPUT else Edge.NONE,
            bias=Bias.AS_IS if direction is Direction.AS_IS else _BIAS[self.bias],
            drive=_DRIVE[self.drive] if direction is Direction.OUTPUT else Drive.PUSH_PULL,
            active_low=self.active_low,
            output_value=value,
        )


class _Requested:
    """A line that is ours. Raises `DeviceError`."""

    def __init__(self, chip: Path, line: Line) -> None:
        self._chip = chip
        self.line = line
        with _told(chip, line.line):
            if line.direction == "in":
                self.request = self._ask(line.settings(Direction.INPUT))
                self.output = False
                return
            # As it is first, so that an output keeps the value that it has.
            self.request = self._ask(line.settings(Direction.AS_IS))
            try:
                with gpiod.Chip(str(chip)) as opened:
                    self.output = opened.get_line_info(line.line).direction == Direction.OUTPUT
                as_wanted = line.bias is None and (line.drive == "push-pull" or not self.output)
                if line.direction == "out" or (self.output and not as_wanted):
                    on = self.get() if line.initial is None else line.initial
                    self.output = self.output and as_wanted
                    self.set(on)
                elif not as_wanted:
                    self.request.reconfigure_lines({line.line: line.settings(Direction.INPUT)})
            except BaseException:
                self.request.release()
                raise

    def _ask(self, settings: gpiod.LineSettings) -> gpiod.LineRequest:
        return gpiod.request_lines(str(self._chip), consumer=_CONSUMER, config={self.line.line: settings})

    def get(self) -> bool:
        with _told(self._chip, self.line.line):
            return self.request.get_value(self.line.line) == Value.ACTIVE

    def set(self, on: bool) -> None:
        value = Value.ACTIVE if on else Value.INACTIVE
        with _told(self._chip, self.line.line):
            if self.output:
                self.request.set_value(self.line.line, value)
            else:
                self.request.reconfigure_lines({self.line.line: self.line.settings(Direction.OUTPUT, value)})
                self.output = True


@contextmanager
def _told(chip: Path, line: int | str | None = None) -> Iterator[None]:
    """Errors of the library as the device's, in words that say what to do."""
    try:
        yield
    except (OSError, ValueError) as error:
        what = f"GPIO chip {chip}" if line is None else f"GPIO line {line} of {chip}"
        raise DeviceError(f"{what}: {_explain(error)}") from error


def _explain(error: OSError | ValueError) -> str:
    number = error.errno if isinstance(error, OSError) else error.args[0] if error.args else None
    match number:  # libgpiod's binding raises EINVAL as a ValueError
        case errno.EBUSY:
            return "somebody else uses it: the kernel or another program (gpioinfo tells who)"
        case errno.EACCES | errno.EPERM:
            return "permission denied; the exporter's user must be in the group that owns it (often gpio)"
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return "there is none"
        case errno.ENOTTY | errno.ENOTSUP:
            return "it does not support this"
        case errno.EINVAL:
            return "there is no such line, or it cannot do this"
        case int():
            return os.strerror(number)
        case _:
            return "there is no line of this name or number"


class _OnChip(Driver):
    """The configuration of whatever hangs on a chip's lines."""

    chip: str = field(metadata={"doc": "path of the chip, such as /dev/gpiochip0, or its label, which stays the same"})

    def _try(self, function: Callable[..., T], *arguments: Any) -> T:
        """Use a line; the driver is lost if its chip has gone."""
        try:
            return function(*arguments)
        except DeviceError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENODEV, errno.ENXIO):
                self.lost(error.message)
            raise

    def _find_chip(self) -> Path:
        """Raises `DeviceError`."""
        if "/" in self.chip:
            if not gpiod.is_gpiochip_device(self.chip):
                raise DeviceError(f"GPIO chip {self.chip}: there is none; {_present()}")
            return Path(self.chip)
        for path, label in _chips():
            if self.chip in (label, path.name):
                return path
        raise DeviceError(f"there is no GPIO chip with the label {self.chip!r}; {_present()}")


def _chips() -> Iterator[tuple[Path, str]]:
    for path in sorted(Path("/dev").glob("gpiochip*")):
        with suppress(OSError), gpiod.Chip(str(path)) as chip:
            yield path, chip.get_info().label


def _present() -> str:
    there = [f"{path} ({label})" for path, label in _chips()]
    return f"present: {', '.join(there)}" if there else "this machine has no GPIO chips that one may open"


class GpioPower(_OnChip, Power):
    """A relay or transistor at a GPIO line.

    A session does not change the line by beginning, unless ``initial`` says so. What becomes of it at the end is the chip's
    matter: many hold it, some let it go.
    """

    line: int | str = field(metadata={"doc": "number of the line, or its name"})
    active_low: bool = field(default=False, metadata={"doc": "the relay is on when the line's voltage is low"})
    drive: Literal["push-pull", "open-drain", "open-source"] = "push-pull"
    initial: Literal["on", "off", "keep"] = field(default="keep", metadata={"doc": "what a session begins with"})

    def __post_init__(self) -> None:
        initial = None if self.initial == "keep" else self.initial == "on"
        self._line = Line(self.line, "out", self.active_low, None, self.drive, initial)

    def open(self) -> None:
        self._requested = _Requested(self._find_chip(), self._line)

    def close(self) -> None:
        self._requested.request.release()

    @export
    def on(self) -> None:
        self._try(self._requested.set, True)

    @export
    def off(self) -> None:
        self._try(self._requested.set, False)

    @export
    def state(self) -> PowerState:
        return "on" if self._try(self._requested.get) else "off"


class Gpio(_OnChip):
    """Lines of a GPIO chip: buttons, straps, reset lines and lamps of the device under test.

    Without ``lines``, all lines of the chip that have a name and that nobody else uses.
    """

    lines: dict[str, Line] = field(default_factory=dict, metadata={"doc": "the lines, by the names that clients use"})

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for path in machine.glob("/sys/bus/gpio/devices/gpiochip*"):
            chip = f"/dev/{path.rpartition('/')[2]}"
            if machine.exists(chip):
                where = machine.resolve(path).split("/")[-2]
                about = machine.about(path, f"GPIO lines of {where}")
                yield Suggestion("gpio", {"chip": chip}, about, chip, note="name the lines that the device hangs on")

    async def open(self) -> None:
        self._requested: dict[str, _Requested] = {}
        self._watchers: set[trio.MemorySendChannel[tuple[str, bool]]] = set()
        try:
            await trio.to_thread.run_sync(self._request_all)
        except BaseException:
            await self.close()
            raise
        for name, requested in self._requested.items():
            if not requested.output:
                self.nursery.start_soon(self._keep_reading, name, requested)

    def _request_all(self) -> None:
        chip = self._find_chip()
        for name, line in (self.lines or self._named(chip)).items():
            self._requested[name] = _Requested(chip, line)

    def _named(self, chip: Path) -> dict[str, Line]:
        with _told(chip), gpiod.Chip(str(chip)) as opened:
            infos = [opened.get_line_info(number) for number in range(opened.get_info().num_lines)]
        return {info.name: Line(info.offset) for info in infos if info.name and not info.used}

    async def close(self) -> None:
        for requested in self._requested.values():
            trio.lowlevel.notify_closing(requested.request.fd)
            requested.request.release()
        await trio.lowlevel.checkpoint()

    @export
    def list(self) -> dict[str, dict[str, Any]]:
        """The lines: their number, direction and value."""
        return {
            name: {
                "line": requested.line.line,
                "direction": "out" if requested.output else "in",
                "value": self._try(requested.get),
            }
            for name, requested in self._requested.items()
        }

    @export
    def get(self, line: str) -> bool:
        """Whether a line is on."""
        return self._try(self._known(line).get)

    @export
    def set(self, line: str, value: bool) -> None:
        """Set an output."""
        self._try(self._writable(line).set, value)

    @export
    async def pulse(self, line: str, seconds: float = 0.1) -> None:
        """Set an output on for a time, then off: presses a button. Given up, it is off, too."""
        if not 0 < seconds < 3600:
            raise BadValue(f"seconds must be more than 0 and less than an hour, not {seconds:g}")
        requested = self._writable(line)
        try:
            await trio.to_thread.run_sync(self._try, requested.set, True)
            await trio.sleep(seconds)
        finally:
            self._try(requested.set, False)

    @export
    async def watch(self, line: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """Each change of an input, or of all of them: the line, and whether it is on now."""
        if line is not None and self._known(line).output:
            raise BadValue(f"line {line!r} is an output: it changes when it is set")
        send, receive = trio.open_memory_channel[tuple[str, bool]](_UNREAD)
        self._watchers.add(send)
        try:
            async for name, on in receive:
                if line in (None, name):
                    yield {"line": name, "value": on}
            raise DeviceError(f"more than {_UNREAD} changes were not read")
        finally:
            self._watchers.discard(send)

    async def _keep_reading(self, name: str, requested: _Requested) -> None:
        descriptor = requested.request.fd
        while not requested.output:
            try:
                await trio.lowlevel.wait_readable(descriptor)
                events = requested.request.read_edge_events()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                self.lost(f"GPIO line {requested.line.line} of {self.chip}: {_explain(error)}")
                return
            for event in events:
                self._tell(name, event.event_type is gpiod.EdgeEvent.Type.RISING_EDGE)

    def _tell(self, name: str, on: bool) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait((name, on))
            except trio.WouldBlock:
                self._watchers.discard(watcher)
                watcher.close()

    def _known(self, line: str) -> _Requested:
        if line not in self._requested:
            raise BadValue(f"there is no line {line!r}{did_you_mean(line, self._requested)}")
        return self._requested[line]

    def _writable(self, line: str) -> _Requested:
        requested = self._known(line)
        if requested.line.direction == "in":
            raise BadValue(f"line {line!r} is an input: its configuration says so")
        return requested
