"""The shell's grammar: a line in, pipelines of words out.

Commands joined by ``;``, ``&&``, ``||`` and ``|``; single and double quotes, backslash, ``$NAME``, ``${NAME}`` and
``$?``; comments. Redirection, background jobs and globs are refused or left alone, never half done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variable:
    """Replaced by its value just before its command runs."""

    name: str


Word = list[str | Variable]
"""A word's parts; joined after expansion, never split again."""


@dataclass
class Pipeline:
    """Commands joined by ``|``, and on which status of what came before they run: always, only on 0, only on others."""

    condition: str = ";"
    commands: list[list[Word]] = field(default_factory=lambda: [[]])


class BadSyntax(Exception):
    """The line cannot be understood; the message is the shell's."""


_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+) | (?P<comment>\#.*) | (?P<operator>&&|\|\||[;|]) | (?P<refused>[<>&()`])
      | '(?P<single>[^']*)' | (?P<double>") | \\(?P<escaped>.)
      | \$(?P<variable>\?|\w+|\{\w+\}) | (?P<plain>[^\s\#;|<>&()`'"\\$]+|[\#$])""",
    re.VERBOSE | re.ASCII,
)
_IN_DOUBLE = re.compile(
    r"""(?P<end>") | \\(?P<escaped>[$`"\\]) | \$(?P<variable>\?|\w+|\{\w+\}) | (?P<refused>`)
      | (?P<plain>[^"\\$`]+|[\\$])""",
    re.VERBOSE | re.ASCII,
)


def parse(line: str) -> list[Pipeline]:
    """The pipelines of ``line``, in order. Raises :class:`BadSyntax`."""
    pipelines = [Pipeline()]
    word: Word | None = None
    at = 0
    while at < len(line):
        match = _TOKEN.match(line, at)
        if match is None:
            raise BadSyntax("syntax error: unterminated quoted string")
        kind, text = _kind(match)
        if kind == "comment" and word is not None:  # a # inside a word is an ordinary character
            kind, text, end = "plain", "#", at + 1
        else:
            end = match.end()
        at = end
        if kind in ("blank", "comment"):
            word = None
        elif kind == "refused":
            raise BadSyntax(f"'{text}' is not supported by this shell")
        elif kind == "operator":
            word = None
            if text == "|":
                _finish(pipelines[-1], text)
                pipelines[-1].commands.append([])
            else:
                if text != ";":
                    _finish(pipelines[-1], text)
                pipelines.append(Pipeline(text))
        else:
            if word is None:
                word = []
                pipelines[-1].commands[-1].append(word)
            if kind == "double":
                at = _double(line, at, word)
            else:
                word.append(Variable(text.strip("{}")) if kind == "variable" else text)
    for pipeline in pipelines:
        if pipeline.condition != ";" or len(pipeline.commands) > 1:
            _finish(pipeline, "newline")
    return [pipeline for pipeline in pipelines if pipeline.commands[-1]]


def _kind(match: re.Match[str]) -> tuple[str, str]:
    kind = match.lastgroup
    assert kind is not None
    return kind, match[kind]


def _finish(pipeline: Pipeline, before: str) -> None:
    if not pipeline.commands[-1]:
        raise BadSyntax(f'syntax error: unexpected "{before}"')


def _double(line: str, at: int, word: Word) -> int:
    """Add what stands between double quotes to ``word``; returns where it ends."""
    word.append("")
    while match := _IN_DOUBLE.match(line, at):
        kind, text = _kind(match)
        at = match.end()
        if kind == "end":
            return at
        if kind == "refused":
            raise BadSyntax(f"'{text}' is not supported by this shell")
        word.append(Variable(text.strip("{}")) if kind == "variable" else text)
    raise BadSyntax("syntax error: unterminated quoted string")
