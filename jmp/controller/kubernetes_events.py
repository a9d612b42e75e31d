"""What matters of objects, told as Events of Kubernetes: `kubectl describe` shows them, and `kubectl get events`.

They are told as far as there is time for it: nothing waits for them, and where too much happens at once some are not told. The
audit log has everything.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import trio

from jmp.controller.kubernetes_api import GROUP, VERSION, Api, Denied, Object
from jmp.controller.store import Record
from jmp.wire.records import Lease, Presence, State

log = logging.getLogger("jmp.controller")

WAITING: Final = 100
"""Events that may wait to be told; what comes then is not."""
PAUSE: Final = 0.05
"""Seconds between two: they are the least of what the API server has to do."""
DENIED_PAUSE: Final = 300.0


class Happening(NamedTuple):
    """What is told of an object: whether that is as it should be, a word for it, and what people read."""

    normal: bool
    reason: str
    text: str


def happening(old: Record | None, new: Record | None) -> Happening | None:
    """What to tell of a change that was made here, if anything."""
    if isinstance(new, Lease) and new.state is not getattr(old, "state", None):
        if new.state is State.PREPARING:
            return Happening(True, "Granted", f"on {', '.join(held.exporter for held in new.devices)}, to {new.client}")
        if new.state is State.ENDED and isinstance(old, Lease) and old.number <= 0:
            return Happening(False, "Refused", new.reason)
        if new.state is State.ENDED:
            return Happening(True, "Ended", new.reason)
    elif isinstance(new, Presence) and old is None:
        return Happening(True, "Online", f"connected to controller {new.replica}")
    elif isinstance(old, Presence) and new is None:
        return Happening(False, "Offline", f"no longer connected to controller {old.replica}")
    return None


class Events:
    """Tells them; :meth:`run` has to run."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._send, self._receive = trio.open_memory_channel[Object](WAITING)

    def tell(self, item: Object, what: Happening) -> None:
        """Tell something of an object."""
        try:
            self._send.send_nowait(_event(self._api.namespace, item, what))
        except trio.WouldBlock:
            log.debug("too much happens: %s of %s is not told", what.reason, item["metadata"]["name"])

    async def run(self) -> None:
        """Until cancelled."""
        path = f"/api/v1/namespaces/{self._api.namespace}/events"
        while True:
            event = await self._receive.receive()
            try:
                await self._api.request(
                    "POST", path, event
                )  # that it is there already is as well: another one was faster
                await trio.sleep(PAUSE)
            except Denied as error:
                log.warning("%s", error)
                await trio.sleep(DENIED_PAUSE)


def _event(namespace: str, item: Object, what: Happening) -> Object:
    metadata: dict[str, Any] = item["metadata"]
    version = metadata["resourceVersion"] if what.reason in ("Online", "Offline") else ""
    same = hashlib.sha256("\0".join([metadata["uid"], what.reason, what.text, version]).encode()).hexdigest()[:16]
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = what.text if len(what.text) <= 1000 else f"{what.text[:999]}…"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{same}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": item["kind"],
            "namespace": namespace,
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": "Normal" if what.normal else "Warning",
        "reason": what.reason,
        "message": text,
        "source": {"component": "jmp-controller"},
        "reportingComponent": "jmp-controller",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
