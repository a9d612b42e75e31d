"""``jmp shell``: a session, from the first driver opened to the last one closed, around a prompt or a command."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import trio
import typer

from jmp.cli import output
from jmp.cli.ending import POLITE, PROMPT, Step, tell
from jmp.cli.places import default_socket
from jmp.cli.typed import new_app
from jmp.client.connect import Dial, open_session, who
from jmp.client.relay import relay
from jmp.environment import import_path, session_directory, session_environment
from jmp.errors import BadValue, Busy, NotFound, UsageError

if TYPE_CHECKING:
    from jmp.cli.leased import Request as LeaseRequest

app = new_app("Use a device.")

DIAL_SECONDS: Final = 20.0
"""How long an exporter may take to answer; a firewall that drops packets never does."""


class Running(NamedTuple):
    """A session that programs on this machine can use."""

    name: str
    motd: str
    url: str
    environment: dict[str, str]


@app.command(
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
def shell(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[-- COMMAND...]", help="Run this instead of a prompt.")
    ] = None,
    exporter: Annotated[
        str | None, typer.Option(metavar="NAME", help="An exporter configured on this machine (jmp exporter list).")
    ] = None,
    exporter_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An exporter's configuration file.")
    ] = None,
    connect: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An exporter that listens: unix:PATH, wss://HOST:PORT, ws://HOST:PORT."),
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            "-l", "--selector", metavar="SELECTOR", help="Lease a device with these labels; repeat for several."
        ),
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="EXPORTER", help="Lease this one; repeat for several.")
    ] = None,
    lease: Annotated[
        str | None, typer.Option(metavar="ID", help="Use a lease that there is (or JMP_LEASE); it is kept afterwards.")
    ] = None,
    duration: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long to lease for.")] = "1h",
    wait: Annotated[
        bool, typer.Option("--wait", help="Queue until the device is free; without it, fail if it is in use.")
    ] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="In a lab: do not queue.")] = False,
    wait_limit: Annotated[
        str | None, typer.Option(metavar="DURATION", help="In a lab: how long to queue at most.")
    ] = None,
    client: Annotated[
        str | None, typer.Option("--client", metavar="NAME", help="Which lab, and as whom (jmp config client list).")
    ] = None,
    passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with the exporter's passphrase (or JMP_PASSPHRASE).")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="HEX", help="SHA-256 fingerprint of the exporter's certificate.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificates (PEM) to trust instead of the system's.")
    ] = None,
) -> int:
    """Use a device: with a prompt, or for one command, whose exit code is returned.

    Which device, an option says; without one, JMP_LEASE, or on a terminal you choose one of your leases.

    Inside, `j DRIVER VERB` uses the device, and so do Python (`jmp.connect()`) and pytest.
    """
    lease = lease or (
        os.environ.get("JMP_LEASE") if not (exporter or exporter_config or connect or selector or name) else None
    )
    chosen = [option for option in (exporter, exporter_config, connect, lease, selector or name or None) if option]
    if client is not None and (exporter or exporter_config or connect):
        raise UsageError("--client says who you are in a lab: it goes with -l, --name and --lease")
    if not chosen and sys.stdin.isatty() and sys.stderr.isatty() and (client is not None or _has_lab()):
        from jmp.cli.lease import pick

        lease = pick(client)
    elif len(chosen) != 1:
        raise UsageError(
            "jmp shell needs one of --exporter NAME, --exporter-config FILE, --connect URL, and in a lab -l SELECTOR,"
            " --name EXPORTER or --lease ID"
            " (to begin: jmp exporter example virtual-board > board.yaml; jmp shell --exporter-config board.yaml)"
        )
    if command:
        _check(command)
    if lease is not None or selector or name:
        wish = lease or _request(selector or [], name or [], duration, no_wait, wait_limit)
        return trio.run(_in_lab, wish, client, command)
    if connect is None and exporter is not None and _is_served(exporter):
        connect = f"unix:{default_socket(exporter)}"
    if connect is None:
        own = str(exporter_config) if exporter_config is not None else exporter or ""
        return trio.run(_with_own_exporter, own, command)
    passphrase = os.environ.get("JMP_PASSPHRASE")
    if passphrase_file is not None:
        from jmp.private import read_secret

        passphrase = read_secret(passphrase_file, "passphrase")
    return trio.run(_over_link, Dial(connect, passphrase, fingerprint, ca, seconds=DIAL_SECONDS), wait, command)


def _check(command: Sequence[str]) -> None:
    """Raise NotFound for what cannot be run, rather than after an hour in the queue."""
    program = command[0]
    if program in ("j", "jmp", "pytest") or "/" in program or shutil.which(program):  # sessions bring these three
        return
    from jmp.wire.duration import parse

    wrong = f"there is no command {program!r} on the path"
    with suppress(BadValue):
        parse(program)
        wrong += f"; --wait takes no duration, but --wait-limit {program} does"
    raise NotFound(wrong)


def _is_served(exporter: str) -> bool:
    return "/" not in exporter and default_socket(exporter).is_socket()


async def _with_own_exporter(exporter: str, command: Sequence[str] | None) -> int:
    """A session of an exporter in this very process."""
    from jmp.cli.given import load
    from jmp.exporter.session import open_session as open_own_session

    try:
        config = load(exporter)
    except NotFound as error:
        raise (NotFound(f"{error.message}; one of a lab is leased by --name") if _has_lab() else error) from None
    _log_to_stderr()

    def show(source: str, data: bytes) -> None:
        sys.stderr.write(f"{source}: ".join(["", *data.decode(errors="replace").splitlines(keepends=True)]))
        sys.stderr.flush()

    async with _until_told() as scope:
        with scope:
            async with open_own_session(config, who(), output=show) as session:
                if command or not sys.stdin.isatty():  # the prompt says it itself
                    _warn_degraded(session.tree.report())
                running = Running(config.metadata.name, config.motd or "", session.url, session.environment())
                return await _use(running, command)
    return 128 + signal.SIGTERM


async def _over_link(dial: Dial, wait: bool, command: Sequence[str] | None) -> int:
    """A session of an exporter that listens somewhere."""
    async with _until_told() as scope:
        with scope:
            try:
                return await _use_link(dial, 0.0, command)
            except Busy as busy:
                if not wait:
                    raise Busy(f"{busy}; --wait queues for it") from None
                output.note(f"jmp: {busy}; waiting …")
            return await _use_link(dial, None, command)
    return 128 + signal.SIGTERM


async def _use_link(dial: Dial, wait: float | None, command: Sequence[str] | None) -> int:
    async with open_session(dial, wait=wait, told=output.LinkStatus()) as (connection, device):
        with session_directory() as directory:
            url = f"unix:{directory / 'session.sock'}"
            async with relay(connection, url):
                name, motd = str(device.info.get("name", "")), str(device.info.get("motd", ""))
                environment = session_environment(directory, url, JMP_EXPORTER=name, JMP_CLIENT=who())
                return await _use(Running(name, motd, url, environment), command)


def _request(
    selectors: Sequence[str], names: Sequence[str], duration: str, no_wait: bool, wait_limit: str | None
) -> LeaseRequest:
    """What to ask a lab for: one device if there is one selector or one name or one of each, else one for each of them."""
    from jmp.cli.leased import Request
    from jmp.wire.duration import parse
    from jmp.wire.records import Want

    wait = 0.0 if no_wait else parse(wait_limit) if wait_limit is not None else None
    if len(selectors) == len(names) == 1:
        wants = [Want(selector=selectors[0], exporter=names[0])]
    else:
        wants = [Want(selector=text) for text in selectors] + [Want(exporter=text) for text in names]
    return Request(wants, parse(duration), {"wait": wait} if wait is not None else {})


def _has_lab() -> bool:
    """Whether this user has said which lab to use."""
    from jmp.client.config import current

    try:
        current()
    except UsageError:
        return False
    return True


async def _in_lab(wish: LeaseRequest | str, client: str | None, command: Sequence[str] | None) -> int:
    """A session with the devices of a lease, as a client whose configuration is named if it is not the one in use."""
    from jmp.cli.leased import check_held, open_tenancy
    from jmp.client.config import CHOICE, current

    async with _until_told() as scope:
        with scope, session_directory() as directory:
            async with open_tenancy(current(name=client), wish, directory) as (tenancy, places):
                first = places[0]
                urls = ",".join(f"{place.exporter}={place.url}" for place in places)
                environment = session_environment(
                    directory,
                    first.url,
                    JMP_EXPORTER=first.exporter,
                    JMP_HOSTS=urls,
                    JMP_LEASE=tenancy.id or "",
                    JMP_CLIENT=who(),
                )
                if client is not None:
                    environment[CHOICE] = client
                motd = "\n".join(str(place.device.info.get("motd") or "").rstrip() for place in places).strip()
                code = await _use(Running(first.exporter, motd, first.url, environment), command)
                if code != 0:  # it may have failed because the lease is over, which its exporter knows first
                    await check_held(places)
                return code
    return 128 + signal.SIGTERM


async def _use(running: Running, command: Sequence[str] | None) -> int:
    if running.motd and sys.stderr.isatty():
        output.note(output.folded(running.motd.rstrip("\n")))
    if command:
        return await run_command(command, running.environment)
    with output.beside_prompt():
        return await run_command(_prompt(), running.environment, PROMPT)


def _prompt() -> list[str]:
    """The program of the prompt, started past everything that would slow it."""
    code = f"import sys; sys.path[:0] = {import_path()!r}; from jmp.cli.repl import main; sys.exit(main())"
    return [sys.executable, "-S", "-E", "-P", "-c", code]


def _warn_degraded(report: dict[str, object], path: str = "") -> None:
    if report.get("state") == "degraded":
        output.note(f"jmp: {path} is degraded: {report.get('reason')}")
    children = report.get("children", {})
    assert isinstance(children, dict)
    for name, child in children.items():
        _warn_degraded(child, f"{path}.{name}" if path else name)


def _log_to_stderr() -> None:
    import logging

    level = logging.DEBUG if os.environ.get("JMP_DEBUG") else logging.CRITICAL
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


@asynccontextmanager
async def _until_told() -> AsyncIterator[trio.CancelScope]:
    """A scope that TERM and HUP cancel; INT is for the command, and for calls of the prompt."""
    scope = trio.CancelScope()

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(watch)
        yield scope
        nursery.cancel_scope.cancel()


async def run_command(command: Sequence[str], environment: dict[str, str], ending: Sequence[Step] = POLITE) -> int:
    """Run a command on this terminal; its exit code, 128 + N if signal N ended it. If cancelled, makes it end in these steps."""
    # Ctrl-C is for the command: while it runs, this process takes no notice. (Ignoring it would be inherited.)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        try:
            process = await trio.lowlevel.open_process(list(command), env=environment)
        except FileNotFoundError:
            raise NotFound(f"there is no command {command[0]!r} on the path") from None
        except OSError as error:
            raise UsageError(f"{command[0]} cannot be run: {error.strerror}") from error
        try:
            status = await process.wait()
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                for step in ending:
                    if process.poll() is None:
                        tell(process.pid, step)
                        with trio.move_on_after(step.seconds):
                            await process.wait()
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    return status if status >= 0 else 128 - status
