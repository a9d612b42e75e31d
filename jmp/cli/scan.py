"""``jmp scan``: what is plugged in, as an exporter's configuration."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import trio
import typer

from jmp.cli import output
from jmp.cli.typed import new_app
from jmp.client.connect import RESERVED
from jmp.driver.driver import Driver
from jmp.driver.machine import Machine, Service
from jmp.driver.plugins import driver_class, driver_names
from jmp.errors import ConfigError, DeviceError, JmpError, UsageError
from jmp.exporter import scan as scanning
from jmp.exporter.scan import Found

_SECONDS = 3.0  # in which devices in the network have to answer: most take a tenth of one, those that sleep take one
Form = Literal["yaml", "json", "table", "name"]

app = new_app("Propose an exporter's configuration from what is plugged in.")


@app.command()
def scan(
    watch: Annotated[bool, typer.Option("--watch", help="Tell what appears and what goes, until interrupted.")] = False,
    network: Annotated[
        bool,
        typer.Option("--network", help="Ask in this machine's networks, too, what is there (mDNS, for 3 seconds)."),
    ] = False,
    name: Annotated[str, typer.Option(metavar="NAME", help="The exporter's name; by default the machine's.")] = "",
    root: Annotated[
        Path, typer.Option(metavar="DIR", help="Look at the /dev and /sys below DIR: of a container's host, say.")
    ] = Path("/"),
    form: Annotated[
        Form,
        typer.Option("-o", "--output", metavar="FORMAT", help="yaml (the configuration), table, json or name."),
    ] = "yaml",
) -> None:
    """Propose an exporter's configuration from what is plugged in: each driver that knows something there suggests itself.

    Nothing is opened or changed, and nothing is sent to a network unless --network is given.
    To see what a cable or stick is called, start jmp scan --watch and plug it in.
    Exit status 74 if nothing is found.
    """
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(f"--name {name!r} is not made of letters, digits, '.', '_' and '-'")
    if not root.is_dir():
        raise UsageError(f"--root {root}: there is no such folder")
    machine, drivers = Machine(root), _drivers()
    if watch and network:
        raise UsageError("--watch looks at this machine alone: give --network without it")
    if watch:
        trio.run(_watch, machine, drivers, form)
        return
    found = _look(machine, drivers, _ask(drivers) if network else [])
    if form == "json" or (found and form != "yaml"):
        columns = ("name", "type", "device", "what")
        output.print_listing([each.record() for each in found], form, columns, key="name", empty="")
    elif found:
        sys.stdout.write(scanning.proposal(found, name or _own_name()))
    if not found:
        where = "nothing is plugged in, or told of in the network," if network else "nothing is plugged in"
        raise DeviceError(f"{where} that an installed driver recognises (jmp driver list)")


def _drivers() -> dict[str, type[Driver]]:
    """All drivers that can be loaded. One that cannot says so only if it is not for want of an extra."""
    drivers = {}
    for name in driver_names():
        try:
            drivers[name] = driver_class(name)
        except ConfigError as error:
            if not isinstance(error.__cause__, ImportError):
                output.note(f"jmp: {error.message}")
    return drivers


def _look(machine: Machine, drivers: dict[str, type[Driver]], services: Sequence[Service] = ()) -> list[Found]:
    return scanning.scan(machine, drivers, services=services, reserved=RESERVED, failed=_failed)


def _ask(drivers: dict[str, type[Driver]]) -> list[Service]:
    from jmp.exporter.mdns import discover

    types = {type_ for driver in drivers.values() if "recognise" in vars(driver) for type_ in driver.services}
    return trio.run(discover, types, _SECONDS)


def _failed(driver: str, error: Exception) -> None:
    why = error.message if isinstance(error, JmpError) else f"{type(error).__name__}: {error}"
    output.note(f"jmp: driver {driver} cannot look for its devices: {' '.join(why.split())}")


def _own_name() -> str:
    """The machine's name, as an exporter may be called."""
    return re.sub(r"[^A-Za-z0-9._-]", "", platform.node().partition(".")[0]).lstrip("._-") or "bench"


async def _watch(machine: Machine, drivers: dict[str, type[Driver]], form: Form) -> None:
    known: list[Found] | None = None
    look = partial(_look, machine, drivers)
    async with aclosing(scanning.changes(machine)) as changes:
        async for _ in changes:
            now = await trio.to_thread.run_sync(look)
            if known is None:
                known = now
                there = ", ".join(each.suggestion.device for each in now)
                output.note(f"watching; there is already: {there or 'nothing'}")
            gone, come = scanning.differences(known, now)
            for event, each in [("gone", each) for each in gone] + [("appeared", each) for each in come]:
                _tell(event, each, form)
            known = now


def _tell(event: str, found: Found, form: Form) -> None:
    if form == "json":
        sys.stdout.write(json.dumps({"event": event, **output.plain(found.record())}) + "\n")
    elif form in ("table", "name"):
        about = (found.type, found.suggestion.device, found.suggestion.about)
        sys.stdout.write("\t".join((event, found.name, *(about if form == "table" else ()))) + "\n")
    else:
        sys.stdout.write(f"# {event}: {found.suggestion.device}\n")
        if event == "appeared":
            sys.stdout.write(scanning.entry_text(found))
    sys.stdout.flush()
