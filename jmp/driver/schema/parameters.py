"""The parameters of exported methods: told in the report, and checked when a call arrives."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from jmp.driver.schema.hints import bare, default_of, doc_of, function_hints, schema_of
from jmp.driver.schema.load import Loader
from jmp.driver.schema.values import Schema, check, describe, did_you_mean, got, short, understood
from jmp.errors import BadValue, ProtocolViolation


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
            raise ProtocolViolation(f"a parameter in the report is {got(data)}, not a dict")
        name, kind, doc = data.get("name"), data.get("kind", "positional-or-keyword"), data.get("doc")
        if not isinstance(name, str) or kind not in _KINDS.values():
            raise ProtocolViolation(f"a parameter in the report has no name or an unknown kind: {got(name)}")
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
    hints = function_hints(function, owner)
    skipped = (0 if inspect.ismethod(function) else 1) + stream
    parameters = []
    for item in list(_signature(function).parameters.values())[skipped:]:
        hint = hints.get(item.name, Any)
        schema = schema_of(hint)
        variadic = item.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        required = item.default is inspect.Parameter.empty and not variadic
        default = None if required or variadic else default_of(schema, item.default)
        parameters.append(
            Parameter(
                item.name,
                schema,
                _KINDS[item.kind],
                required,
                default,
                doc_of(hint),
                hint if _needs_conversion(hint) else None,
            )
        )
    return parameters


def result_of(function: Callable[..., Any], *, owner: type | None = None) -> Schema:
    """The schema of what a method returns; of each item for a generator."""
    hint = bare(function_hints(function, owner).get("return", Any))
    function = inspect.unwrap(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return schema_of((*typing.get_args(hint), Any)[0])
    return schema_of(hint)


def _needs_conversion(hint: object) -> bool:
    """Whether the wire's value differs from what the hint asks for."""
    hint = bare(hint)
    origin = typing.get_origin(hint) or hint
    kinds = (Enum, PurePath, tuple, set, frozenset)
    if isinstance(origin, type) and (issubclass(origin, kinds) or dataclasses.is_dataclass(origin)):
        return True
    return any(_needs_conversion(argument) for argument in typing.get_args(hint) if origin is not typing.Literal)


def _as_they_are(parameters: Sequence[Parameter], args: Sequence[Any]) -> list[Any] | None:
    """The arguments of nearly every call: plain ones, by position, that fit. None: they have to be looked at closely."""
    if len(args) > len(parameters):
        return None
    for place, parameter in enumerate(parameters):
        if place >= len(args):
            if parameter.required:
                return None
        elif (
            parameter.hint is not None
            or parameter.kind != "positional-or-keyword"
            or check(parameter.schema, args[place])
        ):
            return None
    return list(args)


def bind(
    parameters: Sequence[Parameter], args: Sequence[Any], kwargs: Mapping[str, Any], method: str
) -> tuple[list[Any], dict[str, Any]]:
    """Check a call's arguments against the parameters of ``method``; what to call that with.

    Values change only where the parameter knows a hint (on the exporter) that the wire cannot express: a string becomes
    a Path or an Enum's member, a dict a dataclass. Raises BadValue that names the method and every missing, unexpected
    or wrong argument.
    """
    if not kwargs and (taken := _as_they_are(parameters, args)) is not None:
        return taken, {}
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
        loader = Loader(None)
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
            problems.append(f"unexpected argument {short(name)}{did_you_mean(name, named)}")
    for item in parameters:
        named_too = item.kind != "positional-only" and item.name in kwargs
        if item.required and item.name not in given and not named_too:
            problems.append(f"missing argument '{item.name}' ({describe(item.schema)})")
    if problems:
        raise BadValue(f"{method}: {'; '.join(problems)}")
    return positional, keywords
