"""What idle pairs take of a router's memory: the router is a process of its own, both ends of all pairs are in this one.

    python pairs.py    serves; prints its URL and the fingerprint of its certificate

Only the check of tokens is another than a lab's: here a token is just the name of the session and the end.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from jmp.link import tls, websocket
from jmp.router.serve import Router
from jmp.wire.tokens import SessionClaims
from tests.bench.lab import first_line, resident, started
from tests.bench.worker import Figures, Span

ABREAST = 32


class Believing:
    """In place of a verifier."""

    def session(self, token: str, *, expired: bool = False) -> SessionClaims:
        name, end = token.split(".")
        assert end in ("client", "exporter")
        expires = time.time() + 3600
        return SessionClaims("client", end, "exporter", "lease", 1, name, (), (), token, expires)  # type: ignore[arg-type]


async def serve(folder: Path) -> None:
    fingerprint = tls.self_signed(folder / "router.pem", "localhost")
    router = Router(most=10_000)
    router.verifier = Believing()  # type: ignore[assignment]
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    context = tls.server_context(folder / "router.pem")
    print(f"wss://127.0.0.1:{port} {fingerprint}", flush=True)
    await websocket.serve(listeners, router.authenticate, router.serve_link, tls=context)


async def join(url: str, fingerprint: str, names: list[str], pid: int) -> float:
    """KiB of the router's memory for each pair."""
    left = iter(names)
    links: list[websocket.WebSocketLink] = []

    async def dial() -> None:
        for name in left:
            exporter = await websocket.connect(url, token=f"{name}.exporter", fingerprint=fingerprint)
            client = await websocket.connect(url, token=f"{name}.client", fingerprint=fingerprint)
            links.extend((exporter, client))
            await client.send([b"hello"])
            await exporter.receive()

    try:
        before = resident(pid)
        async with trio.open_nursery() as nursery:
            for _ in range(ABREAST):
                nursery.start_soon(dial)
        return (resident(pid) - before) / 1024 / len(names)
    finally:
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for link in links:
                    nursery.start_soon(link.aclose)


def measure(span: Span, pairs: int) -> Figures:
    with started("pairs") as process:
        url, fingerprint = first_line(process).split()
        trio.run(join, url, fingerprint, ["warm"], process.pid)  # what the first one of all takes is no pair's
        names = [f"session{number}" for number in range(span.size(pairs, 5))]
        return {"pair": trio.run(join, url, fingerprint, names, process.pid)}


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        trio.run(serve, Path(folder))
