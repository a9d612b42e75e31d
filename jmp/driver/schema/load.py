"""YAML data → dataclasses: the configuration of a driver, an exporter, a client."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

from jmp.driver.schema.hints import bare, fields_of, is_union, members_of, schema_of, schema_within
from jmp.driver.schema.text import parse
from jmp.driver.schema.values import Problem, Schema, check, describe, did_you_mean, expected, got, is_type, join, short
from jmp.errors import BadValue, JmpError

T = TypeVar("T")

_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""Types whose values are as they should be already: nothing is done about them, which is what most of them need."""


def load(cls: type[T], data: object, where: str = "", *, base: Path | None = None) -> tuple[T | None, list[Problem]]:
    """Build a dataclass from plain data; every problem found, and the instance if there is none.

    Public fields are the keys; a field's metadata may give another name (``key``), say that its value must not show in
    messages (``secret``) and document it (``doc``). Text becomes what the field asks for: Path, Enum, ``1.5s`` or
    seconds for a timedelta, ISO 8601 for a datetime, UTF-8 for bytes, ``on``, ``off``, ``yes`` and ``no`` for a bool.
    With ``base``, paths start there unless absolute, and ``~`` is the user's home. A JmpError, ValueError, TypeError
    or OSError raised by the class itself (``__post_init__``) is a problem too; other exceptions are its defects and
    pass.
    """
    loader = Loader(base)
    instance = loader.build(cls, data, where)
    return (None if loader.problems else instance), loader.problems


class Loader:
    """One conversion of plain data along type hints; keeps going after a problem, with None in place of the value."""

    def __init__(self, base: Path | None) -> None:
        self.base = base
        self.problems: list[Problem] = []

    def build(self, cls: type[T], data: object, where: str) -> T | None:
        before = len(self.problems)
        if not isinstance(data, Mapping):
            self.problems.append(Problem(where, f"expected dict, got {got(data)}"))
            return None
        fields = fields_of(cls)
        values = {}
        for key, value in data.items():
            inside = join(where, key)
            if not isinstance(key, str) or key not in fields:
                self.problems.append(Problem(inside, f"unknown key {short(key)}{did_you_mean(key, fields)}"))
                continue
            known = len(self.problems)
            values[fields[key].name] = self.convert(fields[key].hint, value, inside)
            if fields[key].secret and len(self.problems) > known:
                self.problems[known:] = [Problem(inside, f"expected {describe(fields[key].schema)}")]
        for item in fields.values():
            if item.required and item.key not in data:
                self.problems.append(Problem(where, f"missing key '{item.key}' ({describe(item.schema)})"))
        if len(self.problems) > before:
            return None
        try:
            return cls(**values)
        except (JmpError, ValueError, TypeError, OSError) as error:
            self.problems.append(Problem(where, str(error) or type(error).__name__))
            return None

    def convert(self, hint: object, value: Any, where: str) -> Any:
        if type(value) is hint and hint in _PLAIN:
            return value
        hint = bare(hint)
        origin = typing.get_origin(hint) or hint
        arguments = typing.get_args(hint)
        if is_union(origin):
            if type(value) in arguments and _PLAIN.issuperset(arguments):
                return value
            return self._alternative(hint, value, where)
        if isinstance(origin, type) and dataclasses.is_dataclass(origin):
            return value if isinstance(value, origin) else self.build(origin, value, where)
        if isinstance(value, list | tuple) and schema_within(hint, ()).get("type") == "array":
            return self._sequence(origin, arguments, value, where)
        if isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
            return self._mapping(hint, arguments, value, where)
        schema = schema_of(hint)
        value = self._scalar(hint, schema, value)
        found = check(schema, value, where)
        self.problems += found
        if found:
            return None
        if isinstance(origin, type) and issubclass(origin, Enum):
            return members_of(origin)[value]
        if isinstance(origin, type) and issubclass(origin, PurePath):
            path = origin(value) if self.base is None else self.base / os.path.expanduser(value)
            return origin(path)
        return value

    def _scalar(self, hint: object, schema: Schema, value: Any) -> Any:
        """Text and numbers as what the hint asks for, if they can be read as that."""
        try:
            if isinstance(value, str) and hint in (bool, bytes, bytearray, datetime, timedelta):
                return parse(schema, value)
            if hint is timedelta and isinstance(value, int | float) and not isinstance(value, bool):
                return timedelta(seconds=value)
        except (BadValue, OverflowError, ValueError):
            pass
        return value

    def _alternative(self, hint: object, value: Any, where: str) -> Any:
        """The first alternative that fits; those that take the value as it is go first: "on" stays text in bool | str."""
        options = typing.get_args(hint)
        tried = []
        for option in sorted(options, key=lambda option: bool(check(schema_of(option), value))):
            loader = Loader(self.base)
            converted = loader.convert(option, value, where)
            if not loader.problems:
                return converted
            tried.append((option, loader.problems))
        # Of several alternatives that do not fit, one that has the right shape tells best what is wrong inside it.
        inside = [found for _, found in tried if all(problem.where != where for problem in found)]
        shaped = [found for o, found in tried if isinstance(value, dict | list) and is_type(schema_of(o), value)]
        self.problems += (inside or shaped or [[Problem(where, expected(schema_of(hint), value))]])[0]
        return None

    def _sequence(self, origin: object, arguments: tuple[Any, ...], value: Sequence[Any], where: str) -> Any:
        if origin is tuple and arguments and Ellipsis not in arguments:
            if len(arguments) != len(value):
                self.problems.append(Problem(where, f"expected {len(arguments)} items, got {len(value)}"))
                return None
            hints: Sequence[Any] = arguments
        else:
            hints = [arguments[0] if arguments else Any] * len(value)
        pairs = zip(hints, value, strict=True)
        items = [self.convert(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(pairs)]
        try:
            return origin(items) if origin in (tuple, set, frozenset) else items
        except TypeError:
            self.problems.append(Problem(where, "the items of a set must be plain values"))
            return None

    def _mapping(self, hint: object, arguments: tuple[Any, ...], value: Mapping[Any, Any], where: str) -> Any:
        key_hint, item_hint = arguments if len(arguments) == 2 else (Any, Any)
        names = schema_of(key_hint)
        for key in value:
            found = check(names, key)
            self.problems += [Problem(join(where, key), f"as a key: {problem.message}") for problem in found]
        return {key: self.convert(item_hint, item, join(where, key)) for key, item in value.items()}
