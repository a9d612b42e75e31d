"""``DRIVER VERB ARGUMENTS`` → a call → its output: what ``j`` and the prompt of ``jmp shell`` have in common.

Verbs are the methods in the exporter's report and those that the client class of a driver marks with ``@verb``.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import re
import select
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from jmp.cli import output
from jmp.driver.proxy import Blocking, DriverClient, ExitStatus, RemoteMethod, takes_words, verbs_of
from jmp.driver.schema import Parameter, Schema, describe, did_you_mean, parameters_of, parse
from jmp.errors import BadValue, JmpError, NotFound, UsageError
from jmp.rpc.messages import Kind

HELP: Final = ("-h", "--help")


@dataclass(frozen=True)
class Verb:
    """One thing that can be done with a driver."""

    name: str
    doc: str
    parameters: Sequence[Parameter]
    function: Callable[..., Any]
    """Takes the parsed arguments; blocking."""
    kind: Kind = Kind.CALL
    words: bool = False
    """From the first word that is no option on, all are taken as they are."""

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]

    def usage(self) -> str:
        """As help shows it: ``cycle [--wait SECONDS]``."""
        words = [self.name]
        for parameter in self.parameters:
            name = parameter.name.replace("_", "-")
            if parameter.kind == "var-positional":
                words.append(f"[{name.upper()}...]")
            elif parameter.kind == "var-keyword":
                words.append("[--KEY VALUE...]")
            elif parameter.required and parameter.kind != "keyword-only":
                words.append(name.upper())
            elif parameter.required:
                words.append(f"--{name} {_placeholder(parameter.schema)}")
            else:
                value = "" if is_flag(parameter) else f" {_placeholder(parameter.schema)}"
                words.append(f"[--{option_of(parameter)}{value}]")
        return " ".join(words)


@dataclass(frozen=True)
class Target:
    """A place in the tree, as the command line sees it."""

    path: str
    client: DriverClient

    @property
    def children(self) -> dict[str, Target]:
        return {
            name: Target(f"{self.path}.{name}" if self.path else name, child)
            for name, child in self.client._children.items()
        }

    def verbs(self) -> dict[str, Verb]:
        """What can be done here, by name with hyphens."""
        found = {
            name.replace("_", "-"): _remote(self.client, method) for name, method in self.client._node.methods.items()
        }
        for name, function in verbs_of(self.client).items():
            shown = name.replace("_", "-")
            parameters = tuple(item for item in parameters_of(function) if item.name != "progress")
            about = inspect.getdoc(function) or ""
            found[shown] = Verb(shown, about, parameters, _local(function, shown), words=takes_words(function))
        return dict(sorted(found.items()))


@dataclass
class Request:
    """A parsed line."""

    verb: Verb
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    form: output.Format | None = None


def execute(device: DriverClient, words: Sequence[str]) -> int:
    """Carry out a line; returns the exit code. Raises :class:`~jmp.errors.JmpError`."""
    target, rest = locate(Target("", device), words)
    verbs = target.verbs()
    default = target.client.default_verb
    if (rest and rest[0] in HELP) or (not rest and default is None):
        _show(help_of(target))
        return 0
    if rest and not rest[0].startswith("-") and rest[0] not in verbs:
        known = [*verbs, *target.children]
        place = repr(target.path) if target.path else "the device"
        raise NotFound(f"{place} has no driver or verb {rest[0]!r}{did_you_mean(rest[0], known)}")
    if rest and not rest[0].startswith("-"):
        verb, rest = verbs[rest[0]], rest[1:]
    elif default is not None:
        verb = verbs[default]
    else:
        raise UsageError(f"{rest[0]} comes after a verb{did_you_mean('', verbs)}")
    if rest and (rest[0] in HELP if verb.words else any(word in HELP for word in rest)):
        _show(help_of_verb(target, verb))
        return 0
    return perform(read(target, verb, rest))


def locate(target: Target, words: Sequence[str]) -> tuple[Target, list[str]]:
    """Follow words (``board power`` or ``board.power``) down the tree; the place and the words left."""
    rest = list(words)
    while rest and not rest[0].startswith("-"):
        steps = rest[0].split(".")
        deeper = target
        for step in steps:
            child = deeper.children.get(step)
            if child is None:
                if len(steps) > 1 and step is steps[-1] and step in deeper.verbs():
                    raise NotFound(f"{step} is a verb, a word of its own: {deeper.path.replace('.', ' ')} {step}")
                if len(steps) > 1:
                    raise NotFound(f"there is no driver {rest[0]!r}{did_you_mean(step, deeper.children)}")
                return target, rest
            deeper = child
        target, rest = deeper, rest[1:]
    return target, rest


def read(target: Target, verb: Verb, words: Sequence[str]) -> Request:
    """Parse a verb's arguments: positional ones, ``--name value``, ``--name=value``, ``--flag``, ``--no-flag``, ``-o FORMAT``."""
    request = Request(verb)
    where = f"{target.path} {verb.name}".strip()
    texts: dict[str, list[str]] = {}
    free: list[str] = []
    by_name = {parameter.name.replace("_", "-"): parameter for parameter in verb.parameters}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            free += rest
            break
        if word in ("-o", "--output"):
            request.form = _form(rest.pop(0) if rest else "")
            continue
        if not word.startswith("--") or word == "--":
            free.append(word)
            if verb.words:
                free += rest
                break
            continue
        name, equals, value = word[2:].partition("=")
        parameter, value_given = by_name.get(name), bool(equals)
        if parameter is None and name.removeprefix("no-") in by_name and is_flag(by_name[name.removeprefix("no-")]):
            name = name.removeprefix("no-")
            value, value_given = "false", True
        elif parameter is not None and is_flag(parameter) and not value_given:
            value, value_given = "true", True
        elif parameter is None and not any(item.kind == "var-keyword" for item in verb.parameters):
            raise UsageError(f"{where} has no option --{name}{did_you_mean(name, map(option_of, verb.parameters))}")
        if not value_given:
            if not rest:
                raise UsageError(f"{where}: --{name} needs a value")
            value = rest.pop(0)
        texts.setdefault(name, []).append(value)
    _assign(verb, where, request, texts, free)
    return request


def _assign(verb: Verb, where: str, request: Request, texts: dict[str, list[str]], free: list[str]) -> None:
    gap = False
    for parameter in verb.parameters:
        name = parameter.name.replace("_", "-")
        if parameter.kind == "var-positional":
            request.args += [_parse(parameter, where, text) for text in free]
            free.clear()
        elif parameter.kind == "var-keyword":
            for key in list(texts):
                request.kwargs[key.replace("-", "_")] = _parse(parameter, where, texts.pop(key))
        elif name in texts:
            request.kwargs[parameter.name] = _parse(parameter, where, texts.pop(name))
            gap = True
        elif free and parameter.kind != "keyword-only":
            value = _parse(parameter, where, free.pop(0))
            if gap:
                request.kwargs[parameter.name] = value
            else:
                request.args.append(value)
        elif parameter.required:
            raise UsageError(f"{where} needs {name.upper()}: {verb.usage()}")
        else:
            gap = True
    if free:
        raise UsageError(f"{where} takes no further argument {free[0]!r}: {verb.usage()}")


def _parse(parameter: Parameter, where: str, text: str | list[str]) -> Any:
    try:
        return parse(parameter.schema, text)
    except BadValue as error:
        raise BadValue(f"{where}: {parameter.name.replace('_', '-')}: {error.message}") from None


def _form(text: str) -> output.Format:
    for form in get_args(output.Format):
        if form == text:
            chosen: output.Format = form
            return chosen
    raise UsageError(f"-o takes one of {', '.join(get_args(output.Format))}, not {text!r}")


def perform(request: Request) -> int:
    """Make the call and print what comes of it; returns the exit code."""
    result = request.verb.function(*request.args, **request.kwargs)
    if hasattr(type(result), "__enter__") and not isinstance(result, Blocking):
        hold(result)
        return 0
    if isinstance(result, ExitStatus):
        return int(result)
    if request.verb.kind is Kind.CALL:
        output.print_value(result, request.form)
        return 0
    if request.verb.kind is Kind.ITEMS:
        return _print_items(result, request.form)
    with result as stream:
        _join(stream)
    return 0


def hold(held: Any) -> None:
    """What Python holds for a ``with`` block (a forwarded port, a pty) is held here until it ends or is interrupted."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    previous = None
    if threading.current_thread() is threading.main_thread():  # only there can signals be handled
        previous = signal.signal(signal.SIGTERM, leave)
    try:
        with held as what:
            output.print_value(held.describe(what) if output.is_terminal() else str(what))
            held.wait()
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _print_items(items: Any, form: output.Format | None) -> int:
    """Print items as they come. Those of a command (``jmp.shell/v1``) go where the command meant them to."""
    code = 0
    for item in items:
        if form is None and isinstance(item, dict) and len(item) == 1 and (name := next(iter(item))) in _COMMAND_ITEMS:
            if name == "exit_code":
                code = int(item[name])
            else:
                to = sys.stdout if name == "stdout" else sys.stderr
                to.flush()
                to.buffer.write(item[name])
                to.buffer.flush()
        else:
            output.print_value(item, form)
    return code


_COMMAND_ITEMS: Final = frozenset({"stdout", "stderr", "exit_code"})


def _join(stream: Any) -> None:
    """Standard input to the stream, the stream to standard output, until the stream ends."""
    woken, wake = os.pipe()

    def send() -> None:
        # Not one byte is taken that comes after the stream's end: it is for whoever reads this input next.
        source = sys.stdin.fileno()
        with contextlib.suppress(JmpError):  # the stream has ended; how, the other direction tells
            while woken not in select.select([source, woken], [], [])[0]:
                chunk = os.read(source, 65536)
                if not chunk:
                    stream.send_eof()
                    return
                stream.send_all(chunk)

    sender = threading.Thread(target=send, name="jmp-stdin", daemon=True)
    sender.start()
    try:
        while received := stream.receive_some():
            sys.stdout.buffer.write(received)
            sys.stdout.buffer.flush()
    finally:
        os.close(wake)
        stream.aclose()
        sender.join()
        os.close(woken)


# ---- help


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()  # here, where it is noticed if nobody reads it


def help_of(target: Target, *, at_prompt: bool = False) -> str:
    """What there is at a place in the tree; ``at_prompt`` as it is asked for there."""
    node = target.client._node
    lines = [prose(node.description)] if node.description else []
    if node.state == "degraded":
        lines.append(f"degraded: {node.reason}")
    children, verbs = target.children, target.verbs()
    if children:
        rows = [
            (name, child.client._node.description + (" (degraded)" if child.client._node.state == "degraded" else ""))
            for name, child in children.items()
        ]
        lines += ["", "Drivers:", *aligned(rows)]
    if verbs:
        lines += ["", "Verbs:", *aligned([(verb.usage(), verb.summary) for verb in verbs.values()])]
    words = f"{target.path.replace('.', ' ')} " if target.path else ""
    words += "VERB" if verbs else "DRIVER"
    lines += ["", f"help {words} says more." if at_prompt else f"j {words} --help says more."]
    return "\n".join(lines).lstrip("\n") + "\n"


def help_of_verb(target: Target, verb: Verb, *, at_prompt: bool = False) -> str:
    """How to use a verb."""
    words = ["Usage:", *([] if at_prompt else ["j"]), *target.path.split("."), verb.usage()]
    lines = [filled(" ".join(filter(None, words)), after=" " * 6), "", prose(verb.doc)]
    rows = []
    for parameter in verb.parameters:
        name = parameter.name.replace("_", "-")
        shown = name.upper() if parameter.required else f"--{option_of(parameter)}"
        about = [parameter.doc] if parameter.doc else []
        if is_flag(parameter):
            if parameter.default is True:
                about.append(f"{name} is on without this")
            rows.append((shown, "; ".join(about)))
            continue
        if kind := _kind(parameter):
            about.append(kind)
        if not parameter.required and parameter.default not in (None, "", [], {}):
            about.append(f"default: {output.plain(parameter.default)}")
        rows.append((shown, "; ".join(about)))
    if rows:
        lines += ["", "Arguments:", *aligned(rows)]
    return "\n".join(lines).rstrip() + "\n"


def aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns. On a terminal, what is too long for the first has lines of its own."""
    columns = output.columns()
    width = min(max(len(left) for left, _ in rows), columns // 3 if columns else 32)
    margin = " " * (width + 4)
    lines = []
    for left, right in rows:
        first = f"  {left:{width}}  "
        if columns and len(left) > width:
            lines.append(filled(left, before="  ", after=" " * 6))
            first = margin
        lines.append(filled(right, before=first, after=margin).rstrip())
    return lines


def prose(text: str) -> str:
    """Paragraphs, filled on a terminal; lists and what is indented stay as they are."""
    return "\n\n".join(
        part if re.search(r"^(\s|[-*] )", part, re.MULTILINE) else filled(part) for part in text.split("\n\n")
    )


def filled(text: str, before: str = "", after: str = "") -> str:
    """The text behind ``before``: for a terminal in lines as long as that is wide, those after the first behind ``after``."""
    columns = output.columns()
    if columns is None:
        return before + text
    whole = re.sub(r"\[[^]]*\]", lambda option: option[0].replace(" ", "\0"), text)  # [--wait SECONDS] stays together
    return (
        textwrap.fill(
            whole,
            max(columns - 1, 20),
            initial_indent=before,
            subsequent_indent=after,
            break_on_hyphens=False,
            break_long_words=False,
        ).replace("\0", " ")
        if text
        else before
    )


def _placeholder(schema: Schema) -> str:
    """What usage shows in place of a value: as it is typed, a word in capitals where that is one's own."""
    if "anyOf" in schema:
        shown = dict.fromkeys(_placeholder(option) for option in schema["anyOf"] if option.get("type") != "null")
        return "PATH" if "PATH" in shown else "|".join(shown)
    if "enum" in schema:
        return describe(schema)
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return ",".join(map(_placeholder, schema["prefixItems"]))
        case "array":
            return f"{_placeholder(schema.get('items', {}))},..."
        case "object":
            return "NAME=VALUE"
        case "string":
            return _FORMATS.get(schema.get("format", ""), "TEXT")
        case kind:
            return _PLACEHOLDERS.get(str(kind), "VALUE")


_FORMATS: Final = {"path": "PATH", "duration": "DURATION", "date-time": "TIME"}
_PLACEHOLDERS: Final = {"integer": "INT", "number": "NUMBER", "boolean": "on|off"}


def _kind(parameter: Parameter) -> str:
    """What a value is, as one types it: a path is a text anyhow, and to give none one leaves it out."""
    kind = describe(parameter.schema).removesuffix(" or None").replace("path or str", "path")
    if kind.startswith("list of "):
        return f"{kind.removeprefix('list of ')}; several: again, or with commas"
    return "NAME=VALUE; several: again" if kind.startswith("dict") else kind


def option_of(parameter: Parameter) -> str:
    """The option that changes something: ``verify`` is on, so ``no-verify`` is what one gives."""
    name = parameter.name.replace("_", "-")
    return f"no-{name}" if is_flag(parameter) and parameter.default is True else name


def is_flag(parameter: Parameter) -> bool:
    """Whether it is given as ``--name`` or ``--no-name``, without a value."""
    return parameter.schema.get("type") == "boolean" and not parameter.required


# ---- where verbs come from


def _remote(client: DriverClient, method: RemoteMethod) -> Verb:
    function = Blocking(getattr(client, method.name))
    return Verb(method.name.replace("_", "-"), method.doc, tuple(method.parameters), function, method.kind)


def _local(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A client class's own method, made blocking and shown its progress."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if "progress" not in inspect.signature(function).parameters:
            return Blocking(function)(*args, **kwargs)
        with output.progress(name) as progress:
            return Blocking(function)(*args, progress=progress, **kwargs)

    return call
