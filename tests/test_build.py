"""build.py's own rules, and that the lock files go with what the projects ask for."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import trio
from packaging.requirements import Requirement

import build

PROJECTS = [tomllib.loads((folder / "pyproject.toml").read_text()) for folder in build.PROJECTS]


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_wheels_are_merged_without_what_is_never_needed(tmp_path: Path) -> None:
    files = {
        "a/__init__.py": "a",
        "a/tests/test_a.py": "",
        "a/x.pyi": "",
        "a-1.data/scripts/a": "",
        "a-1.dist-info/RECORD": "",
    }
    one = wheel(
        tmp_path / "a-1-cp311-cp311-linux_x86_64.whl",
        files
        | {"a/c.cpython-311.so": "311", "a-1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\n"},
    )
    two = wheel(
        tmp_path / "a-1-cp312-cp312-linux_x86_64.whl",
        files
        | {"a/c.cpython-312.so": "312", "a-1.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp312-cp312-linux_x86_64\n"},
    )
    merged, owners = build.merged([one, two])
    tags = b"Wheel-Version: 1.0\nTag: cp311-cp311-linux_x86_64\nTag: cp312-cp312-linux_x86_64\n"
    assert merged == {
        "a/__init__.py": b"a",
        "a/c.cpython-311.so": b"311",
        "a/c.cpython-312.so": b"312",
        "a-1.dist-info/WHEEL": tags,
    }
    assert {*owners.values()} == {"a 1"}


def test_wheels_that_disagree_are_refused(tmp_path: Path) -> None:
    one = wheel(tmp_path / "a-1-cp311-cp311-linux_x86_64.whl", {"a/c.so": "311"})
    two = wheel(tmp_path / "a-1-cp312-cp312-linux_x86_64.whl", {"a/c.so": "312"})
    with pytest.raises(SystemExit, match=r"cp312.* and another wheel of a 1 differ in a/c.so"):
        build.merged([one, two])


def test_lock_files_pin_what_the_projects_ask_for() -> None:
    pinned = dict(build.pins(build.DEV_LOCK))
    own = {data["project"]["name"] for data in PROJECTS}
    for data in PROJECTS:
        groups = data.get("dependency-groups", {}).values()
        needs = [
            *data["build-system"]["requires"],
            *data["project"]["dependencies"],
            *(need for group in groups for need in group),
        ]
        for requirement in (Requirement(need) for need in needs if need not in own):
            name = requirement.name.lower().replace("_", "-")
            assert name in pinned, f"{name}: run `python3 build.py lock`"
            assert pinned[name].split()[0].partition("==")[2] in requirement.specifier


def test_lock_files_agree_and_tell_no_index() -> None:
    dev = dict(build.pins(build.DEV_LOCK))
    for name, block in build.pins(build.LOCK):
        assert dev[name].split()[0] == block.split()[0]
        assert "--hash=sha256:" in block
    assert all("://" not in path.read_text() for path in (build.LOCK, build.DEV_LOCK))


def test_both_distributions_have_one_version() -> None:
    import jmp

    assert [data["project"].get("version", jmp.__version__) for data in PROJECTS] == [jmp.__version__] * 2


@pytest.mark.parametrize("ci", ["true", ""])
async def test_skipped_test_fails_in_ci_only(tmp_path: Path, ci: str) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_skips(): pytest.skip('no board here')\n"
        "@pytest.mark.xfail(reason='known')\n"
        "def test_xfails(): assert False\n"
    )
    (tmp_path / "test_module.py").write_text("import pytest\npytest.skip('no lab', allow_module_level=True)\n")
    for name, reason in (("test_it.py", "no board here"), ("test_module.py", "no lab")):
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "tests.conftest",
            "-c",
            "/dev/null",
            "-rs",
            str(tmp_path / name),
        ]
        env = {"PYTHONPATH": str(build.ROOT), "CI": ci, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        with trio.fail_after(60):
            done = await trio.run_process(command, env=env, check=False, capture_stdout=True, stderr=subprocess.STDOUT)
        passed = done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED)
        assert passed is not bool(ci), done.stdout.decode()
        assert reason in done.stdout.decode()
