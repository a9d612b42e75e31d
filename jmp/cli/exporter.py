"""``jmp exporter``: offer a device."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated

import trio
import typer

from jmp.cli import output
from jmp.cli.given import load
from jmp.cli.places import default_socket, state_directory
from jmp.cli.serving import LogFormat, LogLevel, check_address, log_to_stderr, tls_of, until_told
from jmp.cli.typed import Output, new_app
from jmp.client.connect import RESERVED
from jmp.driver.plugins import driver_class
from jmp.errors import ConfigError, UsageError
from jmp.exporter import config as configuration
from jmp.exporter.config import ExporterConfig
from jmp.private import read_secret, write_private

app = new_app("Offer a device to its users.")
run_app = new_app("Offer a device: the same as jmp exporter serve.")

Name = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A configuration's name (jmp exporter list) or its file.")
]


@app.command()
def serve(
    exporter: Name,
    listen: Annotated[
        list[str] | None,
        typer.Option(metavar="unix:PATH|HOST:PORT", help="Where to listen; may be repeated. Port 0: one that is free."),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File with the passphrase for network listeners (or JMP_PASSPHRASE)."),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Certificate for network listeners; by default a self-signed one."),
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Network listeners without TLS and passphrase: tests only.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the first session has ended.")] = False,
    announce: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST[:PORT]", help="In a lab: where clients reach the listener, if not at its address."),
    ] = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Offer a device until stopped, to one user at a time.

    An exporter that has joined a lab (jmp config exporter create) serves those who have leased it there; with
    --listen unix:PATH it serves this machine's users instead.

    TERM or INT end the running session in order: the user is told, hooks run, drivers close. Exit status 0.
    """
    log_to_stderr(log_level, log_format)
    config = load(exporter)
    for address in listen or ():
        check_address("--listen", address)
    if not any(address.startswith("unix:") for address in listen or config.addresses):
        from jmp.cli.join import lab_of, serve_in_lab

        if (lab := lab_of(config)) is not None:
            addresses = listen or config.addresses
            trio.run(serve_in_lab, config, lab, addresses, tls_cert, tls_key, announce or [])
            return
    addresses = listen or config.addresses or [f"unix:{default_socket(config.metadata.name)}"]
    trio.run(_serve, config, addresses, passphrase_file, tls_cert, tls_key, insecure, once)


@run_app.command()
def run(
    exporter: Annotated[
        str | None, typer.Option(metavar="NAME", help="The exporter's name (jmp exporter list).")
    ] = None,
    exporter_config: Annotated[Path | None, typer.Option(metavar="FILE", help="Its configuration file.")] = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Offer a device until stopped: jmp exporter serve, which has more options, under the name that others give it."""
    if (exporter is None) == (exporter_config is None):
        raise UsageError("jmp run needs one of --exporter NAME and --exporter-config FILE")
    # A file is a file, also without a slash in its name.
    serve(
        str(exporter_config.absolute()) if exporter_config is not None else exporter or "",
        log_level=log_level,
        log_format=log_format,
    )


async def _serve(
    config: ExporterConfig,
    addresses: list[str],
    passphrase_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    insecure: bool,
    once: bool,
) -> None:
    from jmp.exporter.serve import address_of, notify, serve_exporter
    from jmp.exporter.serve import listen as open_listeners

    local: list[trio.SocketListener] = []
    remote: list[trio.SocketListener] = []
    for address in addresses:
        (local if address.startswith("unix:") else remote).extend(await open_listeners(address))
    paths = [Path(address_of(listener).removeprefix("unix:")) for listener in local]
    name = config.metadata.name
    passphrase, tls, how = None, None, ""
    if remote and not insecure:
        passphrase, source = _passphrase(name, passphrase_file)
        tls, fingerprint = tls_of(name, tls_cert, tls_key)
        how = f" --passphrase-file {source}" + (f" --fingerprint {fingerprint}" if fingerprint else "")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_told, nursery.cancel_scope)

        async def run(task_status: trio.TaskStatus[object]) -> None:
            await serve_exporter(
                config, local, remote, passphrase=passphrase, tls=tls, once=once, task_status=task_status
            )
            nursery.cancel_scope.cancel()

        await nursery.start(run)
        output.note(f"exporter {name} is ready. Use it:")
        for listener in local:
            output.note(f"  jmp shell --connect {address_of(listener)}")
        for listener in remote:
            scheme = "ws" if insecure else "wss"
            output.note(f"  jmp shell --connect {scheme}://{address_of(listener)}{how}")
    notify("STOPPING=1")
    for path in paths:
        path.unlink(missing_ok=True)  # a moment, and nothing else is running any more


def _passphrase(name: str, file: Path | None) -> tuple[str, Path | str]:
    """The passphrase and where it is: given, or made once and kept."""
    if file is not None:
        return read_secret(file, "passphrase"), "FILE" if str(file) == "-" else file
    if from_environment := os.environ.get("JMP_PASSPHRASE"):
        return from_environment, "FILE"
    file = state_directory(name) / "passphrase"
    if not file.exists():
        write_private(file, f"{secrets.token_urlsafe(24)}\n".encode())
    return read_secret(file, "passphrase"), file


@app.command()
def check(exporter: Name, form: Output = "table") -> int:
    """Check a configuration without opening any device: every problem, with its line and the nearest known key.

    Exit status 78 if there are problems.
    """
    path = configuration.name_or_path(exporter)
    problems = configuration.check(path, driver_class, reserved=RESERVED)
    if form in ("json", "yaml"):
        found = [
            {"file": str(item.file), "line": item.line, "where": item.where, "message": item.message}
            for item in problems
        ]
        output.print_value(found, form)
    elif not problems:
        sys.stdout.write(f"{path}: fine\n")
    else:
        for problem in problems:
            output.note(str(problem))
    return ConfigError.exit_code if problems else 0


@app.command("list")
def list_exporters(form: Output = "table") -> None:
    """List the exporters that are configured on this machine, and which of them are being served."""
    rows = []
    for name, path in sorted(configuration.list_configs().items()):
        state = "serving" if default_socket(name).is_socket() else "configured"
        rows.append({"name": name, "state": state, "file": str(path)})
    empty = "no exporter is configured here; begin with: jmp exporter example virtual-board"
    output.print_listing(rows, form, ("name", "state", "file"), key="name", empty=empty)


@app.command()
def example(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which one to print; without it, they are listed.")
    ] = None,
) -> None:
    """Print a commented example configuration, to begin with."""
    from jmp.exporter import examples

    if name is not None:
        sys.stdout.write(examples.text(name))
        return
    rows = [(item, examples.summary(item)) for item in examples.names()]
    output.print_table(("name", "what"), rows, empty="there are no examples in this build")
    if output.is_terminal():
        output.note("\njmp exporter example NAME prints one")
