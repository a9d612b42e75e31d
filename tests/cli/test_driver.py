"""``jmp driver``: what it tells of drivers."""

from __future__ import annotations

import pytest

from jmp.cli import main
from jmp.driver.plugins import driver_names


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["driver", *arguments]) == 0
    return capsys.readouterr().out


def test_keys_within_keys_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    gpio = shown(capsys, "show", "gpio")
    assert "\nWithout 'lines', all lines of the chip that have a name and that nobody else uses.\n\n" in gpio
    assert "\nlines.NAME.line\tint or str\trequired\tits number, or its name\n" in gpio
    assert "\nlines.NAME.active_low\tbool\tdefault: false\tit is on when its voltage is low\n" in gpio
    assert "\ndisk.path\tpath or None\t\timage file; without it the disk begins blank\n" in shown(
        capsys, "show", "qemu"
    )
    assert "\non.expect\tstr or None\t\tregular expression" in shown(capsys, "show", "http-power")


def test_every_driver_is_shown_without_marks_of_its_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    for name in driver_names():
        text = shown(capsys, "show", name)
        assert text.startswith(f"{name}: ")
        assert "``" not in text
        assert ":class:" not in text
