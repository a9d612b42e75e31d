"""A lab as one file, to be brought from one store to another: what ``jmp admin export`` writes and ``jmp admin import`` reads.

One JSON object a line: first what the file is, then records, by kind, and keys if they go along, last how many lines there were.
What only a controller that runs has to say of itself (presence, replicas) is no part of a lab.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio

from jmp.controller.store import KINDS, Change, Key, Record, Store
from jmp.errors import Busy, ConfigError, Conflict, JmpError
from jmp.wire.records import Lease, State, from_wire, to_wire

FORMAT: Final = 1
MOVED: Final = ("client", "exporter", "policy", "token", "lease")
"""The kinds of records that belong to a lab, in the order in which they are brought there."""
AT_ONCE: Final = 16
"""How many records a store that keeps each by itself is given at the same time."""
BEAT_WAIT: Final = 8.0
"""Seconds in which a controller that lives has given a sign of it."""


@dataclass(frozen=True)
class Moved:
    """What is in such a file."""

    records: dict[Key, Record] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)

    def counts(self) -> str:
        """How much of what."""
        found = Counter(kind for kind, _ in self.records)
        words = {"policy": ("policy", "policies")}
        return ", ".join(
            f"{found[kind]} {words.get(kind, (kind, f'{kind}s'))[found[kind] != 1]}" for kind in MOVED if found[kind]
        )


async def take(store: Store) -> dict[Key, Record]:
    """The records of a lab, as they are now."""
    return {(kind, name): record for kind, name, record in await store.load() if kind in MOVED}


def write(moved: Moved, software: str, now: str) -> str:
    """The file's text; it holds all secrets of the lab if there are keys."""
    lines: list[Any] = [{"jmp": "lab", "format": FORMAT, "software": software, "time": now}]
    order = sorted(moved.records.items(), key=lambda item: (MOVED.index(item[0][0]), _number(item[1]), item[0][1]))
    for (kind, _), record in order:
        value = to_wire(record)
        del value["version"]
        lines.append({"kind": kind, "record": value})
    lines += [{"key": name, "content": content.decode()} for name, content in moved.keys.items()]
    lines.append({"end": len(lines)})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def read(text: str, what: str) -> Moved:
    """What is in a file called ``what``. Raises :class:`~jmp.errors.ConfigError`."""
    lines = text.splitlines()
    first = _object(lines[0]) if lines else {}
    if first.get("jmp") != "lab" or type(first.get("format")) is not int:
        raise ConfigError(f"{what} is not what jmp admin export writes")
    if first["format"] > FORMAT:
        raise ConfigError(f"{what} is from a later version of jmp ({first.get('software')}): use that one")
    if _object(lines[-1]) != {"end": len(lines) - 1}:
        raise ConfigError(f"{what} is not complete: export again")
    moved = Moved()
    for number, text in enumerate(lines[1:-1], 2):
        where = f"{what}:{number}"
        match _object(text):
            case {"kind": str(kind), "record": dict(value)} if kind in MOVED:
                try:
                    record: Any = from_wire(KINDS[kind], value)
                except JmpError as error:
                    raise ConfigError(f"{where}: {error.message}") from None
                moved.records[kind, record.id if kind in ("token", "lease") else record.name] = record
            case {"key": str(name), "content": str(content)}:
                moved.keys[name] = content.encode()
            case _:
                raise ConfigError(f"{where} is neither a record nor a key")
    return moved


def _object(text: str) -> dict[str, Any]:
    """What a line has, nothing if it is no JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def without_tokens(moved: Moved) -> Moved:
    """The same for a lab with other keys: what the old ones have signed is good for nothing there."""
    return replace(moved, records={key: record for key, record in moved.records.items() if key[0] != "token"})


async def missing(moved: Moved, store: Store) -> list[Change]:
    """What a store needs that has no records, or some of these: whoever was interrupted begins again.

    Raises :class:`~jmp.errors.Conflict` if there is another lab, and :class:`~jmp.errors.Busy` if controllers use it.
    """
    present = await store.load()
    there = {(kind, name): record for kind, name, record in present if kind in MOVED}
    for key, record in there.items():
        if key not in moved.records or _bare(record) != _bare(moved.records[key]):
            raise Conflict(f"there is another lab already, with {key[0]} {key[1]}: a lab is brought to where none is")
    replicas = {name: record for kind, name, record in present if kind == "replica"}
    if replicas:
        await trio.sleep(BEAT_WAIT)
        later = {name: record for kind, name, record in await store.load() if kind == "replica"}
        alive = sorted(name for name, record in later.items() if record != replicas.get(name))
        if alive:
            raise Busy(f"controllers run there ({', '.join(alive)}): a lab is brought to where none does")
    return [Change(*key, None, record) for key, record in moved.records.items() if key not in there]


async def keep(changes: Sequence[Change], store: Store) -> None:
    """Keep records that are missing."""
    if not store.shared:
        if changes:
            await store.commit(changes)
        return
    # Such a store has no transactions, and numbers leases in the order in which they come: what waits keeps its order.
    waiting = sorted((change for change in changes if _is_queued(change.new)), key=lambda change: _number(change.new))
    limit = trio.CapacityLimiter(AT_ONCE)

    async def keep_one(change: Change) -> None:
        async with limit:
            await store.commit([change])

    for kind in MOVED:
        async with trio.open_nursery() as nursery:
            for change in changes:
                if change.kind == kind and not _is_queued(change.new):
                    nursery.start_soon(keep_one, change)
    for change in waiting:
        await store.commit([change])


def _is_queued(record: Record | None) -> bool:
    return isinstance(record, Lease) and record.state is State.QUEUED


def _number(record: Record | None) -> int:
    return record.number if isinstance(record, Lease) else 0


def _bare(record: Record) -> Record:
    """A record as it is in every store: each has versions and numbers of its own, and times to the microsecond."""
    values: dict[str, Any] = {
        name: round(value, 3) for name, value in vars(record).items() if isinstance(value, float) and value > 1e6
    }
    values |= {"version": 0, "number": 0} if isinstance(record, Lease) else {"version": 0}
    return replace(record, **values)
