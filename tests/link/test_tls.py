"""Certificates and keys in files that are none, or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jmp.errors import ConfigError
from jmp.link.tls import client_context, server_context


@pytest.mark.parametrize(
    ("use", "nothing_in_it"),
    [(lambda file: client_context(ca=file), "no certificate"), (server_context, "it is no PEM file")],
)
def test_a_file_that_is_of_no_use_is_named_with_the_reason(
    tmp_path: Path, use: Callable[[Path], Any], nothing_in_it: str
) -> None:
    file = tmp_path / "some.pem"
    for reason in ("No such file or directory", nothing_in_it):
        with pytest.raises(ConfigError) as raised:
            use(file)
        assert f"{file}: {reason}" in raised.value.message
        assert "[" not in raised.value.message
        file.write_text("no certificate at all\n")
