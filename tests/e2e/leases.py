"""Short leases on a machine that is busy: their time does not go by while programs that use them start."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from jmp.client.config import ClientConfig
from jmp.client.lab import open_lab


@contextmanager
def kept_waiting(admin: ClientConfig) -> Iterator[dict[str, dict[str, float]]]:
    """Within the block, all leases that are granted get as much more time as passes.

    Yields what each got, in seconds, by exporter and lease; complete after the block.
    """
    given: dict[str, dict[str, float]] = {}
    over = threading.Event()
    with open_lab(admin) as lab:

        def give() -> None:
            now: dict[str, float] = {}
            is_last = False
            while not is_last:
                is_last = over.wait(0.2)
                for item in lab.call("leases", everybody=True):
                    if item["state"] not in ("preparing", "ready"):
                        continue
                    lease, before = item["id"], now.get(item["id"])
                    now[lease] = monotonic()
                    if before is not None:
                        more = now[lease] - before
                        lab.call("extend", lease, more)
                        for device in item["devices"]:
                            here = given.setdefault(device["exporter"], {})
                            here[lease] = here.get(lease, 0.0) + more

        thread = threading.Thread(target=give)
        thread.start()
        try:
            yield given
        finally:
            over.set()
            thread.join()
