"""``jmp router``: joins clients and exporters that cannot reach each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import trio
import typer

from jmp.cli import output
from jmp.cli.config import read_token
from jmp.cli.serving import LogFormat, LogLevel, check_address, log_to_stderr, own_names, until_told
from jmp.cli.typed import new_app
from jmp.client.config import TOKEN
from jmp.errors import UsageError
from jmp.exporter.serve import address_of, listen, notify
from jmp.link import websocket
from jmp.link.pages import serve_pages
from jmp.link.tls import keep_ca, self_signed, server_context
from jmp.router.http import pages
from jmp.router.serve import MAX_PAIRS, Router, attend, drain
from jmp.wire.duration import parse

app = new_app("Join clients and exporters that cannot reach each other.")

PORT: Final = 8444


@app.callback()
def router() -> None:
    """Join clients and exporters that cannot reach each other."""


@app.command()
def serve(
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Its name in the lab; of several that share a token each has its own.")
    ],
    controller: Annotated[str, typer.Option(metavar="URL", help="The lab's controller: wss://HOST:PORT.")],
    ca_fingerprint: Annotated[
        str | None, typer.Option(metavar="HEX", help="SHA-256 of the lab's own CA, which is then fetched once.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="Certificates (PEM) to trust.")] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help=f"File with the token, - for standard input (default: ${TOKEN}).")
    ] = None,
    address: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where clients and exporters come in.")
    ] = f"0.0.0.0:{PORT}",  # that is what a router is for
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="How others reach it (default: wss://THIS-MACHINE:PORT).")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its certificate; by default a self-signed one.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The certificate's key.")] = None,
    most: Annotated[int, typer.Option(metavar="N", help="How many sessions it joins at once.")] = MAX_PAIRS,
    drain_for: Annotated[
        str, typer.Option("--drain", metavar="DURATION", help="How long, on TERM, sessions may go on that cannot move.")
    ] = "30s",
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT|none", help="Where /healthz, /readyz and /metrics are, in plain HTTP.")
    ] = "none",
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> None:
    """Serve a lab as a router until TERM: then its sessions go on over another, and those that cannot may end in their time."""
    log_to_stderr(log_level, log_format)
    check_address("--listen", address, network=True)
    if http != "none":
        check_address("--http", http, network=True)
    seconds = parse(drain_for)
    if token_file is None and not os.environ.get(TOKEN):
        raise UsageError(f"a router needs its token, in {TOKEN} or --token-file: jmp admin create router {name}")
    token = read_token(token_file)

    def token_of() -> str:
        """The token as it is now: one in a file may be replaced at any time."""
        return token if token_file in (None, "-") else read_token(token_file)

    state = state_directory(name)
    if ca is None and ca_fingerprint is not None:
        ca = state / "ca.pem"
        keep_ca(ca, controller, ca_fingerprint)
    trio.run(_serve, name, controller, token_of, ca, address, url, tls_cert, tls_key, state, most, seconds, http)


def state_directory(name: str) -> Path:
    """Where a router keeps its certificate, and what it verifies tokens with."""
    base = os.environ.get("XDG_STATE_HOME") or (
        Path("/var/lib") if os.getuid() == 0 else Path.home() / ".local" / "state"
    )
    return Path(base) / "jmp" / "routers" / name


async def _serve(
    name: str,
    controller: str,
    token: Callable[[], str],
    ca: Path | None,
    address: str,
    url: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    state: Path,
    most: int,
    seconds: float,
    http: str,
) -> None:
    fingerprint = None
    if tls_cert is None:
        tls_cert = state / "tls.pem"
        fingerprint = self_signed(tls_cert, "jmp router")
    context = server_context(tls_cert, tls_key)
    listeners = await listen(address)
    url = url or f"wss://{own_names()[-1]}:{address_of(listeners[0]).rpartition(':')[2]}"
    router = Router(most=most, keep=state / "keys.json")

    async def dial() -> websocket.WebSocketLink:
        return await websocket.connect(controller, token=token(), ca=ca)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(attend, router, dial, url, fingerprint, name=name))
        if http != "none":
            await nursery.start(serve_pages, await listen(http), pages(router))
        await nursery.start(partial(websocket.serve, listeners, router.authenticate, router.serve_link, tls=context))
        notify("READY=1")
        output.note(f"router is ready at {url}")
        with trio.CancelScope() as scope:
            await until_told(scope)
        notify("STOPPING=1")
        await drain(router, seconds)
        nursery.cancel_scope.cancel()
