"""The listener for machines that watch a controller: probes, metrics, public keys. Plain HTTP, nothing secret, nothing to change.

``/healthz``    the process answers
``/readyz``     what it decides is written in time
``/metrics``    Prometheus' text format
``/jwks.json``  the keys to verify tokens with
``/ca.pem``     the CA's certificate
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import h11
import trio

import jmp
from jmp.controller.desks import state_of
from jmp.controller.lab import Lab
from jmp.controller.serve import Door
from jmp.wire.records import State

log = logging.getLogger("jmp.controller")

MAX_CONNECTIONS: Final = 64
"""More are closed at once: whoever watches needs one."""
SECONDS: Final = 15.0
"""How long one may take to ask, and to take the answer; and how long a connection may wait for the next question."""
READY_SECONDS: Final = 2.0
"""A write to the disk that takes longer is a fault."""
MAX_REQUEST: Final = 16 << 10

_TEXT: Final = "text/plain; charset=utf-8"
_EXPORTER_STATES: Final = ("free", "preparing", "leased", "cleaning", "disabled", "offline")
_LEASE_STATES: Final = (State.QUEUED, State.PREPARING, State.READY, State.ENDING)


class Answer(NamedTuple):
    """What is answered to a request."""

    status: int
    type: str
    body: bytes


Page = Callable[[], Awaitable[Answer]]


async def serve_http(
    listeners: Sequence[trio.SocketListener],
    lab: Lab,
    door: Door,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Reports itself started once it accepts; the listeners are closed at the end."""
    server = _Server(_pages(lab, door))
    await trio.serve_listeners(server.serve, list(listeners), task_status=task_status)


# ---- pages


def _pages(lab: Lab, door: Door) -> Mapping[str, Page]:
    exposition = _exposition(lab, door)

    async def healthz() -> Answer:
        return Answer(200, _TEXT, b"ok\n")

    async def readyz() -> Answer:
        with trio.move_on_after(READY_SECONDS):
            await lab.settle()
            return Answer(200, _TEXT, b"ok\n")
        return Answer(503, _TEXT, f"what is decided is not written within {READY_SECONDS:g} s\n".encode())

    async def metrics() -> Answer:
        return exposition()

    async def jwks() -> Answer:
        return Answer(200, "application/json", json.dumps(lab.keys.jwks()).encode())

    async def ca() -> Answer:
        return Answer(200, "application/x-pem-file", lab.keys.ca_pem.encode())

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics, "/jwks.json": jwks, "/ca.pem": ca}


def _exposition(lab: Lab, door: Door) -> Callable[[], Answer]:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
    from prometheus_client.registry import Collector

    class Watch(Collector):
        """Reads the lab whenever somebody asks: nothing is counted twice."""

        def collect(self) -> Iterator[Metric]:
            view = lab.view
            leases = Counter(lease.state for lease in view.active.values())
            states = Counter(state_of(lab, exporter) for exporter in view.exporter.values())
            queued = [lease.created for lease in view.active.values() if lease.state is State.QUEUED]
            yield GaugeMetricFamily("jmp_queue_length", "Leases that wait for what they want.", len(queued))
            oldest = max(lab.clock() - min(queued), 0.0) if queued else 0.0
            yield GaugeMetricFamily("jmp_queue_oldest_seconds", "How long the oldest of them has waited.", oldest)
            family = GaugeMetricFamily("jmp_leases", "Leases that have not ended, by state.", labels=["state"])
            for state in _LEASE_STATES:
                family.add_metric([str(state)], leases[state])
            yield family
            family = GaugeMetricFamily("jmp_exporters", "Exporters by state.", labels=["state"])
            for name in _EXPORTER_STATES:
                family.add_metric([name], states[name])
            yield family
            yield CounterMetricFamily("jmp_grants", "Leases granted since the start.", lab.grants)
            yield GaugeMetricFamily("jmp_connections", "Clients, exporters and routers connected.", door.connections)
            routers = list(lab.routers.values())
            family = GaugeMetricFamily("jmp_routers", "Routers connected.", labels=["state"])
            draining = sum(router.draining for router in routers)
            family.add_metric(["serving"], len(routers) - draining)
            family.add_metric(["draining"], draining)
            yield family
            sessions = sum(router.load for router in routers)
            yield GaugeMetricFamily("jmp_router_sessions", "Sessions that routers say they carry.", sessions)
            store = lab.store
            yield SummaryMetricFamily(
                "jmp_commit_seconds", "Time of transactions of the store.", store.commits, store.commit_seconds
            )
            family = GaugeMetricFamily("jmp_build_info", "Always 1.", labels=["version"])
            family.add_metric([jmp.__version__], 1)
            yield family

    registry = CollectorRegistry()
    registry.register(Watch())
    ProcessCollector(registry=registry)

    def expose() -> Answer:
        return Answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))

    return expose


# ---- HTTP


class _Server:
    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._open = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection: the root of its task."""
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                log.warning("HTTP: a connection was closed: there are %d others", MAX_CONNECTIONS)
                return
            await self._converse(stream)
        except trio.BrokenResourceError:
            pass  # whoever asked is gone
        except Exception:
            log.exception("HTTP: internal error")
        finally:
            self._open -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await stream.aclose()

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        while True:
            with trio.move_on_after(SECONDS) as patience:
                try:
                    request = await _next_request(connection, stream)
                    if request is None:
                        return
                    answer = await self._answer(request)
                    head, allow = request.method == b"HEAD", answer.status == 405
                except h11.RemoteProtocolError as error:
                    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                        return
                    status = error.error_status_hint
                    answer, head, allow = Answer(status, _TEXT, b"this is no HTTP request\n"), False, False
                await _send(connection, stream, answer, head=head, allow=allow)
            if patience.cancelled_caught:
                return
            if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                await _discard(stream)
                return
            connection.start_next_cycle()

    async def _answer(self, request: h11.Request) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, _TEXT, b"this can only be read: GET or HEAD\n")
        page = self._pages.get(request.target.partition(b"?")[0].decode("ascii"))
        if page is None:
            return Answer(404, _TEXT, f"there is only {', '.join(self._pages)}\n".encode())
        try:
            return await page()
        except Exception:
            log.exception("HTTP: %s failed", request.target.decode("ascii"))
            return Answer(500, _TEXT, b"internal error: the controller's log has it\n")


async def _next_request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The next one, its head only; None if none comes any more."""
    request: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if request is not None:
                return request
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage | h11.Data):
            return request
        else:
            return None


async def _send(
    connection: h11.Connection, stream: trio.SocketStream, answer: Answer, *, head: bool, allow: bool
) -> None:
    headers = [("Content-Type", answer.type), ("Content-Length", str(len(answer.body)))]
    headers.append(("Cache-Control", "no-store"))
    if allow:
        headers.append(("Allow", "GET, HEAD"))
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    parts = [connection.send(h11.Response(status_code=answer.status, headers=headers))]
    if not head:
        parts.append(connection.send(h11.Data(data=answer.body)))
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part or b"" for part in parts))


async def _discard(stream: trio.SocketStream) -> None:
    """Say that nothing more comes, and read what still does: closing a socket with unread bytes would destroy the answer."""
    with trio.move_on_after(1.0):
        await stream.send_eof()
        while await stream.receive_some():
            pass
