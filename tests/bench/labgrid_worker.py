"""labgrid's coordinator, its exporter and clients of them. Run by the Python of its environment.

Its coordinator runs without the debug mode of its event loop, which it switches on itself and which makes it three times slower.
"""

from __future__ import annotations

import asyncio  # noqa: TID251  # labgrid runs on it
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from labgrid.remote import coordinator
from labgrid.remote.generated import labgrid_coordinator_pb2 as pb2
from labgrid.remote.generated.labgrid_coordinator_pb2_grpc import CoordinatorStub

from tests.bench.worker import Figures, Measurement, Span, answer

CLIENTS = 16
WAITING = 200
WITH_EXPORTER = "single"
TAKEN = "taken"
"""A place that somebody has for long, and that many wait for."""


def serve() -> None:
    asyncio.BaseEventLoop.set_debug = lambda self, enabled: setattr(self, "_debug", False)  # type: ignore[method-assign]
    sys.argv = ["labgrid-coordinator", "--listen", "127.0.0.1:0"]
    coordinator.main()


@asynccontextmanager
async def connected(address: str, name: str) -> AsyncIterator[CoordinatorStub]:
    # A connection of its own, by which the coordinator tells clients apart.
    own = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=own) as channel:
        stub = CoordinatorStub(channel)

        async def said() -> AsyncIterator[pb2.ClientInMessage]:
            yield pb2.ClientInMessage(startup=pb2.StartupDone(version="26.0", name=name))
            yield pb2.ClientInMessage(subscribe=pb2.Subscribe(all_places=True))
            yield pb2.ClientInMessage(sync=pb2.Sync(id=1))
            await asyncio.Event().wait()

        stream = stub.ClientStream(said())
        ready = asyncio.Event()

        async def listen() -> None:
            async for message in stream:
                if message.HasField("sync"):
                    ready.set()

        listening = asyncio.ensure_future(listen())
        await ready.wait()
        try:
            yield stub
        finally:
            listening.cancel()


async def prepare(address: str) -> None:
    async with connected(address, "host/admin") as stub:
        for number in range(CLIENTS):
            await stub.AddPlace(pb2.AddPlaceRequest(name=f"place-{number}"))
        await stub.AddPlace(pb2.AddPlaceRequest(name=WITH_EXPORTER))
        await stub.AddPlace(pb2.AddPlaceRequest(name=TAKEN))
        await stub.SetPlaceTags(pb2.SetPlaceTagsRequest(placename=TAKEN, tags={"board": "reserved"}))
        await stub.AddPlaceMatch(
            pb2.AddPlaceMatchRequest(placename=WITH_EXPORTER, pattern="bench/board/NetworkService")
        )


async def per_second(address: str, clients: int, span: Span, place: str | None = None) -> float:
    done = 0
    counting = False

    async def work(stub: CoordinatorStub, place: str) -> None:
        nonlocal done
        while True:
            await stub.AcquirePlace(pb2.AcquirePlaceRequest(placename=place))
            await stub.ReleasePlace(pb2.ReleasePlaceRequest(placename=place))
            done += counting
            if stopping.is_set():
                return

    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(connected(address, f"host/user{n}")) for n in range(clients)]
        tasks = [asyncio.ensure_future(work(stub, place or f"place-{n}")) for n, stub in enumerate(stubs)]
        await asyncio.sleep(span.warm)
        began = time.perf_counter()
        counting = True
        await asyncio.sleep(2 * span.seconds)
        figure = done / (time.perf_counter() - began)
        stopping.set()
        await asyncio.gather(*tasks)
    return figure


async def beside_a_queue(address: str, span: Span) -> float:
    async with connected(address, "host/others") as stub:
        await stub.AcquirePlace(pb2.AcquirePlaceRequest(placename=TAKEN))
        tokens = []
        for _ in range(span.size(WAITING, 5)):
            wanted = {"main": pb2.Reservation.Filter(filter={"board": "reserved"})}
            made = await stub.CreateReservation(pb2.CreateReservationRequest(filters=wanted, prio=0.0))
            tokens.append(made.reservation.token)
        figure = await per_second(address, 1, span)
        await stub.ReleasePlace(pb2.ReleasePlaceRequest(placename=TAKEN))
        for token in tokens:
            await stub.CancelReservation(pb2.CancelReservationRequest(token=token))
    return figure


def _run(measure: Callable[[Span], Awaitable[float]]) -> Measurement:
    def run(span: Span) -> Figures:
        async def main() -> float:
            return await measure(span)

        return {"rate": asyncio.run(main())}

    return run


def main(folder: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.labgrid_worker", "serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=folder) as process:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        # It goes on printing, and what takes that ends with it.
        with subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL):
            try:
                _measure(address, folder)
            finally:
                process.kill()


def _measure(address: str, folder: Path) -> None:
    config = folder / "labgrid.yaml"
    config.write_text("board:\n  NetworkService: {address: 127.0.0.1, username: root}\n")
    program = str(Path(sys.executable).with_name("labgrid-exporter"))
    exporter = [sys.executable, program, "--coordinator", address, "--name", "bench", str(config)]
    with subprocess.Popen(exporter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder) as process:
        try:
            asyncio.run(prepare(address))
            answer(
                {
                    "lease-1": _run(lambda span: per_second(address, 1, span)),
                    "lease-16": _run(lambda span: per_second(address, CLIENTS, span)),
                    "lease-exporter": _run(lambda span: per_second(address, 1, span, WITH_EXPORTER)),
                    "lease-waiting": _run(lambda span: beside_a_queue(address, span)),
                }
            )
        finally:
            process.kill()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        main(Path(sys.argv[1]))
