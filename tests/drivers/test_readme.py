"""What drivers/README.md shows works as it stands there."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from jmp.driver import Driver
from jmp.exporter import config
from tests.fakes.bundled import ROOT, blocks, driver_class

README = "drivers/README.md"


def test_driver_its_package_its_configuration_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, test = blocks(README, "python")
    (tmp_path / "bench_fan.py").write_text(driver)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        module = importlib.import_module("bench_fan")
        (package,) = (tomllib.loads(block) for block in blocks(README, "toml"))
        assert package["project"]["entry-points"]["jmp.drivers"] == {"fan": "bench_fan:Fan"}
        (text,) = blocks(README, "yaml")
        assert issubclass(module.Fan, Driver)
        assert config.read_text(text, tmp_path / "bench1.yaml", {"fan": module.Fan})[1] == []
        names: dict[str, object] = {}
        exec(compile(test, README, "exec"), names)
        names["test_speed"](tmp_path)  # type: ignore[operator]
    finally:
        sys.modules.pop("bench_fan", None)


def test_every_registered_driver_is_listed_and_exists() -> None:
    table = tomllib.loads((ROOT / "drivers/pyproject.toml").read_text())["project"]["entry-points"]["jmp.drivers"]
    listed = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / README).read_text().partition("## What is here")[2]))
    assert listed >= set(table)
    for name in table:
        assert driver_class(name).summary()
