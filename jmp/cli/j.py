"""``j DRIVER VERB``: the client inside a session. It takes the shortest way there: no Trio, no typer, no configuration."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from jmp.cli import guarded, keep_imported
from jmp.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        gc.disable()  # until all is imported
    return guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    from jmp.environment import LEASE, session_url

    name, arguments = _device(arguments)
    url = session_url(device=name)
    if url is not None:
        return _execute(url, arguments)
    if lease := os.environ.get(LEASE):
        from jmp.client.local import session_process

        with session_process("--lease", lease) as own:
            return _execute(session_url(own.environment, device=name) or own.url, arguments)
    raise UsageError(
        "j works inside a session: start one with jmp shell, as in jmp shell --exporter NAME -- j power on;"
        f" or name a lease in {LEASE}"
    )


def _device(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Which of several devices is meant (``--device NAME``), and what is left."""
    match arguments:
        case ["--device", name, *rest]:
            return name, rest
        case ["--device"]:
            raise UsageError("--device needs the name of a device: j --device NAME DRIVER VERB")
        case [first, *rest] if first.startswith("--device="):
            return first.partition("=")[2], rest
    return None, arguments


def _execute(url: str, arguments: list[str]) -> int:
    from jmp.cli.verbs import execute
    from jmp.client.connect import Dial, open_blocking

    if not gc.isenabled():
        keep_imported()
    with open_blocking(Dial(url)) as device:
        return execute(device._wrapped, arguments)
