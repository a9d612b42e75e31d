"""Every error that jmp raises on purpose: one tree, one place.

Each class says whose *fault* it is, the *code* that carries it over the wire, and the *exit code* with which a
command ends because of it. The message of an instance is what the user reads: one line, what is wrong and what to do.
Exit codes follow sysexits.h where it has a word for the case and timeout(1) for time-outs, so that they stay clear of
the codes of the commands that ``jmp shell -- COMMAND`` runs (pytest uses 0 to 5).
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar


class Fault(Enum):
    """Who has to act: decides whether a CI job should retry."""

    CALLER = "caller"
    DRIVER = "driver"
    DEVICE = "device"
    LAB = "lab"


class JmpError(Exception):
    """Something went wrong in jmp itself; please report it."""

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 70
    fault: ClassVar[Fault] = Fault.LAB

    def __init__(self, message: str, *, remote_traceback: str | None = None) -> None:
        super().__init__(message)
        self.remote_traceback = remote_traceback

    @property
    def message(self) -> str:
        return str(self.args[0])


class UsageError(JmpError):
    """The command line or a call's arguments are wrong; the message names what was expected."""

    code = "usage"
    exit_code = 64
    fault = Fault.CALLER


class NotFound(UsageError):
    """What was named does not exist: a driver, a method, an exporter, a lease."""

    code = "not-found"


class BadValue(UsageError):
    """A value cannot be carried over the wire, or does not fit the type that was asked for."""

    code = "bad-value"


class ConfigError(JmpError):
    """A configuration file is wrong; the message names the file, the place in it and the nearest known key."""

    code = "config"
    exit_code = 78
    fault = Fault.CALLER


class Refused(JmpError):
    """Not allowed: no or wrong credentials, or no right to do this."""

    code = "refused"
    exit_code = 77
    fault = Fault.CALLER


class Busy(JmpError):
    """Somebody else holds it now; try again later."""

    code = "busy"
    exit_code = 75
    fault = Fault.LAB


class LabError(JmpError):
    """The lab failed: an exporter or server is unreachable or gone. Worth a retry."""

    code = "lab"
    exit_code = 69
    fault = Fault.LAB


class LinkLost(LabError):
    """The connection broke while it was in use."""

    code = "link-lost"


class Conflict(LabError):
    """Somebody else changed the same thing in the meantime, so nothing was changed."""

    code = "conflict"


class ProtocolViolation(LabError):
    """The other side broke the protocol: another program or an incompatible version is at work there."""

    code = "protocol"
    exit_code = 76


class DeviceError(JmpError):
    """The device under test failed: missing, not answering, or it refused the operation."""

    code = "device"
    exit_code = 74
    fault = Fault.DEVICE


class DriverError(JmpError):
    """A driver raised an error that it does not declare: most likely a defect of the driver."""

    code = "driver"
    exit_code = 70
    fault = Fault.DRIVER


class Timeout(JmpError):
    """The time given for an operation ran out."""

    code = "timeout"
    exit_code = 124
    fault = Fault.CALLER


class Cancelled(JmpError):
    """The operation was given up, by its caller or because the session ended."""

    code = "cancelled"
    exit_code = 130
    fault = Fault.CALLER


def _tree(root: type[JmpError]) -> list[type[JmpError]]:
    return [root, *(leaf for branch in root.__subclasses__() for leaf in _tree(branch))]


BY_CODE: dict[str, type[JmpError]] = {error.code: error for error in _tree(JmpError)}
"""Wire code → class. A code that this version does not know is read as :class:`JmpError`."""
