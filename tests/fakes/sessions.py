"""A session as `jmp shell` makes it, for tests that run commands in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_JMP = "import sys; from jmp.cli import main; sys.exit(main())"
_TELL = "import os, sys; sys.stdout.write(chr(0).join(f'{n}={v}' for n, v in os.environ.items()) + 2 * chr(0))"


@contextmanager
def shell_session(directory: Path, config: str) -> Iterator[dict[str, str]]:
    """A session with an exporter that is configured so, and the environment of commands in it."""
    (directory / "bench.yaml").write_text(config)
    tell = ["sh", "-c", f'"{sys.executable}" -S -E -c "$1"; exec cat', "sh", _TELL]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("JMP_", "JUMPSTARTER"))}
    with subprocess.Popen(
        [sys.executable, "-c", _JMP, "shell", "--exporter-config", "bench.yaml", "--", *tell],
        cwd=directory,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        told = b""
        while not told.endswith(b"\0\0"):
            more = os.read(shell.stdout.fileno(), 65536)
            assert more, f"the session ended after {told!r}"
            told += more
        yield dict(item.split("=", 1) for item in told.decode().rstrip("\0").split("\0"))
        shell.stdin.close()
