from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from jmp.driver import Driver
from jmp.errors import NotFound
from jmp.exporter import examples
from jmp.exporter.config import read_text

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "drivers" / "pyproject.toml"
REFERENCE = ROOT / "docs" / "configuration.md"
FILES = re.findall(r"```yaml\n(apiVersion.*?)```", REFERENCE.read_text(encoding="utf-8"), re.DOTALL)


def bundled(name: str) -> type[Driver]:
    """The driver that the drivers' index names, whether or not it is installed."""
    table = tomllib.loads(INDEX.read_text(encoding="utf-8"))["project"]["entry-points"]["jmp.drivers"]
    module, _, attribute = table[name].partition(":")
    found: type[Driver] = getattr(import_module(module), attribute)
    return found


@pytest.mark.parametrize("name", examples.names())
def test_every_example_is_right(name: str) -> None:
    config, problems = read_text(examples.text(name), Path(f"{name}.yaml"), bundled)
    assert problems == []
    assert config is not None
    config.tree()


@pytest.mark.parametrize("name", examples.names())
def test_every_example_says_in_its_first_line_what_it_shows(name: str) -> None:
    assert examples.text(name).startswith("# ")
    assert 20 < len(examples.summary(name)) < 100


def test_examples_are_found_by_name() -> None:
    assert {"virtual-board", "distributed"} <= set(examples.names())
    with pytest.raises(NotFound, match=r"there is no example 'virtualboard' \(did you mean 'virtual-board'\?\)"):
        examples.text("virtualboard")


def test_the_files_in_the_reference_are_right() -> None:
    assert len(FILES) == 2
    assert [problem for text in FILES for problem in read_text(text, REFERENCE, bundled)[1]] == []
