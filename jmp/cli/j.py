"""``j DRIVER VERB``: the client inside a session. It takes the shortest way there: no Trio, no typer, no configuration."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jmp.cli import guarded
from jmp.errors import UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: list[str]) -> int:
    from jmp.environment import session_url

    url = session_url()
    if url is None:
        raise UsageError(
            "j works inside a session: start one with jmp shell, as in jmp shell --exporter NAME -- j power on"
        )
    from jmp.cli.verbs import execute
    from jmp.client.connect import Dial, open_blocking

    with open_blocking(Dial(url)) as device:
        return execute(device._wrapped, arguments)
