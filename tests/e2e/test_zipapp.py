"""dist/jmp as its users get it: one file, run by the Pythons there are, on both platforms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

import build
import jmp
from tests.e2e import pythons
from tests.e2e.pythons import Python

pytestmark = pytest.mark.zipapp

PROBE = """
import sys
sys.path.insert(0, sys.argv[1])
from importlib.metadata import entry_points, version

import _cffi_backend, msgpack, pytest, trio, typer, yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

assert msgpack.Packer.__module__ == "msgpack._cmsgpack", msgpack.Packer
assert _cffi_backend.__file__.startswith(sys.argv[1])
key = Ed25519PrivateKey.generate()
key.public_key().verify(key.sign(b"a"), b"a")
drivers = entry_points(group="jmp.drivers")
for entry_point in drivers:
    entry_point.load()
print(sys.version_info[:2], version("jmp"), version("jmp-drivers"), "virtual-board" in drivers.names)
"""


@pytest.fixture(scope="module")
def zipapp() -> Path:
    """dist/jmp; `build.py test` has just made it."""
    path = build.DIST / "jmp"
    if not path.exists():
        subprocess.run([sys.executable, build.ROOT / "build.py", "zipapp"], check=True)
    return path


@pytest.fixture(scope="module")
def zipapp_aarch64(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aarch64") / "jmp"
    subprocess.run(
        [sys.executable, build.ROOT / "build.py", "zipapp", "--target=linux-aarch64", f"--out={path}"], check=True
    )
    return path


async def output(*command: str | Path, cwd: Path | None = None, env: Mapping[str, str]) -> str:
    """What `command` prints; it has to succeed, without a word on stderr."""
    with trio.fail_after(120):
        done = await trio.run_process(
            [str(part) for part in command], cwd=cwd, env=env, check=False, capture_stdout=True, capture_stderr=True
        )
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode()


def environ(home: Path) -> dict[str, str]:
    """An environment with next to nothing in it, and an empty home; "python3" is the one that runs the tests."""
    home.mkdir(exist_ok=True)
    return {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


async def runs_on(zipapp: Path, python: Python, home: Path) -> None:
    """Prove that `zipapp` starts with `python` and that all its compiled parts are there for it."""
    env = environ(home)
    for _ in range(2):  # the first start unpacks
        assert jmp.__version__ in await output(*python.command, zipapp, "version", env=env)
    [build_id] = os.listdir(home / ".cache" / "jmp")
    packages = home / ".cache" / "jmp" / build_id / "site-packages"
    version = tuple(map(int, python.version.split(".")))
    expected = f"{version} {jmp.__version__} {jmp.__version__} True\n"
    assert await output(*python.command, "-c", PROBE, packages, env=env) == expected


@pytest.mark.parametrize("version", pythons.available())
async def test_runs_on_the_pythons_of_this_machine(zipapp: Path, tmp_path: Path, version: str) -> None:
    await runs_on(zipapp, pythons.get(version), tmp_path)


async def test_runs_on_the_other_platform(zipapp_aarch64: Path, tmp_path: Path) -> None:
    await runs_on(zipapp_aarch64, pythons.debian("3.11", "arm64"), tmp_path)


def compiled(zipapp: Path) -> dict[str, set[str]]:
    """Compiled module → the Pythons it is there for ("abi3": all)."""
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(zipapp) as archive:
        for name in archive.namelist():
            if match := re.fullmatch(r"site-packages/(.+?)\.(?:cpython-3(\d+)-.*|(abi3))\.so", name):
                found.setdefault(match[1], set()).add(match[3] or f"3.{match[2]}")
            else:
                assert not name.endswith(".so"), name
    return found


@pytest.mark.parametrize("file", ["zipapp", "zipapp_aarch64"])
def test_compiled_parts_are_there_for_every_python(request: pytest.FixtureRequest, file: str) -> None:
    modules = compiled(request.getfixturevalue(file))
    assert {"msgpack/_cmsgpack", "_cffi_backend", "cryptography/hazmat/bindings/_rust"} <= modules.keys()
    modules["backports/zstd/_zstd"] |= {"3.14"}  # which has it of its own
    assert [name for name, versions in modules.items() if versions not in ({*build.PYTHONS}, {"abi3"})] == []


def test_is_not_too_big(zipapp: Path) -> None:
    assert zipapp.stat().st_size < 25_000_000


async def test_two_builds_give_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, str(build.ROOT / "build.py"), "zipapp"]
    await output(*command, f"--out={tmp_path / 'a'}", env={**os.environ})
    other = {"TZ": "Asia/Kolkata", "PYTHONHASHSEED": "1", "LC_ALL": "C"}
    otherwise = ["sh", "-c", 'umask 077; exec "$@"', "sh", *command, f"--out={tmp_path / 'b'}"]
    await output(*otherwise, env={**os.environ, **other}, cwd=tmp_path)
    entries = []
    for name in ("a", "b"):
        with zipfile.ZipFile(tmp_path / name) as archive:
            entries.append(
                [(info.filename, info.date_time, info.external_attr, info.CRC) for info in archive.infolist()]
            )
    assert entries[0] == entries[1]
    assert build.digest(tmp_path / "a") == build.digest(tmp_path / "b")


async def test_file_alone_in_an_empty_folder_with_an_empty_home_does_the_main_job(zipapp: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    alone = Path(shutil.copy(zipapp, tmp_path / "empty"))
    shown = await output(alone, "demo", cwd=alone.parent, env=environ(tmp_path / "home"))
    assert "login:" in shown
    assert os.listdir(alone.parent) == [alone.name]
