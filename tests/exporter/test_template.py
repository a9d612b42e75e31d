"""What ``jmp driver new`` makes can be used as made; the guide's own test installs it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jmp.errors import ConfigError, UsageError
from jmp.exporter import template


def test_its_tests_pass_and_its_code_is_tidy(tmp_path: Path) -> None:
    made = template.create("bench-fan", tmp_path)
    folder = tmp_path / "bench-fan"
    assert sorted(made) == sorted(folder.iterdir())
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["jmp.drivers"] == {"bench-fan": "bench_fan:BenchFan"}
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider"],
        ["ruff", "check", "--isolated", "--line-length", "120", "--select", "E,F,W,B,UP,ASYNC,BLE,PT,SIM,RUF", "."],
        ["ruff", "format", "--isolated", "--check", "--line-length", "120", "."],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, timeout=110, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "short"), [("bench-fan", "fan"), ("psu", "psu"), ("meter-2", "meter-2"), ("my-info", "my-info")]
)
def test_the_place_in_the_tree_can_have_its_name(tmp_path: Path, name: str, short: str) -> None:
    template.create(name, tmp_path, reserved={"info"})
    assert f"\n  {short}:\n    type: {name}\n" in (tmp_path / name / "bench.yaml").read_text()


@pytest.mark.parametrize("name", ["Fan", "a_b", "a--b", "-a", "1a", "", "../x", "serial", "json", "class", "jmp"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        template.create(name, tmp_path, taken={"serial"})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    template.create("fan", tmp_path)
    with pytest.raises(UsageError, match="exists"):
        template.create("fan", tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        template.create("fan", tmp_path / "none")
