"""What a lab keeps and tells: clients, exporters, policies, tokens and leases, and the same as plain values.

Records are immutable; whoever changes one makes a new one of it (:func:`dataclasses.replace`). Times are seconds since the epoch
(UTC), durations are seconds, both as float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from jmp.errors import ProtocolViolation


class State(StrEnum):
    """Where a lease stands."""

    QUEUED = "queued"
    """Waiting for what it wants."""
    PREPARING = "preparing"
    """Its devices are its own; their exporters are getting them ready (drivers, beforeLease)."""
    READY = "ready"
    """In use: its time runs."""
    ENDING = "ending"
    """Nobody may use its devices; their exporters clean up (afterLease, drivers)."""
    ENDED = "ended"
    """History."""


class Phase(StrEnum):
    """Where one exporter stands with its lease, as it reports it."""

    IDLE = "idle"
    PREPARING = "preparing"
    READY = "ready"
    ENDING = "ending"


class Role(StrEnum):
    """What an identity is for."""

    ADMIN = "admin"
    CLIENT = "client"
    EXPORTER = "exporter"
    ROUTER = "router"


@dataclass(frozen=True, kw_only=True)
class Want:
    """One device that somebody wants: any that matches, or the one that is named (which has to match, too)."""

    selector: str = ""
    exporter: str | None = None


@dataclass(frozen=True, kw_only=True)
class Held:
    """One device of a lease."""

    exporter: str
    epoch: int
    """The exporter's epoch at the grant: whoever comes with an older one is refused."""
    phase: Phase = Phase.PREPARING


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A bounded time with one device, or with several at once; from its request on, and as history when it has ended."""

    id: str
    client: str
    wants: tuple[Want, ...]
    duration: float
    """Seconds from when it gets ready: all of its devices."""
    created: float
    number: int
    """Rises with each request of a lab: the order of the queue within a priority. 0: not checked and queued yet; -1: nor is it
    to be, for a moment, as the controller that has made it does that."""
    priority: int = 0
    begin: float | None = None
    """Not to be granted before."""
    give_up: float | None = None
    """Ends if it is still queued then."""
    tied: bool = False
    """Ends when its holder has been gone for a while."""
    idle_limit: float | None = None
    """Ends after so many seconds without a call or a byte."""
    allow_disabled: bool = False
    """Takes an exporter that is in maintenance, too."""
    tags: tuple[str, ...] = ()
    context: dict[str, str] = field(default_factory=dict)
    """What its log lines carry, such as a CI job's number."""
    state: State = State.QUEUED
    devices: tuple[Held, ...] = ()
    """One for each want, in their order, from the grant on."""
    granted: float | None = None
    ready: float | None = None
    ends: float | None = None
    """When it will end by itself, or did; None while it is queued."""
    ended: float | None = None
    reason: str = ""
    """Why it is ending or has ended."""
    version: int = 0
    """Set by the store: of two versions, the larger one is the later one."""


SERVICE_ACCOUNT: Final = "[a-z0-9]([-a-z0-9]*[a-z0-9])?/[a-z0-9]([-.a-z0-9]*[a-z0-9])?"
"""The shape of a service account's name: NAMESPACE/NAME."""


@dataclass(frozen=True, kw_only=True)
class Client:
    """Somebody who may lease: a person, a CI job."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    disabled: str | None = None
    """Why it may do nothing at present."""
    service_accounts: tuple[str, ...] = ()
    """Those of the cluster, as NAMESPACE/NAME, that may log in as this client."""
    created: float = 0.0
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Exporter:
    """A device's exporter as the lab knows it, connected or not."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    """Those that the exporter's configuration gives, and over them those that an admin has set."""
    own_labels: dict[str, str] = field(default_factory=dict)
    """Those that an admin has set."""
    description: str = ""
    disabled: str | None = None
    """Why it is in maintenance."""
    created: float = 0.0
    epoch: int = 0
    """Raised with each grant and transfer."""
    used: float = 0.0
    """When its last lease was granted."""
    lease: str = ""
    """The lease that it was given to last."""
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the clients that match may do with the exporters that match. Without a policy that says so nothing is allowed."""

    name: str
    clients: str = ""
    """Selector; the empty one matches all."""
    exporters: str = ""
    lease: bool = True
    """May lease them."""
    see: bool = True
    """May see who holds them."""
    manage: bool = False
    """May release, transfer and extend others' leases of them, and lease them in maintenance."""
    priority: int = 0
    """The highest that may be asked for, and what a request gets that asks for none."""
    longest: float | None = None
    """Longest lease in seconds, all extensions included."""
    allow: tuple[str, ...] = ("*",)
    """Patterns of driver methods: ``power.*``, ``storage.write``."""
    deny: tuple[str, ...] = ()
    """Patterns of driver methods that are refused whatever is allowed."""
    packages: tuple[str, ...] | None = None
    """Distributions whose drivers may be loaded; None: all that are installed."""
    created: float = 0.0
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Token:
    """An identity token that has been issued: never the token itself."""

    id: str
    subject: str
    """Name of the client, exporter or router."""
    role: Role
    issued: float
    expires: float
    revoked: float | None = None
    service_account: str = ""
    """Whose own token it was made for; it is good only while that may log in as the subject."""
    version: int = 0


# ---- what a controller and an exporter tell each other


@dataclass(frozen=True, kw_only=True)
class Grant:
    """A lease as its exporter needs to know it."""

    lease: str
    client: str
    duration: float
    """Seconds from when it gets ready."""
    remaining: float
    """Seconds from now: until it must be ready, or, when the controller knows that it is, until its end."""
    alone: bool = True
    """It is the lease's only device, so that the lease's time begins when this one is ready."""
    running: float | None = None
    """Seconds for which the lease's time has run, where there are others: since all were ready. None: not all are."""
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    packages: tuple[str, ...] | None = None
    idle_limit: float | None = None
    tags: tuple[str, ...] = ()
    context: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Desired:
    """What an exporter shall be doing."""

    epoch: int
    grant: Grant | None = None
    reason: str = ""
    """Without a grant: why the last one is over."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What an exporter is doing."""

    epoch: int
    """The newest that it has heard of."""
    lease: str | None = None
    """The lease that ``phase`` is about: the present one, or when idle the last one."""
    phase: Phase = Phase.IDLE
    reason: str = ""
    """Why the lease ended here."""
    attached: int = 0
    """Links of its holder."""


# ---- what the controllers of one lab tell each other


@dataclass(frozen=True, kw_only=True)
class Presence:
    """An exporter that is connected to one of them."""

    name: str
    replica: str
    """The controller."""
    since: float
    """When it connected; of two, the later one counts."""
    observed: Observed
    peer: str = ""
    software: str = ""
    """Its version of jmp."""
    endpoints: tuple[Endpoint, ...] = ()
    tree: dict[str, Any] = field(default_factory=dict)
    """Its drivers."""
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where somebody is reached."""

    url: str
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Routing:
    """A router that is connected to a controller."""

    name: str
    url: str
    fingerprint: str | None = None
    load: int = 0
    draining: bool = False


@dataclass(frozen=True, kw_only=True)
class Dial:
    """An exporter that is connected elsewhere shall go to a router, where somebody is waiting for it."""

    exporter: str
    lease: str
    epoch: int
    session: str
    url: str
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class Replica:
    """One controller of several. Only it changes this; as long as it does, it lives."""

    name: str
    beat: int = 0
    """Rises with every sign of life."""
    holds: tuple[str, ...] = ()
    """Tied leases whose holders are connected to it."""
    routers: tuple[Routing, ...] = ()
    dials: tuple[Dial, ...] = ()
    """The newest ones."""
    version: int = 0


_PLAIN: Final = frozenset({str, int, float, bool, NoneType})

T = TypeVar("T")
R = TypeVar("R")


def changed(record: R, **values: Any) -> R:
    """The record with other values: what :func:`dataclasses.replace` does, in a tenth of the time."""
    cls: Any = type(record)
    assert _names(cls).issuperset(values), f"a {cls.__name__} has not all of {', '.join(values)}"
    new: R = object.__new__(cls)
    new.__dict__.update(record.__dict__, **values)
    return new


def to_wire(record: Any) -> Any:
    """A record as plain values: dicts, lists, strings, numbers."""
    cls: type = type(record)
    if cls in _PLAIN:
        return record
    if (composed := _composed(cls)) is not None:
        values = record.__dict__.copy()
        for name in composed:
            values[name] = to_wire(values[name])
        return values
    if isinstance(record, list | tuple):
        return [to_wire(item) for item in record]
    if isinstance(record, dict):
        return {key: to_wire(value) for key, value in record.items()}
    return str(record) if isinstance(record, StrEnum) else record


def from_wire(cls: type[T], value: Any) -> T:
    """The record that :func:`to_wire` made ``value`` of. Keys that this version does not know are passed over.

    Raises :class:`~jmp.errors.ProtocolViolation` if it cannot be one.
    """
    hint: Any = cls
    try:
        record: T = _reader(hint)(value)
    except (TypeError, ValueError) as error:
        raise ProtocolViolation(f"this is no {cls.__name__.lower()}: {error}") from None
    return record


@cache
def _names(cls: Any) -> frozenset[str]:
    """The fields of a record."""
    return frozenset(item.name for item in fields(cls))


@cache
def _composed(cls: Any) -> tuple[str, ...] | None:
    """The fields of a record whose values are not plain already; None for what is no record."""
    if not is_dataclass(cls):
        return None
    return tuple(name for name, hint in get_type_hints(cls).items() if not _is_plain(hint))


def _is_plain(hint: Any) -> bool:
    return hint in _PLAIN or (get_origin(hint) in (Union, UnionType) and _PLAIN.issuperset(get_args(hint)))


_Reader = Callable[[Any], Any]


@cache
def _reader(hint: Any) -> _Reader:
    """What makes a value of the type ``hint`` of a plain one; it raises ``TypeError`` and ``ValueError``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _reader_of_record(hint)
    if origin in (Union, UnionType):
        inner = _reader(next(item for item in arguments if item is not NoneType))
        return lambda value: None if value is None else inner(value)
    if hint is Any:
        return lambda value: value
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint
    if origin is tuple:
        item = _reader(arguments[0])
        return _checked(hint, (list, tuple), lambda value: tuple([item(one) for one in value]))
    if origin is dict:
        of_key, of_item = map(_reader, arguments)
        return _checked(hint, (dict,), lambda value: {of_key(key): of_item(one) for key, one in value.items()})
    if hint is float:
        return _checked(hint, (float, int), float)
    return _checked(hint, (hint,), lambda value: value)


def _checked(hint: Any, kinds: tuple[type, ...], make: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"{value!r:.60} where {getattr(hint, '__name__', hint)} is due")
        return make(value)

    return read


def _reader_of_record(cls: Any) -> _Reader:
    hints = get_type_hints(cls)
    readers = {item.name: _reader(hints[item.name]) for item in fields(cls)}
    needed = [item.name for item in fields(cls) if item.default is MISSING and item.default_factory is MISSING]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"{value!r:.60} is no mapping")
        for name in needed:
            if name not in value:
                raise TypeError(f"{name} is missing")
        return cls(**{name: reader(value[name]) for name, reader in readers.items() if name in value})

    return read
