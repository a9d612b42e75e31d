"""The listener for machines that watch a controller: probes, metrics, public keys. Plain HTTP, nothing secret, nothing to change.

``/healthz``    the process answers
``/readyz``     what it decides is written in time
``/metrics``    Prometheus' text format
``/jwks.json``  the keys to verify tokens with
``/ca.pem``     the CA's certificate
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import trio

import jmp
from jmp.controller.desks import state_of
from jmp.controller.lab import Lab
from jmp.controller.serve import Door
from jmp.link.pages import TEXT, Answer, Page, healthz, metrics, serve_pages
from jmp.wire.records import State

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

READY_SECONDS: Final = 2.0
"""A write to the disk that takes longer is a fault."""

_EXPORTER_STATES: Final = ("free", "preparing", "leased", "cleaning", "disabled", "offline")
_LEASE_STATES: Final = (State.QUEUED, State.PREPARING, State.READY, State.ENDING)


async def serve_http(
    listeners: Sequence[trio.SocketListener],
    lab: Lab,
    door: Door,
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Reports itself started once it accepts; the listeners are closed at the end."""
    await serve_pages(listeners, _pages(lab, door), task_status=task_status)


# ---- pages


def _pages(lab: Lab, door: Door) -> Mapping[str, Page]:
    async def readyz() -> Answer:
        with trio.move_on_after(READY_SECONDS):
            await lab.settle()
            return Answer(200, TEXT, b"ok\n")
        return Answer(503, TEXT, f"what is decided is not written within {READY_SECONDS:g} s\n".encode())

    async def jwks() -> Answer:
        return Answer(200, "application/json", json.dumps(lab.keys.jwks()).encode())

    async def ca() -> Answer:
        return Answer(200, "application/x-pem-file", lab.keys.ca_pem.encode())

    exposition = metrics(_collector(lab, door))
    return {"/healthz": healthz, "/readyz": readyz, "/metrics": exposition, "/jwks.json": jwks, "/ca.pem": ca}


def _collector(lab: Lab, door: Door) -> Callable[[], Iterator[Metric]]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

    def collect() -> Iterator[Metric]:
        """Reads the lab whenever somebody asks: nothing is counted twice."""
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

    return collect
