"""``jmp lease``: a bounded time with devices of a lab."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Any, Final

import typer

from jmp.cli import labs, output
from jmp.cli.labs import LEASE, Client, Record
from jmp.cli.output import Wide
from jmp.cli.typed import Output, WideOutput, new_app
from jmp.client.config import ClientConfig, current
from jmp.client.lab import open_lab
from jmp.errors import Cancelled, JmpError, LabError, ProtocolViolation, Timeout, UsageError
from jmp.rpc.blocking import fail_after
from jmp.wire import duration, selector
from jmp.wire.records import State, Want, to_wire

app = new_app("A time with devices of a lab.")

VARIABLE: Final = "JMP_LEASE"
DEFAULT_FOR: Final = "1h"
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 10.0
"""Seconds between attempts to reach a controller that went away while one waits: doubled, and drawn from the upper half."""
RELEASE_SECONDS: Final = 10.0
"""How long to try to take a request back."""

Selectors = Annotated[
    list[str] | None,
    typer.Option("-l", "--selector", metavar="SELECTOR", help="Labels of a device: board=rpi4,rack in (a,b),!broken."),
]
Names = Annotated[list[str] | None, typer.Option("--name", metavar="EXPORTER", help="A certain exporter.")]
Id = Annotated[str | None, typer.Argument(metavar="[ID]", help=f"Default: ${VARIABLE}.")]
AllowDisabled = Annotated[
    bool, typer.Option("--allow-disabled", help="An exporter in maintenance, too; for those who manage it.")
]


# ---- getting one


@app.command()
def acquire(
    selectors: Selectors = None,
    names: Names = None,
    length: Annotated[
        str, typer.Option("--for", "--duration", metavar="DURATION", help="How long, from when all is ready: 30m, 2h.")
    ] = DEFAULT_FOR,
    at: Annotated[str | None, typer.Option(metavar="TIME", help="Not before: +2h, 14:30, 2026-11-24T14:30.")] = None,
    wait: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long to queue; default: as long as it takes.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Fail if it cannot be had at once.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the id and leave it in the queue; jmp lease wait waits for it.")
    ] = False,
    priority: Annotated[int | None, typer.Option(metavar="N", help="Higher ones go first, as far as allowed.")] = None,
    idle: Annotated[
        str | None, typer.Option(metavar="DURATION", help="End it when its devices were not used for so long.")
    ] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="To find it by; repeatable.")] = None,
    context: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What its log lines carry, such as a job's number; repeatable."),
    ] = None,
    allow_disabled: AllowDisabled = False,
    client: Client = None,
    form: Output = "name",
) -> None:
    """Get a lease, and print its id once its devices are ready.

    Several -l or --name ask for several devices, which are granted together; one of each is that exporter, if it matches. Ctrl-C
    while waiting takes the request back.

    Exit codes: 124 not granted in time, 77 refused, 64 no such device, 69 the lab failed.
    """
    if no_wait and (wait is not None or detach):
        raise UsageError("--no-wait says what --wait and --detach say otherwise: give one")
    now = time.time()
    if at is not None and duration.moment(at, now) < now - 60:
        raise UsageError(f"--at {at} is over; without --at a lease begins as soon as it can")
    options = {
        "begin": None if at is None else duration.moment(at, now),
        "wait": 0.0 if no_wait else None if wait is None else duration.parse(wait),
        "priority": priority,
        "idle_limit": None if idle is None else duration.parse(idle),
        "allow_disabled": allow_disabled,
        "tags": list(tags or ()),
        "context": labs.pairs(context, "--context"),
        "tied": not detach,  # until its id is told: nobody would know of a lease whose request was killed
    }
    wants = wants_of(selectors, names)
    if not wants:
        raise UsageError("which device? -l SELECTOR or --name EXPORTER says it; jmp get exporters lists what there is")
    seconds = duration.parse(length)
    config = current(name=client)
    narrator = labs.Narrator()
    with _signals_raise(), ExitStack() as stack:
        lab = stack.enter_context(open_lab(config))
        lease: Record | None = None
        try:
            with _signals_wait():  # so that a request that was made is known to whom it may concern
                lease = lab.call("acquire", [to_wire(want) for want in wants], seconds, **options)
            if not detach:
                lease = _wait_ready(config, lab, lease["id"], narrator, keep=True)
            labs.print_record(LEASE, lease, form)
            sys.stdout.flush()
        except (KeyboardInterrupt, SystemExit, BrokenPipeError):
            narrator.close()
            if lease is not None:
                _take_back(config, lease["id"])
            raise
        except Timeout as error:
            narrator.close()
            why = " ".join(f"{'--name' if want.exporter else '-l'} '{labs.want_text(to_wire(want))}'" for want in wants)
            raise Timeout(f"{error.message}; jmp lease why {why} says what keeps each device") from None
        finally:
            narrator.close()


@app.command("wait")
def wait_lease(id: Id = None, client: Client = None, form: Output = "name") -> None:
    """Wait until a lease is ready, and print its id. Ctrl-C leaves it in the queue."""
    config = current(name=client)
    narrator = labs.Narrator()
    try:
        with open_lab(config) as lab:
            labs.print_record(LEASE, _wait_ready(config, lab, named(id), narrator), form)
    finally:
        narrator.close()


# ---- having one


@app.command()
def release(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help=f"Default: ${VARIABLE}.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All that you have.")] = False,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="What others are told.")] = "",
    client: Client = None,
) -> int:
    """End leases now. One that has ended already is fine."""
    if everything and ids:
        raise UsageError("--all releases all leases: name none")
    with labs.as_client(client) as lab:
        chosen = [lease["id"] for lease in lab.call("leases")] if everything else list(ids or [named(None)])
        if not chosen:
            output.note("you have no leases")

        def end(id: str) -> None:
            lease = lab.call("release", id, reason)
            if lease["released"]:
                output.note(f"released {id}" + (f": {labs.devices_text(lease)}" if lease["devices"] else ""))
            else:
                output.note(f"{id} had ended already: {lease['reason']}")

        return labs.each(chosen, end)


@app.command("list")
def list_leases(
    everybody: Annotated[bool, typer.Option("--all", "-A", help="Everybody's, as far as you may see them.")] = False,
    ended: Annotated[bool, typer.Option("--ended", help="Those that have ended, too.")] = False,
    tag: Annotated[str, typer.Option("--tag", "--tag-filter", metavar="TAG", help="Only those with this tag.")] = "",
    client: Client = None,
    form: WideOutput = "table",
) -> None:
    """List your leases."""
    with labs.as_client(client) as lab:
        print_leases(lab, form, everybody=everybody, ended=ended, tag=tag)


@app.command()
def show(id: Id = None, client: Client = None, form: Output = "table") -> None:
    """Show one lease."""
    with labs.as_client(client) as lab:
        labs.print_record(LEASE, lab.call("lease", named(id)), form)


@app.command()
def extend(
    words: Annotated[list[str], typer.Argument(metavar="[ID] DURATION", help=f"Default of ID: ${VARIABLE}.")],
    client: Client = None,
    form: Output = "table",
) -> None:
    """Give a lease more time."""
    id, more = _with_default(words, "a duration, such as 30m")
    seconds = duration.parse(more)
    with labs.as_client(client) as lab:
        print_change(lab.call("extend", id, seconds), form)


@app.command()
def transfer(
    words: Annotated[list[str], typer.Argument(metavar="[ID] CLIENT", help=f"Default of ID: ${VARIABLE}.")],
    client: Client = None,
    form: Output = "table",
) -> None:
    """Hand a lease over to another client. Who used its devices until now is cut off at once."""
    id, to = _with_default(words, "a client's name")
    with labs.as_client(client) as lab:
        print_change(lab.call("transfer", id, to), form)


@app.command()
def why(
    selectors: Selectors = None,
    names: Names = None,
    allow_disabled: AllowDisabled = False,
    client: Client = None,
    form: Output = "table",
) -> None:
    """Say for each exporter what keeps you from leasing it now."""
    wants = wants_of(selectors, names) or [Want()]
    with labs.as_client(client) as lab:
        found = lab.call("why", [to_wire(want) for want in wants], allow_disabled)
    rows = [{"exporter": item["exporter"], "state": item["code"], "why": item["text"]} for item in found]
    empty = "no policy lets you lease or see any exporter (an admin as such leases none)"
    output.print_listing(rows, form, ("exporter", "state", "why"), key="exporter", empty=empty)


# ---- what the same commands in kubectl's order need


def wants_of(selectors: Sequence[str] | None, names: Sequence[str] | None) -> list[Want]:
    """The devices that ``-l`` and ``--name`` ask for. Raises ``BadValue`` for what is no selector."""
    selectors, names = selectors or (), names or ()
    for text in selectors:
        selector.parse(text)
    if len(selectors) == len(names) == 1:
        return [Want(selector=selectors[0], exporter=names[0])]
    return [*(Want(selector=text) for text in selectors), *(Want(exporter=name) for name in names)]


def named(id: str | None) -> str:
    """The lease that is meant. Raises ``UsageError``."""
    found = id or os.environ.get(VARIABLE)
    if not found:
        raise UsageError(f"which lease? name one (jmp lease list shows yours), or set {VARIABLE}")
    return found


def print_leases(lab: Any, form: Wide, *, everybody: bool, ended: bool, tag: str, matching: str | None = None) -> None:
    """List leases; with ``matching`` only those of exporters that match it."""
    found = lab.call("leases", everybody=everybody, ended=ended, tag=tag)
    if matching is not None:
        fitting = {exporter["name"] for exporter in lab.call("exporters", matching)}
        found = [lease for lease in found if fitting & {held["exporter"] for held in lease["devices"]}]
    empty = LEASE.empty if everybody else "you have no leases; jmp lease list --all lists everybody's"
    labs.print_records(LEASE, found, form, empty=empty)


def print_change(lease: Record, form: Wide) -> None:
    """Tell how a lease stands after a change."""
    if form == "table":
        text = f"lease {lease['id']} of {lease['client']}: {labs.devices_text(lease)}, {lease['state']}"
        sys.stdout.write(f"{text}, {labs.standing_text(lease, time.time())}\n")
    else:
        labs.print_record(LEASE, lease, form)


def pick(client: str | None) -> str:
    """Let the user choose one of his leases on this terminal; its id. Raises ``UsageError``."""
    config = current(name=client)
    new = "jmp shell -l SELECTOR; jmp get exporters lists what there is"
    with open_lab(config) as lab:
        found = [lease for lease in lab.call("leases") if lease["state"] in (State.PREPARING, State.READY)]
    if not found:
        raise UsageError(f"you have no active lease at {config.endpoint}; for a new one: {new}")
    output.note(menu(found, time.time()) + f"\nFor a new one: {new}")
    while True:
        sys.stderr.write("Which one (Enter: 1)? ")
        sys.stderr.flush()
        answer = sys.stdin.readline()
        if not answer:
            sys.stderr.write("\n")
            raise UsageError("no lease was chosen")
        if (id := meant(answer.strip(), found)) is not None:
            return id
        output.note(f"a number from 1 to {len(found)} or an id, please; Ctrl-C leaves")


def menu(leases: Sequence[Record], now: float) -> str:
    """Leases to choose from, a line for each."""
    rows = [[lease["id"], labs.devices_text(lease), labs.standing_text(lease, now)] for lease in leases]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(["Your leases:", *(f"{number:3}  {line}" for number, line in enumerate(cells, 1))])


def meant(answer: str, leases: Sequence[Record]) -> str | None:
    """The id of the lease that an answer means: its id or number, nothing for the first; None if it means none."""
    ids = [str(lease["id"]) for lease in leases]
    if answer in ids:
        return answer
    if not answer:
        return ids[0]
    return ids[int(answer) - 1] if answer.isdecimal() and 1 <= int(answer) <= len(ids) else None


def _with_default(words: Sequence[str], what: str) -> tuple[str, str]:
    if len(words) > 2:
        raise UsageError(f"a lease's id and {what} are expected, not {len(words)} words")
    return named(words[0] if len(words) == 2 else None), words[-1]


# ---- waiting


def _wait_ready(config: ClientConfig, lab: Any, id: str, narrator: labs.Narrator, *, keep: bool = False) -> Record:
    """The lease once it is ready; with ``keep``, it outlives this program from then on."""

    def away(error: JmpError) -> None:
        narrator.say(f"jmp: the controller is away ({error.message}); waiting for it", topic="away")

    for lease in _follow(config, lab, id, away, keep):
        narrator.tell(lease)
        if lease["state"] == State.READY:
            return lease
        if lease["state"] in (State.ENDING, State.ENDED):
            raise not_ready(lease)
    raise LabError(f"lease {id} is gone")


def not_ready(lease: Record) -> JmpError:
    """What to raise for a lease that ended before anybody could use it."""
    if lease["granted"] is not None:
        return LabError(f"lease {lease['id']} of {labs.devices_text(lease)} was never ready: {lease['reason']}")
    if lease["give_up"] is not None and lease["give_up"] <= (lease["ended"] or 0):
        return Timeout(f"lease {lease['id']} was not granted: {lease['reason']}")
    return Cancelled(f"lease {lease['id']} ended in the queue: {lease['reason']}")


def _follow(config: ClientConfig, lab: Any, id: str, away: Callable[[JmpError], None], keep: bool) -> Iterator[Record]:
    """The lease as it stands, over ``lab`` and, should the controller go away, over new connections once it is back."""
    pause, give_up = FIRST_PAUSE, None
    with ExitStack() as stack:
        while True:
            try:
                lab = lab or stack.enter_context(open_lab(config))
                for standing in lab.watch(id):
                    pause, give_up = FIRST_PAUSE, standing.lease.give_up
                    if keep and standing.lease.state is State.READY:
                        lab.call("keep", id)
                    yield labs.record_of(standing)
                return
            except ProtocolViolation:
                raise
            except (LabError, Timeout) as error:
                if give_up is not None and give_up < time.time():
                    raise Timeout(f"the controller is away, and lease {id} was to wait no longer") from error
                away(error)
            stack.close()
            lab = None
            threading.Event().wait(random.uniform(pause / 2, pause))
            pause = min(pause * 2, LONGEST_PAUSE)


def _take_back(config: ClientConfig, id: str) -> None:
    try:
        with fail_after(RELEASE_SECONDS), open_lab(config) as lab:
            lab.call("release", id, "its request was taken back")
    except JmpError as error:
        output.note(f"jmp: lease {id} could not be released ({error.message}); later: jmp lease release {id}")
    else:
        output.note(f"lease {id} is released")


@contextmanager
def _signals_raise() -> Iterator[None]:
    """TERM and HUP end this program in order, as INT does."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _signals_wait() -> Iterator[None]:
    """INT, TERM and HUP take effect at the end of the block."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
