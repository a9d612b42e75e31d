"""What a value may be: Python type hints ↔ schemas that travel in the report, and the checks made against them.

A *schema* is a plain dict in a small subset of JSON Schema, so that it goes over the wire as it is and a client in any
language can read it. ``{}`` allows anything. ``type`` is one of ``string integer number boolean null array object``;
besides it only ``format enum anyOf items prefixItems properties required additionalProperties propertyNames
description default`` are used. One thing differs from JSON: values are those of the wire codec, not text, so that
``format`` may call for another type than a string:

============  ====================  ==========================
``format``    Python                value on the wire
============  ====================  ==========================
(none)        ``str``               a string
``binary``    ``bytes``             bytes
``path``      ``pathlib.Path``      a string
``date-time`` ``datetime.datetime``  a datetime
``duration``  ``datetime.timedelta``  a timedelta
============  ====================  ==========================

There are four ways in which a value meets a type. :func:`check` compares a value of the wire with a schema, strictly.
:func:`bind` does so for all arguments of a call. :func:`parse` reads what was typed on a command line. :func:`load`
builds a dataclass (a driver's configuration, an exporter's file) from YAML data, tolerantly, and collects every problem.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, Flag
from pathlib import Path, PurePath
from typing import Any, TypeVar

from jmp.errors import BadValue, JmpError, ProtocolViolation

Schema = dict[str, Any]
T = TypeVar("T")

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
_STRINGS: dict[object, tuple[type, ...]] = {
    "binary": (bytes, bytearray, memoryview),
    "path": (str, PurePath),
    "date-time": (datetime,),
    "duration": (timedelta,),
}
_ARRAYS = (list, tuple, set, frozenset, abc.Sequence, abc.Set, abc.Collection, abc.Iterable)
_NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_FORMATS = {"binary": "bytes", "path": "path", "date-time": "time", "duration": "duration"}
_UNRESOLVABLE = (NameError, AttributeError, TypeError, ValueError, LookupError, SyntaxError, ImportError)
"""What evaluating somebody's annotation raises when a name in it exists for type checkers only."""


@dataclass(frozen=True)
class Problem:
    """Something wrong with a value: ``where`` it is (``export.power.config.port``; empty for the value itself) and what."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


def join(where: str, key: object) -> str:
    """The path of ``key`` within ``where``: ``a.b`` for a name, ``a[0]`` for an index, ``a['x y']`` for other keys."""
    if isinstance(key, str) and re.fullmatch(r"[\w-]+", key):
        return f"{where}.{key}" if where else key
    return f"{where}[{_short(key)}]"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to append to "unknown …": the nearest of the known names, else all of them, else nothing."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:80], names, n=1) if isinstance(name, str) else []
    if near:
        return f" (did you mean '{near[0]}'?)"
    if len(names) > 16:
        names = [*names[:15], "…"]
    return f" (known: {', '.join(names)})" if names else ""


# ---- type hints → schemas


def schema_of(hint: object) -> Schema:
    """The schema of a type hint; ``{}`` (anything) for what schemas cannot express."""
    return _schema(hint, ())


def _bare(hint: object) -> object:
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


def _is_union(origin: object) -> bool:
    return origin is typing.Union or origin is types.UnionType


def _schema(hint: object, outer: tuple[type, ...]) -> Schema:
    hint = _bare(hint)
    origin = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if _is_union(origin):
        options = [_schema(argument, outer) for argument in arguments]
        return {} if {} in options else {"anyOf": options}
    if origin is typing.Literal:
        return {"enum": [plain(value) for value in arguments]}
    if not isinstance(origin, type):
        return {}
    if origin in _SCALARS:
        return dict(_SCALARS[origin])
    if issubclass(origin, Enum):
        return {"enum": list(_members(origin))}
    if issubclass(origin, PurePath):
        return {"type": "string", "format": "path"}
    if dataclasses.is_dataclass(origin):
        return {} if origin in outer else _object(origin, (*outer, origin))
    if issubclass(origin, tuple) and arguments and Ellipsis not in arguments:
        return {"type": "array", "prefixItems": [_schema(argument, outer) for argument in arguments]}
    if issubclass(origin, abc.Mapping):
        key, value = arguments if len(arguments) == 2 else (object, object)
        names, values = _schema(key, outer), _schema(value, outer)
        schema: Schema = {"type": "object"}
        if names != _SCALARS[str]:
            schema["propertyNames"] = names
        return {**schema, "additionalProperties": values} if values else schema
    if origin in _ARRAYS:
        items = _schema(arguments[0], outer) if arguments else {}
        return {"type": "array", "items": items} if items else {"type": "array"}
    return {}


def _members(enum: type[Enum]) -> dict[Any, Enum]:
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


def _fields(cls: type, outer: tuple[type, ...] = ()) -> dict[str, _Field]:
    """The fields of a dataclass that are configuration, by the key that stands for each in data."""
    hints = _class_hints(cls)
    fields = {}
    for item in dataclasses.fields(cls):
        if not item.init or item.name.startswith("_"):
            continue
        hint = hints.get(item.name, Any)
        schema = _schema(hint, outer)
        if doc := item.metadata.get("doc") or _doc(hint):
            schema["description"] = doc
        default = item.default
        if default is dataclasses.MISSING and item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        required = default is dataclasses.MISSING
        if not required and default is not None and not check(schema, plain(default)):
            schema["default"] = plain(default)
        key = item.metadata.get("key", item.name)
        fields[key] = _Field(key, item.name, hint, required, bool(item.metadata.get("secret")), schema)
    return fields


def _object(cls: type, outer: tuple[type, ...]) -> Schema:
    fields = _fields(cls, outer)
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
        return next(key for key, member in _members(type(value)).items() if member is value)
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: plain(getattr(value, item.name)) for key, item in _fields(type(value)).items()}
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def _doc(hint: object) -> str | None:
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


def _class_hints(cls: type) -> dict[str, object]:
    hints: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        hints |= {name: _resolve(text, scope, vars(base)) for name, text in _annotations(base).items()}
    return hints


def _function_hints(function: Callable[..., Any], owner: type | None) -> dict[str, object]:
    function = inspect.unwrap(function)
    scope: Mapping[str, Any] = getattr(function, "__globals__", {})
    inner = {name: item for base in reversed(owner.__mro__) for name, item in vars(base).items()} if owner else {}
    return {name: _resolve(text, scope, inner) for name, text in _annotations(function).items()}


# ---- parameters of a method


@dataclass(frozen=True)
class Parameter:
    """One parameter of an exported method, as the report tells it.

    ``kind`` is ``positional-only``, ``positional-or-keyword``, ``keyword-only``, ``var-positional`` (the schema is that
    of each item) or ``var-keyword`` (that of each value). ``default`` is a value of the wire; None also when the
    default has no such form. ``hint`` never travels: it lets :func:`bind` give a method the Path or Enum it asks for.
    """

    name: str
    schema: Schema
    kind: str = "positional-or-keyword"
    required: bool = True
    default: Any = None
    doc: str | None = None
    hint: object = field(default=None, compare=False, repr=False)

    def to_wire(self) -> dict[str, Any]:
        """As a plain dict; what has its usual value is left out."""
        data: dict[str, Any] = {"name": self.name, "schema": self.schema}
        if self.kind != "positional-or-keyword":
            data["kind"] = self.kind
        if not self.required:
            data |= {"required": False, "default": self.default}
        return {**data, "doc": self.doc} if self.doc else data

    @classmethod
    def from_wire(cls, data: object) -> Parameter:
        """From what another process sent; its schema becomes ``{}`` where this version does not understand it.

        Raises ProtocolViolation for what is no parameter at all.
        """
        if not isinstance(data, Mapping):
            raise ProtocolViolation(f"a parameter in the report is {_got(data)}, not a dict")
        name, kind, doc = data.get("name"), data.get("kind", "positional-or-keyword"), data.get("doc")
        if not isinstance(name, str) or kind not in _KINDS.values():
            raise ProtocolViolation(f"a parameter in the report has no name or an unknown kind: {_got(name)}")
        required = data.get("required", True) is not False
        doc = doc if isinstance(doc, str) else None
        return cls(name, understood(data.get("schema")), kind, required, data.get("default"), doc)


_KINDS = {
    inspect.Parameter.POSITIONAL_ONLY: "positional-only",
    inspect.Parameter.POSITIONAL_OR_KEYWORD: "positional-or-keyword",
    inspect.Parameter.KEYWORD_ONLY: "keyword-only",
    inspect.Parameter.VAR_POSITIONAL: "var-positional",
    inspect.Parameter.VAR_KEYWORD: "var-keyword",
}


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):
        import annotationlib

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def parameters_of(function: Callable[..., Any], *, stream: bool = False, owner: type | None = None) -> list[Parameter]:
    """The parameters of a method, without ``self`` and, for a byte-stream method, without the stream.

    ``owner`` is the class in which names of annotations are looked up after the module. A hint that cannot be resolved
    allows anything. ``Annotated[float, "seconds"]`` documents a parameter.
    """
    hints = _function_hints(function, owner)
    skipped = (0 if inspect.ismethod(function) else 1) + stream
    parameters = []
    for item in list(_signature(function).parameters.values())[skipped:]:
        hint = hints.get(item.name, Any)
        schema = schema_of(hint)
        variadic = item.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = item.default is inspect.Parameter.empty and not variadic
        default = None if required or variadic else plain(item.default)
        if check(schema, default):
            default = None
        parameters.append(
            Parameter(
                item.name,
                schema,
                _KINDS[item.kind],
                required,
                default,
                _doc(hint),
                hint if _needs_conversion(hint) else None,
            )
        )
    return parameters


def result_of(function: Callable[..., Any], *, owner: type | None = None) -> Schema:
    """The schema of what a method returns; of each item for a generator."""
    hint = _bare(_function_hints(function, owner).get("return", Any))
    function = inspect.unwrap(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return schema_of((*typing.get_args(hint), Any)[0])
    return schema_of(hint)


def _needs_conversion(hint: object) -> bool:
    """Whether the wire's value differs from what the hint asks for."""
    hint = _bare(hint)
    origin = typing.get_origin(hint) or hint
    kinds = (Enum, PurePath, tuple, set, frozenset)
    if isinstance(origin, type) and (issubclass(origin, kinds) or dataclasses.is_dataclass(origin)):
        return True
    return any(_needs_conversion(argument) for argument in typing.get_args(hint) if origin is not typing.Literal)


def bind(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Check a call's arguments against a method's parameters; what to call the method with.

    Values change only where the parameter knows a hint (on the exporter) that the wire cannot express: a string becomes
    a Path or an Enum's member, a dict a dataclass. Raises BadValue that names every missing, unexpected or wrong
    argument.
    """
    problems: list[str] = []
    slots = [item for item in parameters if item.kind in ("positional-only", "positional-or-keyword")]
    named = {item.name: item for item in parameters if item.kind in ("positional-or-keyword", "keyword-only")}
    rest = next((item for item in parameters if item.kind == "var-positional"), None)
    others = next((item for item in parameters if item.kind == "var-keyword"), None)

    def take(parameter: Parameter, value: Any, where: str) -> Any:
        if found := check(parameter.schema, value, where):
            problems.extend(f"argument '{problem.where}': {problem.message}" for problem in found)
            return None
        if parameter.hint is None:
            return value
        loader = _Loader(None)
        converted = loader.convert(parameter.hint, value, where)
        problems.extend(f"argument '{problem.where}': {problem.message}" for problem in loader.problems)
        return converted

    positional: list[Any] = []
    for index, value in enumerate(args):
        if index < len(slots):
            positional.append(take(slots[index], value, slots[index].name))
        elif rest:
            positional.append(take(rest, value, f"{rest.name}[{index - len(slots)}]"))
    if len(args) > len(slots) and not rest:
        problems.append(f"takes at most {len(slots)} positional arguments, got {len(args)}")
    given = {item.name for item in slots[: len(args)]}
    keywords: dict[str, Any] = {}
    for name, value in kwargs.items():
        if name in named and name in given:
            problems.append(f"argument '{name}' was given twice")
        elif name in named or others:
            keywords[name] = take(named.get(name) or typing.cast(Parameter, others), value, name)
        else:
            problems.append(f"unexpected argument {_short(name)}{did_you_mean(name, named)}")
    for item in parameters:
        if item.required and item.name not in given and item.name not in kwargs:
            problems.append(f"missing argument '{item.name}' ({describe(item.schema)})")
    if problems:
        raise BadValue("; ".join(problems))
    return positional, keywords


# ---- values against schemas


def check(schema: Schema, value: object, where: str = "") -> list[Problem]:
    """What is wrong with a value of the wire: nothing if the list is empty. Strict: bool is no int, but int is a float."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null" or value is None]
        found = [check(option, value, where) for option in options]
        if not found or not all(found):
            return [] if found else [Problem(where, _expected(schema, value))]
        if len(found) == 1 and all(problem.where != where for problem in found[0]):
            return found[0]
        return [Problem(where, _expected(schema, value))]
    if "enum" in schema:
        fits = any(type(item) is type(value) and item == value for item in schema["enum"])
        return [] if fits else [Problem(where, _expected(schema, value))]
    if not _is(schema, value):
        return [Problem(where, _expected(schema, value))]
    if isinstance(value, list | tuple) and schema["type"] == "array":
        fixed = schema.get("prefixItems")
        if fixed is not None and len(fixed) != len(value):
            return [Problem(where, f"expected {describe(schema)}, got a list of {len(value)}")]
        schemas = fixed if fixed is not None else [schema.get("items", {})] * len(value)
        pairs = zip(schemas, value, strict=True)
        return [problem for index, (s, v) in enumerate(pairs) for problem in check(s, v, f"{where}[{index}]")]
    if isinstance(value, Mapping) and schema["type"] == "object":
        return _check_object(schema, value, where)
    return []


def _check_object(schema: Schema, value: Mapping[Any, Any], where: str) -> list[Problem]:
    problems = []
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", {})
    names = schema.get("propertyNames", _SCALARS[str])
    for key, item in value.items():
        inside = join(where, key)
        if key in properties:
            problems += check(properties[key], item, inside)
        elif others is False:
            problems.append(Problem(inside, f"unknown key {_short(key)}{did_you_mean(key, properties)}"))
        else:
            problems += [Problem(inside, f"as a key: {problem.message}") for problem in check(names, key)]
            problems += check(others, item, inside)
    missing = [key for key in schema.get("required", ()) if key not in value]
    return problems + [Problem(where, f"missing key '{key}' ({describe(properties.get(key, {}))})") for key in missing]


def _is(schema: Schema, value: object) -> bool:
    """Whether the value is of the schema's own type, whatever is inside it."""
    match schema.get("type"):
        case "string":
            return isinstance(value, _STRINGS.get(schema.get("format"), (str,)))
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "array":
            return isinstance(value, list | tuple)
        case "object":
            return isinstance(value, Mapping)
        case _:
            return True


def understood(schema: object, depth: int = 32) -> Schema:
    """A schema that another process sent, made safe: what this version does not understand allows anything."""
    if not isinstance(schema, dict) or depth == 0:
        return {}
    inner = {
        key: understood(schema[key], depth - 1)
        for key in ("items", "additionalProperties", "propertyNames")
        if isinstance(schema.get(key), dict)
    }
    if schema.get("additionalProperties") is False:
        inner["additionalProperties"] = False  # type: ignore[assignment]
    result: Schema = {key: schema[key] for key in ("description", "format") if isinstance(schema.get(key), str)}
    if "default" in schema:
        result["default"] = schema["default"]
    if isinstance(schema.get("enum"), list):
        return {**result, "enum": schema["enum"]}
    if isinstance(schema.get("anyOf"), list):
        options = [understood(option, depth - 1) for option in schema["anyOf"]]
        return result if {} in options else {**result, "anyOf": options}
    if schema.get("type") not in (*_NAMES, "array", "object"):
        return result
    if isinstance(schema.get("prefixItems"), list):
        result["prefixItems"] = [understood(item, depth - 1) for item in schema["prefixItems"]]
    if isinstance(schema.get("properties"), dict):
        result["properties"] = {str(key): understood(item, depth - 1) for key, item in schema["properties"].items()}
    if isinstance(schema.get("required"), list):
        result["required"] = [str(key) for key in schema["required"]]
    return {**result, **inner, "type": schema["type"]}


def describe(schema: Schema) -> str:
    """A short name of the type, for help and errors: ``int``, ``on|off``, ``list of str``, ``float or None``."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe(option) for option in schema["anyOf"]))
    if "enum" in schema:
        return "|".join(str(item) for item in schema["enum"])
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return f"({', '.join(describe(item) for item in schema['prefixItems'])})"
    if kind == "array":
        return f"list of {describe(schema['items'])}" if schema.get("items") else "list"
    if kind == "object":
        return f"dict of {describe(schema['additionalProperties'])}" if schema.get("additionalProperties") else "dict"
    return (
        _FORMATS.get(schema.get("format", ""), _NAMES["string"]) if kind == "string" else _NAMES.get(str(kind), "any")
    )


def _expected(schema: Schema, value: object) -> str:
    hint = ""
    if isinstance(value, str) and "enum" in schema:
        hint = did_you_mean(value, [str(item) for item in schema["enum"]])
    return f"expected {describe(schema)}, got {_got(value)}{hint if 'did' in hint else ''}"


def _got(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | bytes | bool | int | float):
        return f"{_short(value)} ({type(value).__name__})"
    return f"a {type(value).__name__}"


def _short(value: object) -> str:
    """A value for a one-line message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"  # Python refuses to print integers of more than 4300 digits
    text = repr(value[:60] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 64 else f"{text[:60]}…"


# ---- text of a command line

_TRUE = frozenset({"true", "on", "yes", "1"})
_FALSE = frozenset({"false", "off", "no", "0"})
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d|w)\s*")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def duration(text: str) -> timedelta:
    """Read ``1.5s``, ``500ms``, ``2m``, ``1h30m``, ``2d`` or plain seconds. Raises BadValue."""
    try:
        if re.fullmatch(r"\d+(\.\d*)?|\.\d+", text):
            return timedelta(seconds=float(text))
        if text and not _DURATION.sub("", text):
            return timedelta(seconds=sum(float(n) * _UNITS[unit] for n, unit in _DURATION.findall(text)))
    except OverflowError:
        pass
    raise BadValue(f"expected a duration such as 1.5s, 2m or 1h30m, got {_short(text)}")


def parse(schema: Schema, text: str | Sequence[str]) -> Any:
    """The value of the wire that was typed on a command line; raises BadValue with a one-line message.

    A list is one text with commas (or in YAML's flow style, ``[a, b]``), or several texts, one for each item and taken
    as they are. A dict is JSON or YAML flow style. Bytes are the text in UTF-8. Where anything is allowed, the text is
    read as YAML reads a scalar.
    """
    if not isinstance(text, str):
        if schema.get("type") == "array" and len(text) != 1:
            return _parse_items(schema, list(text))
        if len(text) != 1:
            raise BadValue(f"expected one value ({describe(schema)}), got {len(text)}")
        text = text[0]
    if "anyOf" in schema:
        return _parse_any(schema, text)
    if "enum" in schema:
        for item in schema["enum"]:
            if (str(item).lower() if isinstance(item, bool | None) else str(item)) == text:
                return item
        raise BadValue(_expected(schema, text))
    kind = schema.get("type")
    try:
        if kind == "string":
            return _parse_string(schema, text)
        if kind == "boolean" and text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        if kind == "integer":
            return int(text, 10) if re.fullmatch(r"\s*[-+]?0\d*\s*", text) else int(text, 0)
        if kind == "number":
            return float(text)
    except (ValueError, OverflowError):
        raise BadValue(_expected(schema, text)) from None
    if kind == "null" and text.lower() in ("none", "null", ""):
        return None
    if kind == "array" and not text.lstrip().startswith("["):
        return _parse_items(schema, text.split(",") if text else [])
    if kind in ("boolean", "null"):
        raise BadValue(_expected(schema, text))
    return _parse_yaml(schema, text)


def _parse_string(schema: Schema, text: str) -> Any:
    match schema.get("format"):
        case "binary":
            return text.encode()
        case "date-time":
            return datetime.fromisoformat(text)
        case "duration":
            return duration(text)
        case _:
            return text


def _parse_any(schema: Schema, text: str) -> Any:
    """The first alternative that the text fits; text comes late, since every text fits it, and "none" may be text."""
    options = schema["anyOf"]
    for option in sorted(
        options, key=lambda option: (option.get("type") == "string") + 2 * (option.get("type") == "null")
    ):
        try:
            return parse(option, text)
        except BadValue:
            continue
    raise BadValue(_expected(schema, text))


def _parse_items(schema: Schema, texts: list[str]) -> list[Any]:
    fixed = schema.get("prefixItems")
    if fixed is not None and len(fixed) != len(texts):
        raise BadValue(f"expected {describe(schema)}, got {len(texts)} values")
    schemas = fixed if fixed is not None else [schema.get("items", {})] * len(texts)
    return [parse(item, text) for item, text in zip(schemas, texts, strict=True)]


def _parse_yaml(schema: Schema, text: str) -> Any:
    from jmp.driver import yamlfile  # late: most commands need no YAML

    document = yamlfile.read(text)
    data = document.data
    if not schema and (document.problems or (isinstance(data, dict | list) and text.lstrip()[:1] not in ("[", "{"))):
        return text
    if document.problems:
        raise BadValue(f"expected {describe(schema)}, got {_short(text)}: {document.problems[0].message}")
    value = _from_yaml(schema, data)
    if problems := check(schema, value):
        raise BadValue(str(problems[0]))
    return value


def _from_yaml(schema: Schema, data: Any) -> Any:
    """Data of YAML with durations, bytes and so on read from their text, where the schema asks for them."""
    if isinstance(data, str) and schema and not _is(schema, data):
        try:
            return parse(schema, data)
        except BadValue:
            return data
    if isinstance(data, list):
        fixed = schema.get("prefixItems", ())
        schemas = fixed if len(fixed) == len(data) else [schema.get("items", {})] * len(data)
        return [_from_yaml(item, value) for item, value in zip(schemas, data, strict=True)]
    if isinstance(data, dict):
        others = schema.get("additionalProperties") or {}
        return {key: _from_yaml(schema.get("properties", {}).get(key, others), value) for key, value in data.items()}
    return data


# ---- YAML data → dataclasses


def load(cls: type[T], data: object, where: str = "", *, base: Path | None = None) -> tuple[T | None, list[Problem]]:
    """Build a dataclass from plain data; every problem found, and the instance if there is none.

    Public fields are the keys; a field's metadata may give another name (``key``), say that its value must not show in
    messages (``secret``) and document it (``doc``). Text becomes what the field asks for: Path, Enum, ``1.5s`` or
    seconds for a timedelta, ISO 8601 for a datetime, UTF-8 for bytes, ``on``, ``off``, ``yes`` and ``no`` for a bool.
    With ``base``, paths start there unless absolute, and ``~`` is the user's home. A JmpError, ValueError, TypeError
    or OSError raised by the class itself (``__post_init__``) is a problem too; other exceptions are its defects and
    pass.
    """
    loader = _Loader(base)
    instance = loader.build(cls, data, where)
    return (None if loader.problems else instance), loader.problems


class _Loader:
    """One conversion of plain data along type hints; keeps going after a problem, with None in place of the value."""

    def __init__(self, base: Path | None) -> None:
        self.base = base
        self.problems: list[Problem] = []

    def build(self, cls: type[T], data: object, where: str) -> T | None:
        before = len(self.problems)
        if not isinstance(data, Mapping):
            self.problems.append(Problem(where, f"expected dict, got {_got(data)}"))
            return None
        fields = _fields(cls)
        values = {}
        for key, value in data.items():
            inside = join(where, key)
            if not isinstance(key, str) or key not in fields:
                self.problems.append(Problem(inside, f"unknown key {_short(key)}{did_you_mean(key, fields)}"))
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
        hint = _bare(hint)
        origin = typing.get_origin(hint) or hint
        arguments = typing.get_args(hint)
        if _is_union(origin):
            return self._alternative(hint, value, where)
        if isinstance(origin, type) and dataclasses.is_dataclass(origin):
            return value if isinstance(value, origin) else self.build(origin, value, where)
        if isinstance(value, list | tuple) and _schema(hint, ()).get("type") == "array":
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
            return _members(origin)[value]
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
            loader = _Loader(self.base)
            converted = loader.convert(option, value, where)
            if not loader.problems:
                return converted
            tried.append((option, loader.problems))
        # Of several alternatives that do not fit, one that has the right shape tells best what is wrong inside it.
        inside = [found for _, found in tried if all(problem.where != where for problem in found)]
        shaped = [found for o, found in tried if isinstance(value, dict | list) and _is(schema_of(o), value)]
        self.problems += (inside or shaped or [[Problem(where, _expected(schema_of(hint), value))]])[0]
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
