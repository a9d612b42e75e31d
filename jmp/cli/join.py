"""``jmp exporter serve`` in a lab."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from jmp.audit import Audit
from jmp.cli import output
from jmp.cli.places import state_directory
from jmp.cli.serving import tls_of, until_told
from jmp.client.config import ClientConfig, Metadata, Tls, credentials
from jmp.errors import ConfigError
from jmp.exporter.config import ExporterConfig
from jmp.exporter.lab import LabExporter, Memory
from jmp.exporter.serve import address_of, listen, notify
from jmp.link import websocket
from jmp.link.address import parse

AUDIT_BYTES: Final = 32 << 20
"""When its audit log goes on in a new file: some 100 000 calls. One older file is kept."""


def lab_of(config: ExporterConfig) -> ClientConfig | None:
    """The lab that an exporter has joined: what its configuration says, else what `jmp config exporter create` has kept."""
    name = config.metadata.name
    if config.endpoint is not None:
        if config.token is None:
            raise ConfigError(f"{config.path}: endpoint needs a token; `jmp admin create exporter {name}` makes one")
        return ClientConfig(
            kind="Exporter",
            metadata=Metadata(name=name),
            endpoint=config.endpoint,
            token=config.token,
            tls=Tls(ca=config.tls.ca),
        )
    kept = credentials()
    return kept.load(name) if name in kept.names() else None


async def serve_in_lab(
    config: ExporterConfig,
    lab: ClientConfig,
    addresses: Sequence[str],
    tls_cert: Path | None,
    tls_key: Path | None,
    announce: Sequence[str],
) -> None:
    """Offer the device to those who have leased it, until told to stop. Raises a hook's failure that is to end the exporter."""
    name = config.metadata.name
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        listeners += await listen(address)
    context, fingerprint = tls_of(name, tls_cert, tls_key) if listeners else (None, None)
    endpoints = [
        {"url": f"wss://{host}", "fingerprint": fingerprint}
        for listener in listeners
        for host in _reached(address_of(listener), announce, lab.endpoint)
    ]

    async def dial() -> websocket.WebSocketLink:
        # Read anew: an exporter whose token was replaced while it runs goes on with the new one.
        token = lab.token if config.endpoint is not None else credentials().load(name).token
        return await websocket.connect(lab.endpoint, token=token, ca=lab.tls.ca)

    state = state_directory(name)
    exporter = LabExporter(
        config,
        Memory.load(state / "lab.json"),
        dial,
        endpoints,
        endpoint=lab.endpoint,
        ca=lab.tls.ca,
        audit=Audit(state / "audit.jsonl", limit=AUDIT_BYTES),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_told, nursery.cancel_scope)
        if listeners:
            await nursery.start(
                partial(websocket.serve, listeners, exporter.authenticate, exporter.serve_link, tls=context)
            )
        await nursery.start(_run, exporter, nursery.cancel_scope)
        notify("READY=1")
        output.note(f"exporter {name} serves the lab at {lab.endpoint}")
        for endpoint in endpoints:
            output.note(f"  clients that can, come directly: {endpoint['url']}")
    notify("STOPPING=1")


async def _run(exporter: LabExporter, scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
    await exporter.run(task_status=task_status)
    scope.cancel()


def _reached(address: str, announce: Sequence[str], controller: str) -> list[str]:
    """How others reach a listener: as announced, else at its address, else at the one that the controller is reached from."""
    host, _, port = address.rpartition(":")
    if announce:
        return [given if _has_port(given) else f"{given}:{port}" for given in announce]
    try:
        if not ipaddress.ip_address(host.strip("[]")).is_unspecified:
            return [address]
    except ValueError:
        return [address]
    target = parse(controller)
    try:
        family, kind, *_, where = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return []
    return [f"[{own}]:{port}" if ":" in own else f"{own}:{port}"]


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and (host.count(":") == 1 or "]:" in host)
