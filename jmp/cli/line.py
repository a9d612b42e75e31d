"""A line of the prompt: what it asks for, and how it can go on. Pure.

Words and quotes are those of the POSIX shell, of which this reads as much as it takes to tell a verb's line, which is carried
out here, from one that needs a shell, and to find where in such a line a driver's name stands as a command.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from jmp.cli import verbs
from jmp.cli.verbs import Target, Verb
from jmp.driver.schema import Parameter, describe
from jmp.errors import JmpError

KEPT: Final = ("cd", "export", "unset")
"""Commands of the shell whose effect stays for later lines."""
BUILTIN: Final = {
    "help": "what there is: help, help DRIVER, help DRIVER VERB",
    "cd": "change the folder, for this and later lines",
    "export": "set a variable of the environment, for this and later lines",
    "unset": "remove a variable of the environment",
    "exit": "leave (also Ctrl-D); exit N gives the exit code",
}
"""What the prompt itself knows, and what it says about it."""

_BEFORE_COMMAND: Final = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "{", "time"})
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")


@dataclass
class Word:
    """A word with its quotes removed, and where it stands in the text."""

    start: int
    text: str = ""


@dataclass
class Scan:
    """What a text consists of."""

    commands: list[list[Word]] = field(default_factory=lambda: [[]])
    """The words of each command, without redirections and assignments."""
    plain: bool = True
    """No part of it is for a shell to expand, redirect or join."""
    open: bool = False
    """It is not complete: a quote is open, or a backslash says that it goes on."""
    current: Word | None = None
    """The word that the text ends in; None if the next character begins one."""


def scan(text: str) -> Scan:
    """Read a text as a shell would."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Scan()
        self.word: Word | None = None
        self.redirected = False

    def run(self) -> Scan:
        text = self.text
        while self.at < len(text):
            character = text[self.at]
            following = text[self.at + 1 : self.at + 2]
            if character == "\\":
                self.at += 2
                if following == "":
                    self.found.open = True
                elif following != "\n":
                    self.add(following, 2)
            elif character == "'":
                self.single()
            elif character == '"':
                self.double()
            elif character in " \t":
                self.end()
                self.at += 1
            elif character == "#" and self.word is None:
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            elif character in "\n;|&()<>`":
                self.operator(character, following)
            else:
                if character in "*?$" or (character == "~" and self.word is None):
                    self.found.plain = False
                self.at += 1
                self.add(character, 1)
        self.found.current = self.word
        self.end()
        return self.found

    def add(self, text: str, width: int) -> None:
        """Append to the current word; ``width`` characters that ended here stand for it."""
        if self.word is None:
            self.word = Word(self.at - width)
        self.word.text += text

    def single(self) -> None:
        end = self.text.find("'", self.at + 1)
        self.found.open |= end < 0
        end = len(self.text) if end < 0 else end
        begin, self.at = self.at + 1, end + 1
        self.add(self.text[begin:end], end + 1 - begin + 1)

    def double(self) -> None:
        start, text, inside = self.at, self.text, ""
        self.at += 1
        while self.at < len(text) and text[self.at] != '"':
            character, following = text[self.at], text[self.at + 1 : self.at + 2]
            if character == "\\" and following and following in '"\\$`\n':
                inside += following if following != "\n" else ""
                self.at += 1
            else:
                self.found.plain &= character not in "$`"
                inside += character
            self.at += 1
        self.found.open |= self.at >= len(text)
        self.at += 1
        self.add(inside, self.at - start)

    def operator(self, character: str, following: str) -> None:
        self.found.plain = False
        if character in "<>" and self.word is not None and self.word.text.isdigit():
            self.word = None  # the number of a descriptor
        self.end()
        before = self.text[self.at - 1 : self.at]
        if character in "<>":
            self.redirected = following != "("
        elif not (character == "&" and (before in ("<", ">") or following == ">")):
            self.redirected = False
            self.found.commands.append([])
        self.at += 1

    def end(self) -> None:
        """The current word, if there is one, is complete."""
        word, self.word = self.word, None
        if word is None:
            return
        command = self.found.commands[-1]
        if self.redirected:
            self.redirected = False
        elif not command and (word.text in _BEFORE_COMMAND or _ASSIGNMENT.match(word.text)):
            self.found.plain = False
        else:
            command.append(word)


class Kind(Enum):
    """What a line asks for."""

    NOTHING = "nothing"
    HELP = "help"
    EXIT = "exit"
    KEPT = "kept"
    VERB = "verb"
    SHELL = "shell"


class Step(NamedTuple):
    """A line, decided."""

    kind: Kind
    words: list[str]
    """For HELP, EXIT and VERB: what follows the name; for VERB what ``j`` gets."""
    text: str = ""
    """For KEPT and SHELL: what the shell gets."""


def decide(text: str, drivers: Collection[str]) -> Step:
    """What a complete line asks for; ``drivers`` are the names, with dots too, that are no commands."""
    text = text.strip()
    if text.startswith("!"):
        return Step(Kind.SHELL, [], text[1:].strip())
    found = scan(text)
    words = [word.text for word in found.commands[0]]
    if found.plain and not words:
        return Step(Kind.NOTHING, [])
    name = words[0] if words else ""
    if found.plain and name in ("help", "exit"):
        return Step(Kind(name), words[1:])
    if found.plain and name in drivers:
        return Step(Kind.VERB, words)
    if found.plain and name == "j" and not any(word.startswith("--device") for word in words[1:2]):
        return Step(Kind.VERB, words[1:])
    return Step(Kind.KEPT if name in KEPT else Kind.SHELL, [], for_shell(text, found, drivers))


def for_shell(text: str, found: Scan, drivers: Collection[str]) -> str:
    """The line with ``j`` before every driver that stands where a command does."""
    for command in reversed(found.commands):
        if command and command[0].text in drivers:
            start = command[0].start
            text = f"{text[:start]}j {text[start:]}"
    return text


def split(text: str) -> list[str]:
    """The lines of a text that was typed or pasted; those that a quote or a backslash joins are one."""
    lines: list[str] = []
    begun = ""
    for line in text.splitlines():
        begun = f"{begun}\n{line}" if begun else line
        if not scan(begun).open:
            lines.append(begun)
            begun = ""
    return [line for line in [*lines, begun] if line.strip()]


def names_in(target: Target) -> set[str]:
    """All that a line can begin with to be for the device: verbs of its own, and the path of every driver, with dots."""

    def below(target: Target) -> Iterator[str]:
        for child in target.children.values():
            yield child.path
            yield from below(child)

    return {*target.verbs(), *below(target)}


class Health:
    """Which drivers are degraded, from one snapshot to the next."""

    def __init__(self) -> None:
        self.degraded: dict[str, str] = {}
        """Reason by path."""

    def update(self, states: dict[str, Any]) -> list[str]:
        """Take a snapshot (state and reason by path) in; what there is to tell of it, a line each.

        A driver that is being opened again is neither better nor worse than before.
        """
        told = []
        for path, (state, reason) in states.items():
            if state == "degraded" and self.degraded.get(path) != reason:
                self.degraded[path] = reason
                told.append(f"{path} is degraded: {reason}")
            elif state == "ready" and self.degraded.pop(path, None) is not None:
                told.append(f"{path} is ready again")
        return told

    def shown(self, room: int = 30) -> str:
        """For the prompt; empty while all is well."""
        if not self.degraded:
            return ""
        names = f"{', '.join(self.degraded)} degraded"
        return names if len(names) <= room else f"{len(self.degraded)} drivers degraded"


# ---- completion


class Candidate(NamedTuple):
    """One way to go on: ``text`` replaces what stands from ``start``."""

    text: str
    start: int
    shown: str
    about: str = ""


class Machine(NamedTuple):
    """What a shell would complete from."""

    commands: Callable[[], Iterable[str]]
    """The names of programs."""
    paths: Callable[[str], Iterable[str]]
    """Files and folders, the latter with a slash at the end, that begin with a text."""


def complete(before: str, device: Target, machine: Machine) -> list[Candidate]:
    """What can follow ``before``, the text up to the cursor."""
    forced = before.lstrip().startswith("!")
    offset = before.index("!") + 1 if forced else 0
    found = scan(before[offset:])
    current = found.current
    words = [word.text for word in found.commands[-1]]
    begun = current.text if current is not None else ""
    if current is not None and words:
        words.pop()
    start = offset + (current.start if current is not None else len(before) - offset)

    def offer(texts: Iterable[tuple[str, str]]) -> list[Candidate]:
        return [Candidate(_typed(text), start, text, about) for text, about in texts if text.startswith(begun)]

    def files(text: str = begun) -> list[tuple[str, str]]:
        return [(path, "") for path in machine.paths(text)]

    drivers = () if forced else names_in(device)
    if not words:
        mine = [] if forced else [*_places(device, begun), *((name, about) for name, about in BUILTIN.items())]
        known = {name for name, _ in mine}
        others = files() if "/" in begun else [(name, "") for name in machine.commands() if name not in known]
        return offer([*mine, *(others if begun else [])])
    if words[0] == "help" and not forced:
        return offer(_helped(device, words[1:], begun))
    if words[0] == "j" and not forced:
        return offer(_for_device(device, words[1:], begun, files))
    if words[0] in drivers:
        return offer(_for_device(device, words, begun, files))
    return offer(files())


def _typed(text: str) -> str:
    """As it is inserted: quoted, and with the space that follows, unless more has to."""
    if text.endswith(("=", "/")):
        return text if _is_bare(text) else shlex.quote(text)
    return f"{text if _is_bare(text) else shlex.quote(text)} "


def _is_bare(text: str) -> bool:
    return re.fullmatch(r"~?[\w@%+=:,./-]*", text) is not None


def _places(target: Target, begun: str) -> list[tuple[str, str]]:
    """Drivers, those below others by their whole path if that has been begun, and verbs."""
    place, above = target, ""
    if "." in begun:
        above = begun.rpartition(".")[0]
        try:
            place, rest = verbs.locate(target, [above])
        except JmpError:
            return []
        if rest:
            return []
        return [(f"{above}.{name}", child.client._node.description) for name, child in place.children.items()]
    children = [(name, child.client._node.description) for name, child in target.children.items()]
    return [*children, *((name, verb.summary) for name, verb in target.verbs().items())]


def _helped(device: Target, words: list[str], begun: str) -> list[tuple[str, str]]:
    try:
        place, rest = verbs.locate(device, words)
    except JmpError:
        return []
    return [] if rest else _places(place, begun)


def _for_device(
    device: Target, words: list[str], begun: str, files: Callable[[], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    try:
        place, rest = verbs.locate(device, words)
    except JmpError:
        return []
    known = place.verbs()
    name = rest[0] if rest and not rest[0].startswith("-") else None
    if name is None and not begun.startswith("-") and not rest:
        return _places(place, begun)
    verb = known.get(name if name is not None else place.client.default_verb or "")
    if verb is None:
        return [("--help", "what there is here")] if begun.startswith("-") and not rest else []
    return _arguments(verb, rest[1:] if name is not None else rest, begun, files)


def _arguments(
    verb: Verb, given: list[str], begun: str, files: Callable[[], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    options = {parameter.name.replace("_", "-"): parameter for parameter in verb.parameters if _is_option(parameter)}
    waiting = None  # the option whose value comes next
    positional = 0
    for word in given:
        if waiting is not None:
            waiting = None
        elif word in ("-o", "--output"):
            waiting = word
        elif word.startswith("--") and "=" not in word:
            parameter = options.get(word[2:])
            waiting = word if parameter is not None and not verbs.is_flag(parameter) else None
        elif not word.startswith("-"):
            positional += 1
    if waiting in ("-o", "--output"):
        return [("json", "as JSON"), ("yaml", "as YAML")]
    if waiting is not None:
        return _values(options[waiting[2:]], files)
    if begun.startswith("--") and "=" in begun:
        name, _, _ = begun[2:].partition("=")
        return (
            [(f"--{name}={value}", about) for value, about in _values(options[name], list)] if name in options else []
        )
    if begun.startswith("-"):
        used = {word[2:].partition("=")[0].removeprefix("no-") for word in given if word.startswith("--")}
        rows = []
        for name, parameter in options.items():
            if name not in used:
                shown = f"--{verbs.option_of(parameter)}"
                rows.append((shown, parameter.doc or describe(parameter.schema)))
        return [*rows, ("--output", "json or yaml"), ("--help", "how to use it")]
    places = [parameter for parameter in verb.parameters if parameter.kind not in ("keyword-only", "var-keyword")]
    if positional < len(places):
        return _values(places[positional], files)
    return _values(places[-1], files) if places and places[-1].kind == "var-positional" else []


def _is_option(parameter: Parameter) -> bool:
    return parameter.kind in ("keyword-only", "positional-or-keyword")


def _values(parameter: Parameter, files: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    about = parameter.doc or ""
    schemas = parameter.schema.get("anyOf", [parameter.schema])
    values = []
    for schema in schemas:
        if "enum" in schema:
            values += [str(item).lower() if isinstance(item, bool | None) else str(item) for item in schema["enum"]]
        elif schema.get("type") == "boolean":
            values += ["true", "false"]
    if values:
        return [(value, about) for value in values]
    # A text may well be a file's name; of a number nothing is known.
    return files() if any(schema.get("type") == "string" for schema in schemas) else []


# ---- what a shell would complete from


def programs(path: str) -> list[str]:
    """The names of the programs on a PATH, sorted."""
    found: set[str] = set()
    for folder in path.split(os.pathsep):
        try:
            with os.scandir(folder or ".") as entries:
                found.update(entry.name for entry in entries if os.access(entry.path, os.X_OK) and not entry.is_dir())
        except OSError:
            continue
    return sorted(found)


def files(begun: str) -> list[str]:
    """Files and folders that begin with ``begun``, sorted; hidden ones only if asked for."""
    folder, _, name = begun.rpartition("/")
    above = f"{folder}/" if "/" in begun else ""
    try:
        with os.scandir(os.path.expanduser(above) or ".") as entries:
            return sorted(
                f"{above}{entry.name}{'/' if entry.is_dir() else ''}"
                for entry in entries
                if entry.name.startswith(name) and (name or not entry.name.startswith("."))
            )
    except OSError:
        return []
