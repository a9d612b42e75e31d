"""Text of a command line → values of the wire."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from jmp.driver.schema.values import Schema, check, describe, expected, is_type, short
from jmp.errors import BadValue

_TRUE = frozenset({"true", "on", "yes", "1"})
_FALSE = frozenset({"false", "off", "no", "0"})
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d|w)\s*")
_PAIR = re.compile(r"\s*([^=:\s][^=:]*?)\s*(?:=|:(?=\s|$)\s*)(.*)", re.DOTALL)
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
    raise BadValue(f"expected a duration such as 1.5s, 2m or 1h30m, got {short(text)}")


def parse(schema: Schema, text: str | Sequence[str]) -> Any:
    """The value of the wire that was typed on a command line; raises BadValue with a one-line message.

    A list is one text with commas (or in YAML's flow style, ``[a, b]``), or several texts, one for each item and taken
    as they are. A dict is ``NAME=VALUE`` or ``NAME: VALUE``, once or several times, JSON, or YAML flow style.
    Bytes are the text in UTF-8. Where anything is allowed, the text is read as YAML reads a scalar.
    """
    if not isinstance(text, str):
        if schema.get("type") == "array" and len(text) != 1:
            return _parse_items(schema, list(text))
        if schema.get("type") == "object" and len(text) != 1:
            return _parse_pairs(schema, text)
        if "anyOf" in schema and len(text) != 1:
            several = [option for option in schema["anyOf"] if option.get("type") in ("array", "object")]
            if len(several) == 1:
                return parse(several[0], text)
        if len(text) != 1:
            raise BadValue(f"expected one value ({describe(schema)}), got {len(text)}")
        text = text[0]
    if "anyOf" in schema:
        return _parse_any(schema, text)
    if "enum" in schema:
        for item in schema["enum"]:
            if (str(item).lower() if isinstance(item, bool | None) else str(item)) == text:
                return item
        raise BadValue(expected(schema, text))
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
        raise BadValue(expected(schema, text)) from None
    if kind == "null" and text.lower() in ("none", "null", ""):
        return None
    if kind == "array" and not text.lstrip().startswith("["):
        return _parse_items(schema, text.split(",") if text else [])
    if kind == "object" and not text.lstrip().startswith("{") and "\n" not in text:
        return _parse_pairs(schema, [text])
    if kind == "boolean":
        raise BadValue(f"expected on or off, got {short(text)}")
    if kind == "null":
        raise BadValue(expected(schema, text))
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
        except BadValue as error:
            if option.get("type") == "object" and len(options) == 2 and {"type": "null"} in options:
                raise BadValue(error.message) from None  # says what is wrong with it, and nothing that is secret
            continue
    raise BadValue(expected(schema, text))


def _parse_items(schema: Schema, texts: list[str]) -> list[Any]:
    fixed = schema.get("prefixItems")
    if fixed is not None and len(fixed) != len(texts):
        raise BadValue(f"expected {describe(schema)}, got {len(texts)} values")
    schemas = fixed if fixed is not None else [schema.get("items", {})] * len(texts)
    return [parse(item, text) for item, text in zip(schemas, texts, strict=True)]


def _parse_pairs(schema: Schema, texts: Sequence[str]) -> dict[Any, Any]:
    value: dict[Any, Any] = {}
    for text in texts:
        if (pair := _PAIR.fullmatch(text)) is None:
            raise BadValue("expected NAME=VALUE")  # what it is instead may be a secret
        name, typed = pair.groups()
        key = parse(schema.get("propertyNames", {"type": "string"}), name)
        try:
            value[key] = parse(schema.get("properties", {}).get(key, schema.get("additionalProperties") or {}), typed)
        except BadValue as error:
            raise BadValue(f"{name}: {error.message}") from None
    if problems := check(schema, value):
        raise BadValue(str(problems[0]))
    return value


def _parse_yaml(schema: Schema, text: str) -> Any:
    from jmp.driver import yamlfile  # late: most commands need no YAML

    document = yamlfile.read(text)
    data = document.data
    if not schema and (document.problems or (isinstance(data, dict | list) and text.lstrip()[:1] not in ("[", "{"))):
        return text
    if document.problems:
        raise BadValue(f"expected {describe(schema)}, got {short(text)}: {document.problems[0].message}")
    value = _from_yaml(schema, data)
    if problems := check(schema, value):
        raise BadValue(str(problems[0]))
    return value


def _from_yaml(schema: Schema, data: Any) -> Any:
    """Data of YAML with durations, bytes and so on read from their text, where the schema asks for them."""
    if isinstance(data, str) and schema and not is_type(schema, data):
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
