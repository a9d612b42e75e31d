"""YAML for configuration files: plain data, with the line of every place in it.

Scalars mean what they mean in YAML 1.2's core schema, and not what they meant in YAML 1.1: ``on`` and ``off`` are
text (they are keys in ``methods_description``, and states of a power switch), ``52:54:00:12:34:56`` is text and no
number in base 60, ``0644`` is text and no octal number, and there are no dates. What a text stands for is decided by
the type of the field that it is for; see :func:`jmp.driver.schema.load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from jmp.driver.schema import Problem, join

_MAX_NODES = 20_000
"""Nodes after which a document is refused, aliases counted each time: a few lines of YAML can stand for billions."""
_MAX_DEPTH = 64
_CORE = "tag:yaml.org,2002:"
_SCALARS = ("str", "int", "float", "bool", "null", "binary")
_COLLECTIONS = (f"{_CORE}map", f"{_CORE}seq")


@dataclass
class Document:
    """``data`` is None when nothing could be read. ``lines`` and ``problems`` name places as :func:`join` does."""

    data: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, where: str) -> int:
        """The line, counted from 1, of a place or of the nearest place around it."""
        while where and where not in self.lines:
            where = where[: max(where.rfind("."), where.rfind("["), 0)]
        return self.lines.get(where, 1)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+", "-+0123456789"),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        None,
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"{_CORE}{_tag}",
        re.compile(f"^(?:{_pattern})$"),
        list(_first or "-+.0123456789"),
    )


def read(text: str) -> Document:
    """Read one document; never raises for what is in the text."""
    document = Document()
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is not None:
                document.data = _Reader(loader, document).value(node, "")
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        _refuse(document, error)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        document.lines[""] = line
        document.problems.append(Problem("", f"not YAML: line {line} has a character that must not be in a text file"))
    except (ValueError, OverflowError) as error:  # PyYAML lets some escapes and directives through to chr() and int()
        document.data = None
        document.problems.append(Problem("", f"not YAML: {error}"))
    except RecursionError:
        document.problems.append(Problem("", "not YAML that can be read: nested too deeply"))
    return document


def _refuse(document: Document, error: yaml.MarkedYAMLError) -> None:
    document.data = None
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    context = f"{error.context}: " if error.context else ""
    document.lines[""] = mark.line + 1 if mark else 1
    document.problems.append(Problem("", f"not YAML: {place}{context}{error.problem}"))


class _Reader:
    """Turns nodes into data and notes their lines."""

    def __init__(self, loader: yaml.SafeLoader, document: Document) -> None:
        self.loader = loader
        self.document = document
        self.seen = 0
        self.open: list[yaml.Node] = []

    def value(self, node: yaml.Node, where: str) -> Any:
        self.seen += 1
        self.document.lines.setdefault(where, node.start_mark.line + 1)
        if self.seen > _MAX_NODES or len(self.open) > _MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="too large or nested too deeply", problem_mark=node.start_mark)
        if any(node is outer for outer in self.open):
            raise yaml.MarkedYAMLError(problem="an alias stands for what is around it", problem_mark=node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, where)
        if node.tag not in _COLLECTIONS:
            self.document.problems.append(Problem(where, f"unknown tag {node.tag}"))
            return None
        self.open.append(node)
        if isinstance(node, yaml.SequenceNode):
            data: Any = [self.value(item, f"{where}[{index}]") for index, item in enumerate(node.value)]
        else:
            data = self.mapping(node, where)
        self.open.pop()
        return data

    def scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        tag = node.tag.removeprefix(_CORE)
        if tag == "merge":
            return node.value
        if tag not in _SCALARS:
            self.document.problems.append(Problem(where, f"unknown tag {node.tag}"))
            return None
        try:
            return self.loader.construct_object(node)
        except yaml.MarkedYAMLError as error:
            self.document.problems.append(Problem(where, str(error.problem)))
        except (ValueError, LookupError, AttributeError, ArithmeticError):  # what PyYAML raises for "!!int x" and so on
            self.document.problems.append(Problem(where, f"not a value of type {tag}"))
        return None

    def mapping(self, node: yaml.Node, where: str) -> dict[Any, Any]:
        data: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_CORE}merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    value = self.value(source, where)
                    if isinstance(value, dict):
                        merged = {**value, **merged}
                    else:
                        self.document.problems.append(Problem(where, "<< needs a mapping"))
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.document.problems.append(Problem(where, "a key must be a plain value"))
                continue
            key = self.scalar(key_node, where)
            inside = join(where, key)
            if key in data:
                first = self.document.line(inside)
                self.document.problems.append(Problem(inside, f"this key is already given in line {first}"))
            self.document.lines[inside] = key_node.start_mark.line + 1
            data[key] = self.value(value_node, inside)
        return {**merged, **data}
