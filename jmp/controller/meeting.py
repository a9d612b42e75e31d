"""Who is connected, and can be brought together: exporters and routers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jmp.wire.records import Observed


@dataclass
class Attendance:
    """An exporter that is connected."""

    peer: str
    version: str
    endpoints: list[dict[str, Any]]
    tree: dict[str, Any]
    observed: Observed
    since: float
    dials: list[dict[str, Any]] = field(default_factory=list)
    """Routers that it shall go to, not told yet."""
    replica: str = ""
    """The other controller that it is connected to, if it is not this one."""


@dataclass
class RouterLink:
    """A router that is connected."""

    url: str
    fingerprint: str | None
    peer: str
    load: int = 0
    chosen: int = 0
    """How often it was; among equals those take turns."""
    draining: bool = False
