"""Where a lab's records and keys are kept, as options of commands."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Where keys and the store are kept (default: $XDG_STATE_HOME/jmp/controller; for root /var/lib/jmp).",
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where the Kubernetes API is (default: $KUBECONFIG, or the pod's own)."),
]
Namespace = Annotated[
    str | None, typer.Option(metavar="NAME", help="The lab's namespace there (default: the pod's own).")
]


class Where(StrEnum):
    """Where a lab's records can be kept."""

    sqlite = "sqlite"
    kubernetes = "kubernetes"


def data_directory(given: Path | None) -> Path:
    """Where a controller on this machine keeps its data."""
    if given is not None:
        return given
    if os.geteuid() == 0:
        return Path("/var/lib/jmp")
    return Path(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "jmp", "controller")
