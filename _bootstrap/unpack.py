"""Unpacks the zipapp's packages at the first start, checks them when need be, and clears old builds away.

Nothing waits for another process: of two first starts at once both unpack, and the slower one drops its copy.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import _bootstrap
from _bootstrap import boot_id, hold, is_ours, release, roots

PACKAGES = "site-packages/"

KEEP = 3
"""How many builds stay besides those in use, so that going back and forth between versions stays quick."""


def unpacked_packages() -> str:
    """The folder of packages, unpacked now or found whole; one line on stderr and status 73 if there is no room."""
    for root in map(Path, roots()):
        try:
            return os.fspath(_packages_below(root))
        except OSError:
            continue  # read-only, full, or not ours: try the next place
    try:
        folder = Path(tempfile.mkdtemp(prefix="jmp-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        _unpack(folder)
    except OSError as error:
        sys.stderr.write(f"jmp cannot unpack itself ({error}): set SHIV_ROOT to a folder with 100 MB of room\n")
        sys.exit(os.EX_CANTCREAT)
    return os.fspath(folder / PACKAGES)


def _packages_below(root: Path) -> Path:
    """Find or make this build in `root`; OSError if that cannot be."""
    mode = 0o755 if "SHIV_ROOT" in os.environ else 0o700  # the superuser may unpack to SHIV_ROOT for all
    root.parent.mkdir(mode=mode, parents=True, exist_ok=True)
    root.mkdir(mode=mode, exist_ok=True)
    if not is_ours(os.fspath(root)):
        raise PermissionError(f"others can write to {root}")
    build = root / _bootstrap.BUILD
    if _is_whole(build):
        return build / PACKAGES
    _remove(build)
    copy = Path(tempfile.mkdtemp(prefix=".", dir=root))
    try:
        _unpack(copy)
        copy.chmod(mode)
        copy.rename(build)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        release()
        if not _is_whole(build):
            raise
        # Another first start was quicker: its files are as good.
    _clear(root)
    return build / PACKAGES


def _is_whole(build: Path) -> bool:
    """Compare the files of `build` with the archive; if they are all as they should be, hold it and note that."""
    if not hold(os.fspath(build)):
        return False
    try:
        with zipfile.ZipFile(_bootstrap.archive) as packed:
            for info in _members(packed):
                if zlib.crc32((build / info.filename).read_bytes()) != info.CRC:
                    raise FileNotFoundError(info.filename)
        state = build / "state"
        state.write_text(boot_id() if state.read_text() == boot_id() else "settled")
    except OSError:
        release()
        return False
    return True


def _unpack(folder: Path) -> None:
    """Write all packages below the empty `folder`."""
    (folder / "state").write_text(boot_id())
    hold(os.fspath(folder))  # so that nobody clears it away meanwhile
    with zipfile.ZipFile(_bootstrap.archive) as packed:
        for info in _members(packed):
            path = folder / info.filename
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(packed.read(info))


def _members(packed: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [info for info in packed.infolist() if info.filename.startswith(PACKAGES)]


def _clear(root: Path) -> None:
    """Remove the oldest builds, and what an unpacking left behind that was killed, unless they are in use."""
    folders = [path.parent for path in root.glob("*/state")]
    leftovers = [folder for folder in folders if folder.name.startswith(".")]
    builds = sorted((folder for folder in folders if folder not in leftovers), key=_age)
    for folder in [*leftovers, *builds[:-KEEP]]:
        if folder.name != _bootstrap.BUILD:
            _remove(folder)


def _age(build: Path) -> float:
    """Sorts builds, the one that was not looked at for longest first; those that are gone by now before all."""
    try:
        return (build / "state").stat().st_mtime
    except OSError:
        return 0


def _remove(build: Path) -> None:
    """Remove `build` unless a process uses it or it is not there."""
    try:
        state = (build / "state").open("rb")
    except OSError:
        return
    with state:
        try:
            fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(state.fileno()), (build / "state").stat()):
                return  # replaced meanwhile; otherwise it stays what it is, as only who has this lock may rename it
            condemned = tempfile.mkdtemp(prefix=".", dir=build.parent)
            build.rename(condemned)  # at once: nobody can start from a half removed build
        except OSError:
            return
        shutil.rmtree(condemned, ignore_errors=True)
