"""A lab on the command line: who one is there, and what there is, for people and for programs.

Records are the plain dicts in which a controller sends them (:mod:`jmp.wire.records`, with what it adds). Everything that makes
text of them is a pure function of a record and of ``now``, seconds since the epoch.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from jmp.cli import output
from jmp.cli.output import Wide
from jmp.client.config import ClientConfig, current
from jmp.client.lab import Standing, open_lab
from jmp.errors import JmpError, Refused, UsageError
from jmp.wire import duration, tokens
from jmp.wire.records import to_wire

Record = Mapping[str, Any]

Client = Annotated[
    str | None,
    typer.Option("--client", metavar="NAME", help="Which lab, and as whom (jmp config client list), if not as usual."),
]


@contextmanager
def as_client(name: str | None) -> Iterator[Any]:
    """The lab that one uses; ``name`` is that of a client configuration. Raises ``UsageError``, ``LabError``, ``Refused``."""
    with open_lab(current(name=name)) as lab:
        yield lab


@contextmanager
def as_admin(name: str | None) -> Iterator[tuple[ClientConfig, Any]]:
    """The same for what only admins may do: who is none is told before anything is asked of the controller."""
    config = current(name=name)
    who = tokens.peek(config.token)
    if who["role"] != "admin":
        raise Refused(f"{who['name']} is no admin of the lab at {config.endpoint}, and only an admin may do that")
    with open_lab(config) as lab:
        yield config, lab


def join_command(kind: str, name: str, url: str, fingerprint: str | None, token: str) -> str:
    """What to run to become ``name``. The token goes by the environment: arguments can be seen by every user of a machine."""
    words = ["jmp", "config", kind, "create", name, "--endpoint", url]
    if fingerprint is not None:
        words += ["--ca-fingerprint", fingerprint]
    return f"JMP_TOKEN={shlex.quote(token)} {shlex.join(words)}"


def router_command(name: str, url: str, fingerprint: str | None, token: str) -> str:
    """The same for a router."""
    words = ["jmp", "router", "serve", "--name", name, "--controller", url]
    if fingerprint is not None:
        words += ["--ca-fingerprint", fingerprint]
    return f"JMP_TOKEN={shlex.quote(token)} {shlex.join(words)}"


def ca_fingerprint(config: ClientConfig) -> str | None:
    """The fingerprint of the CA that ``config`` trusts; None if it trusts the system's. Raises ``ConfigError``."""
    import ssl

    from jmp.errors import ConfigError
    from jmp.link.tls import fingerprint_of, first_certificate

    if config.tls.ca is None:
        return None
    try:
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(first_certificate(config.tls.ca.read_text())))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.tls.ca} is to hold a CA's certificate: {error}") from None


# ---- times

TIMES: Final = frozenset(
    {"created", "begin", "give_up", "granted", "ready", "ends", "ended", "expected", "until", "used"}
    | {"issued", "expires", "revoked"}
)
"""Keys whose values are seconds since the epoch."""
DURATIONS: Final = frozenset({"duration", "idle_limit", "longest"})
"""Keys whose values are seconds."""
INTERNAL: Final = frozenset({"number"})
"""Keys that mean nothing outside of a controller."""


def iso(moment: float) -> str:
    """A time as data: ISO 8601, UTC."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def relative(moment: float, now: float) -> str:
    """A time for people: ``in 12m``, ``3h 5m ago``, ``now``."""
    left = moment - now
    if abs(left) < 1:
        return "now"
    return f"in {duration.text(left)}" if left > 0 else f"{duration.text(-left)} ago"


def clock(moment: float, now: float) -> str:
    """A time for people in this machine's zone, without the date if that is today's: ``14:32``, ``2026-11-25 08:00``."""
    then, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(now).date()
    return f"{then:%H:%M}" if then.date() == today else f"{then:%Y-%m-%d %H:%M}"


# ---- records as data and as text


def as_data(record: Record) -> dict[str, Any]:
    """A record for programs: times as ISO 8601, durations in seconds; a time of 0 is one that never was."""
    shown = {}
    for key, value in record.items():
        if key in TIMES and isinstance(value, int | float):
            shown[key] = iso(value) if value else None
        elif key not in INTERNAL and not (key == "version" and isinstance(value, int)):
            shown[key] = value
    return shown


def labels_text(labels: Mapping[str, str]) -> str:
    """``board=rpi4,rack=a``."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def want_text(want: Record) -> str:
    """What one device of a request may be: ``rpi-1``, ``board=rpi4``, ``any``."""
    return " ".join(filter(None, [want.get("exporter"), want.get("selector")])) or "any"


def devices_text(lease: Record) -> str:
    """The exporters of a lease, or what it waits for."""
    held = [device["exporter"] for device in lease["devices"]]
    return ", ".join(held or (want_text(want) for want in lease["wants"]))


def standing_text(lease: Record, now: float) -> str:
    """How a lease stands, for people."""
    state = lease["state"]
    if state == "queued":
        return _queue_text(lease, now)
    if state == "preparing":
        return "getting ready"
    if state == "ready":
        return f"{duration.text(max(lease['ends'] - now, 0))} left"
    if state == "ending":
        return f"cleaning up: {lease['reason']}"
    return f"{relative(lease['ended'], now)}: {lease['reason']}"


def _queue_text(lease: Record, now: float) -> str:
    begin, expected = lease["begin"], lease.get("expected")
    if begin is not None and begin > now and (expected is None or expected <= begin):
        return f"begins {relative(begin, now)} ({clock(begin, now)})"
    place = f"number {lease.get('position', 0)}"
    if expected is None:
        return f"{place}, and nobody can tell when it starts"
    if expected - now < 1:
        return f"{place}, may start at any moment"
    return f"{place}, expected to start {relative(expected, now)} ({clock(expected, now)})"


def _lease_row(lease: Record, now: float) -> list[str]:
    return [
        lease["id"],
        lease["state"],
        lease["client"],
        devices_text(lease),
        standing_text(lease, now),
        duration.text(lease["duration"]),
        str(lease["priority"]),
        ",".join(lease["tags"]),
        labels_text(lease["context"]),
    ]


def _exporter_row(exporter: Record, now: float) -> list[str]:
    notes = [exporter["client"]] if exporter.get("client") else []
    if exporter.get("until"):
        notes.append(f"{duration.text(max(exporter['until'] - now, 0))} left")
    if exporter["disabled"] is not None:
        notes.append(f"then disabled: {exporter['disabled']}" if notes else exporter["disabled"])
    used = relative(exporter["used"], now) if exporter["used"] else "never"
    return [
        exporter["name"],
        exporter["state"],
        ", ".join(notes),
        labels_text(exporter["labels"]),
        exporter["description"],
        str(exporter["version"]),
        used,
    ]


def _client_row(client: Record, now: float) -> list[str]:
    disabled = client["disabled"]
    return [
        client["name"],
        "disabled" if disabled is not None else "enabled",
        disabled or "",
        labels_text(client["labels"]),
        relative(client["created"], now) if client["created"] else "",
        ", ".join(client.get("service_accounts", ())),
    ]


def _policy_row(policy: Record, now: float) -> list[str]:
    return [
        policy["name"],
        policy["clients"] or "all",
        policy["exporters"] or "all",
        ", ".join(right for right in ("lease", "see", "manage") if policy[right]),
        "any" if policy["longest"] is None else duration.text(policy["longest"]),
        str(policy["priority"]),
        ", ".join(policy["allow"]),
        ", ".join(policy["deny"]),
        "all" if policy["packages"] is None else ", ".join(policy["packages"]),
    ]


def _token_row(token: Record, now: float) -> list[str]:
    state = "revoked" if token["revoked"] is not None else "expired" if token["expires"] <= now else "good"
    expires = token["revoked"] if state == "revoked" else token["expires"]
    return [
        token["id"],
        f"{token['role']}/{token['subject']}",
        state,
        relative(expires, now),
        relative(token["issued"], now),
    ]


@dataclass(frozen=True)
class Kind:
    """What a listing of one kind of record looks like."""

    name: str
    plural: str
    key: str
    columns: Sequence[str]
    wide: Sequence[str]
    """Columns that are added with ``-o wide``."""
    row: Callable[[Record, float], list[str]]
    """All cells, those for ``wide`` last."""
    empty: str
    """What to say when there are none."""


LEASE: Final = Kind(
    "lease",
    "leases",
    "id",
    ("id", "state", "client", "devices", "time"),
    ("for", "priority", "tags", "context"),
    _lease_row,
    "there are no leases; get one with: jmp lease acquire -l SELECTOR",
)
EXPORTER: Final = Kind(
    "exporter",
    "exporters",
    "name",
    ("name", "state", "note", "labels"),
    ("description", "version", "used"),
    _exporter_row,
    "there are no exporters that you may use; an admin adds one with: jmp admin create exporter NAME",
)
CLIENT: Final = Kind(
    "client",
    "clients",
    "name",
    ("name", "state", "note", "labels"),
    ("created", "service accounts"),
    _client_row,
    "there are no clients; add one with: jmp admin create client NAME",
)
POLICY: Final = Kind(
    "policy",
    "policies",
    "name",
    ("name", "clients", "exporters", "rights", "longest", "priority"),
    ("allow", "deny", "packages"),
    _policy_row,
    "there are no policies, so nobody may lease anything; add one with: jmp admin create policy NAME",
)
TOKEN: Final = Kind(
    "token",
    "tokens",
    "id",
    ("id", "of", "state", "ends"),
    ("issued",),
    _token_row,
    "there are no tokens",
)
KINDS: Final = {kind.name: kind for kind in (LEASE, EXPORTER, CLIENT, POLICY, TOKEN)}


def kind_of(word: str, kinds: Sequence[Kind] = tuple(KINDS.values())) -> Kind:
    """What a word such as ``lease`` or ``leases`` names. Raises ``UsageError`` with the words that there are."""
    for kind in kinds:
        if word.lower() in (kind.name, kind.plural):
            return kind
    from jmp.driver.schema import did_you_mean

    names = [kind.plural for kind in kinds]
    raise UsageError(f"a lab has no {word!r}{did_you_mean(word, names)}")


def print_records(kind: Kind, records: Sequence[Record], form: Wide, *, empty: str | None = None) -> None:
    """Print a listing."""
    if form in ("json", "yaml"):
        output.print_value([as_data(record) for record in records], form)
    elif form == "name":
        sys.stdout.writelines(f"{record[kind.key]}\n" for record in records)
    else:
        now = time.time()
        columns = [*kind.columns, *(kind.wide if form == "wide" else ())]
        rows = [kind.row(record, now)[: len(columns)] for record in records]
        output.print_table(columns, rows, empty=empty or kind.empty)


def print_record(kind: Kind, record: Record, form: Wide) -> None:
    """Print one record with all that is known of it."""
    if form in ("json", "yaml"):
        output.print_value(as_data(record), form)
    elif form == "name":
        sys.stdout.write(f"{record[kind.key]}\n")
    else:
        output.print_details(details(record, time.time()))


def details(record: Record, now: float) -> list[tuple[str, str]]:
    """What there is to say of a record, for people: without what it does not have."""
    found = []
    for key, value in as_data(record).items():
        if value is None or value in ("", [], {}, 0) or key in ("own_labels", "tree", "epoch"):
            continue
        found.append((key.replace("_", " "), _detail(key, value, record, now)))
    return found


def _detail(key: str, value: Any, record: Record, now: float) -> str:
    if key in TIMES:
        return f"{clock(record[key], now)} ({relative(record[key], now)})"
    if key in DURATIONS:
        return duration.text(value)
    if key == "wants":
        return ", ".join(map(want_text, value))
    if key == "devices":
        return ", ".join(f"{held['exporter']} ({held['phase']})" for held in value)
    if isinstance(value, dict):
        return labels_text(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


# ---- what one waits for


def record_of(standing: Standing) -> Record:
    """A lease that is watched, as the controller sends it."""
    return {**to_wire(standing.lease), "position": standing.position, "expected": standing.expected}


class Narrator:
    """Tells on standard error how a lease stands: a line that is renewed on a terminal, a line for each change elsewhere."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._said: object = None
        self._open = False

    def tell(self, lease: Record) -> None:
        """A lease stands so now."""
        state, names = lease["state"], devices_text(lease)
        if state == "queued":
            said = f"lease {lease['id']} ({names}) is queued: {standing_text(lease, self._now())}"
            if lease.get("expected") is None and not lease["begin"]:
                said += "; jmp lease why tells more"
            self.say(said, topic=(state, lease.get("position"), lease.get("expected") is None))
        elif state == "preparing":
            self.say(f"lease {lease['id']}: {names}, getting ready", topic=state)
        elif state == "ready":
            left = duration.text(max(lease["ends"] - self._now(), 0))
            self.say(f"lease {lease['id']}: {names} for {left}", topic=state, final=True)

    def say(self, line: str, *, topic: object, final: bool = False) -> None:
        """Renew the line; where it cannot be renewed, only if it is about something else than the last one."""
        if sys.stderr.isatty():
            sys.stderr.write(("\r\x1b[K" if self._open else "") + line + ("\n" if final else ""))
            sys.stderr.flush()
            self._open = not final
        elif topic != self._said:
            output.note(line)
        self._said = topic

    def close(self) -> None:
        """Leave the line as it is; what follows begins on a new one."""
        if self._open:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._open = False


def each(names: Sequence[str], action: Callable[[str], None]) -> int:
    """Do something for each name, whatever happens to others; returns the exit code of the first that failed."""
    code = 0
    for name in names:
        try:
            action(name)
        except JmpError as error:
            if len(names) == 1:
                raise
            output.note(f"jmp: {error.message}")
            code = code or error.exit_code
    return code


def pairs(values: Sequence[str] | None, what: str) -> dict[str, str]:
    """What ``--label k=v`` was given, as a mapping. Raises ``UsageError``."""
    found = {}
    for value in values or ():
        key, equals, rest = value.partition("=")
        if not equals or not key:
            raise UsageError(f"{what} takes NAME=VALUE, not {value!r}")
        found[key] = rest
    return found
