"""What the commands of all servers share: options, the log, where to listen, the certificate, and how they end."""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from pathlib import Path
from typing import Annotated

import trio
import typer

from jmp import logs
from jmp.cli.places import state_directory
from jmp.errors import UsageError
from jmp.exporter.config import address_problem

LogLevel = Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")]
LogFormat = Annotated[str, typer.Option(metavar="FORMAT", help="text or json: lines for people, or an object a line.")]


def log_to_stderr(level: str, form: str) -> None:
    """Where a server's log goes."""
    if level not in logs.LEVELS:
        raise UsageError(f"--log-level takes one of {', '.join(logs.LEVELS)}, not {level!r}")
    if form not in logs.FORMATS:
        raise UsageError(f"--log-format takes one of {', '.join(logs.FORMATS)}, not {form!r}")
    logs.log_to_stderr(level, form)


def check_address(option: str, address: str, *, network: bool = False) -> None:
    """Raise ``UsageError`` if one cannot listen there; ``network``: if others could not come in over the network."""
    if problem := address_problem(address):
        raise UsageError(f"{option} {problem}" if not network else f"{option} {address!r} is not HOST:PORT")
    if network and address.startswith("unix:"):
        raise UsageError(f"{option} {address}: HOST:PORT is needed, as others come over the network")


def tls_of(name: str, cert: Path | None, key: Path | None) -> tuple[ssl.SSLContext, str | None]:
    """The context for listening, and the fingerprint by which clients know a self-signed certificate."""
    from jmp.link.tls import self_signed, server_context

    if (cert is None) != (key is None):
        raise UsageError("--tls-cert and --tls-key belong together: give both or none")
    if cert is not None and key is not None:
        return server_context(cert, key), None
    pem = state_directory(name) / "tls.pem"
    fingerprint = self_signed(pem, f"exporter {name}")
    return server_context(pem), fingerprint


async def until_told(scope: trio.CancelScope) -> None:
    """Cancel ``scope`` when this process is told to end."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            logging.getLogger("jmp").info("stopping: %s", signal.Signals(number).name)
            scope.cancel()
            return


def own_names() -> list[str]:
    """Names and addresses of this machine, the one to tell others first."""
    name = socket.getfqdn()
    found = [name if name != "localhost" else socket.gethostname(), socket.gethostname()]
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; tells by which address others are reached
            found.append(probe.getsockname()[0])
    except OSError:
        logging.getLogger("jmp").debug("this machine has no route to other networks")
    return list(dict.fromkeys(found))
