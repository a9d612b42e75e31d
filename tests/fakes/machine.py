"""A machine's /dev and /sys as files below a folder, in the shape that the kernel and udev give them."""

from __future__ import annotations

import os
from pathlib import Path


class Files:
    """Puts devices into the machine at ``root``, and takes them away."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("dev", "sys/class/tty", "sys/class/net", "sys/class/block", "sys/bus/usb/devices"):
            (root / folder).mkdir(parents=True)

    def write(self, path: str, text: str = "") -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def link(self, path: str, target: str | Path) -> None:
        """A link, relative as those of the kernel are."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        there = target if Path(target).is_absolute() else os.path.relpath(self.root / target, place.parent)
        place.symlink_to(there)

    def usb(self, port: str, **attributes: str) -> str:
        """A USB device; tells where its first interface is."""
        place = f"sys/devices/pci0000:00/usb1/{port}"
        for name, value in attributes.items():
            self.write(f"{place}/{name}", f"{value}\n")
        (self.root / f"{place}/{port}:1.0").mkdir(parents=True)
        return f"{place}/{port}:1.0"

    def tty(self, name: str, device: str, *, by_id: str = "", node: str | Path = "") -> None:
        """A serial port of the device at ``device``; ``node`` is a real one to link to."""
        (self.root / f"{device}/tty/{name}").mkdir(parents=True)
        self.link(f"sys/class/tty/{name}", f"{device}/tty/{name}")
        self.link(f"{device}/tty/{name}/device", device)
        if node:
            self.link(f"dev/{name}", node)
        else:
            self.write(f"dev/{name}")
        if by_id:  # last, as udev does
            self.link(f"dev/serial/by-id/{by_id}", f"dev/{name}")

    def disk(self, name: str, device: str, *, sectors: int, removable: bool, by_id: str = "") -> None:
        """A disk of the device at ``device``, with one partition."""
        for path in (name, f"{name}/{name}1"):
            self.write(f"{device}/block/{path}/size", f"{sectors}\n")
        self.write(f"{device}/block/{name}/removable", f"{int(removable)}\n")
        self.write(f"{device}/block/{name}/{name}1/partition", "1\n")
        self.link(f"sys/class/block/{name}", f"{device}/block/{name}")
        self.link(f"sys/class/block/{name}1", f"{device}/block/{name}/{name}1")
        self.write(f"dev/{name}")
        self.write(f"dev/{name}1")
        if by_id:
            self.link(f"dev/disk/by-id/{by_id}", f"dev/{name}")
