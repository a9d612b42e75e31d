"""``jmp forward``: ports of a device as ports of this machine, for as long as the command runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from jmp.cli import output
from jmp.cli.typed import new_app
from jmp.cli.verbs import Target, hold, locate
from jmp.client.connect import connect
from jmp.driver.proxy import DriverClient
from jmp.errors import NotFound, UsageError

app = new_app("Ports of a device as ports of this machine.")


@app.command()
def forward(
    ports: Annotated[
        list[str], typer.Argument(metavar="DRIVER[=LISTEN]...", help="What to forward, and where to listen for it.")
    ],
    exporter: Annotated[
        str | None, typer.Option(metavar="NAME", help="An exporter configured on this machine, or its file.")
    ] = None,
    exporter_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An exporter's configuration file.")
    ] = None,
    selector: Annotated[
        str | None, typer.Option("-l", "--selector", metavar="SELECTOR", help="Lease a device with these labels.")
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="EXPORTER", help="Lease this one.")] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="ID", help="Use a lease that there is; it is kept afterwards.")
    ] = None,
    duration: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long to lease for.")] = "1h",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of several devices, of the session or the lease.")
    ] = None,
) -> None:
    """Forward ports of a device to this machine, until Ctrl-C or the end of the session.

    LISTEN is PORT, HOST:PORT or unix:PATH; without it, a free port of 127.0.0.1. Any network port will do, UDP too:
    jmp forward --lease ID ssh=2222 board.web=8080 docker=unix:docker.sock

    Which device, an option says; without one, the session that the command runs in, or the lease in JMP_LEASE.
    """
    place = exporter_config or exporter
    with connect(
        exporter=place, selector=selector, name=name, lease=lease, duration=duration, device=device
    ) as connected:
        hold(_Several(connected._wrapped, [each.partition("=")[::2] for each in ports]))


class _Several:
    """Forwards, by driver and where to listen, as one."""

    def __init__(self, device: DriverClient, ports: Sequence[tuple[str, str]]) -> None:
        self._stack = ExitStack()
        self._forwards: list[tuple[str, Any]] = []
        for path, listen in ports:
            target, rest = locate(Target("", device), [path])
            if rest:
                raise NotFound(f"there is no driver {path!r}; j --help lists them")
            make = getattr(type(target.client), "forward", None)
            if make is None:
                raise UsageError(f"{path} is no network port; it has {', '.join(target.verbs()) or 'no verbs'}")
            self._forwards.append((path, target.client.forward(*([listen] if listen else []))))

    def __enter__(self) -> str:
        lines = []
        with ExitStack() as stack:
            for path, each in self._forwards:
                bound = stack.enter_context(each)
                lines.append(f"{path}: {each.describe(bound)}" if output.is_terminal() else f"{path}\t{bound}")
            self._stack = stack.pop_all()
        return "\n".join(lines)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def describe(self, text: str) -> str:
        return text

    def wait(self) -> None:
        """Until the session is over."""
        self._forwards[0][1].wait()
