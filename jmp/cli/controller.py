"""``jmp controller``: a lab's server."""

from __future__ import annotations

import ipaddress
import shlex
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import trio
import typer

from jmp.audit import Audit
from jmp.cli import output
from jmp.cli.labs import join_command
from jmp.cli.places import Data, Kubeconfig, Namespace, Where, data_directory
from jmp.cli.serving import LogFormat, LogLevel, check_address, log_to_stderr, own_names, until_told
from jmp.cli.typed import new_app
from jmp.controller.desks import DEFAULT_TOKEN_DAYS
from jmp.controller.keys import Keys
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.meeting import RouterLink
from jmp.controller.serve import Door, Other, Review, serve_controller
from jmp.controller.sqlite import SqliteStore
from jmp.controller.store import Change, Store
from jmp.errors import LabError, UsageError
from jmp.exporter.serve import address_of, listen, notify
from jmp.link import Link, websocket
from jmp.link.address import parse as parse_url
from jmp.private import write_private
from jmp.router.serve import Router
from jmp.rpc.keys import verifier_of
from jmp.wire.records import Role

app = new_app("A lab's server: who may use what, and when.")

PORT: Final = 8443
HTTP_PORT: Final = 8080
ADMIN_JOIN: Final = "admin.join"
"""In the data directory: how its first admin joins a lab, until that one has done so."""


@app.command()
def serve(
    address: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where clients and exporters come in, over TLS.")
    ] = f"0.0.0.0:{PORT}",  # that is what a server is for
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", metavar="HOST", help="A name or address by which others reach this machine; may be repeated."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="How others reach it, if not as wss://NAME:PORT: behind an ingress, say."),
    ] = None,
    data: Data = None,
    router: Annotated[bool, typer.Option("--router", help="Be a router, too: one command for a whole lab.")] = False,
    router_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="How others reach this router, where controllers share a store (default: wss://THIS-MACHINE:PORT).",
        ),
    ] = None,
    http: Annotated[
        str, typer.Option(metavar="HOST:PORT|none", help="Where /healthz, /readyz and /metrics are, in plain HTTP.")
    ] = f"127.0.0.1:{HTTP_PORT}",
    store: Annotated[
        Where,
        typer.Option(
            metavar="sqlite|kubernetes",
            help="Where records are kept: sqlite, a file below --data, or kubernetes, which several controllers share.",
        ),
    ] = Where.sqlite,
    kubeconfig: Kubeconfig = None,
    namespace: Namespace = None,
    replica: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What this controller is called among those that share the store (default: hostname)."
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where it is kept who did what: a file, - for standard output (default: in --data)."
        ),
    ] = None,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
) -> int:
    """Serve a lab until TERM. The first start makes keys, a CA and an admin's token, and says how to go on."""
    log_to_stderr(log_level, log_format)
    check_address("--listen", address, network=True)
    if http != "none":
        check_address("--http", http, network=True)
    if url is not None:
        known = parse_url(url)
        if known.scheme != "wss":
            raise UsageError(f"--url {url}: a controller is reached by wss://HOST:PORT")
        names = list(dict.fromkeys([known.host, *(names or [])]))
    names, data = names or own_names(), data_directory(data)
    log = Audit(audit or data / "audit.jsonl")
    if router_url is not None and (not router or store is Where.sqlite):
        raise UsageError(
            "--router-url is for --router with --store kubernetes: elsewhere it is where the controller is"
        )
    if store is Where.sqlite:
        return trio.run(_serve, address, names, url, data, router, None, http, log, _embedded(data, names))
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if router:
        # Behind one name there are several controllers: those who are to meet have to come to the same one.
        # Where this one is, which only this machine can come to if it listens for that alone.
        host = address.rpartition(":")[0].strip("[]")
        router_url = router_url or f"wss://{_in_url(host if _is_loopback(host) else own_names()[-1])}:{{port}}"
        names = [*names, parse_url(router_url.replace("{port}", "1")).host]
    kept = _shared(data, names, kubeconfig, namespace, replica or socket.gethostname())
    return trio.run(_serve, address, names, url, data, router, router_url, http, log, kept)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass
class Kept:
    """What outlives a controller."""

    store: Store
    keys: Keys
    beside: list[Callable[..., Awaitable[None]]]
    keep_join: Callable[[Lab, str, str], Awaitable[str]]
    """Keeps the command with which the first admin joins, with its token; returns the token of the one that is kept."""
    join: str
    """What to run then,"""
    secret: str
    """and what is to be removed."""
    name: str = "controller"
    keep_router: Callable[[Lab], Awaitable[None]] | None = None
    """Keeps what routers nearby come in with."""
    review: Review | None = None
    """Says whose a service account's token is."""
    clock: Callable[[], float] = time.time
    """What the lab goes by."""


@asynccontextmanager
async def _embedded(data: Path, names: list[str]) -> AsyncIterator[Kept]:
    store = SqliteStore.open(data)  # first: it keeps other controllers away from all that is in there
    file = data / ADMIN_JOIN

    async def keep_join(lab: Lab, command: str, token: str) -> str:
        write_private(file, f"{command}\n".encode())
        return token

    try:
        yield Kept(
            store, Keys.open(data, names), [], keep_join, f"sh {shlex.quote(str(file))}", "the file holds a secret"
        )
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


@asynccontextmanager
async def _shared(
    data: Path, names: list[str], kubeconfig: Path | None, namespace: str | None, name: str
) -> AsyncIterator[Kept]:
    from jmp.controller.kubernetes import KubernetesStore
    from jmp.controller.kubernetes_accounts import Reviewer
    from jmp.controller.kubernetes_api import connect, find_access
    from jmp.controller.kubernetes_keys import JOIN, SharedKeys, keep_join, keep_router

    async with connect(find_access(kubeconfig, namespace)) as api:
        keys = await SharedKeys.open(api, data, names)
        yield Kept(
            KubernetesStore(api, remembered=True),
            keys.keys,
            [keys.run],
            partial(keep_join, api),
            f"kubectl --namespace {api.namespace} get secret {JOIN} -o jsonpath='{{.data.join}}' | base64 -d | sh",
            "the secret is good for everything",
            name,
            partial(keep_router, api),
            Reviewer(api, names[0], clock=api.clock),
            api.clock,
        )


async def _serve(
    address: str,
    names: list[str],
    url: str | None,
    data: Path,
    with_router: bool,
    router_url: str | None,
    http: str,
    audit: Audit,
    keeping: AbstractAsyncContextManager[Kept],
) -> int:
    async with keeping as kept:
        keys = kept.keys
        listeners = await listen(address)
        lab = Lab(Engine(), kept.store, keys, audit, clock=kept.clock, name=kept.name)
        await lab.load()
        url = url or f"wss://{names[0]}:{address_of(listeners[0]).rpartition(':')[2]}"
        router = Router() if with_router else None
        beside: list[Callable[..., Awaitable[None]]] = [keys.keep_fresh, *kept.beside]
        if router is not None:
            port = address_of(listeners[0]).rpartition(":")[2]
            beside.append(partial(_keep_router, lab, router, (router_url or "").replace("{port}", port)))
        pages = {"/ca.pem": ("application/x-pem-file", keys.ca_pem.encode())}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_told, nursery.cancel_scope)
            door = await nursery.start(
                partial(
                    serve_controller,
                    lab,
                    listeners,
                    keys.tls(),
                    other=_other(router),
                    review=kept.review,
                    pages=pages,
                    beside=beside,
                )
            )
            if http != "none":
                await nursery.start(partial(_serve_http, http, lab, door))
            notify("READY=1")
            output.note(f"controller is ready at {url}, CA fingerprint {keys.ca_fingerprint}")
            if not any(token.role is Role.ADMIN and token.revoked is None for token in lab.view.token.values()):
                try:
                    await _first_start(lab, url, kept, data)
                except LabError as error:
                    output.note(f"No admin could be made, which the next start tries again: {error.message}")
            if kept.keep_router is not None:  # from now on: before its first admin nobody is known to a lab
                nursery.start_soon(kept.keep_router, lab)
        notify("STOPPING=1")
        await lab.others.leave()
    return 0


def _other(router: Router | None) -> Other | None:
    if router is None:
        return None

    async def let_in(request: websocket.UpgradeRequest) -> Callable[[Link], Awaitable[None]]:
        claims = await router.authenticate(request)
        return lambda link: router.serve_link(link, claims)

    return let_in


async def _keep_router(
    lab: Lab, router: Router, url: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The router in this process: it has the controller's keys at first hand, and without a ``url`` it is where that is."""
    own = lab.routers[lab.others.name] = RouterLink(url, None, "")
    with lab.news.listen("keys") as listener:
        router.verifier = verifier_of(lab.key_news())
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count, router, own)
            while True:
                await listener.wait()
                router.verifier = verifier_of(lab.key_news())


async def _count(router: Router, own: RouterLink) -> None:
    while True:
        own.load = router.load
        await router.changed.park()


async def _serve_http(
    address: str, lab: Lab, door: Door, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    from jmp.controller.http import serve_http

    await serve_http(await listen(address), lab, door, task_status=task_status)


async def _first_start(lab: Lab, url: str, kept: Kept, data: Path) -> None:
    text, _ = lab.keys.identity("admin", Role.ADMIN, DEFAULT_TOKEN_DAYS * 86400)
    command = join_command("client", "admin", url, lab.keys.ca_fingerprint, text)
    # First the command, then its token: who dies in between leaves one that another start makes good, or makes anew.
    record = lab.keys.record_of(await kept.keep_join(lab, command, text))

    def know() -> None:
        if record.id not in lab.view.token:
            lab.put(Change("token", record.id, None, record))

    await lab.do(know)
    output.note("This is its first start. Whoever shall administer it runs:")
    file = data / ADMIN_JOIN
    if sys.stderr.isatty() and file.exists():
        output.note(f"\n  {command}\n")
        file.unlink()
    else:
        output.note(f"\n  {kept.join}\n\n({kept.secret}; remove it then)")
    output.note(
        "Then these print the commands that join the first exporter and the first client:\n\n"
        "  jmp admin create exporter NAME\n"
        "  jmp admin create client NAME"
    )


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The copy to write.")],
    data: Data = None,
) -> int:
    """Copy the store, also while the controller runs. Keys are files beside it: copy them, too."""
    from jmp.controller.sqlite import backup as copy

    copy(data_directory(data), file)
    output.note(f"copied to {file}")
    return 0
