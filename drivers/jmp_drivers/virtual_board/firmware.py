"""The boot loader: a banner, a countdown that any key stops, a small prompt, and the look at the card."""

from __future__ import annotations

from jmp_drivers.virtual_board.image import SECTOR, parse
from jmp_drivers.virtual_board.program import Interrupted, Program, ReadCard, ReadKey, ReadLine, State
from jmp_drivers.virtual_board.system import BOOTARGS, MEMORY_KIB, System

VERSION = "Virtual Boot 2026.01 (jmp virtual board)"
COUNTDOWN = 2
SHARE = 0.5
"""The countdown's share of the boot time."""

_HELP = """\
boot     - load the image from the card and start it
help     - list the commands
printenv - show the environment: printenv [name]
reset    - restart the board
setenv   - set a variable, or delete it: setenv name [value]
version  - show the firmware's version
"""


def _environment() -> dict[str, str]:
    return {
        "baudrate": "115200",
        "board": "virtual",
        "bootargs": BOOTARGS,
        "bootcmd": "boot",
        "bootdelay": str(COUNTDOWN),
    }


def firmware(system: System) -> Program[State]:
    """From power-on or reset to the kernel, or to the prompt if a key was pressed or the card holds no image."""
    system.environment = _environment()
    yield (
        f"\n{VERSION}\n\nModel: jmp virtual board\nDRAM:  {MEMORY_KIB // 1024} MiB\n"
        f"MMC:   mmc@0: {system.card_size // 2**20} MiB\nNet:   eth0: ethernet@9010000\n"
        f"Hit any key to stop autoboot: {COUNTDOWN:2} "
    ).encode()
    for left in reversed(range(COUNTDOWN)):
        if (yield ReadKey(system.boot_time * SHARE / COUNTDOWN)):
            yield b"\n"
            return State.PROMPT
        yield f"\b\b\b{left:2} ".encode()
    yield b"\n"
    return (yield from _load(system))


def _load(system: System) -> Program[State]:
    yield b"Loading image from mmc@0 ...\n"
    sector: bytes = yield ReadCard(0, SECTOR)
    if not sector:
        yield b"MMC: no card, dropping to boot prompt\n"
        return State.PROMPT
    image = parse(sector)
    if image is None:
        yield b"Bad image, dropping to boot prompt\n"
        return State.PROMPT
    system.image = image
    yield f"Image: {image.name} {image.version}\nStarting kernel ...\n\n".encode()
    return State.KERNEL


def prompt(system: System) -> Program[State]:
    """The boot prompt, until ``boot`` or ``reset``."""
    while True:
        try:
            yield b"=> "
            line: str | None = yield ReadLine()
            for command in (line or "").split(";"):
                state = yield from _command(system, command.split())
                if state is not State.PROMPT:
                    return state
        except Interrupted:
            yield b"<INTERRUPT>\n"


def _command(system: System, words: list[str]) -> Program[State]:
    environment = system.environment
    match words:
        case []:
            pass
        case ["boot"]:
            return (yield from _load(system))
        case ["reset"]:
            yield b"resetting ...\n"
            return State.FIRMWARE
        case ["help"]:
            yield _HELP.encode()
        case ["version"]:
            yield f"{VERSION}\n".encode()
        case ["printenv"]:
            yield "".join(f"{name}={value}\n" for name, value in sorted(environment.items())).encode()
        case ["printenv", name] if name in environment:
            yield f"{name}={environment[name]}\n".encode()
        case ["printenv", name]:
            yield f'## Error: "{name}" not defined\n'.encode()
        case ["setenv", name]:
            environment.pop(name, None)
        case ["setenv", name, *values] if name in environment or len(environment) < 100:
            environment[name] = " ".join(values)
        case ["setenv", _, *_]:
            yield b"## Error: environment full\n"
        case [name, *_] if name in ("boot", "reset", "help", "version", "printenv", "setenv"):
            yield f"Usage: see 'help' for '{name}'\n".encode()
        case [name, *_]:
            yield f"Unknown command '{name}' - try 'help'\n".encode()
    return State.PROMPT
