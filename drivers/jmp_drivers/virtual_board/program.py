"""What runs on the simulated board: programs, what they may ask for, and the states of the board.

A program is a generator. It yields *effects*, one at a time, and the board answers each when its time has come: so
firmware, kernel, login and shell read like ordinary code, and yet no clock, file or await is in them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


class State(Enum):
    """What the board is doing; :data:`~jmp_drivers.virtual_board.board.TABLE` says what each leads to."""

    OFF = "off"
    FIRMWARE = "firmware"
    PROMPT = "prompt"
    KERNEL = "kernel"
    LOGIN = "login"
    PASSWORD = "password"
    SHELL = "shell"


@dataclass(frozen=True)
class Stderr:
    """Show ``data`` on the console even when the command's output goes into a pipe."""

    data: bytes


@dataclass(frozen=True)
class Sleep:
    """Go on after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class ReadKey:
    """Answered with True as soon as a byte is typed (it is consumed), or with False after ``seconds``."""

    seconds: float


@dataclass(frozen=True)
class ReadLine:
    """Answered with the next line typed (str, without its end), or with None for Ctrl-D on an empty line."""

    echo: bool = True


@dataclass(frozen=True, eq=False)
class ReadCard:
    """Answered with at most ``size`` bytes of the card from ``offset``; fewer only at its end, none if it
    cannot be read. Compared by identity: an answer belongs to one request.
    """

    offset: int
    size: int


Effect: TypeAlias = bytes | Stderr | Sleep | ReadKey | ReadLine | ReadCard
"""Plain bytes are output; the board turns each ``\\n`` into ``\\r\\n`` as a terminal does."""

Program: TypeAlias = Generator[Effect, Any, T]


class Interrupted(Exception):
    """Thrown into a program at its effect when Ctrl-C is typed."""
