"""The benches: `python3 build.py bench [--peers] [ROW...] [--json FILE] [--short]` runs this.

Everything that a row compares is measured in turn within one run, round by round, so that ratios hold on slow and on busy
machines; what is shown is the median of the rounds. Before each measurement the same is done for a while without counting.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import build
from tests.bench import engine, hang, pairs, scale
from tests.bench.commands import of_jmp, of_jumpstarter, of_labgrid
from tests.bench.lab import (
    CONFIG,
    Contender,
    environment,
    first_line,
    plugin,
    resident,
    started,
    target,
    worker,
    write_config,
)
from tests.bench.payload import MIB
from tests.bench.table import BLOCKING, JMP, JUMPSTARTER, LABGRID, ROWS, TRIO, Results, Row
from tests.bench.worker import Figures, Span
from tests.e2e.product import serving
from tests.fakes.lab import ServedLab, served_lab

ROUNDS = 5
CAPACITY = 128 * MIB
CONSOLES = 16


@dataclass(frozen=True)
class Setting:
    """What a run has: the folder for its files, and the Pythons of the peers' environments, if they take part."""

    folder: Path
    short: bool
    peers: Mapping[str, Path]


Contenders = Mapping[str, Contender]


@dataclass(frozen=True)
class Alone:
    """Measures what nobody else is compared with."""

    run: Callable[[Span], Figures]

    def measure(self, what: str, short: bool) -> Figures | None:
        return self.run(Span(short))


@contextmanager
def local(setting: Setting) -> Iterator[Contenders]:
    """One exporter process of each make, at a Unix socket, and a client process of each."""
    with ExitStack() as stack:
        found: dict[str, Contender] = {}
        port = stack.enter_context(target())
        served = stack.enter_context(serving(write_config(setting.folder, port, CAPACITY)))
        found[JMP] = stack.enter_context(worker("jmp_worker", served.url, setting.folder))
        if JUMPSTARTER in setting.peers:
            python = setting.peers[JUMPSTARTER]
            folder = setting.folder / "jumpstarter"
            folder.mkdir(exist_ok=True)
            theirs = stack.enter_context(started("jumpstarter_worker", "serve", folder, str(port), python=python))
            found[JUMPSTARTER] = stack.enter_context(
                worker("jumpstarter_worker", first_line(theirs), folder, python=python)
            )
        limits = stack.enter_context(started("limits", "serve", setting.folder))
        first_line(limits)
        limit = stack.enter_context(worker("limits", "measure", setting.folder))
        found[TRIO] = Limit(limit, "trio", {"call-async": {"rate": "rate", "p50": "p50"}, "bytes": {"up": "bytes"}})
        found[BLOCKING] = Limit(
            limit, "blocking", {"call-async": {"rate": "rate", "p50": "p50"}, "bytes": {"up": "up", "down": "down"}}
        )
        yield found


@dataclass
class Limit:
    """Raw sockets, whose figures stand beside those of calls and bytes."""

    limits: Contender
    kind: str
    figures: Mapping[str, Mapping[str, str]]

    def measure(self, what: str, short: bool) -> Figures | None:
        if what not in self.figures:
            return None
        measured = self.limits.measure(self.kind, short)
        assert measured is not None
        return {figure: measured[name] for figure, name in self.figures[what].items()}


@contextmanager
def a_lab(setting: Setting) -> Iterator[ServedLab]:
    """A controller with its router, and a client of it."""
    folder = setting.folder / "lab"
    folder.mkdir()
    with served_lab(folder) as lab:
        lab.add_client("alice")
        yield lab


def of_user(lab: ServedLab, user: str) -> dict[str, str]:
    return lab.environment(user, PYTHONPATH=os.environ["PYTHONPATH"])


@contextmanager
def router(setting: Setting) -> Iterator[Contenders]:
    """The same over a router, with TLS on both legs: client, router (in the controller's process) and exporter."""
    with a_lab(setting) as lab, target() as port:
        text = CONFIG.format(port=port, capacity=CAPACITY, image=setting.folder / "disk").replace("{", "{{")
        lab.add_exporter("bench", config=text.replace("}", "}}"))
        lease = lab.ok("alice", "lease", "acquire", "--name", "bench", "--for", "3h").strip()
        with worker("jmp_worker", lease, setting.folder, env=of_user(lab, "alice")) as measuring:
            yield {JMP: measuring}


@contextmanager
def commands(setting: Setting) -> Iterator[Contenders]:
    with ExitStack() as stack:
        environ = {**os.environ}
        found: dict[str, Contender] = {JMP: stack.enter_context(of_jmp(setting.folder, environ))}
        if JUMPSTARTER in setting.peers:
            theirs = of_jumpstarter(setting.folder, setting.peers[JUMPSTARTER], environ)
            found[JUMPSTARTER] = stack.enter_context(theirs)
        if LABGRID in setting.peers:
            found[LABGRID] = of_labgrid(setting.peers[LABGRID], environ)
        yield found


@contextmanager
def exporters(lab: ServedLab, folder: Path | None, board: str, *names: str) -> Iterator[None]:
    """Exporters in one process, with their files in ``folder``; without one, only the wire's part of exporters."""
    place: Path | str = "none"
    if folder is not None:
        place = folder / board
        place.mkdir()
    with started("exporters", place, board, *names, env=of_user(lab, "admin")) as process:
        first_line(process)
        yield


@contextmanager
def leases(setting: Setting) -> Iterator[Contenders]:
    """A controller, exporters in other processes, and clients in one. All but the one that a row is about are ready at once."""
    with ExitStack() as stack:
        found: dict[str, Contender] = {}
        lab = stack.enter_context(a_lab(setting))
        many = [f"mock{number}" for number in range(4 if setting.short else 32)]
        stack.enter_context(exporters(lab, None, "mock", *many))
        stack.enter_context(exporters(lab, setting.folder, "other", "single"))
        stack.enter_context(exporters(lab, None, "reserved", "taken"))
        found[JMP] = stack.enter_context(worker("lease_worker", env=of_user(lab, "alice")))
        if LABGRID in setting.peers:
            folder = setting.folder / "labgrid"
            folder.mkdir()
            theirs = worker("labgrid_worker", folder, python=setting.peers[LABGRID])
            found[LABGRID] = stack.enter_context(theirs)
        yield found


@contextmanager
def consoles(setting: Setting) -> Iterator[Contenders]:
    """Sixteen exporters in one process, as many clients in another, and the controller with its router."""
    names = [f"console{number}" for number in range(2 if setting.short else CONSOLES)]
    with a_lab(setting) as lab, exporters(lab, setting.folder, "console", *names):

        def measure(span: Span) -> Figures:
            seconds = span.size(120, 1)
            with started("consoles", str(seconds), *names, env=of_user(lab, "alice")) as process:
                first_line(process)
                time.sleep(seconds / 4)  # noqa: TID251  # until what grows at the beginning has grown
                before = resident(lab.pid)
                figures: Figures = json.loads(first_line(process))
                return {**figures, "grown": (resident(lab.pid) - before) / MIB}

        yield {JMP: Alone(measure)}


def alone(run: Callable[[Span], Figures]) -> Callable[[Setting], AbstractContextManager[Contenders]]:
    @contextmanager
    def opened(setting: Setting) -> Iterator[Contenders]:
        yield {JMP: Alone(run)}

    return opened


def size(span: Span) -> Figures:
    return {"MB": (build.DIST / "jmp").stat().st_size / 1e6}


@dataclass(frozen=True)
class Group:
    """Rows that share processes. ``repeated``: measured once in each round; else once, since it takes long or never varies."""

    opened: Callable[[Setting], AbstractContextManager[Contenders]]
    repeated: bool = True


GROUPS = {
    "local": Group(local),
    "router": Group(router),
    "commands": Group(commands),
    "leases": Group(leases),
    "size": Group(alone(size), repeated=False),
    "engine": Group(alone(engine.measure)),
    "hang": Group(alone(hang.measure), repeated=False),
    "consoles": Group(consoles, repeated=False),
    "pairs-1000": Group(alone(lambda span: pairs.measure(span, 1000)), repeated=False),
    "pairs-5000": Group(alone(lambda span: pairs.measure(span, 5000)), repeated=False),
    "scale-1000": Group(alone(lambda span: scale.measure(span, 1000)), repeated=False),
    "scale-5000": Group(alone(lambda span: scale.measure(span, 5000)), repeated=False),
}


def measure(rows: list[Row], setting: Setting, rounds: int) -> Results:
    results = Results()
    for name in dict.fromkeys(row.group for row in rows):
        group = GROUPS[name]
        mine = [row for row in rows if row.group == name]
        print(f"==> {name}", file=sys.stderr, flush=True)
        with TemporaryDirectory(prefix="jmp-bench-") as folder:
            here = Setting(Path(folder), setting.short, setting.peers)
            with group.opened(here) as contenders:
                for _ in range(rounds if group.repeated else 1):
                    one_round(mine, contenders, setting.short, results)
    return results


def one_round(rows: list[Row], contenders: Contenders, short: bool, results: Results) -> None:
    for what in dict.fromkeys(row.measurement for row in rows):
        for who, contender in contenders.items():
            figures = contender.measure(what, short)
            for row in rows if figures is not None else []:
                if row.measurement == what and figures is not None and row.figure in figures:
                    results.add(row, who, figures[row.figure])


def chosen(names: list[str], short: bool) -> list[Row]:
    """The rows of these names or groups; all that do not take very long if there are none."""
    unknown = [name for name in names if all(name not in (row.name, row.group) for row in ROWS)]
    if unknown:
        raise SystemExit(f"there is no row {unknown[0]}; there are: {', '.join(row.name for row in ROWS)}")
    if not names:
        return [row for row in ROWS if not row.special]
    found = [row for row in ROWS if row.name in names or row.group in names]
    reckoned = {row.recorded[0] for row in found if row.recorded is not None}
    return [row for row in ROWS if row in found or row.name in reckoned]


def main() -> None:
    parser = argparse.ArgumentParser(prog="build.py bench")
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--jumpstarter", type=Path)
    parser.add_argument("--labgrid", type=Path)
    options = parser.parse_args()
    peers = {JUMPSTARTER: options.jumpstarter, LABGRID: options.labgrid}
    rounds = 1 if options.short else options.rounds
    logging.disable()  # of what is in this process: that a controller is killed is part of a bench
    began = time.perf_counter()
    with TemporaryDirectory(prefix="jmp-bench-") as folder:
        home = Path(folder)
        # Nothing of this user's takes part, and nothing is left with them.
        for name in [name for name in os.environ if name.startswith(("JMP_", "JUMPSTARTER", "XDG_"))]:
            del os.environ[name]
        os.environ.update({"HOME": folder, "SHIV_ROOT": str(home / "shiv"), **environment(plugin(home))})
        present = {who: python for who, python in peers.items() if python is not None}
        results = measure(chosen(options.rows, options.short), Setting(home, options.short, present), rounds)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {rounds} rounds, {time.perf_counter() - began:.0f} s")
    print("\n".join(results.lines()))
    if options.json is not None:
        about = {"date": f"{datetime.now(UTC):%Y-%m-%dT%H:%MZ}", "machine": machine, "rounds": rounds}
        options.json.write_text(json.dumps({**about, "rows": results.as_json()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
