"""``jmp completion``: what Tab offers in bash, zsh and fish, after ``jmp`` and, in a session, after ``j``.

The scripts are as thin as they can be: they hand over the line up to the cursor, and show what comes back. Whatever cannot be
told (no lab, no session, a line that is none) offers nothing, as a message would be in the way of what is being typed.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.main import get_command

from jmp.cli import COMMANDS, line
from jmp.cli.typed import new_app
from jmp.errors import JmpError

app = new_app("Completion for your shell.")

LAB_SECONDS: Final = 2.0
"""How long a lab may take to tell what there is; who has pressed Tab waits for it."""

Offers = Iterable[tuple[str, str]]
"""Words, and what help says about them."""


class Shell(StrEnum):
    """Shells that one can have it in."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


SCRIPTS: Final = {
    Shell.bash: """\
_jmp() {{
    local IFS=$'\\n'
    COMPREPLY=($({jmp} completion bash --line "${{COMP_LINE:0:COMP_POINT}}" 2>/dev/null))
}}
complete -o nospace -F _jmp jmp j
""",
    Shell.zsh: """\
#compdef jmp j
_jmp() {{
    local -a on over
    local each
    for each in "${{(@f)$({jmp} completion zsh --line "$LBUFFER" 2>/dev/null)}}"; do
        case $each in
            +*) on+=("${{each#+}}") ;;
            ?*) over+=("$each") ;;
        esac
    done
    ((${{#over}})) && _describe -V jmp over
    ((${{#on}})) && _describe -V jmp on -S ''
}}
if [[ $funcstack[1] == _jmp ]]; then _jmp "$@"; else compdef _jmp jmp j; fi
""",
    Shell.fish: """\
complete -c jmp -f -a "({jmp} completion fish --line (commandline -cp) 2>/dev/null)"
complete -c j -f -a "({jmp} completion fish --line (commandline -cp) 2>/dev/null)"
""",
}


@app.command()
def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="Your shell.")],
    typed: Annotated[str | None, typer.Option("--line", metavar="TEXT", hidden=True)] = None,
) -> None:
    """Print what makes Tab complete commands, options, names and, in a session, drivers and verbs.

    bash: eval "$(jmp completion bash)" in ~/.bashrc; zsh: the same with zsh, in ~/.zshrc after compinit; fish: jmp
    completion fish > ~/.config/fish/completions/jmp.fish.
    """
    if typed is None:
        sys.stdout.write(SCRIPTS[shell].format(jmp=shlex.quote(_program())))
        return
    with suppress(JmpError, OSError):
        sys.stdout.writelines(f"{text}\n" for text in _written(shell, typed, offers(typed)))


def _program() -> str:
    """How this program is called from any folder."""
    path = os.path.abspath(sys.argv[0])
    return path if os.path.basename(path) == "jmp" and os.access(path, os.X_OK) else "jmp"


def _written(shell: Shell, typed: str, found: Sequence[tuple[str, str]]) -> Iterator[str]:
    """The offers as the shell's script reads them."""
    current = line.scan(typed).current
    begun = current.text if current is not None else ""
    for text, about in found:
        goes_on = text.endswith(("/", "="))
        if shell is Shell.fish:
            yield f"{text}\t{about}"
        elif shell is Shell.zsh:
            yield ("+" if goes_on else "") + text.replace(":", "\\:") + f":{about}"
        else:  # readline replaces what stands behind the last of these only
            rest = text[max(begun.rfind(mark) for mark in "=:") + 1 :]
            yield (shlex.quote(rest) if _is_odd(rest) else rest) + ("" if goes_on else " ")


def _is_odd(text: str) -> bool:
    return re.fullmatch(r"~?[\w@%+=:,./!-]*", text) is None


def offers(typed: str) -> list[tuple[str, str]]:
    """What can stand in place of the word that ``typed``, the line up to the cursor, ends in."""
    found = line.scan(typed)
    begun = found.current.text if found.current is not None else ""
    words = [word.text for word in found.commands[-1]]
    if found.current is not None and words:
        words.pop()
    if not words:
        return []
    at = 1 if words[1:2] == ["j"] else 0  # jmp j is j
    if os.path.basename(words[at]) == "j":
        return _of_device(typed[found.commands[-1][at].start :])
    return [(text, about) for text, about in _of_jmp(words[1:], begun) if text.startswith(begun)]


def _of_device(typed: str) -> list[tuple[str, str]]:
    """Drivers and verbs of the session that this is."""
    from jmp.cli.verbs import Target
    from jmp.client.connect import Dial, open_blocking
    from jmp.environment import session_url

    url = session_url()
    if url is None:
        return []
    machine = line.Machine(list, line.files)
    with open_blocking(Dial(url)) as device:
        return [(each.shown, each.about) for each in line.complete(typed, Target("", device._wrapped), machine)]


# ---- jmp's own commands


def _of_jmp(words: Sequence[str], begun: str) -> Offers:
    if not words:
        return [(name, command.help) for name, command in COMMANDS.items()]
    if words[0] not in COMMANDS:
        return []
    if words[0] == "version":
        return []
    command: Any = get_command(getattr(import_module(COMMANDS[words[0]].module), COMMANDS[words[0]].app))
    path, rest = [words[0]], list(words[1:])
    while hasattr(command, "commands"):
        if not rest:
            return [(name, each.get_short_help_str()) for name, each in command.commands.items() if not each.hidden]
        path.append(rest.pop(0))
        if path[-1] not in command.commands:
            return []
        command = command.commands[path[-1]]
    return _of_command(command, path, rest, begun)


def _of_command(command: Any, path: Sequence[str], given: Sequence[str], begun: str) -> Offers:
    options = {name: each for each in command.params for name in _names(each)}
    places = [each for each in command.params if each.param_type_name == "argument"]
    free: list[str] = []
    waiting, only_words = None, False
    for word in given:
        if waiting is not None:
            waiting = None
        elif word == "--":
            only_words = True
        elif not only_words and word.startswith("-"):
            option = options.get(word)
            waiting = option if option is not None and not option.is_flag else None
        else:
            free.append(word)
    if waiting is not None:
        return _values(waiting, path, free, begun)
    name, equals, value = begun.partition("=")
    if equals and name in options and not options[name].is_flag:
        return [(f"{name}={each}", about) for each, about in _values(options[name], path, free, value)]
    if begun.startswith("-") and not only_words:
        used = {options[word] for word in given if word in options}
        shown = {name: each for name, each in options.items() if name.startswith("--") and not each.hidden}
        return [
            *((name, each.help or "") for name, each in shown.items() if each.multiple or each not in used),
            ("--help", "how to use it"),
        ]
    if len(free) < len(places):
        return _values(places[len(free)], path, free, begun)
    return _values(places[-1], path, free, begun) if places and places[-1].nargs == -1 else []


def _names(parameter: Any) -> Sequence[str]:
    return [] if parameter.param_type_name == "argument" else [*parameter.opts, *parameter.secondary_opts]


def _values(parameter: Any, path: Sequence[str], free: Sequence[str], begun: str) -> Offers:
    """What an option or an argument can be."""
    if choices := getattr(parameter.type, "choices", None):
        return [(str(choice), "") for choice in choices]
    metavar = (parameter.metavar or "").strip("[].")
    if metavar == "-- COMMAND" and free:
        metavar = "FILE"
    if metavar == "NAME":
        metavar = _whose_name(parameter, path, free)
    source = _SOURCES.get(metavar.split("]")[0])
    return source(begun) if source is not None else []


def _whose_name(parameter: Any, path: Sequence[str], free: Sequence[str]) -> str:
    names = _names(parameter)
    if "--client" in names:
        return "client configuration"
    if "--exporter" in names:
        return "NAME|FILE"
    if names:
        return ""
    if path[0] == "config":
        return f"{path[1]} configuration" if path[-1] != "create" else ""
    if path == ["exporter", "example"]:
        return "example"
    if path[-1] == "get":
        return free[0].rstrip("s") if free else ""
    return path[-1] if path[-2] in ("update", "delete", "disable", "enable") else ""


def _of_lab(method: str, *arguments: Any) -> list[Mapping[str, Any]]:
    from jmp.cli.labs import as_client
    from jmp.rpc.blocking import fail_after

    with fail_after(LAB_SECONDS), as_client(None) as lab:
        records: list[Mapping[str, Any]] = lab.call(method, *arguments)
        return records


def _records(kind: str) -> Callable[[str], Offers]:
    def source(begun: str) -> Offers:
        found = _of_lab("exporters") if kind == "exporter" else _of_lab("list", kind)
        return [(each["name"], each.get("description", "")) for each in found]

    return source


def _leases(begun: str) -> Offers:
    return [(each["id"], ", ".join(device["exporter"] for device in each["devices"])) for each in _of_lab("leases")]


def _labels(begun: str) -> Offers:
    before = begun[: begun.rfind(",") + 1]
    labels = {f"{name}={value}" for each in _of_lab("exporters") for name, value in each["labels"].items()}
    return [(before + label, "") for label in sorted(labels)]


def _local_exporters(begun: str) -> Offers:
    from jmp.exporter.config import list_configs

    return [*((name, str(path)) for name, path in list_configs().items()), *_files(begun)]


def _files(begun: str) -> Offers:
    return [(path, "") for path in line.files(begun)]


def _commands(begun: str) -> Offers:
    return _files(begun) if "/" in begun else [(name, "") for name in line.programs(os.environ.get("PATH", ""))]


def _client_configurations(begun: str) -> Offers:
    from jmp.client.config import clients

    return [(name, "") for name in clients().names()]


def _exporter_configurations(begun: str) -> Offers:
    from jmp.client.config import credentials

    return [(name, "") for name in credentials().names()]


def _examples(begun: str) -> Offers:
    from jmp.exporter import examples

    return [(name, examples.summary(name)) for name in examples.names()]


def _types(begun: str) -> Offers:
    from jmp.driver.plugins import driver_names

    return [(name, "") for name in driver_names()]


def _kinds(begun: str) -> Offers:
    from jmp.cli.labs import KINDS

    return [(kind.plural, "") for kind in KINDS.values()]


_SOURCES: Final[Mapping[str, Callable[[str], Offers]]] = {
    "SELECTOR": _labels,
    "EXPORTER": _records("exporter"),
    "exporter": _records("exporter"),
    "client": _records("client"),
    "CLIENT": _records("client"),
    "policy": _records("policy"),
    "lease": _leases,
    "ID": _leases,
    "NAME|FILE": _local_exporters,
    "client configuration": _client_configurations,
    "exporter configuration": _exporter_configurations,
    "example": _examples,
    "TYPE": _types,
    "KIND": _kinds,
    "FILE": _files,
    "DIR": _files,
    "-- COMMAND": _commands,
}
"""By metavar, or by whose name is meant: what there is."""
