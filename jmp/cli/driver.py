"""``jmp driver``: what drivers there are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from jmp.cli import output
from jmp.cli.typed import Output, new_app
from jmp.client.connect import RESERVED
from jmp.driver.plugins import driver_class, driver_names, driver_package
from jmp.driver.schema import Schema, config_schema, describe
from jmp.errors import JmpError

app = new_app("What drivers there are, and a new one.")


@app.command("list")
def list_drivers(form: Output = "table") -> None:
    """List the driver types that a configuration can name."""
    rows = []
    for name in driver_names():
        try:
            driver = driver_class(name)
            interface, summary = driver.interface or "", driver.summary()
        except JmpError as error:
            interface, summary = "", error.message
        rows.append({"type": name, "interface": interface, "package": driver_package(name), "what": summary})
    output.print_listing(rows, form, ("type", "interface", "what"), key="type", empty="no driver is installed")


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="TYPE")], form: Output = "table") -> None:
    """Show a driver's configuration."""
    driver = driver_class(name)
    schema = config_schema(driver)
    if form in ("json", "yaml"):
        about = {"type": name, "interface": driver.interface, "package": driver_package(name), "config": schema}
        output.print_value(about, form)
        return
    import inspect

    from jmp.cli.verbs import prose

    text = re.sub(r"(?::\w+:)?`+([^`]+)`+", r"'\1'", inspect.getdoc(driver) or "")
    sys.stdout.write(f"{prose(f'{name}: {text}')}\n\n")
    output.print_table(("key", "type", "default", "what"), list(_rows(schema)), empty="it has no configuration")


def _rows(schema: Schema, within: str = "") -> Iterator[tuple[str, str, str, str]]:
    """A row for each key, those within others behind theirs: NAME stands for names that are the user's own."""
    for key, item in schema["properties"].items():
        default = "required" if key in schema.get("required", ()) else ""
        if (value := item.get("default")) not in (None, "", [], {}):
            default = f"default: {str(value).lower() if isinstance(value, bool) else output.plain(value)}"
        yield f"{within}{key}", describe(item), default, item.get("description", "")
        for option in item.get("anyOf", [item]):
            inner = option.get("additionalProperties") or option.get("items") or {}
            if "properties" in option:
                yield from _rows(option, f"{within}{key}.")
            elif "properties" in inner:
                yield from _rows(inner, f"{within}{key}.NAME." if option["type"] == "object" else f"{within}{key}.N.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is to be called, as in bench-fan.")],
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Where its folder is made.")] = Path(),
) -> None:
    """Make a package with a driver, its test and an exporter's configuration: to be changed into yours."""
    from jmp.exporter import template

    made = template.create(name, directory, taken=driver_names(), reserved=RESERVED)
    sys.stdout.writelines(f"{path}\n" for path in made)
    output.note(f"\nInstall it where exporters run: pip install --editable {made[0].parent}")
