"""What must be true of every history: pure functions from its events to what is wrong with them.

Each promise of the design has its own function here, and its row in docs/reliability.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jmp.wire.records import Lease, State
from tests.sim.world import Event

Records = Mapping[tuple[str, str], Any]


def check(history: Sequence[Event], records: Records) -> list[str]:
    """What is wrong with a history that has come to its end, and with what the controller has kept then."""
    rules = (one_holder, cleaned_up_once, at_most_once, streams_are_prefixes, told_is_kept)
    return [
        *(found for rule in rules for found in rule(history)),
        *nothing_is_lost(history, records),
        *all_ends(history, records),
    ]


def one_holder(history: Sequence[Event]) -> Iterator[str]:
    """A device is used under one lease and epoch at a time, which never goes back, and between its hooks only."""
    epochs: dict[str, int] = defaultdict(int)
    running: dict[str, dict[str, tuple[str, int]]] = defaultdict(dict)
    begun: dict[str, str] = {}
    for event in history:
        who = event.who
        if event.what == "beforeLease-over":
            begun[who] = event.detail[0]
        elif event.what in ("afterLease", "killed"):
            begun.pop(who, None)
            if event.what == "killed":
                running[who].clear()
        elif event.what == "call":
            call, lease, epoch = event.detail
            if begun.get(who) != lease:
                yield f"{call} of lease {lease} was executed at {who} while that was with {begun.get(who)}: {event}"
            if epoch < epochs[who]:
                yield f"{call} came with epoch {epoch} to {who}, which had served epoch {epochs[who]}: {event}"
            for other, (_, its) in running[who].items():
                if its < epoch:
                    yield f"{other} of epoch {its} still ran at {who} when {call} of epoch {epoch} began: {event}"
            epochs[who] = max(epochs[who], epoch)
            running[who][call] = lease, epoch
        elif event.what == "call-over":
            running[who].pop(event.detail[0], None)


def cleaned_up_once(history: Sequence[Event]) -> Iterator[str]:
    """afterLease runs once for each lease that has begun, to its end, before the next one begins.

    Once is what can be had: if the exporter is killed while it runs, or before that it has run is kept, it runs again.
    """
    owed: dict[str, str] = {}
    done: dict[str, set[str]] = defaultdict(set)
    doubtful: dict[str, str] = {}
    """Exporter → the lease whose afterLease had run, or ran, last before it was killed."""
    last: dict[str, str] = {}
    for event in history:
        who = event.who
        lease = event.detail[0] if event.detail else ""
        if event.what == "killed" and who in last:
            doubtful[who] = last[who]
        elif event.what == "beforeLease":
            if who in owed:
                yield f"lease {lease} began at {who} before {owed[who]} was cleaned up: {event}"
            if lease in done[who]:
                yield f"lease {lease} began at {who} again after it was cleaned up: {event}"
            owed[who] = lease
        elif event.what == "afterLease":
            if owed.get(who, lease) != lease:
                yield f"afterLease of {lease} ran at {who} while {owed[who]} was there: {event}"
            if lease in done[who] and doubtful.get(who) != lease:
                yield f"afterLease of {lease} ran twice at {who}: {event}"
            last[who] = lease
        elif event.what == "afterLease-over":
            done[who].add(lease)
            owed.pop(who, None)
            doubtful.pop(who, None)
    for who, lease in owed.items():
        yield f"lease {lease} was never cleaned up at {who}"


def at_most_once(history: Sequence[Event]) -> Iterator[str]:
    """A call is executed once at most, and exactly once if it was answered; not at all if it was refused."""
    executed: dict[str, int] = defaultdict(int)
    for event in history:
        if event.what == "call":
            executed[event.detail[0]] += 1
            if executed[event.detail[0]] > 1:
                yield f"{event.detail[0]} was executed again: {event}"
        elif event.what == "answered":
            if not executed[event.detail[0]] or event.detail[0] != event.detail[1]:
                yield f"{event.detail[0]} was answered with what was not its result: {event}"
        elif event.what == "refused" and executed[event.detail[0]]:
            yield f"{event.detail[0]} was executed and then refused: {event}"


def streams_are_prefixes(history: Sequence[Event]) -> Iterator[str]:
    """What arrives of a byte stream is the beginning of what was sent, and all of it if both ends closed it in order."""
    bytes_of: dict[str, dict[str, bytes]] = {what: defaultdict(bytes) for what in ("sent", "got", "heard")}
    for event in history:
        if event.what in bytes_of:
            name, data = event.detail
            bytes_of[event.what][name] += data
            for less, more in (("got", "sent"), ("heard", "got")):
                if not bytes_of[more][name].startswith(bytes_of[less][name]):
                    yield f"what was {less} of {name} is not what was {more}: {event}"
        elif event.what == "hung-up" and len({kind[event.detail[0]] for kind in bytes_of.values()}) > 1:
            yield f"{event.detail[0]} ended in order and incomplete: {event}"


def told_is_kept(history: Sequence[Event]) -> Iterator[str]:
    """Nobody is shown a state of a lease that is older than what they, or others before, were shown."""
    newest: dict[tuple[str, str], int] = defaultdict(int)
    for event in history:
        if event.what == "saw":
            lease, version, _ = event.detail
            if version < newest[event.who, lease]:
                yield f"{event.who} was shown version {newest[event.who, lease]} of {lease} before: {event}"
            newest[event.who, lease] = version


def nothing_is_lost(history: Sequence[Event], records: Records) -> Iterator[str]:
    """What was acknowledged is there at the end."""
    heirs: dict[str, set[str]] = defaultdict(set)
    for event in history:
        if event.what not in ("acquired", "released", "extended", "transferred"):
            continue
        lease = records.get(("lease", event.detail[0]))
        if not isinstance(lease, Lease):
            yield f"lease {event.detail[0]} was acknowledged and is gone: {event}"
        elif event.what == "released" and lease.state not in (State.ENDING, State.ENDED):
            yield f"lease {lease.id} was released and is {lease.state}: {event}"
        elif event.what in ("acquired", "extended") and lease.duration < event.detail[1]:
            yield f"lease {lease.id} has {lease.duration:g} s, not {event.detail[1]:g}: {event}"
        elif event.what == "transferred":
            heirs[lease.id].add(event.detail[1])
            if max([held.epoch for held in lease.devices], default=0) < event.detail[2]:
                yield f"lease {lease.id} is back at an epoch before {event.detail[2]}: {event}"


def all_ends(history: Sequence[Event], records: Records) -> Iterator[str]:
    """Every hold has ended by itself, and at its exporter no later than its duration says, whatever the clocks were set to."""
    ready: dict[tuple[str, str], float] = {}
    for event in history:
        if event.what == "beforeLease-over":
            ready[event.who, event.detail[0]] = event.time
        elif event.what == "afterLease" and (began := ready.pop((event.who, event.detail[0]), None)) is not None:
            lease = records.get(("lease", event.detail[0]))
            if isinstance(lease, Lease) and event.time > began + lease.duration + 0.01:
                yield f"lease {lease.id} of {lease.duration:g} s lasted {event.time - began:.3f} s: {event}"
        elif event.what == "killed":
            ready = {key: began for key, began in ready.items() if key[0] != event.who}
    for record in records.values():
        if isinstance(record, Lease) and record.state is not State.ENDED:
            yield f"lease {record.id} of {record.client} is {record.state} for ever: {record}"
