"""Values of the wire against schemas: problems, strict checks, short descriptions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Any

Schema = dict[str, Any]

_STRING: Schema = {"type": "string"}
_STRINGS: dict[object, tuple[type, ...]] = {
    "binary": (bytes, bytearray, memoryview),
    "path": (str, PurePath),
    "date-time": (datetime,),
    "duration": (timedelta,),
}
_NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_FORMATS = {"binary": "bytes", "path": "path", "date-time": "time", "duration": "duration"}


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
    return f"{where}[{short(key)}]"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to append to "unknown …": the nearest of the known names, else all of them, else nothing."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name)[:80], names, n=1) if isinstance(name, str) else []
    if near:
        return f" (did you mean '{near[0]}'?)"
    if len(names) > 16:
        names = [*names[:15], "…"]
    return f" (known: {', '.join(names)})" if names else ""


def check(schema: Schema, value: object, where: str = "") -> list[Problem]:
    """What is wrong with a value of the wire: nothing if the list is empty. Strict: bool is no int, but int is a float."""
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null" or value is None]
        found = [check(option, value, where) for option in options]
        if not found or not all(found):
            return [] if found else [Problem(where, expected(schema, value))]
        if len(found) == 1 and all(problem.where != where for problem in found[0]):
            return found[0]
        return [Problem(where, expected(schema, value))]
    if "enum" in schema:
        fits = any(type(item) is type(value) and item == value for item in schema["enum"])
        return [] if fits else [Problem(where, expected(schema, value))]
    if not is_type(schema, value):
        return [Problem(where, expected(schema, value))]
    if isinstance(value, list | tuple) and schema.get("type") == "array":
        fixed = schema.get("prefixItems")
        if fixed is not None and len(fixed) != len(value):
            return [Problem(where, f"expected {describe(schema)}, got a list of {len(value)}")]
        schemas = fixed if fixed is not None else [schema.get("items", {})] * len(value)
        pairs = zip(schemas, value, strict=True)
        return [problem for index, (s, v) in enumerate(pairs) for problem in check(s, v, f"{where}[{index}]")]
    if isinstance(value, Mapping) and schema.get("type") == "object":
        return _check_object(schema, value, where)
    return []


def _check_object(schema: Schema, value: Mapping[Any, Any], where: str) -> list[Problem]:
    if len(schema) == 1 and all(isinstance(key, str) for key in value):
        return []  # an object with anything in it
    problems = []
    properties = schema.get("properties", {})
    others = schema.get("additionalProperties", {})
    names = schema.get("propertyNames", _STRING)
    for key, item in value.items():
        inside = join(where, key)
        if key in properties:
            problems += check(properties[key], item, inside)
        elif others is False:
            problems.append(Problem(inside, f"unknown key {short(key)}{did_you_mean(key, properties)}"))
        else:
            problems += [Problem(inside, f"as a key: {problem.message}") for problem in check(names, key)]
            problems += check(others, item, inside)
    missing = [key for key in schema.get("required", ()) if key not in value]
    return problems + [Problem(where, f"missing key '{key}' ({describe(properties.get(key, {}))})") for key in missing]


def is_type(schema: Schema, value: object) -> bool:
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


def expected(schema: Schema, value: object) -> str:
    hint = ""
    if isinstance(value, str) and "enum" in schema:
        hint = did_you_mean(value, [str(item) for item in schema["enum"]])
    return f"expected {describe(schema)}, got {got(value)}{hint if 'did' in hint else ''}"


def got(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, str | bytes | bool | int | float):
        return f"{short(value)} ({type(value).__name__})"
    return f"a {type(value).__name__}"


def short(value: object) -> str:
    """A value for a one-line message."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a huge number"  # Python refuses to print integers of more than 4300 digits
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 64 else f"{text[:60]}…"
