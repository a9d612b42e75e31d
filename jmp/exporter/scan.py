"""An exporter's configuration from what is plugged in: drivers suggest themselves, nothing here knows any of them."""

from __future__ import annotations

import ctypes
import os
import select
import socket
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import trio

from jmp.driver.driver import Driver
from jmp.driver.machine import Machine, Service, Suggestion
from jmp.errors import LabError

_KOBJECT_UEVENT: Final = 15  # linux/netlink.h
_KERNEL, _UDEV = 1, 2  # groups: news of the kernel, and the same once udev has dealt with it
_IN_CHANGES: Final = 0x3C0  # linux/inotify.h: created, deleted, moved from and to
_WATCHED: Final = ("/dev", "/dev/*/", "/dev/*/by-*/", "/sys/class/", "/sys/class/*/", "/sys/bus/*/devices/")
_BUSY: Final = ("/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd")
"""Folders that change all the time and hold no device."""


@dataclass(frozen=True)
class Found:
    """What a driver is suggested for, by the name that it would have in the tree."""

    type: str
    name: str
    suggestion: Suggestion

    @property
    def key(self) -> tuple[str, str]:
        """The same as long as it is plugged in."""
        return self.type, self.suggestion.device

    def entry(self) -> dict[str, Any]:
        """Its entry in a configuration."""
        config = {"config": self.suggestion.config} if self.suggestion.config else {}
        return {self.name: {"type": self.type, **config}}

    def comment(self) -> list[str]:
        """What a person should know of it."""
        device = self.suggestion.device
        known = device in self.suggestion.about or device in map(str, self.suggestion.config.values())
        about = self.suggestion.about if known else f"{self.suggestion.about}: {device}"
        return [about, *filter(None, [self.suggestion.note])]

    def record(self) -> dict[str, Any]:
        """All of it, as listings print it."""
        given = self.suggestion
        return {
            "name": self.name,
            "type": self.type,
            "device": given.device,
            "what": given.about,
            "note": given.note,
            "config": given.config,
        }


def scan(
    machine: Machine,
    drivers: Mapping[str, type[Driver]],
    *,
    services: Iterable[Service] = (),
    reserved: Collection[str] = (),
    failed: Callable[[str, Exception], None],
) -> list[Found]:
    """What the drivers suggest, in the order of their types. ``failed`` is told of a driver that cannot look.

    ``services`` are those that devices in the network tell of.
    """
    found: list[Found] = []
    taken = set(reserved)
    for type_, driver in sorted(drivers.items()):
        try:
            # One that is made of another has a configuration of its own, so it speaks for itself or not at all.
            suggestions = list(driver.suggest(machine)) if "suggest" in vars(driver) else []
            if "recognise" in vars(driver):
                for service in services:
                    suggestions += driver.recognise(service) if service.type in driver.services else []
        except Exception as error:  # noqa: BLE001  # a driver's root: others are asked all the same
            failed(type_, error)
            continue
        for suggestion in suggestions:
            name = next(name for name in _names(suggestion.name) if name not in taken)
            taken.add(name)
            found.append(Found(type_, name, suggestion))
    return found


def _names(wanted: str) -> Iterator[str]:
    yield wanted
    yield from (f"{wanted}-{number}" for number in count(2))


def proposal(found: Iterable[Found], name: str) -> str:
    """A configuration with all that was found, as text with comments; ``jmp exporter check`` has nothing to say to it."""
    return (
        f"# Proposed by jmp scan: keep what belongs to the device and give it names of your own.\n"
        f"apiVersion: jmp/v1\nkind: Exporter\nmetadata:\n  name: {name}\nexport:\n" + "".join(map(entry_text, found))
    )


def entry_text(found: Found) -> str:
    """One entry of it, with the comment above it."""
    import yaml

    text: str = yaml.safe_dump(found.entry(), sort_keys=False, allow_unicode=True, default_flow_style=False)
    lines = [f"# {' '.join(line.split())}" for line in found.comment()] + text.splitlines()
    return "".join(f"  {line}\n" for line in lines)


# ---- what changes


def differences(before: Iterable[Found], now: Iterable[Found]) -> tuple[list[Found], list[Found]]:
    """What has gone and what has come."""
    old, new = {each.key: each for each in before}, {each.key: each for each in now}
    gone = [each for key, each in old.items() if key not in new]
    return gone, [each for key, each in new.items() if key not in old]


async def changes(machine: Machine) -> AsyncGenerator[None]:
    """An item each time that something may have been plugged in or out, and one at the beginning: nothing is missed from then on.

    On a machine with udev that is when udev has done its part, so that links such as those in ``/dev/serial/by-id`` are
    there. Elsewhere the kernel's news and the folders of devices are watched. Raises ``LabError`` if they cannot be.
    """
    with ExitStack() as stack:
        own = str(machine.root) == "/"
        udev = own and machine.exists("/run/udev/control")
        descriptors = [stack.enter_context(_news(_UDEV if udev else _KERNEL)).fileno()] if own else []
        inotify = None if udev else stack.enter_context(_inotify())
        if inotify is not None:
            descriptors.append(inotify)
        either = stack.enter_context(select.epoll())  # readable when one of them is
        for descriptor in descriptors:
            either.register(descriptor, select.EPOLLIN)
        while True:
            if inotify is not None:
                _watch(inotify, machine)  # folders come, too
            yield
            await trio.lowlevel.wait_readable(either.fileno())
            for descriptor, _ in either.poll(0):
                _drain(descriptor)


def _news(group: int) -> socket.socket:
    """A socket on which the kernel, or udev, tells of devices."""
    news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _KOBJECT_UEVENT)
    try:
        news.bind((0, group))
    except OSError as error:
        news.close()
        raise LabError(f"the kernel does not tell what is plugged in: {error.strerror}") from error
    return news


@contextmanager
def _inotify() -> Iterator[int]:
    descriptor: int = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise LabError(f"folders of devices cannot be watched: {os.strerror(ctypes.get_errno())}")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _watch(inotify: int, machine: Machine) -> None:
    """Watch the folders that there are now; those that are watched already stay so."""
    libc = ctypes.CDLL(None, use_errno=True)
    for folder in {found for pattern in _WATCHED for found in machine.glob(pattern)} - set(_BUSY):
        libc.inotify_add_watch(inotify, os.fsencode(machine.place(folder)), _IN_CHANGES)


def _drain(descriptor: int) -> None:
    """Read all that is there. What it says does not matter: the machine is looked at again."""
    try:
        while os.read(descriptor, 65536):
            pass
    except BlockingIOError:
        pass
    except OSError:  # ENOBUFS: there was more than the kernel kept
        pass
