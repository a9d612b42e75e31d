"""What must be true of every history: pure functions from its events to what is wrong with them.

Each promise of the design has its own function here, and its row in docs/reliability.md.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from jmp.controller.leases import PREPARE_LIMIT
from jmp.wire.records import Lease, State
from tests.sim.world import CLUSTER, START, Event

EARLY: Final = 1.0
"""Seconds by which a lease may end early: those by which two controllers in a cluster may differ on what time it is."""

Records = Mapping[tuple[str, str], Any]


def check(history: Sequence[Event], records: Records) -> list[str]:
    """What is wrong with a history that has come to its end, and with what the controller has kept then."""
    rules = (one_holder, cleaned_up_once, at_most_once, streams_are_prefixes, told_is_kept, granted_once)
    return [
        *(found for rule in rules for found in rule(history)),
        *order_is_kept(history, records),
        *nothing_is_lost(history, records),
        *all_ends(history, records),
        *lasts(history, records),
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
    """Nobody is shown a state of a lease that is older than what was shown before, by the same one of several controllers."""
    newest: dict[tuple[str, str, int], int] = defaultdict(int)
    for event in history:
        if event.what == "saw":
            lease, version, _, visit = event.detail
            if version < newest[event.who, lease, visit]:
                yield f"{event.who} was shown version {newest[event.who, lease, visit]} of {lease} before: {event}"
            newest[event.who, lease, visit] = version


def order_is_kept(history: Sequence[Event], records: Records) -> Iterator[str]:
    """Nobody is given a device that somebody ahead of them waits for, as far as those who gave it could know.

    Of a lab in a cluster, whose history has what was written there and what the writer knew when that was decided.
    """
    waiting: dict[str, int] = {}
    """Those in the queue, and the version at which they came into it."""
    for event in history:
        if event.who != CLUSTER or not event.detail:
            continue
        if event.what == "queued":
            waiting[event.detail[0]] = event.detail[1]
        elif event.what in ("preparing", "ended"):
            waiting.pop(event.detail[0], None)
        if event.what != "preparing":
            continue
        id, writer, decided, known = event.detail
        given = records["lease", id]
        for other, version in waiting.items():
            ahead = records["lease", other]
            if (
                version <= known
                and (-ahead.priority, ahead.number) < (-given.priority, given.number)
                and len(ahead.wants) == 1
                and not ahead.tied  # whose holder may be away
                and ahead.wants[0].exporter in (None, *(held.exporter for held in given.devices))
                and START + decided + 5.0 < ahead.give_up
            ):
                yield f"lease {id} was given a device by {writer} while {other} waited ahead of it: {event}"


def granted_once(history: Sequence[Event]) -> Iterator[str]:
    """No lease has an exporter that another one has, and its epoch rises each time. As :func:`order_is_kept`, of a cluster."""
    holders: dict[str, str] = {}
    epochs: dict[str, int] = {}
    for event in history:
        if event.who != CLUSTER:
            continue
        if event.what == "holds":
            id, name, epoch = event.detail
            if holders.get(name, id) != id:
                yield f"{name} was given to lease {id}, and {holders[name]} has it: {event}"
            if epoch <= epochs.get(name, 0):
                yield f"{name} was given to lease {id} at epoch {epoch}, and has been at {epochs[name]}: {event}"
            holders[name], epochs[name] = id, epoch
        elif event.what == "lets-go" and holders.get(event.detail[1]) == event.detail[0]:
            del holders[event.detail[1]]


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


def lasts(history: Sequence[Event], records: Records) -> Iterator[str]:
    """Whose time was over had what was asked for with all of its devices at once, whatever any clock was set to.

    An extension may come too late to count.
    """
    ready: dict[str, dict[str, float]] = defaultdict(dict)
    durations: dict[str, float] = {}
    gone: set[tuple[str, str]] = set()
    for event in history:
        id = event.detail[0] if event.detail else ""
        if event.what == "acquired":
            durations[id] = event.detail[1]
        elif event.what == "beforeLease-over":
            ready[id][event.who] = event.time
        elif event.what == "afterLease" and event.who in ready[id] and (event.who, id) not in gone:
            lease = records.get(("lease", id))
            if not isinstance(lease, Lease) or lease.reason != "its time was over" or id not in durations:
                continue
            if lease.idle_limit is not None:  # its exporter may have ended it for that, and was not heard in time
                continue
            for held in lease.devices:
                began, duration = ready[id].get(held.exporter, event.time), durations[id]
                if event.time < began + duration - EARLY:
                    yield f"lease {id} of {duration:g} s had {held.exporter} for {event.time - began:.3f} s: {event}"
        elif event.what in ("killed", "stopped"):
            gone.update((event.who, lease) for lease in ready)


def all_ends(history: Sequence[Event], records: Records) -> Iterator[str]:
    """Every hold has ended by itself, and at its exporter no later than its duration says, whatever the clocks were set to.

    The time of several devices runs at an exporter from when it is told so, at the latest.
    """
    latest: dict[tuple[str, str], float] = {}
    """Until when its time begins at an exporter."""
    for event in history:
        key = event.who, event.detail[0] if event.detail else ""
        if event.what == "beforeLease-over":
            lease = records.get(("lease", key[1]))
            alone = not isinstance(lease, Lease) or len(lease.devices) == 1
            latest[key] = event.time if alone else event.time + PREPARE_LIMIT
        elif event.what == "runs" and key in latest:
            latest[key] = min(latest[key], event.time)
        elif event.what == "afterLease" and (began := latest.pop(key, None)) is not None:
            lease = records.get(("lease", key[1]))
            if isinstance(lease, Lease) and event.time > began + lease.duration + 0.01:
                yield f"lease {lease.id} of {lease.duration:g} s lasted {event.time - began:.3f} s: {event}"
        elif event.what == "killed":
            latest = {key: began for key, began in latest.items() if key[0] != event.who}
    for record in records.values():
        if isinstance(record, Lease) and record.state is not State.ENDED:
            yield f"lease {record.id} of {record.client} is {record.state} for ever: {record}"
