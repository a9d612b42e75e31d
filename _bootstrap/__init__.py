"""What runs first in the zipapp: goes to the unpacked files and starts ``jmp.cli:main`` there.

A compiled module cannot be loaded from inside a zip file, so the first start unpacks everything to the user's cache
(:mod:`_bootstrap.unpack`) and the later ones only look there. This package takes the place of shiv's own bootstrap,
which costs 100 ms per start, needs a writable home, and would trust a folder that somebody else has put in its way.

The files are in ``ROOT/<build>/site-packages``, ROOT being the first of these that can be used:

1. ``$SHIV_ROOT/jmp``, when that variable is set
2. ``$XDG_CACHE_HOME/jmp``, by default ``~/.cache/jmp``
3. ``jmp-<user id>`` in ``$TMPDIR``, ``/tmp`` or ``/var/tmp``
4. a new temporary folder, removed when the process ends

The folder ``ROOT/<build>`` appears complete, by a rename. Two things can harm it later: a power cut, after which files
may be empty that were not yet on the disk, and programs that clear old files away. Therefore its file ``state`` tells
during which boot of the system the files were written, or ``settled`` once they were found whole during a later one,
and (by its time stamp) when that was last known; after `FRESH` seconds or another boot they are compared with the
archive again. Every running jmp holds a shared lock on ``state``; only who gets the exclusive one may remove the build.

This package has to compile on Pythons that are too old for jmp, to tell their users so.
"""

import os
import stat
import sys
import time

BUILD = "development"
"""Names the contents of ``site-packages``; build.py puts a hash of them here."""

OLDEST = (3, 11)

FRESH = 5 * 24 * 3600
"""Seconds for which a look at all files is good. What clears temporary folders leaves files alone for ten days."""

TEMPORARY = ("/tmp", "/var/tmp")

archive = ""
"""Absolute path of the zipapp that is running."""

in_use = -1
"""Descriptor of the locked ``state`` file of the build in use, held until the process ends; -1: none."""


def start() -> None:
    """Run jmp, which ends the process. ``sys.argv`` stays as it is: its first item is the name jmp was called by."""
    try:
        _start()
    except KeyboardInterrupt:  # before jmp itself knows what to do about it
        sys.exit(130)


def _start() -> None:
    global archive
    archive = os.path.abspath(sys.path[0])
    if sys.version_info < OLDEST:
        from _bootstrap.interpreter import run_newer

        run_newer()
    packages = ready_packages()
    if not packages:
        from _bootstrap.unpack import unpacked_packages

        packages = unpacked_packages()
    sys.path[0] = packages
    if sys.dont_write_bytecode:
        from _bootstrap.bytecode import keep_bytecode

        keep_bytecode(packages)
    if os.path.basename(sys.argv[0]) == "j":
        from jmp.j import main
    else:
        from jmp.cli import main
    sys.exit(main())


def ready_packages() -> str:
    """The folder of packages that an earlier start unpacked; "" if there is none that can be used without a check."""
    for root in roots():
        build = os.path.join(root, BUILD)
        if os.path.isdir(build) and is_ours(root) and hold(build):
            if is_fresh(build):
                return build + "/site-packages"
            release()
    return ""


def roots() -> "list[str]":
    """The folders that may hold builds, best first; the links on the way to them are resolved, they need not exist."""
    if os.environ.get("SHIV_ROOT"):
        return [os.path.join(os.path.realpath(os.environ["SHIV_ROOT"]), "jmp")]
    found = []
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):
        home = home_folder()
        cache = os.path.join(home, ".cache") if os.path.isdir(home) else ""
    if cache:
        found.append(os.path.join(os.path.realpath(cache), "jmp"))
    for temporary in (os.environ.get("TMPDIR", ""), *TEMPORARY):
        if os.path.isabs(temporary):
            found.append(os.path.join(os.path.realpath(temporary), "jmp-" + str(os.geteuid())))
    return found


def home_folder() -> str:
    """$HOME, or what the user database says where that is unset or empty; "" if nobody knows (some containers)."""
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def is_ours(root: str) -> bool:
    """Whether nobody but us and the superuser can change what is in `root` or put another folder in its place.

    Below $SHIV_ROOT only the folder itself is asked, not those above it: who sets that variable answers for the path
    (a volume mounted into a container is often writable by everyone in there).
    """
    folder = root
    while True:
        try:
            info = os.lstat(folder)
        except OSError:
            return False
        sticky = folder != root and info.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(info.st_mode) or info.st_uid not in (0, os.geteuid()):
            return False
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return False
        parent = os.path.dirname(folder)
        if folder == parent or os.environ.get("SHIV_ROOT"):
            return True
        folder = parent


def hold(build: str) -> bool:
    """Mark `build` as in use by this process until it ends; False when it is not there or about to be removed."""
    global in_use
    import fcntl

    try:
        in_use = os.open(build + "/state", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(in_use, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        release()
        return False
    except OSError:
        pass  # a file system without locks: nothing is removed there either
    return True


def release() -> None:
    """Take back `hold`."""
    global in_use
    if in_use >= 0:
        os.close(in_use)
    in_use = -1


def is_fresh(build: str) -> bool:
    """Whether the files of `build` can be relied on without looking at each; see above."""
    try:
        info = os.stat(build + "/state")
    except OSError:
        return False
    if info.st_uid != os.geteuid():
        return True  # unpacked for all by the superuser, say into the image of a container: not ours to repair
    return 0 <= time.time() - info.st_mtime < FRESH and read(build + "/state") in ("settled", boot_id())


def boot_id() -> str:
    """Tells one boot of the system from another; "none" where the system does not say."""
    return read("/proc/sys/kernel/random/boot_id") or "none"


def read(path: str) -> str:
    """The text in `path`, "" if it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""
