"""Virtual machines under QEMU.

``driver``    the configuration, and what clients call
``vm``        one session's machine: on, off, disk in use
``emulator``  one QEMU process and the wires to it
``machines``  QEMU's command line, and what each architecture gets by default
``disk``      the session's disk; ``nbd`` reads and writes it while the machine is off
``snapshots`` what a session can go back to
``qmp``       QEMU's machine protocol
"""

from __future__ import annotations

from jmp_drivers.qemu.driver import Qemu

__all__ = ["Qemu"]
