"""``jmp demo``, when it is not let play to its end: that it does otherwise, the zipapp's tests see."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    code = "import sys; from jmp.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Virtual Boot" in line:
                break
        assert any(tmp_path.iterdir())
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, "")
    assert not any(tmp_path.iterdir())
