"""The listener for machines that watch a router: ``/healthz``, ``/readyz`` (it takes sessions) and ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import jmp
from jmp.link.pages import TEXT, Answer, Page, healthz, metrics
from jmp.router.serve import Router

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def pages(router: Router) -> Mapping[str, Page]:
    """What there is to see of a router, by path."""

    async def readyz() -> Answer:
        if router.draining:
            return Answer(503, TEXT, b"this router is stopping\n")
        if not router.connected:
            return Answer(503, TEXT, b"no controller is connected\n")
        return Answer(200, TEXT, b"ok\n")

    return {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics(_collector(router))}


def _collector(router: Router) -> Callable[[], Iterator[Metric]]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    def collect() -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "jmp_router_load", "Sessions joined, and ends that wait: what the controller goes by.", router.load
        )
        yield GaugeMetricFamily("jmp_router_capacity", "How many sessions it joins at once.", router.most)
        yield GaugeMetricFamily("jmp_router_draining", "1 when it takes no new sessions.", router.draining)
        yield GaugeMetricFamily("jmp_router_connected", "1 while a controller is connected.", router.connected)
        yield CounterMetricFamily("jmp_router_messages", "Messages carried.", router.messages)
        yield CounterMetricFamily("jmp_router_bytes", "Bytes carried.", router.bytes)
        family = GaugeMetricFamily("jmp_build_info", "Always 1.", labels=["version"])
        family.add_metric([jmp.__version__], 1)
        yield family

    return collect
