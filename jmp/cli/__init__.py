"""Arguments → one role's function → output."""

from __future__ import annotations

import sys

import jmp


def main() -> int:
    """Run the command in ``sys.argv``."""
    if sys.argv[1:] != ["version"]:
        sys.stderr.write("usage: jmp version\n")
        return 64
    sys.stdout.write(jmp.__version__ + "\n")
    return 0
