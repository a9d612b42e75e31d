"""The environment of a session: what makes ``j``, ``jmp``, Python and pytest work in a shell, a script or a hook inside it.

A leaf: it knows how this program was started and nothing of sessions but the URL of their socket.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

HOST: Final = "JMP_HOST"
"""URL of the session that commands inside it use."""
HOSTS: Final = "JMP_HOSTS"
"""``EXPORTER=URL``, separated by commas, for the devices of a lease."""
LEASE: Final = "JMP_LEASE"
"""The lease that commands mean which name none."""
ALIASES: Final = ("JUMPSTARTER_HOST",)
"""Other names under which it is found; kept for scripts that were written for Jumpstarter."""

_PROGRAM = """\
import sys
sys.path[:0] = {path!r}
from {module} import main
sys.exit(main())
"""

_SHIM = '''\
"""Stands for jmp in a Python that has none: the one that runs this session, after all that this Python has itself."""
import sys

_here = {here!r}
sys.path[:] = [entry for entry in sys.path if entry != _here]
sys.path += [entry for entry in {path!r} if entry not in sys.path]
del sys.modules["jmp"]
import jmp
'''

_PLUGIN = """\
import sys

if sys.version_info >= (3, 11):
    from jmp.client.pytest_plugin import *
"""


def session_url(environ: Mapping[str, str] = os.environ, *, device: str | None = None) -> str | None:
    """URL of the session that this process was started in, if it was; of several devices that of ``device``, else the first.

    Raises :class:`~jmp.errors.NotFound` if there is a session, but without ``device``.
    """
    first = next((environ[name] for name in (HOST, *ALIASES) if environ.get(name)), None)
    if device is None or first is None:
        return first
    found = session_urls(environ)
    if device not in found:
        from jmp.errors import NotFound

        there = ", ".join(found) or environ.get("JMP_EXPORTER") or "one device, without a name"
        raise NotFound(f"this session has no device {device!r}: it has {there}")
    return found[device]


def session_urls(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The devices of the session that this process was started in, by exporter; empty outside of a lab."""
    return dict(item.split("=", 1) for item in environ.get(HOSTS, "").split(",") if "=" in item)


@contextmanager
def session_directory() -> Iterator[Path]:
    """A directory for what belongs to one session: only this user can look into it, and it is gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="jmp-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def session_environment(
    directory: Path, url: str, environ: Mapping[str, str] = os.environ, **more: str
) -> dict[str, str]:
    """The environment in which commands use the session at ``url``; ``directory`` gets the programs that it points to.

    ``j`` and ``jmp`` go before what is on the path. ``jmp`` can be imported, and its pytest plugin is found, in whatever Python
    the user has, unless that one has a jmp of its own; ``pytest`` itself is there if the user has none.
    """
    programs = directory / "bin"
    programs.mkdir(exist_ok=True)
    _program(programs, "j", "jmp.j")
    _program(programs, "jmp", "jmp.cli")
    if shutil.which("pytest", path=environ.get("PATH")) is None and find_spec("pytest") is not None:
        _program(programs, "pytest", "pytest")
    _importable(directory / "python")
    return {
        **environ,
        **dict.fromkeys((HOST, *ALIASES), url),
        "PATH": f"{programs}{os.pathsep}{environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(directory / "python"), environ.get("PYTHONPATH", "")])),
        **more,
    }


def import_path() -> list[str]:
    """What has to be on ``sys.path`` of another interpreter to import what this one can, its standard library apart."""
    standard = {os.path.realpath(Path(os.__file__).parent / part) for part in ("", "lib-dynload")}
    packages = (find_spec(name) for name in ("jmp", "jmp_drivers"))
    found = [str(Path(spec.origin).parent.parent) for spec in packages if spec is not None and spec.origin]
    found += [entry for entry in sys.path if os.path.isdir(entry) and os.path.realpath(entry) not in standard]
    return list(dict.fromkeys(found))


def _program(directory: Path, name: str, module: str) -> None:
    """A program that runs ``main`` of a module, past everything that would slow its start."""
    code = directory / f".{name}.py"
    code.write_text(_PROGRAM.format(path=import_path(), module=module))
    script = directory / name
    # -S -E: no site-packages to scan and no PYTHONPATH of the user's; the import path is in the program.
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {shlex.quote(str(code))} "$@"\n')
    script.chmod(0o700)


def _importable(directory: Path) -> None:
    """A directory for PYTHONPATH that holds a stand-in for jmp and the entry point of its pytest plugin."""
    package, metadata = directory / "jmp", directory / "jmp-0.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    metadata.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(_SHIM.format(here=str(directory), path=import_path()))
    (directory / "jmp_session_plugin.py").write_text(_PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: jmp\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[pytest11]\njmp = jmp_session_plugin\n")
