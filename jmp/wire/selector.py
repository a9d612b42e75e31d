"""Labels, and selectors of them in Kubernetes' syntax: ``board=rpi4,rack in (a, b),!broken``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from jmp.errors import BadValue

_NAME: Final = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_PREFIX: Final = r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?"
KEY: Final = re.compile(rf"(?:{_PREFIX}/)?{_NAME}")
VALUE: Final = re.compile(rf"(?:{_NAME})?")
_TOKEN: Final = re.compile(r"\s*(?:(?P<word>[A-Za-z0-9_./-]+)|(?P<sign>==|!=|=|!|\(|\)|,)|(?P<other>\S))")

Operator = Literal["in", "notin", "exists", "missing"]


@dataclass(frozen=True)
class Requirement:
    """One condition on one label."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` meet it. As in Kubernetes, a label that is missing is "not in" any values."""
        if self.operator == "exists":
            return self.key in labels
        if self.operator == "missing":
            return self.key not in labels
        return (labels.get(self.key) in self.values) == (self.operator == "in")

    def __str__(self) -> str:
        if self.operator == "exists":
            return self.key
        if self.operator == "missing":
            return f"!{self.key}"
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.operator == 'in' else '!='}{self.values[0]}"
        return f"{self.key} {self.operator} ({','.join(self.values)})"


@dataclass(frozen=True)
class Selector:
    """Conditions that all have to be met; none at all are met by everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether ``labels`` meet all conditions."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def mismatch(self, labels: Mapping[str, str]) -> str:
        """The first condition that is not met and why, for people; empty if all are met."""
        for requirement in self.requirements:
            if not requirement.matches(labels):
                has = f"it has {requirement.key}={labels[requirement.key]}" if requirement.key in labels else ""
                return f"not {requirement}: {has or f'it has no label {requirement.key}'}"
        return ""

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


@lru_cache(maxsize=4096)
def parse(text: str) -> Selector:
    """Read a selector. Raises :class:`~jmp.errors.BadValue` that says where it goes wrong."""
    reader = _Reader(text)
    requirements = []
    if not reader.done:
        requirements.append(reader.requirement())
        while not reader.done:
            reader.expect(",")
            requirements.append(reader.requirement())
    return Selector(tuple(requirements))


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str, int]] = []
        for match in _TOKEN.finditer(text):
            kind = str(match.lastgroup)
            self._tokens.append((kind, match[kind], match.start(kind)))

    @property
    def done(self) -> bool:
        return not self._tokens

    def requirement(self) -> Requirement:
        if self._next_is("!"):
            self._take()
            return Requirement(self._key(), "missing")
        key = self._key()
        if self.done or self._next_is(","):
            return Requirement(key, "exists")
        kind, sign, at = self._take()
        if sign in ("=", "==", "!="):
            value = "" if self.done or self._next_is(",") else self._value()
            return Requirement(key, "notin" if sign == "!=" else "in", (value,))
        if kind == "word" and sign in ("in", "notin"):
            operator: Operator = "in" if sign == "in" else "notin"
            return Requirement(key, operator, self._values())
        raise self._wrong(f"expected =, !=, in or notin after {key!r}", at)

    def expect(self, sign: str) -> None:
        if not self._next_is(sign):
            at = self._tokens[0][2] if self._tokens else len(self._text)
            raise self._wrong(f"expected {sign!r}", at)
        self._take()

    def _values(self) -> tuple[str, ...]:
        self.expect("(")
        values = [self._value()]
        while self._next_is(","):
            self._take()
            values.append(self._value())
        self.expect(")")
        return tuple(values)

    def _next_is(self, sign: str) -> bool:
        return bool(self._tokens) and self._tokens[0][:2] == ("sign", sign)

    def _take(self) -> tuple[str, str, int]:
        return self._tokens.pop(0)

    def _key(self) -> str:
        return self._word("a label's name", KEY)

    def _value(self) -> str:
        return self._word("a label's value", VALUE)

    def _word(self, what: str, pattern: re.Pattern[str]) -> str:
        if self.done:
            raise self._wrong(f"expected {what}", len(self._text))
        kind, word, at = self._take()
        if kind != "word" or pattern.fullmatch(word) is None:
            raise self._wrong(f"expected {what}, not {word!r}", at)
        return word

    def _wrong(self, what: str, at: int) -> BadValue:
        return BadValue(f"selector {self._text!r}, character {at + 1}: {what}")


def check_labels(labels: object) -> None:
    """Raise :class:`~jmp.errors.BadValue` unless these are labels as Kubernetes has them."""
    if not isinstance(labels, Mapping):
        raise BadValue("labels are a mapping of names to values")
    for key, value in labels.items():
        if not isinstance(key, str) or KEY.fullmatch(key) is None:
            raise BadValue(f"{key!r} is no name for a label: letters, digits, '-', '_', '.', 63 at most")
        if not isinstance(value, str) or VALUE.fullmatch(value) is None:
            raise BadValue(f"{value!r} is no value for label {key}: letters, digits, '-', '_', '.', 63 at most")
