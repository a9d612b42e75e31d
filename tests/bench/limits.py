"""What the machine gives without any protocol: Trio and blocking sockets, over a Unix socket between two processes."""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import trio

from tests.bench.payload import BLOCK, MIB, ORDER, Checked, blocks, order, read_order
from tests.bench.target import PING, download, exactly, obey, upload
from tests.bench.worker import Figures, Span, answer, p50, rate, repeated, repeated_async


async def exactly_trio(stream: trio.SocketStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive_some(size - len(data))
    return bytes(data)


async def obey_trio(stream: trio.SocketStream) -> None:
    async with stream:
        what, size = read_order(await exactly_trio(stream, ORDER))
        if what == "u":
            checked = Checked(size)
            while checked.left:
                checked.feed(bytes(await stream.receive_some(256 * 1024)))
            await stream.send_all(b"+")
        else:
            async for data in stream:
                await stream.send_all(data)


async def serve(directory: Path) -> None:
    """Answer at ``trio`` with Trio and at ``blocking`` with threads."""
    trio_socket = trio.socket.socket(trio.socket.AF_UNIX)
    await trio_socket.bind(str(directory / "trio"))
    trio_socket.listen()
    blocking = socket.socket(socket.AF_UNIX)
    blocking.bind(str(directory / "blocking"))
    blocking.listen()

    def accept() -> None:
        while True:
            connection, _ = blocking.accept()
            threading.Thread(target=obey, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    print("ready", flush=True)
    await trio.serve_listeners(obey_trio, [trio.SocketListener(trio_socket)])


def main(directory: Path) -> None:
    def by_trio(span: Span) -> Figures:
        async def run() -> Figures:
            async with await trio.open_unix_socket(directory / "trio") as stream:
                await stream.send_all(order("e"))

                async def ping() -> None:
                    await stream.send_all(PING)
                    await exactly_trio(stream, len(PING))

                taken = await repeated_async(ping, span)
            size = span.size(512 * MIB, MIB)
            async with await trio.open_unix_socket(directory / "trio") as stream:
                await stream.send_all(order("u", size))
                began = time.perf_counter()
                for block in blocks(size):
                    await stream.send_all(block)
                await exactly_trio(stream, 1)
                seconds = time.perf_counter() - began
            return {"rate": rate(taken), "p50": p50(taken), "bytes": size / seconds / 1e6}

        return trio.run(run)

    def by_threads(span: Span) -> Figures:
        def connected(first: bytes) -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(directory / "blocking"))
            connection.sendall(first)
            return connection

        with connected(order("e")) as connection:

            def ping() -> None:
                connection.sendall(PING)
                exactly(connection, len(PING))

            taken = repeated(ping, span)
        size = span.size(512 * MIB, len(BLOCK))
        with connected(order("u", size)) as connection:
            up = upload(connection, size)
        with connected(order("d", size)) as connection:
            down = download(connection, size)
        return {"rate": rate(taken), "p50": p50(taken), "up": up, "down": down}

    answer({"trio": by_trio, "blocking": by_threads})


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        trio.run(serve, Path(sys.argv[2]))
    else:
        main(Path(sys.argv[2]))
