"""The start of the zipapp, on a small archive with the real `_bootstrap` and a `jmp.cli` that tells what it sees."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

ROOT = Path(__file__).parents[2]
BUILD = "0123456789abcdef"
CLI = """
import os, sys
def main():
    import _bootstrap
    print(sys.argv, os.path.dirname(os.path.dirname(os.path.dirname(__file__))), _bootstrap.archive, sep="\\n")
    return 7
"""
J = """
import sys
from jmp import cli
def main():
    sys.argv.insert(1, "the quick way:")
    return cli.main()
"""
FILES = {"jmp/__init__.py": "", "jmp/cli/__init__.py": CLI, "jmp/j.py": J, "jmp/data.bin": "x" * 100_000}


class Started:
    """What one start did: `argv` and `packages` (the folder it ran from) as jmp saw them."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.status = done.returncode
        self.stderr = done.stderr.decode()
        lines = done.stdout.decode().splitlines()
        self.argv, self.packages, self.archive = lines if lines else ("", "", "")

    @property
    def build(self) -> Path:
        return Path(self.packages).parent


def archive(path: Path, change: Callable[[str], str] = str, build: str = BUILD) -> Path:
    """Write the archive to `path`; `change` is applied to the source of `_bootstrap/__init__.py`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("__main__.py", "import _bootstrap\n_bootstrap.start()\n")
        for source in (ROOT / "_bootstrap").glob("*.py"):
            text = source.read_text().replace('"development"', f'"{build}"').replace('("/tmp", "/var/tmp")', "()")
            packed.writestr(f"_bootstrap/{source.name}", change(text) if source.stem == "__init__" else text)
        for name, text in FILES.items():
            packed.writestr(f"site-packages/{name}", text)
    return path


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return archive(tmp_path / "app")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir(mode=0o700)
    return tmp_path / "home"


async def start(app: Path, *arguments: str, **environ: str | os.PathLike[str]) -> Started:
    """Start `app` in its folder, with nothing in its environment but `environ` and a TMPDIR of this test."""
    temporary = app.with_name("tmp")
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, app.name, *arguments]
    env = {"PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(temporary)} | {
        name: str(value) for name, value in environ.items()
    }
    with trio.fail_after(60):
        done = await trio.run_process(
            command, env=env, cwd=app.parent, check=False, capture_stdout=True, capture_stderr=True
        )
    return Started(done)


def put_back(build: Path, seconds: float) -> None:
    """Let `build` look as if it was checked `seconds` ago."""
    then = time.time() - seconds
    os.utime(build / "state", (then, then))


async def test_first_start_unpacks_to_the_cache_and_later_ones_use_it(app: Path, home: Path) -> None:
    first = await start(app, "a", "b c", HOME=home)
    assert (first.status, first.stderr) == (7, "")
    assert first.argv == str([app.name, "a", "b c"])
    assert first.build == home / ".cache" / "jmp" / BUILD
    assert first.archive == str(app)
    assert [folder.stat().st_mode & 0o777 for folder in (first.build, *first.build.parents[:2])] == [0o700] * 3
    assert os.listdir(first.build.parent) == [BUILD]
    written = (first.build / "state").stat()
    assert (await start(app, HOME=home)).build == first.build
    later = (first.build / "state").stat()
    assert (later.st_ino, later.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)  # it was read at most


async def test_modules_are_compiled_once_though_the_environment_says_never(app: Path, home: Path) -> None:
    started = await start(app, HOME=home, PYTHONDONTWRITEBYTECODE="1")
    compiled = list(started.build.rglob("*.pyc"))
    assert {path.name.partition(".")[0] for path in compiled} == {"__init__"}
    before = [path.stat().st_mtime_ns for path in compiled]
    await start(app, HOME=home, PYTHONDONTWRITEBYTECODE="1")
    assert [path.stat().st_mtime_ns for path in compiled] == before


async def test_name_it_was_called_by_reaches_jmp(app: Path, home: Path) -> None:
    link = app.with_name("j")
    link.symlink_to(app.name)
    started = await start(link, "power", "on", HOME=home)
    assert started.argv == "['j', 'the quick way:', 'power', 'on']"
    assert started.archive == str(link)


async def test_xdg_cache_home_and_shiv_root_come_before_home(app: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert (await start(app, HOME=home, XDG_CACHE_HOME=other)).build == other / "jmp" / BUILD
    assert (await start(app, HOME=home, XDG_CACHE_HOME="not/absolute")).build == home / ".cache" / "jmp" / BUILD
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)  # like a volume mounted into a container
    assert (await start(app, HOME=home, XDG_CACHE_HOME=other, SHIV_ROOT=root)).build == root / "jmp" / BUILD


@pytest.mark.parametrize(
    "environ",
    [{"HOME": "/nonexistent/home"}, {"HOME": "/proc"}, {"HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/proc/nothing"}],
)
async def test_home_that_cannot_be_written_gives_way_to_a_private_temporary_folder(
    app: Path, tmp_path: Path, environ: dict[str, str]
) -> None:
    for _ in range(2):
        started = await start(app, **environ)
        assert (started.status, started.stderr) == (7, "")
        assert started.build == tmp_path / "tmp" / f"jmp-{os.geteuid()}" / BUILD
        assert started.build.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"HOME": "not/absolute"}])
async def test_home_is_looked_up_where_it_is_not_set(app: Path, home: Path, environ: dict[str, str]) -> None:
    database = (
        f"import os, pwd\npwd.getpwuid = lambda uid: pwd.struct_passwd(['', '', uid, 0, '', {str(home)!r}, ''])\n"
    )
    changed = archive(app, lambda text: text.replace("import os\n", database))
    assert (await start(changed, **environ)).build == home / ".cache" / "jmp" / BUILD


@pytest.mark.parametrize("where", ["    packages = ready_packages()\n", "    sys.path[0] = packages\n"])
async def test_ctrl_c_while_it_starts_ends_it_without_a_traceback(app: Path, home: Path, where: str) -> None:
    signalled = f"{where}    import signal\n    signal.raise_signal(signal.SIGINT)\n"
    changed = archive(app, lambda text: text.replace(where, signalled))
    started = await start(changed, HOME=home)
    assert (started.status, started.stderr) == (130, "")


async def test_first_starts_at_the_same_time_all_succeed_and_leave_one_build(app: Path, home: Path) -> None:
    results: list[Started] = []

    async def one() -> None:
        results.append(await start(app, HOME=home))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(one)
    assert [(result.status, result.stderr) for result in results] == [(7, "")] * 6
    assert {result.build for result in results} == {home / ".cache" / "jmp" / BUILD}
    assert os.listdir(home / ".cache" / "jmp") == [BUILD]


def writable_by_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def writable_by_group(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o770)


def owned_by_another(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


def a_link(folder: Path) -> None:
    target = folder.with_name("elsewhere")
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


def a_file(folder: Path) -> None:
    folder.touch()


PLANTS = [writable_by_all, writable_by_group, a_link, a_file, *([owned_by_another] if os.geteuid() == 0 else [])]


@pytest.mark.parametrize("plant", PLANTS)
async def test_folder_that_somebody_else_may_change_is_never_used(
    app: Path, home: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    good = (await start(app, HOME=home)).build
    temporary = tmp_path / "tmp"
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    roots = [cache / "jmp", temporary / f"jmp-{os.geteuid()}"]
    for root in roots:
        plant(root)
        if root.is_dir():
            evil = shutil.copytree(good, root / BUILD)
            (evil / "site-packages" / "jmp" / "cli" / "__init__.py").write_text("def main(): raise SystemExit(66)")
    started = await start(app, XDG_CACHE_HOME=cache)
    assert (started.status, started.stderr) == (7, "")
    assert all(not started.build.is_relative_to(root) for root in [*roots, tmp_path / "elsewhere"])


async def test_folder_above_that_anyone_may_rename_in_is_not_used(app: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    started = await start(app, XDG_CACHE_HOME=tmp_path / "cache")
    assert started.build == tmp_path / "tmp" / f"jmp-{os.geteuid()}" / BUILD


async def test_last_resort_is_a_folder_that_goes_with_the_process(home: Path, tmp_path: Path) -> None:
    roots = 'def roots() -> "list[str]":'
    nowhere = archive(tmp_path / "nowhere", lambda text: text.replace(roots, f"{roots}\n    return []"))
    started = await start(nowhere, HOME=home)
    assert (started.status, started.stderr) == (7, "")
    assert started.build.parent == tmp_path / "tmp"
    assert not started.build.exists()


async def test_no_room_anywhere_is_one_line_and_its_own_status(app: Path, home: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 0; exec "$@"', "sh", sys.executable, str(app)]
    with trio.fail_after(60):
        done = await trio.run_process(
            limited, env={"HOME": str(home), "TMPDIR": str(home)}, check=False, capture_stdout=True, capture_stderr=True
        )
    assert done.returncode == os.EX_CANTCREAT
    assert done.stderr.startswith(b"jmp cannot unpack itself (")
    assert done.stderr.count(b"\n") == 1
    assert os.listdir(home / ".cache" / "jmp") == []


async def test_files_lost_in_a_power_cut_are_unpacked_again(app: Path, home: Path) -> None:
    build = (await start(app, HOME=home)).build
    (build / "state").write_text("another boot")
    (build / "site-packages" / "jmp" / "data.bin").write_bytes(b"")
    started = await start(app, HOME=home)
    assert (started.status, started.build) == (7, build)
    assert (build / "site-packages" / "jmp" / "data.bin").stat().st_size == 100_000
    assert os.listdir(build.parent) == [BUILD]


async def test_files_found_whole_after_another_boot_are_settled(app: Path, home: Path) -> None:
    build = (await start(app, HOME=home)).build
    inode = (build / "site-packages" / "jmp" / "data.bin").stat().st_ino
    (build / "state").write_text("another boot")
    assert (await start(app, HOME=home)).status == 7
    assert (build / "state").read_text() == "settled"
    assert (build / "site-packages" / "jmp" / "data.bin").stat().st_ino == inode


async def test_files_cleared_away_as_too_old_are_unpacked_again(app: Path, home: Path) -> None:
    build = (await start(app, HOME=home)).build
    (build / "site-packages" / "jmp" / "data.bin").unlink()
    put_back(build, 6 * 24 * 3600)
    assert (await start(app, HOME=home)).build == build
    assert (build / "site-packages" / "jmp" / "data.bin").exists()


async def test_damaged_build_in_use_stays_and_another_place_is_found(app: Path, home: Path, tmp_path: Path) -> None:
    build = (await start(app, HOME=home)).build
    (build / "state").write_text("another boot")
    (build / "site-packages" / "jmp" / "data.bin").unlink()
    with (build / "state").open() as state:
        fcntl.flock(state, fcntl.LOCK_SH)
        started = await start(app, HOME=home)
    assert (started.status, started.build) == (7, tmp_path / "tmp" / f"jmp-{os.geteuid()}" / BUILD)
    assert build.exists()


async def test_old_builds_and_leftovers_go_unless_they_are_in_use(home: Path, tmp_path: Path) -> None:
    first = (await start(archive(tmp_path / "app", build="old0"), HOME=home)).build
    for age, name in enumerate(["old1", "old2", "old3", "old4", "old5", ".killed", ".unpacking"], 1):
        put_back(shutil.copytree(first, first.with_name(name)), age)
    with (first.with_name("old5") / "state").open() as used, (first.with_name(".unpacking") / "state").open() as made:
        fcntl.flock(used, fcntl.LOCK_SH)
        fcntl.flock(made, fcntl.LOCK_SH)
        await start(archive(tmp_path / "app"), HOME=home)
    assert {folder.name for folder in first.parent.iterdir()} == {BUILD, "old0", "old1", "old5", ".unpacking"}


async def test_running_jmp_holds_its_build(app: Path, home: Path) -> None:
    waits = CLI.replace("return 7", "sys.stdout.flush(); sys.stdin.read()")
    with zipfile.ZipFile(app) as source, zipfile.ZipFile(app.with_name("waits"), "w") as packed:
        for name in source.namelist():
            packed.writestr(name, waits if name.endswith("cli/__init__.py") else source.read(name))
    command = [sys.executable, str(app.with_name("waits"))]
    for _ in range(2):  # the one that unpacks, and one that finds it unpacked
        with trio.fail_after(60):
            process = await trio.lowlevel.open_process(
                command, env={"HOME": str(home)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdin is not None
            assert await process.stdout.receive_some()
            with (home / ".cache" / "jmp" / BUILD / "state").open() as state, pytest.raises(BlockingIOError):
                fcntl.flock(state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await process.stdin.aclose()
            assert await process.wait() == 0
            await process.stdout.aclose()


def too_new(text: str) -> str:
    return text.replace("OLDEST = (3, 11)", "OLDEST = (9, 0)")


async def test_too_old_a_python_is_told(home: Path, tmp_path: Path) -> None:
    started = await start(archive(tmp_path / "app", too_new), HOME=home, PATH=tmp_path)
    assert started.status == os.EX_UNAVAILABLE
    assert started.stderr.startswith("jmp needs Python 9.0 or newer, and this is 3.")
    assert started.stderr.count("\n") == 1


async def test_too_old_a_python_starts_a_newer_one_on_path(home: Path, tmp_path: Path) -> None:
    newer = tmp_path / "python3.12"
    newer.write_text('#!/bin/sh\necho "$0 $*"; echo; echo\n')
    newer.chmod(0o755)
    app = archive(tmp_path / "app", too_new)
    started = await start(app, "version", "--all", HOME=home, PATH=tmp_path)
    assert (started.status, started.argv) == (0, f"{newer} {app.name} version --all")
