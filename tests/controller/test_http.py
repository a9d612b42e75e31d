"""The listener for machines that watch, asked over real sockets by the standard library's client and by hand."""

from __future__ import annotations

import http.client
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from jmp.audit import Audit
from jmp.controller.http import serve_http
from jmp.controller.keys import Keys
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.meeting import RouterLink
from jmp.controller.serve import Door
from jmp.controller.sqlite import FILE, SqliteStore
from jmp.link.pages import MAX_CONNECTIONS, MAX_REQUEST
from jmp.wire.records import Client, Exporter, Want

NOW = 1_800_000_000.0


class Answer:
    """What the standard library's client got."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.read().decode()


def request(port: int, method: str, path: str, body: bytes | None = None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        return Answer(connection.getresponse())
    finally:
        connection.close()


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[tuple[Lab, int]]:
    """A lab whose listener is at a port."""
    store = SqliteStore.open(directory)
    try:
        lab = Lab(Engine(), store, Keys.open(directory, []), Audit(None), clock=lambda: NOW)
        await lab.load()
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(lab.run)
                await nursery.start(partial(serve_http, listeners, lab, Door(lab)))
                yield lab, listeners[0].socket.getsockname()[1]
                nursery.cancel_scope.cancel()
    finally:
        await store.aclose()


async def get(port: int, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
    return await trio.to_thread.run_sync(request, port, method, path, body)


async def samples(port: int) -> dict[str, float]:
    """Every sample of /metrics by name and labels, as Prometheus' own parser reads it."""
    text = (await get(port, "/metrics")).text
    return {
        sample.name + "".join(f" {key}={value}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_probes_and_keys(tmp_path: Path) -> None:
    async with watched(tmp_path) as (lab, port):
        for path in ("/healthz", "/readyz", "/healthz?verbose"):
            answer = await get(port, path)
            assert (answer.status, answer.text) == (200, "ok\n")
        answer = await get(port, "/jwks.json")
        assert answer.headers["Content-Type"] == "application/json"
        assert json.loads(answer.text) == lab.keys.jwks()
        assert (await get(port, "/ca.pem")).text == lab.keys.ca_pem


async def test_metrics_tell_what_the_lab_does(tmp_path: Path) -> None:
    async with watched(tmp_path) as (lab, port):
        lab.engine.put(Client(name="bo"), NOW)
        for name in ("board-1", "board-2"):
            lab.engine.put(Exporter(name=name), NOW)
        lab.engine.request("bo", (Want(),), 60.0, NOW - 30)
        lab.routers["r"] = RouterLink("wss://router", None, "peer", load=3)
        await lab.settle()
        found = await samples(port)
        assert found["jmp_queue_length"] == 1
        assert found["jmp_queue_oldest_seconds"] == 30
        assert found["jmp_leases state=queued"] == 1
        assert found["jmp_leases state=ready"] == 0
        assert found["jmp_exporters state=offline"] == 2
        assert found["jmp_exporters state=free"] == 0
        assert found["jmp_grants_total"] == 0
        assert found["jmp_connections"] == 0
        assert found["jmp_routers state=serving"] == 1
        assert found["jmp_router_sessions"] == 3
        assert found["jmp_commit_seconds_count"] == lab.store.commits > 0
        assert found["jmp_commit_seconds_sum"] == pytest.approx(lab.store.commit_seconds)
        assert found["process_open_fds"] > 0


async def test_not_ready_while_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp.controller.http.READY_SECONDS", 0.01)
    async with watched(tmp_path) as (lab, port):
        with closing(sqlite3.connect(tmp_path / FILE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # the store has to wait for that, as it would for a slow disk
            lab.engine.put(Client(name="bo"), NOW)
            answer = await get(port, "/readyz")
            assert (answer.status, answer.text) == (503, "what is decided is not written within 0.01 s\n")
            assert (await get(port, "/healthz")).status == 200
            other.execute("ROLLBACK")
        await lab.settle()
        assert lab.view.client["bo"].name == "bo"


async def test_head_has_no_body(tmp_path: Path) -> None:
    async with watched(tmp_path) as (_, port):
        answer = await get(port, "/healthz", "HEAD")
        assert (answer.status, answer.headers["Content-Length"], answer.text) == (200, "3", "")


async def test_other_paths_and_methods(tmp_path: Path) -> None:
    async with watched(tmp_path) as (_, port):
        answer = await get(port, "/secrets")
        assert answer.status == 404
        assert answer.text == "there is only /healthz, /readyz, /metrics, /jwks.json, /ca.pem\n"
        for method, body in (("POST", b"x" * 200_000), ("DELETE", None), ("PUT", b"")):
            answer = await get(port, "/healthz", method, body)
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


async def talk(port: int, sent: bytes) -> bytes:
    """All that is answered to ``sent`` until the other side closes."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(sent)
        return b"".join([chunk async for chunk in stream])


async def test_one_connection_for_several_requests(tmp_path: Path) -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: lab\r\n"
    async with watched(tmp_path) as (_, port):
        answer = await talk(port, request + b"\r\n" + request + b"Connection: close\r\n\r\n")
        assert answer.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", b"400"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", b"400"),  # no Host
        (b"GET / HTTP/1.1\r\nX: " + b"x" * (2 * MAX_REQUEST), b"431"),
    ],
)
async def test_garbage(tmp_path: Path, sent: bytes, status: bytes) -> None:
    async with watched(tmp_path) as (_, port):
        answer = await talk(port, sent)
        assert answer.split()[1] == status
        assert (await get(port, "/healthz")).status == 200


async def test_too_many_connections(tmp_path: Path) -> None:
    async with watched(tmp_path) as (_, port), trio.open_nursery() as nursery:
        streams = []
        for _ in range(MAX_CONNECTIONS):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: lab\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            streams.append(stream)
        assert await talk(port, b"") == b""
        for stream in streams:
            nursery.start_soon(stream.aclose)


async def test_one_who_is_slow_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jmp.link.pages.SECONDS", 0.05)
    async with watched(tmp_path) as (_, port):
        assert await talk(port, b"GET /healthz HTTP/1.1\r\n") == b""
