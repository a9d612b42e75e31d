"""The commented example configurations that come with jmp: enough to begin with nothing but the one file."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

from jmp.driver.schema import did_you_mean
from jmp.errors import NotFound


def names() -> list[str]:
    """The names of all examples."""
    return sorted(_files())


def text(name: str) -> str:
    """An example as it is, with its comments. Raises NotFound with the nearest name."""
    found = _files()
    if name not in found:
        raise NotFound(f"there is no example {name!r}{did_you_mean(name, found)}")
    return found[name].read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What an example shows: the comment in its first line."""
    return text(name).partition("\n")[0].lstrip("# ")


def _files() -> dict[str, Traversable]:
    directory = files("jmp") / "examples"
    if not directory.is_dir():
        return {}
    return {item.name.removesuffix(".yaml"): item for item in directory.iterdir() if item.name.endswith(".yaml")}
