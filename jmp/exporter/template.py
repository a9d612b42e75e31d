"""A package with a driver, to begin with: made from ``jmp/templates/driver``."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from jmp.errors import ConfigError, UsageError

_FILES: Final = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "bench.yaml": "bench.yaml",
    "driver.py": "{module}.py",
    "test_driver.py": "test_{module}.py",
}
"""Template → file in the package. A template has .txt at its end, since it is nothing else until it is filled in."""


def create(name: str, parent: Path, *, taken: Collection[str] = (), reserved: Collection[str] = ()) -> list[Path]:
    """Make the package ``name`` in a new folder of that name; returns its files.

    ``taken`` are the types that there are, ``reserved`` the names that no place in an exporter's tree may have.
    Raises ``UsageError`` if it cannot have that name, or the folder exists;
    ``ConfigError`` if it cannot be written.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(
            f"{name!r} is no name for a driver: lower-case letters, digits and single dashes, as in bench-fan"
        )
    module = name.replace("-", "_")
    if name in taken:
        raise UsageError(f"there is a driver {name!r} already: choose another name")
    if (
        keyword.iskeyword(module)
        or module in sys.stdlib_module_names
        or module in ("jmp", "jmp_drivers", "trio", "pytest")
    ):
        raise UsageError(f"a module cannot be called {module}: that is Python's or jmp's own; choose another name")
    target = parent / name
    short = name.rpartition("-")[2]
    names = {
        "name": name,
        "module": module,
        "class_": "".join(part.capitalize() for part in name.split("-")),
        "short": short if short[0].isalpha() and short not in reserved else name,
    }
    made = []
    try:
        target.mkdir()
        for template, pattern in _FILES.items():
            text = (files("jmp") / "templates" / "driver" / f"{template}.txt").read_text(encoding="utf-8")
            path = target / pattern.format_map(names)
            path.write_text(Template(text).substitute(names), encoding="utf-8")
            made.append(path)
    except FileExistsError:
        raise UsageError(f"{target} exists: choose another name, or another folder with --dir") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    return made
