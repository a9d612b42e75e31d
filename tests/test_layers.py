"""An import may only point to the right: cli → the four roles → driver → rpc → mux → link → wire → errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANK = {
    "j": 9,
    "cli": 8,
    "client": 7,
    "exporter": 7,
    "controller": 7,
    "router": 7,
    "driver": 6,
    "rpc": 5,
    "mux": 4,
    "link": 3,
    "wire": 2,
    "environment": 1,
    "logs": 1,
    "private": 1,
    "groups": 1,
    "errors": 0,
}
FILES = sorted(
    path for folder in ("jmp", "drivers") for path in (ROOT / folder).rglob("*.py") if "build" not in path.parts
)


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "jmp")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_to_the_right(path: Path) -> None:
    names = [name.split(".") for name in imported(path) if name.startswith("jmp.")]
    if path.is_relative_to(ROOT / "drivers"):
        assert {name[1] for name in names} <= {"driver", "errors"}
        return
    own = path.relative_to(ROOT / "jmp").parts[0].removesuffix(".py")
    if own == "__init__":
        return  # the package's public names, imported late
    for name in names:
        layer = name[1]
        if layer in RANK and layer != own:
            assert RANK[layer] < RANK[own], f"{own} imports {'.'.join(name)}"
