"""What is plugged into a machine, as ``/dev`` and ``/sys`` tell it: where drivers look that suggest themselves.

A driver that recognises its device there overrides :meth:`jmp.driver.Driver.suggest`; ``jmp scan`` asks all that are installed.
One whose devices tell of themselves in the network has ``services`` and :meth:`jmp.driver.Driver.recognise`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from glob import glob
from pathlib import Path


@dataclass(frozen=True)
class Suggestion:
    """An entry for an exporter's configuration: the driver that makes it, for one thing that is plugged in."""

    name: str
    """Its name in the tree, such as ``console``; it is numbered if several want the same one."""
    config: dict[str, object]
    """The driver's configuration; it must pass ``jmp exporter check`` as it is."""
    about: str
    """What it is, for people: maker, model, serial number."""
    device: str
    """What the thing is called while it is plugged in: ``/dev/ttyUSB0``, ``can0``."""
    note: str = ""
    """What a person has to know or decide before it is used."""


@dataclass(frozen=True)
class Service:
    """What a device in the network tells of itself by DNS-SD: ``jmp scan --network`` has asked for it."""

    type: str
    """Such as ``_ssh._tcp``."""
    name: str
    """The device's, as people see it."""
    host: str
    """Its name in the network, as in ``shelly1.local``."""
    address: str
    port: int
    properties: dict[str, str]
    """What else it tells, by keys in small letters."""

    def at(self, usual: int) -> str:
        """Its address, with the port unless that is the usual one."""
        return self.address if self.port == usual else f"{self.address}:{self.port}"

    def about(self, what: str) -> str:
        """What it is, for people: ``what``, and its own names."""
        return f"{what} {self.name!r} ({self.host})"


@dataclass(frozen=True)
class UsbDevice:
    """A USB device, as it describes itself."""

    vendor_id: str
    product_id: str
    manufacturer: str = ""
    product: str = ""
    serial: str = ""
    port: str = ""
    """Where it is plugged in: bus, then the port of each hub, as in ``1-1.2``."""

    def __str__(self) -> str:
        named = " ".join(filter(None, (self.manufacturer, self.product))) or "USB device"
        serial = f", serial number {self.serial}" if self.serial else ""
        return f"{named} ({self.vendor_id}:{self.product_id}){serial}, USB port {self.port}"


@dataclass(frozen=True)
class Machine:
    """The machine's ``/dev`` and ``/sys``, or those of another below ``root``. All paths are as that machine names them."""

    root: Path = Path("/")

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.realpath(self.root)))

    def place(self, path: str) -> Path:
        """Where ``path`` is as seen from here."""
        return self.root / path.lstrip("/")

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, sorted with numbers in the order of their values; what vanishes meanwhile is left out."""
        found = glob(pattern.lstrip("/"), root_dir=self.root)  # unlike Path.glob, it goes on when a folder has gone
        return sorted({f"/{path.rstrip('/')}" for path in found}, key=_natural)

    def exists(self, path: str) -> bool:
        return self.place(path).exists()

    def text(self, path: str) -> str:
        """What a file says, without spaces at its ends; empty if there is none or it cannot be read."""
        try:
            return self.place(path).read_text(errors="replace").strip("\0 \n\t")
        except OSError:
            return ""

    def resolve(self, path: str) -> str:
        """``path`` with its links followed; itself if they lead out of the root."""
        real = Path(os.path.realpath(self.place(path)))
        return self._named(real) if real.is_relative_to(self.root) else path

    def link_to(self, device: str, links: str) -> str:
        """The link among ``links`` (a pattern) that leads to ``device``, which stays the same when devices are renumbered.

        ``device`` itself if there is none.
        """
        return next((link for link in self.glob(links) if self.resolve(link) == device), device)

    def usb(self, path: str) -> UsbDevice | None:
        """The USB device that what is at ``path`` below ``/sys`` belongs to; None if it hangs off no USB."""
        real = self.resolve(path)
        for place in (real, *map(str, Path(real).parents)):
            if vendor := self.text(f"{place}/idVendor"):
                said = {name: self.text(f"{place}/{name}") for name in ("manufacturer", "product", "serial")}
                return UsbDevice(vendor, self.text(f"{place}/idProduct"), **said, port=os.path.basename(place))
        return None

    def usb_interfaces(self, kind: str) -> list[str]:
        """Where the interfaces of USB devices are that are of a kind: class, subclass and protocol, as in ``fe0102``.

        A shorter one leaves the rest open.
        """
        named = ("bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol")
        return [
            place
            for place in self.glob("/sys/bus/usb/devices/*:*")
            if "".join(self.text(f"{place}/{name}") for name in named).startswith(kind)
        ]

    def about(self, path: str, otherwise: str) -> str:
        """What is at ``path`` below ``/sys``, for people: its USB device, or what its driver is called, or ``otherwise``."""
        if usb := self.usb(path):
            return str(usb)
        driver = os.path.basename(self.resolve(f"{path}/driver")) if self.exists(f"{path}/driver") else ""
        return f"{otherwise} ({driver})" if driver else otherwise

    def _named(self, path: Path) -> str:
        return f"/{path.relative_to(self.root)}"


def _natural(path: str) -> list[tuple[int, str]]:
    return [(int(digits or 0), text) for digits, text in re.findall(r"([0-9]+)|([^0-9]+)", path)]
