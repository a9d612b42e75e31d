"""Finds a Python that is new enough where ``python3`` is not: some systems keep an old one under that name for years."""

import os
import shutil
import sys

import _bootstrap

SUPPORTED = ("3.14", "3.13", "3.12", "3.11")

UNAVAILABLE = 69
"""Exit status, as in sysexits.h."""


def run_newer() -> None:
    """Start over with the newest supported Python on PATH; end with one line on stderr if there is none."""
    for version in SUPPORTED:
        python = shutil.which("python" + version)
        if python:
            os.execv(python, [python, *sys.argv])
    wanted, found = ".".join(map(str, _bootstrap.OLDEST)), sys.version.split()[0]
    sys.stderr.write("jmp needs Python " + wanted + " or newer, and this is " + found + ": install one as well\n")
    sys.exit(UNAVAILABLE)
