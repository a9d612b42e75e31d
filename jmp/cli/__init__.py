"""Arguments → one role's function → output.

A command is a module that is imported only when it is called, so that ``jmp --help`` loads none of the rest. Each has an ``app``
(typer). This module holds the table of them and the one place where an error becomes a line and an exit code.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NamedTuple

import jmp
from jmp.errors import JmpError


class Command(NamedTuple):
    module: str
    help: str
    app: str = "app"


COMMANDS: Final[dict[str, Command]] = {
    "shell": Command("jmp.cli.shell", "Use a device: a prompt with its verbs, or one command."),
    "forward": Command("jmp.cli.forward", "Ports of a device as ports of this machine."),
    "lease": Command("jmp.cli.lease", "A time with devices of a lab: acquire, release, list, extend, why."),
    "get": Command("jmp.cli.resources", "List leases, exporters, clients, policies, tokens.", "get_app"),
    "create": Command("jmp.cli.resources", "Get a lease; add a client, an exporter, a policy.", "create_app"),
    "update": Command("jmp.cli.resources", "Change a lease, a client, an exporter, a policy.", "update_app"),
    "delete": Command("jmp.cli.resources", "Release a lease; remove a client, an exporter, a policy.", "delete_app"),
    "config": Command("jmp.cli.config", "Labs that you use: client create, use, list; exporter create, list."),
    "login": Command("jmp.cli.config", "Become somebody in a lab, or give a new token.", "login_app"),
    "logout": Command("jmp.cli.config", "Forget a lab and who you are there.", "logout_app"),
    "whoami": Command("jmp.cli.config", "Who you are in the lab.", "whoami_app"),
    "exporter": Command("jmp.cli.exporter", "Offer a device: serve, check, list, example."),
    "run": Command(
        "jmp.cli.exporter", "Offer a device: jmp exporter serve, with --exporter or --exporter-config.", "run_app"
    ),
    "controller": Command("jmp.cli.controller", "Serve a lab: serve, backup."),
    "admin": Command("jmp.cli.admin", "Administer a lab: create, get, update, delete, disable, rotate."),
    "router": Command("jmp.cli.router", "Join clients and exporters that cannot reach each other."),
    "scan": Command("jmp.cli.scan", "What is plugged in, as an exporter's configuration."),
    "driver": Command("jmp.cli.driver", "What drivers there are, how they are configured; a new one."),
    "demo": Command("jmp.cli.demo", "Boot the virtual board, log in, run a command, power off."),
    "completion": Command("jmp.cli.completion", "What makes Tab complete all this, for bash, zsh or fish."),
    "version": Command("jmp.cli.version", "Print the version."),
}

USAGE: Final = """\
Usage: jmp COMMAND [OPTIONS] [ARGUMENTS]

  Hardware-in-the-loop testing for people and CI jobs.

Commands:
{commands}

Inside a session: j DRIVER VERB; j --help lists them. Elsewhere: jmp j.
jmp COMMAND --help says more.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit code. Called as ``j``, it is the in-session client."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.path.basename(sys.argv[0]) == "j":
        from jmp.cli.j import main as j

        return j(arguments)
    return guarded(lambda: _run(arguments, own=argv is None))


def _run(arguments: list[str], *, own: bool) -> int:
    """``own``: the process is there for this command line."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
        sys.stdout.write(USAGE.format(commands="\n".join(lines)))
        return 0
    name, *rest = arguments
    if name in ("--version", "-V"):
        name = "version"
    if name == "j":
        from jmp.cli.j import main as j

        return j(rest)
    if name not in COMMANDS:
        from jmp.driver.schema import did_you_mean
        from jmp.errors import UsageError

        raise UsageError(f"there is no command {name!r}{did_you_mean(name, COMMANDS)}; see jmp --help")
    if name == "version":
        return _version(rest)
    if own:
        gc.disable()
    from jmp.cli.typed import run_app

    app = getattr(import_module(COMMANDS[name].module), COMMANDS[name].app)
    if own:
        keep_imported()
    return run_app(app, f"jmp {name}", rest)


def _version(arguments: list[str]) -> int:
    if not arguments:
        sys.stdout.write(f"jmp {jmp.__version__}\n")
    elif arguments[0] in ("--help", "-h"):
        sys.stdout.write(f"Usage: jmp version\n\n  {COMMANDS['version'].help}\n")
    else:
        from jmp.errors import UsageError

        raise UsageError(f"jmp version takes no argument {arguments[0]!r}; see jmp version --help")
    return 0


def keep_imported() -> None:
    """Have the garbage collector leave alone what has been imported: to look through it takes a fifth of a start."""
    gc.freeze()
    gc.enable()


def guarded(run: Callable[[], int]) -> int:
    """Run it; turn what it raises into one line on stderr and an exit code."""
    if sys.stdout is None or sys.stderr is None or sys.stdin is None:
        _open_closed()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001  # the program's root
        return _end(_foremost(error))


def _end(error: BaseException) -> int:
    """The exit code of a program that ends with this error, which is told."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has left: so do we, silently, as other programs do.
        _drop_output()
        return 141
    if isinstance(error, OSError):
        return _report(_output_failure(error) or error)
    return _report(error)


def _open_closed() -> None:
    """Put /dev/null in place of standard streams that are closed: the next file opened would be taken for one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115  # it stays open
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _output_failure(error: OSError) -> JmpError | None:
    """What to say if it is standard output that did not take what was written: all other writers say which file it was."""
    import errno

    from jmp.errors import UsageError

    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or error.filename is not None:
        return None
    _drop_output()
    return UsageError(f"standard output cannot be written: {error.strerror}")


def _drop_output() -> None:
    """Let what is left for standard output go, so that nothing fails because of it at the end of the program."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(error: BaseException) -> int:
    if os.environ.get("JMP_DEBUG"):
        import traceback

        remote = getattr(error, "remote_traceback", None)
        sys.stderr.write(
            "".join(traceback.format_exception(error)) + (f"\nOn the exporter:\n{remote}" if remote else "")
        )
    if isinstance(error, JmpError):
        sys.stderr.write(f"jmp: {' '.join(error.message.split())}\n")
        return error.exit_code
    text = " ".join(str(error).split())
    sys.stderr.write(
        f"jmp: internal error: {type(error).__name__}: {text} (JMP_DEBUG=1 shows where; please report it)\n"
    )
    return JmpError.exit_code


def _foremost(error: BaseException) -> BaseException:
    """Of several errors the one to tell: that somebody interrupted it, then what jmp can explain."""
    leaves = _leaves(error)
    for kind in (KeyboardInterrupt, JmpError, BaseException):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return error


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]
