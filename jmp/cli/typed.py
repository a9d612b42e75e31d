"""Typer, as jmp uses it: plain help, and errors that go the way of all others."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from jmp.cli.output import Format, Wide
from jmp.errors import UsageError

Output = Annotated[Format, typer.Option("-o", "--output", metavar="FORMAT", help="table, json, yaml or name.")]
"""How a listing is printed: the option of all that print one."""
WideOutput = Annotated[Wide, typer.Option("-o", "--output", metavar="FORMAT", help="table, wide, json, yaml or name.")]
"""The same for listings that have more columns than fit."""


_HELP_OPTIONS: Final = {"help_option_names": ["-h", "--help"]}


class _Helpful:
    """Help whose lists of commands are wrapped instead of cut, and whose usage has no braces around what is required."""

    def get_short_help_str(self, limit: int = 45) -> str:
        text: str = super().get_short_help_str(1000)  # type: ignore[misc]  # click has it
        return text

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]  # type: ignore[misc]


class _Command(_Helpful, TyperCommand):
    pass


class _Group(_Helpful, TyperGroup):
    pass


class _App(typer.Typer):
    def command(self, *names: Any, context_settings: dict[str, Any] | None = None, **options: Any) -> Any:
        settings = {**_HELP_OPTIONS, **(context_settings or {})}
        return super().command(*names, cls=_Command, context_settings=settings, **options)


def new_app(help: str, **options: Any) -> typer.Typer:
    """A group of commands, or one command if it gets just one callback."""
    return _App(
        help=help,
        cls=_Group,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=_HELP_OPTIONS,
        **options,
    )


def run_app(app: typer.Typer, name: str, arguments: list[str]) -> int:
    """Run a command line; returns its exit code, raises ``UsageError`` where typer would print an error."""
    command = get_command(app)
    try:
        result = command.main(arguments, prog_name=name, standalone_mode=False)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # which typer would have be exit code 1
            raise end.__context__ from None
        raise
    except Exception as error:
        # Typer's errors about the command line are its own vendored classes, which have no public name.
        describe = getattr(error, "format_message", None)
        if describe is not None:
            if type(error).__name__ == "NoArgsIsHelpError":
                typer.echo(describe())
                return 0
            where = getattr(getattr(error, "ctx", None), "command_path", name)
            raise UsageError(f"{describe().rstrip('.')}; see {where} --help") from None
        if type(error).__name__ == "Abort":
            return 130
        raise
    return result if isinstance(result, int) else 0
