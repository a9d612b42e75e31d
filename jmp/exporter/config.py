"""The exporter's configuration file: reading, checking and finding it. ``docs/configuration.md`` is its reference.

The dataclasses here are the file's format: their fields are its keys, so nothing else lists them. On top come the
checks that types cannot express: names, driver types and their own configuration, refs. Checking makes the drivers,
which validate their configuration then, but opens none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

from jmp.driver import schema, yamlfile
from jmp.driver.driver import Driver
from jmp.driver.schema import did_you_mean, join
from jmp.driver.tree import Node
from jmp.errors import ConfigError, JmpError, NotFound

Drivers = Callable[[str], type[Driver]] | Mapping[str, type[Driver]]
"""The driver class of a ``type``: a function that raises a JmpError (:func:`jmp.driver.plugins.driver_class`), or a table."""

Place = tuple[str, ...]
"""The names that lead to a place in the tree."""

SYSTEM = Path("/etc/jmp/exporters")
_MAX_REFS = 16
"""Refs that one ref may lead through."""


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """Who this exporter is."""

    name: str = field(metadata={"doc": "the exporter's name: letters, digits, `.`, `_` and `-`"})
    labels: dict[str, str] = field(default_factory=dict, metadata={"doc": "what clients select exporters by"})

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ValueError(f"name {self.name!r} is not made of letters, digits, '.', '_' and '-'")


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the exporter trusts a server, and proves itself."""

    ca: Path | None = field(default=None, metadata={"doc": "certificates to trust instead of the system's"})
    cert: Path | None = field(default=None, metadata={"doc": "the exporter's own certificate"})
    key: Path | None = field(default=None, metadata={"doc": "the key of `cert`"})
    insecure: bool = field(default=False, metadata={"doc": "do not verify the server: for tests only"})

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key belong together: give both or none")


@dataclass(frozen=True, kw_only=True)
class Hook:
    """Something to run before or after a lease; in local mode, before or after a session."""

    script: str | None = field(default=None, metadata={"doc": "what to run, as text"})
    file: Path | None = field(default=None, metadata={"doc": "what to run, as a file; either this or `script`"})
    interpreter: str | None = field(
        default=None,
        metadata={
            "doc": "the program that runs it; if not given, the one that a first line `#!…` names, else `/bin/sh`"
        },
    )
    timeout: timedelta = field(
        default=timedelta(seconds=120), metadata={"doc": "after this time it is ended and has failed"}
    )
    on_failure: Literal["warn", "endLease", "exit"] = field(
        default="warn",
        metadata={"key": "onFailure", "doc": "go on with a warning, end the lease, or end the exporter"},
    )

    def __post_init__(self) -> None:
        if (self.script is None) == (self.file is None):
            raise ValueError("a hook needs either script or file")
        if self.timeout <= timedelta(0):
            raise ValueError("timeout must be more than 0")


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What to run around leases. ``j`` works in hooks."""

    before_lease: Hook | None = field(
        default=None, metadata={"key": "beforeLease", "doc": "runs once the drivers are open, before the client starts"}
    )
    after_lease: Hook | None = field(
        default=None, metadata={"key": "afterLease", "doc": "runs after the client has gone, before drivers close"}
    )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One place in the tree: a driver (``type``), a group (``children``), both, or another name (``ref``)."""

    type: str | None = field(default=None, metadata={"doc": "the driver's name; see docs/drivers.md"})
    config: dict[str, Any] | None = field(default=None, metadata={"doc": "the driver's own configuration"})
    description: str | None = field(default=None, metadata={"doc": "shown to clients instead of the driver's own"})
    methods_description: dict[str, str] = field(
        default_factory=dict, metadata={"doc": "help for methods, instead of the driver's own"}
    )
    children: dict[str, Entry] = field(default_factory=dict, metadata={"doc": "places below this one"})
    ref: str | None = field(default=None, metadata={"doc": "path of the place that this is another name for"})

    def __post_init__(self) -> None:
        if self.ref is not None and (self.type is not None or self.children or self.config or self.methods_description):
            raise ValueError("a ref has nothing but a description besides")
        if self.ref is None and self.type is None and not self.children:
            raise ValueError("needs a type (a driver), children (a group) or a ref")
        if self.type is None and (self.config is not None or self.methods_description):
            raise ValueError("config and methods_description belong to a driver: type is missing")


@dataclass(kw_only=True)
class ExporterConfig:
    """A whole file."""

    api_version: Literal["jmp/v1"] = field(metadata={"key": "apiVersion", "doc": "the version of this format"})
    kind: Literal["Exporter"] = field(metadata={"doc": "what this file configures"})
    metadata: Metadata = field(metadata={"doc": "who this exporter is"})
    export: dict[str, Entry] = field(metadata={"doc": "the tree of drivers that clients see"})
    description: str | None = field(default=None, metadata={"doc": "what this exporter is for"})
    motd: str | None = field(default=None, metadata={"doc": "shown when a session starts"})
    endpoint: str | None = field(default=None, metadata={"doc": "URL of the controller that this exporter joins"})
    token: str | None = field(
        default=None,
        repr=False,
        metadata={"secret": True, "doc": "proves to the controller who this is; keep the file 0600"},
    )
    tls: Tls = field(default_factory=Tls, metadata={"doc": "TLS towards the controller and routers"})
    listen: str | list[str] = field(
        default_factory=list,
        metadata={"doc": "where `jmp exporter serve` listens by default: `unix:PATH` or `HOST:PORT`, or several"},
    )
    hooks: Hooks = field(default_factory=Hooks, metadata={"doc": "what to run around leases"})
    path: Path = field(init=False, default=Path())
    """The file."""
    _drivers: dict[str, type[Driver]] = field(init=False, repr=False, default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        """``listen`` as a list."""
        return [self.listen] if isinstance(self.listen, str) else self.listen

    def tree(self) -> Node:
        """The tree with new, unopened drivers, for one session.

        Raises ConfigError if a driver does not take its configuration any more, say because a file it names has gone.
        """
        builder = _Builder(self.path.parent, self._drivers.__getitem__, frozenset())
        root = builder.tree(self.export)
        if builder.problems:
            raise ConfigError(f"{self.path}: {builder.problems[0]}")
        return root


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file; as text ``bench1.yaml:12: export.power.config.prot: unknown key … (did you mean …?)``."""

    file: Path
    line: int
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.where + ': ' if self.where else ''}{self.message}"


def load(path: Path, drivers: Drivers, *, reserved: Collection[str] = ()) -> ExporterConfig:
    """Read a file. Raises ConfigError, whose message is the first problem and how many more there are."""
    config, problems = read(path, drivers, reserved=reserved)
    if config is None or problems:
        more = f" (and {len(problems) - 1} more: jmp exporter check {path})" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more}")
    return config


def check(path: Path, drivers: Drivers, *, reserved: Collection[str] = ()) -> list[Problem]:
    """Everything that is wrong with a file, in the order of its lines. Opens no device."""
    return read(path, drivers, reserved=reserved)[1]


def read(
    path: Path, drivers: Drivers, *, reserved: Collection[str] = ()
) -> tuple[ExporterConfig | None, list[Problem]]:
    """Both of the above: the configuration, None if it cannot be told, and the problems.

    ``reserved`` are names that no place in the tree may have: those of the generic client's own attributes.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [Problem(path, error.object.count(b"\n", 0, error.start) + 1, "", "not text in UTF-8")]
    except (OSError, ValueError) as error:
        return None, [Problem(path, 1, "", f"cannot be read: {getattr(error, 'strerror', None) or error}")]
    return read_text(text, path, drivers, reserved=reserved)


def read_text(
    text: str, path: Path, drivers: Drivers, *, reserved: Collection[str] = ()
) -> tuple[ExporterConfig | None, list[Problem]]:
    """As :func:`read`, with the text at hand. ``path`` says where relative paths in it start."""
    document = yamlfile.read(text)
    found = document.problems
    config: ExporterConfig | None = None
    if document.data is None and not found:
        found = [schema.Problem("", "the file is empty; `jmp exporter example` prints one to start from")]
    elif isinstance(document.data, dict):
        config, problems = schema.load(ExporterConfig, document.data, base=path.parent)
        found = found + problems
        if config is not None:
            found += _beyond_types(config, path, _lookup(drivers), frozenset(reserved))
    elif not found:
        found = [schema.Problem("", "expected a mapping with apiVersion, kind, metadata and export")]
    problems_in_file = [
        Problem(path, document.line(problem.where), problem.where, problem.message) for problem in found
    ]
    return config, sorted(problems_in_file, key=lambda problem: problem.line)


def _lookup(drivers: Drivers) -> Callable[[str], type[Driver]]:
    def look_up(name: str) -> type[Driver]:
        if not isinstance(drivers, Mapping):
            return drivers(name)
        if name not in drivers:
            raise NotFound(f"there is no driver of type {name!r}{did_you_mean(name, drivers)}")
        return drivers[name]

    return look_up


def _beyond_types(
    config: ExporterConfig, path: Path, drivers: Callable[[str], type[Driver]], reserved: frozenset[str]
) -> list[schema.Problem]:
    problems = []
    for index, address in enumerate(config.addresses):
        if message := address_problem(address):
            where = "listen" if isinstance(config.listen, str) else f"listen[{index}]"
            problems.append(schema.Problem(where, message))
    for key, hook in (("beforeLease", config.hooks.before_lease), ("afterLease", config.hooks.after_lease)):
        if hook is not None and hook.file is not None and not hook.file.is_file():
            problems.append(schema.Problem(f"hooks.{key}.file", f"there is no file {hook.file}"))
    if not config.export:
        problems.append(schema.Problem("export", "exports nothing: name at least one driver"))
    builder = _Builder(path.parent, drivers, reserved)
    root = builder.tree(config.export)
    problems += builder.problems
    problems += _Refs(root, builder.incomplete).problems()
    config.path = path
    config._drivers = builder.classes
    return problems


def address_problem(address: str) -> str:
    """What is wrong with an address to listen at; ``""`` if nothing is."""
    if address.startswith("unix:"):
        return "" if len(address) > len("unix:") else "unix: needs a path"
    _, colon, port = address.rpartition(":")
    if colon and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536:
        return ""
    return f"{address!r} is neither unix:PATH nor HOST:PORT"


# ---- the tree


class _Builder:
    """Makes the tree of drivers; keeps going after a problem, with a driverless node in its place."""

    def __init__(self, base: Path, drivers: Callable[[str], type[Driver]], reserved: frozenset[str]) -> None:
        self.base = base
        self.reserved = reserved
        self.problems: list[schema.Problem] = []
        self.classes: dict[str, type[Driver]] = {}
        self.incomplete: set[Place] = set()
        """Places whose driver could not be made, so that its children are not known."""
        self._drivers = drivers

    def tree(self, entries: Mapping[str, Entry]) -> Node:
        root = Node()
        self._add(entries, (), root)
        return root

    def _add(self, entries: Mapping[str, Entry], path: Place, node: Node) -> None:
        nodes = {}
        for name, entry in entries.items():
            if message := self._name_problem(name, node):
                where = f"{_where(path)}.children" if path else "export"
                self.problems.append(schema.Problem(join(where, name), message))
            else:
                nodes[name] = self._node(entry, (*path, name))
        node.add(nodes)

    def _name_problem(self, name: str, parent: Node) -> str:
        if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_-]*", name):
            return "a name is a letter and then letters, digits, '_' and '-'"
        if name in self.reserved or name.replace("-", "_") in self.reserved:
            return f"the name {name!r} is taken by the client itself: choose another"
        if name in parent.children:
            return f"{parent.type} has a child {name!r} of its own: choose another name"
        if parent.driver is not None and name in parent.driver.exports():
            return f"{parent.type} has a method {name!r}: choose another name"
        return ""

    def _node(self, entry: Entry, path: Place) -> Node:
        node = Node()
        if entry.type is not None:
            driver = self._driver(entry.type, entry.config or {}, _where(path))
            if driver is None:
                self.incomplete.add(path)
            else:
                node = Node.of(driver, type=entry.type)
                self._check_help(entry, driver, _where(path))
        node.ref = entry.ref
        node.description = entry.description or ""
        node.help = dict(entry.methods_description)
        self._add(entry.children, path, node)
        return node

    def _driver(self, name: str, config: Mapping[str, Any], where: str) -> Driver | None:
        try:
            cls = self.classes[name] = self._drivers(name)
        except JmpError as error:
            self.problems.append(schema.Problem(f"{where}.type", error.message))
            return None
        except (ImportError, AttributeError) as error:
            self.problems.append(schema.Problem(f"{where}.type", f"driver {name!r} cannot be imported: {error}"))
            return None
        driver, problems = schema.load(cls, config, f"{where}.config", base=self.base)
        self.problems += problems
        return driver

    def _check_help(self, entry: Entry, driver: Driver, where: str) -> None:
        methods = driver.exports()
        for name in entry.methods_description:
            if name not in methods:
                message = f"{entry.type} has no method {name!r}{did_you_mean(name, methods)}"
                self.problems.append(schema.Problem(join(f"{where}.methods_description", name), message))


def _where(path: Place) -> str:
    """Where in the file a place of the tree is."""
    return "export." + ".children.".join(path)


def _walk(node: Node, path: Place = ()) -> Iterator[tuple[Place, Node]]:
    yield path, node
    for name, child in node.children.items():
        yield from _walk(child, (*path, name))


class _Refs:
    """Where the refs of a tree lead."""

    def __init__(self, root: Node, incomplete: Collection[Place]) -> None:
        self._nodes = dict(_walk(root))
        self._incomplete = incomplete

    def problems(self) -> list[schema.Problem]:
        problems = []
        graph = {path: [(*path, name) for name in node.children] for path, node in self._nodes.items()}
        for path, node in self._nodes.items():
            if node.ref is not None:
                try:
                    target = self._follow(path, ())
                except NotFound as error:
                    problems.append(schema.Problem(f"{_where(path)}.ref", error.message))
                else:
                    graph[path] += [target] if target is not None else []
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            cycle: list[Place] = error.args[1][::-1]
            first = next(path for path in cycle if self._nodes[path].ref is not None)
            round_trip = " → ".join(".".join(path) for path in cycle)
            problems.append(schema.Problem(f"{_where(first)}.ref", f"holds itself: {round_trip}"))
        return problems

    def _follow(self, path: Place, trail: tuple[Place, ...]) -> Place | None:
        """The place that the one at ``path`` stands for; None if that cannot be told because of other problems."""
        ref = self._nodes[path].ref
        if ref is None:
            return path
        if path in trail or len(trail) > _MAX_REFS:
            raise NotFound("leads to no driver: " + " → ".join(".".join(step) for step in (*trail, path)))
        here: Place = ()
        for step in ref.split("."):
            inside = self._follow(here, (*trail, path))
            if inside is None or (inside in self._incomplete and (*inside, step) not in self._nodes):
                return None
            here = (*inside, step)
            if here not in self._nodes:
                known = [".".join(place) for place in self._nodes if place and place != path]
                raise NotFound(f"there is no {'.'.join(here)!r}{did_you_mean(ref, known)}")
        return self._follow(here, (*trail, path))


# ---- finding files


def name_or_path(text: str) -> Path:
    """The file that a user means: a path if it has a slash or ends in ``.yaml`` or ``.yml``, else a name to look for.

    Raises NotFound if there is none.
    """
    if "/" in text or text in (".", "..") or text.endswith((".yaml", ".yml")):
        path = Path(text)
        if path.is_dir():
            raise NotFound(f"{text} is a folder, not a configuration")
        if not path.exists():  # a pipe is as good: <(sed … board.yaml)
            raise NotFound(f"there is no file {text}")
        return path
    return find(text)


def find(name: str) -> Path:
    """The file of the exporter called ``name``: the user's own, else the system's. Raises NotFound with the nearest name."""
    configs = list_configs()
    if name not in configs:
        places = " or ".join(str(directory) for directory in directories())
        raise NotFound(f"there is no exporter {name!r} in {places}{did_you_mean(name, configs)}")
    return configs[name]


def list_configs() -> dict[str, Path]:
    """All exporter files that :func:`find` finds, by name. A user's file hides a system file of the same name."""
    found: dict[str, Path] = {}
    for directory in reversed(directories()):
        found |= {path.stem: path for path in directory.glob("*.yaml") if path.is_file()}
    return dict(sorted(found.items()))


def directories() -> list[Path]:
    """Where exporter files are looked for, first the user's own."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [Path(home, "jmp", "exporters"), SYSTEM]
