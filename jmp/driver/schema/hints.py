"""Type hints → schemas."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, Flag
from functools import cache
from pathlib import PurePath
from typing import Any, TypeVar

from jmp.driver.schema.values import Schema, check

_SCALARS: dict[object, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    bytes: {"type": "string", "format": "binary"},
    bytearray: {"type": "string", "format": "binary"},
    memoryview: {"type": "string", "format": "binary"},
    datetime: {"type": "string", "format": "date-time"},
    timedelta: {"type": "string", "format": "duration"},
    type(None): {"type": "null"},
}
_ARRAYS = (list, tuple, set, frozenset, abc.Sequence, abc.Set, abc.Collection, abc.Iterable)
_UNRESOLVABLE = (NameError, AttributeError, TypeError, ValueError, LookupError, SyntaxError, ImportError)
"""What evaluating somebody's annotation raises when a name in it exists for type checkers only."""


def schema_of(hint: object) -> Schema:
    """The schema of a type hint; ``{}`` (anything) for what schemas cannot express."""
    return schema_within(hint, ())


def bare(hint: object) -> object:
    """The hint without Annotated, NewType, type aliases and type variables around it."""
    while True:
        if typing.get_origin(hint) in (typing.Annotated, typing.Final):
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        elif isinstance(hint, TypeVar):
            hint = hint.__bound__ or object
        elif type(hint).__name__ == "TypeAliasType":  # Python 3.12's `type X = …`
            hint = getattr(hint, "__value__", object)
        else:
            return type(None) if hint is None else hint


def is_union(origin: object) -> bool:
    return origin is typing.Union or origin is types.UnionType


def schema_within(hint: object, outer: tuple[type, ...]) -> Schema:
    hint = bare(hint)
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if is_union(origin):
        options = [schema_within(argument, outer) for argument in arguments]
        return {} if {} in options else {"anyOf": options}
    if origin is typing.Literal:
        return {"enum": [plain(value) for value in arguments]}
    if not isinstance(origin, type):
        return {}
    if origin in _SCALARS:
        return dict(_SCALARS[origin])
    if issubclass(origin, Enum):
        return {"enum": list(members_of(origin))}
    if issubclass(origin, PurePath):
        return {"type": "string", "format": "path"}
    if dataclasses.is_dataclass(origin):
        return {} if origin in outer else _object(origin, (*outer, origin))
    if issubclass(origin, tuple) and arguments and Ellipsis not in arguments:
        return {"type": "array", "prefixItems": [schema_within(argument, outer) for argument in arguments]}
    if issubclass(origin, abc.Mapping):
        key, value = arguments if len(arguments) == 2 else (object, object)
        names, values = schema_within(key, outer), schema_within(value, outer)
        schema: Schema = {"type": "object"}
        if names != _SCALARS[str]:
            schema["propertyNames"] = names
        return {**schema, "additionalProperties": values} if values else schema
    if origin in _ARRAYS:
        items = schema_within(arguments[0], outer) if arguments else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    return {}


def members_of(enum: type[Enum]) -> dict[Any, Enum]:
    """The members of an enum by what stands for them: their values where all of them are text or numbers, else names."""
    members = list(enum)
    if all(isinstance(member.value, str | int) for member in members) and not issubclass(enum, Flag):
        return {member.value: member for member in members}
    return {member.name: member for member in members}


@dataclass(frozen=True)
class _Field:
    key: str
    name: str
    hint: object
    required: bool
    secret: bool
    schema: Schema


def fields_of(cls: type, outer: tuple[type, ...] = ()) -> Mapping[str, _Field]:
    """The fields of a dataclass that are configuration, by the key that stands for each in data: its own, then its bases'."""
    return _fields_of(cls, outer)


@cache
def _fields_of(cls: type, outer: tuple[type, ...]) -> Mapping[str, _Field]:
    hints = _class_hints(cls)
    owner = {
        name: place for place, base in reversed(list(enumerate(cls.__mro__))) for name in inspect.get_annotations(base)
    }
    fields = {}
    for item in sorted(dataclasses.fields(cls), key=lambda item: owner[item.name]):
        if not item.init or item.name.startswith("_"):
            continue
        hint = hints.get(item.name, Any)
        schema = schema_within(hint, outer)
        if doc := item.metadata.get("doc") or doc_of(hint):
            schema["description"] = doc
        default = item.default
        if default is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        required = default is dataclasses.MISSING
        if not required and (travels := default_of(schema, default)) is not None:
            schema["default"] = travels
        key = item.metadata.get("key", item.name)
        fields[key] = _Field(key, item.name, hint, required, bool(item.metadata.get("secret")), schema)
    return fields


def _object(cls: type, outer: tuple[type, ...]) -> Schema:
    fields = fields_of(cls, outer)
    return {
        "type": "object",
        "properties": {key: item.schema for key, item in fields.items()},
        "required": [key for key, item in fields.items() if item.required],
        "additionalProperties": False,
    }


def config_schema(cls: type) -> Schema:
    """The schema of a dataclass's configuration: what :func:`load` accepts for it."""
    return _object(cls, (cls,))


def plain(value: object) -> Any:
    """A value as the wire and YAML have it: dataclasses → dicts, enum members → values, paths → strings, sets → lists.

    What has no such form is returned unchanged.
    """
    if isinstance(value, Enum):
        return next(key for key, member in members_of(type(value)).items() if member is value)
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(getattr(value, item.name)) for key, item in fields_of(type(value)).items()}
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def default_of(schema: Schema, value: object) -> Any:
    """A default as the wire has it; None if the wire cannot carry it or the schema would not allow it."""
    value = plain(value)
    return value if _can_travel(value) and not check(schema, value) else None


def _can_travel(value: object) -> bool:
    if isinstance(value, list):
        return all(_can_travel(item) for item in value)
    if isinstance(value, dict):
        return all(_can_travel(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, str | int | float | bytes | datetime | timedelta)


def doc_of(hint: object) -> str | None:
    if typing.get_origin(hint) is not typing.Annotated:
        return None
    return next((text for text in typing.get_args(hint)[1:] if isinstance(text, str)), None)


def _annotations(thing: Any) -> dict[str, Any]:
    """What was written as annotations of a function or class, without failing on names that do not exist."""
    if sys.version_info >= (3, 14):
        import annotationlib

        return annotationlib.get_annotations(thing, format=annotationlib.Format.FORWARDREF)
    return inspect.get_annotations(thing)


def _resolve(annotation: object, scope: Mapping[str, Any], inner: Mapping[str, Any]) -> object:
    """The hint that an annotation means; Any when it cannot be told.

    ``scope`` is the module. ``inner``, the class, comes second only: a driver with a method called ``list`` still
    has fields that are a ``list[str]``.
    """

    def carrier() -> None: ...

    carrier.__annotations__ = {"hint": annotation}
    for names in (None, dict(inner)):
        try:
            return typing.get_type_hints(carrier, dict(scope), names, include_extras=True)["hint"]
        except _UNRESOLVABLE:
            continue
    return Any


@cache
def _class_hints(cls: type) -> Mapping[str, object]:
    hints: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        hints |= {name: _resolve(text, scope, vars(base)) for name, text in _annotations(base).items()}
    return hints


def function_hints(function: Callable[..., Any], owner: type | None) -> dict[str, object]:
    function = inspect.unwrap(function)
    scope: Mapping[str, Any] = getattr(function, "__globals__", {})
    inner = {name: item for base in reversed(owner.__mro__) for name, item in vars(base).items()} if owner else {}
    return {name: _resolve(text, scope, inner) for name, text in _annotations(function).items()}
