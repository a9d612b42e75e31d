"""Where things are kept and found: a lab's records and keys, an exporter's socket and state."""

from __future__ import annotations

import os
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from jmp.errors import ConfigError

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


def runtime_directory() -> Path:
    """Where exporters of this user put their sockets: ``$XDG_RUNTIME_DIR/jmp``, or ``/run/jmp`` for root, or a private one."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base:
        return Path(base) / "jmp"
    if os.getuid() == 0:
        return Path("/run/jmp")
    path = Path(tempfile.gettempdir()) / f"jmp-run-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to somebody else: set XDG_RUNTIME_DIR to a directory of your own")
    return path


def default_socket(name: str) -> Path:
    """Where the exporter ``name`` listens unless told otherwise, and where ``jmp shell --exporter`` looks for it."""
    return runtime_directory() / f"{name}.sock"


def state_directory(name: str) -> Path:
    """What an exporter keeps: its self-signed certificate and passphrase."""
    base = os.environ.get("XDG_STATE_HOME") or (
        Path("/var/lib") if os.getuid() == 0 else Path.home() / ".local" / "state"
    )
    return Path(base) / "jmp" / "exporters" / name
