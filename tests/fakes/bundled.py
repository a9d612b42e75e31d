"""The bundled drivers by name, and the examples in their documentation, straight from the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from pkgutil import resolve_name

from jmp.driver.driver import Driver
from jmp.exporter import config

ROOT = Path(__file__).parents[2]


def driver_class(name: str) -> type[Driver]:
    """The driver that drivers/pyproject.toml registers as `name`, whether or not that distribution is installed."""
    project = tomllib.loads((ROOT / "drivers/pyproject.toml").read_text())
    found: type[Driver] = resolve_name(project["project"]["entry-points"]["jmp.drivers"][name])
    assert issubclass(found, Driver)
    return found


def blocks(path: str, language: str) -> list[str]:
    """The code blocks of one language in a Markdown file of the repository."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)


def problems_in(path: str) -> list[str]:
    """What the exporter objects to in a config file of the repository, or in the configs in a Markdown file.

    An example file is tried as it is, and with the keys that it shows in comments.
    """
    if path.endswith(".md"):
        configs = blocks(path, "yaml")
    else:
        text = (ROOT / path).read_text()
        configs = [text, re.sub(r"^( +)# ([a-z_]+: )", r"\1\2", text, flags=re.MULTILINE)]
    assert configs, f"there is no configuration in {path}"
    return [
        f"{path}: {problem}" for each in configs for problem in config.read_text(each, ROOT / path, driver_class)[1]
    ]
