"""Builds, tests and checks jmp on a machine that has CPython 3.11 or newer, pip and git, and nothing else.

    python3 build.py            dist/jmp, then its demonstration on the virtual board
    python3 build.py zipapp     dist/jmp: one executable file for CPython 3.11 to 3.14 of one platform
    python3 build.py image      dist/jmp-image.tar: an OCI archive that holds it, made without a container engine
    python3 build.py test       everything that the tests need, then pytest (further arguments go there)
    python3 build.py check      ruff and mypy
    python3 build.py bench      how fast it is; with --peers beside Jumpstarter and labgrid (docs/performance.md)
    python3 build.py soak       look for bugs: in a simulated lab for --minutes N, or with --fuzz TARGET|all in what reads bytes
    python3 build.py venv       the virtual environment to develop in
    python3 build.py lock       renew requirements*.lock and those of the benches, which pin all that is downloaded, by hash
    python3 build.py clean      remove what this script made

Everything it makes is below build/ and dist/. How the zipapp comes about: the wheels of requirements.lock, for each
Python version where they differ, and wheels made of this checkout are unpacked over one another into one folder; what
is never needed goes; shiv packs the rest, with _bootstrap/ in place of its own. Two builds give the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import fnmatch
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
DIST = ROOT / "dist"
PROJECTS = (ROOT, ROOT / "drivers")
LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "requirements-dev.lock"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

TARGETS = {"linux-x86_64": "x86_64", "linux-aarch64": "aarch64"}

MANYLINUX = ("manylinux_2_17", "manylinux2014", "manylinux_2_28")
"""Wheels to take, best first: the lower the C library version, the older the systems on which the file runs."""

BUNDLED = ("pytest>=8",)
"""What the zipapp holds beyond what jmp depends on: `pytest test_device.py` in a jmp shell where nothing is installed."""

ZIPAPP_TOOLS = ("shiv", "click", "packaging", "pip", "setuptools")
"""What `zipapp` needs of the development environment."""

PEERS = {
    "jumpstarter": (
        "jumpstarter==0.9.0",
        "jumpstarter-cli==0.9.0",
        "jumpstarter-driver-composite==0.9.0",
        "jumpstarter-driver-network==0.9.0",
        "jumpstarter-driver-opendal==0.9.0",
        "jumpstarter-driver-power==0.9.0",
    ),
    "labgrid": ("labgrid==26.0.1",),
}
"""What the benches compare with, each in an environment of its own."""

FUZZER = ROOT / "tests" / "fuzz" / "atheris.lock"
"""What guides fuzz targets in a soak; compiled for some versions of Python only, and so not among the tools of all tests."""

PURE_ENOUGH = ("pyyaml", "wrapt")
"""Distributions with a compiled half that jmp does without: it is bigger than it is useful for what jmp does with it."""

UNNEEDED = (
    "*.pyi",
    "*.pyx",
    "*.pxd",
    "*.c",
    "*.h",
    "*/tests/*",
    "*/_tests/*",
    "*.dist-info/RECORD",  # would be wrong: files are left out, and those of several wheels are merged
    "*.dist-info/sboms/*",
    "*.dist-info/top_level.txt",
    "yaml/_yaml.*",
    "wrapt/_wrappers.*",
    # Needed to generate C bindings only; the compiled _cffi_backend is what cryptography runs on.
    "cffi/*",
    "pycparser/*",
    "pycparser-*.dist-info/*",
)

PYGMENTS_KEPT = ("__init__", "_mapping", "python", "diff", "special", "default", "monokai")
"""Lexers and styles that rich and pytest use: Python source in tracebacks, differences in assertions."""


def main() -> None:
    options, rest = arguments().parse_known_args()
    if rest and options.run not in (test, bench, soak):
        arguments().error(f"unrecognized arguments: {' '.join(rest)}")
    os.chdir(ROOT)
    options.rest = rest
    options.run(options)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(run=demo, target=native_target(), out=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], **more: Any) -> argparse.ArgumentParser:
        summary = (run.__doc__ or "").partition("\n")[0]
        added = commands.add_parser(run.__name__, help=summary, description=summary, **more)
        added.set_defaults(run=run)
        return added

    for run in (zipapp, pack):
        added = command(run)
        added.add_argument("--target", choices=TARGETS, default=native_target(), help="default: this machine's")
        added.add_argument("--out", type=Path, help="default: dist/jmp, or dist/jmp-TARGET for another platform")
    added = command(image)
    added.add_argument("--target", choices=TARGETS, default=native_target(), help="default: this machine's")
    added.add_argument("--mirror", help="where Debian packages come from (default: Debian's own mirrors)")
    command(demo)
    command(test, add_help=False)
    command(check)
    command(soak, add_help=False)
    added = command(bench)
    added.add_argument(
        "--peers", action="store_true", help="measure Jumpstarter and labgrid (from PyPI) in turn with it"
    )
    added.usage = "build.py bench [--peers] [ROW...] [--json FILE] [--short] [--rounds N]"
    added.epilog = (
        "ROW: one or more rows, or groups of them, as the table and docs/performance.md name them; default: all but the"
        " largest. --short: only to see that all of it works. --json: write medians, figures and verdicts, too."
    )
    command(venv)
    command(lock).add_argument("--upgrade", action="store_true", help="also take newer versions of what is in there")
    command(clean)
    return parser


# --- commands ---


def demo(options: argparse.Namespace) -> None:
    """Build dist/jmp and show what it does, on the virtual board."""
    zipapp(options)
    say(f"{shown(DIST / 'jmp')} demo")
    raise SystemExit(subprocess.run([DIST / "jmp", "demo"]).returncode)


def zipapp(options: argparse.Namespace) -> None:
    """Build dist/jmp, the one executable file."""
    python = environment("zipapp", [block for name, block in pins(DEV_LOCK) if name in ZIPAPP_TOOLS])
    out = ("--out", options.out) if options.out else ()
    run(python, "-I", ROOT / "build.py", "pack", "--target", options.target, *out)


def image(options: argparse.Namespace) -> None:
    """Write dist/jmp-image.tar, an OCI archive that holds dist/jmp."""
    native = options.target == native_target()
    zipapp(argparse.Namespace(target=options.target, out=None))
    suffix = "" if native else f"-{options.target}"
    out, program = DIST / f"jmp-image{suffix}.tar", DIST / f"jmp{suffix}"
    say(f"writing {shown(out)}")
    mirror = ("--mirror", options.mirror) if options.mirror else ()
    version = re.search(r'^__version__ = "(.*)"', (ROOT / "jmp/__init__.py").read_text(), re.MULTILINE)
    assert version is not None
    how = ("--target", options.target, "--jmp", program, "--version", version[1], "--out", out, *mirror)
    run(sys.executable, "-I", ROOT / "deploy" / "container" / "image.py", *how)
    print(
        f"{out.stat().st_size / 1000:9.1f} kB  {shown(out)}: for podman load, docker load, ctr image import, skopeo copy"
    )


def test(options: argparse.Namespace) -> None:
    """Run the tests, on everything they need."""
    python = development()
    zipapp(argparse.Namespace(target=native_target(), out=None))
    # All of them side by side, by more workers than there are cores, for half of the time they wait; in whatever order keeps
    # those busy. What is asked for by name runs as pytest would run it.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arguments = options.rest or ["-n", str(cores + min(cores, 4)), "--dist", "worksteal"]
    if any(name.startswith("JMP_TEST_") for name in os.environ):  # what makes tests longer, see docs/reliability.md
        arguments += ["-o", "faulthandler_timeout=0"]
    # They start hundreds of programs, each of which would compile what it needs of this checkout.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    say(f"pytest {' '.join(arguments)}")
    raise SystemExit(subprocess.run([python, "-m", "pytest", *arguments], env=environ).returncode)


def soak(options: argparse.Namespace) -> None:
    """Look for bugs, for as long as asked: in a simulated lab, or with --fuzz in what reads bytes of others."""
    python = development()
    environ = {**os.environ, "PYTHONHASHSEED": "0"}
    if "--fuzz" in options.rest:
        where = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], stdout=-1)
        fuzzer = environment("fuzzer", [block for _, block in pins(FUZZER)])
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "drivers"), where.stdout.decode().strip()])
        raise SystemExit(subprocess.run([fuzzer, "-m", "tests.fuzz", *options.rest], env=environ).returncode)
    raise SystemExit(subprocess.run([python, "-m", "tests.sim", *options.rest], env=environ).returncode)


def check(options: argparse.Namespace) -> None:
    """Check style and types."""
    python = development()
    tools = (("ruff", "check"), ("ruff", "format", "--check"), ("mypy",))
    failed = [tool[0] for tool in tools if not succeeds(python, "-m", *tool)]
    if failed:
        fail(f"not as it should be: {', '.join(failed)}")


def bench(options: argparse.Namespace) -> None:
    """Measure how fast it is."""
    python = development()
    zipapp(argparse.Namespace(target=native_target(), out=None))
    peers: list[str | Path] = []
    for name in PEERS if options.peers else ():
        requirements = [block for _, block in pins(ROOT / f"tests/bench/{name}.lock")]
        peers += [f"--{name}", environment(f"peer-{name}", requirements)]
    raise SystemExit(subprocess.run([python, "-m", "tests.bench", *peers, *options.rest]).returncode)


def venv(options: argparse.Namespace) -> None:
    """Make the virtual environment to develop in."""
    say(f"ready: . {shown(development().with_name('activate'))}")


def lock(options: argparse.Namespace) -> None:
    """Renew requirements.lock (what the zipapp holds) and requirements-dev.lock (that and the tools)."""
    uv = environment("uv", ["uv"]).with_name("uv")
    upgrade = ("--upgrade",) if options.upgrade else ()
    metadata = [tomllib.loads((project / "pyproject.toml").read_text()) for project in PROJECTS]
    names = {data["project"]["name"] for data in metadata}
    needed = [need for data in metadata for need in data["project"]["dependencies"] if need not in names]
    tools = [need for data in metadata for need in data["build-system"]["requires"]]
    wanted = {
        LOCK: [*needed, *BUNDLED],
        DEV_LOCK: [*needed, *BUNDLED, *tools, *metadata[0]["dependency-groups"]["dev"], "pip"],
    }
    wanted |= {ROOT / f"tests/bench/{name}.lock": list(requirements) for name, requirements in PEERS.items()}
    wanted[FUZZER] = ["atheris==3.0.0"]
    for path, requirements in wanted.items():
        say(f"{shown(path)}")
        given = BUILD / path.with_suffix(".in").name
        given.write_text("\n".join(sorted(set(requirements))) + "\n")
        bound = ("--constraints", LOCK) if path == DEV_LOCK else ()
        how = ("--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-header", "--no-annotate")
        run(uv, "pip", "compile", "--quiet", *how, *upgrade, *bound, "--output-file", path, given)
        path.write_text("# Made by `python3 build.py lock`.\n" + re.sub(r"^#.*\n", "", path.read_text(), flags=re.M))


def clean(options: argparse.Namespace) -> None:
    """Remove what this script made."""
    for path in (BUILD, DIST, ROOT / "jmp.egg-info", ROOT / "drivers" / "jmp_drivers.egg-info"):
        if path.exists():
            say(f"removing {shown(path)}")
            shutil.rmtree(path)


def pack(options: argparse.Namespace) -> None:
    """(Part of zipapp, run by the Python of its environment.)"""
    native = options.target == native_target()
    out = options.out or DIST / ("jmp" if native else f"jmp-{options.target}")
    with alone():
        wheels = [*downloaded_wheels(options.target), *own_wheels()]
        say(f"merging {len(wheels)} wheels")
        files, owners = merged(wheels)
        site = BUILD / f"site-{options.target}"
        write_site(site, files)
        say(f"packing {shown(out)}")
        write_zipapp(site, files, out)
        report(out, owners)


# --- virtual environments ---


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait for the turn to write below build/: tests that build may run side by side."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def development() -> Path:
    """The Python that has all tools, and both distributions in place (changes in the checkout act at once)."""
    python = environment("venv", [block for _, block in pins(DEV_LOCK)])
    with alone():
        installed = BUILD / "venv" / "projects"
        state = digest(*(project / "pyproject.toml" for project in PROJECTS), DEV_LOCK)
        if text(installed) != state:
            say("installing this checkout")
            pip = (python, "-m", "pip", "install", "-qq", "--no-deps", "--no-build-isolation", "--no-index")
            run(*pip, *(part for project in PROJECTS for part in ("--editable", project)))
            installed.write_text(state)
    return python


def environment(name: str, requirements: list[str]) -> Path:
    """The Python of a virtual environment below build/ with `requirements` (lines as in a lock file), made if need be."""
    folder = BUILD / name
    python = folder / "bin" / "python"
    complete = folder / "complete"
    wanted = "\n".join([sys.version, sys.base_prefix, *requirements]) + "\n"
    with alone():
        if text(complete) == wanted and python.exists():
            return python
        say(f"making {shown(folder)}")
        shutil.rmtree(folder, ignore_errors=True)
        # Without ensurepip, which some systems leave out of their Python; this interpreter's own pip does the work.
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        listed = folder / "requirements.txt"
        listed.write_text("\n".join(requirements) + "\n")
        if not succeeds(sys.executable, "-m", "pip", "--version", stdout=subprocess.DEVNULL):
            fail(f"{sys.executable} has no pip: install it (Debian: python3-pip)")
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--disable-pip-version-check")
        run(*pip, "--requirement", listed)
        complete.write_text(wanted)
    return python


def pins(path: Path) -> Iterator[tuple[str, str]]:
    """The name and the lines of each requirement in a lock file."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    for block in re.split(r"(?<!\\)\n", "\n".join(lines)):
        yield block.partition("==")[0], block


# --- the zipapp ---


def downloaded_wheels(target: str) -> list[Path]:
    """The wheels of the lock file for all Pythons on `target`; kept below build/ until the lock file changes."""
    from packaging.requirements import Requirement

    folder = BUILD / "wheels" / target
    complete = folder / "complete"
    state = digest(LOCK, Path(__file__))
    if text(complete) != state:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        blocks = []
        for _, block in pins(LOCK):
            line, *hashes = (part.strip() for part in block.split("\\\n"))
            blocks.append((Requirement(line), hashes))
        for python in PYTHONS:
            wanted = [
                " ".join([f"{requirement.name}{requirement.specifier}", *hashes])
                for requirement, hashes in blocks
                if not requirement.marker or requirement.marker.evaluate(ideal(target, python))
            ]
            say(f"downloading {len(wanted)} wheels for {target}, Python {python}")
            listed = folder / "requirements.txt"
            listed.write_text("\n".join(wanted) + "\n")
            how = ("-qq", "--no-deps", "--require-hashes", "--only-binary=:all:", "--implementation=cp")
            where = [f"--platform={tag}_{TARGETS[target]}" for tag in MANYLINUX]
            pip = (sys.executable, "-m", "pip", "download", "--disable-pip-version-check")
            run(*pip, *how, *where, f"--python-version={python}", "--dest", folder, "--requirement", listed)
            have = list(folder.glob("*.whl"))
            compiled = {wheel_name(path) for path in folder.glob(f"*-cp{python.replace('.', '')}-cp3*")}
            if python == PYTHONS[0]:
                later = {requirement.name for requirement, _ in blocks if requirement.marker} - {
                    wheel_name(path) for path in have
                }
                blocks = [block for block in blocks if block[0].name in (compiled - {*PURE_ENOUGH}) | later]
        complete.write_text(state)
    return sorted(folder.glob("*.whl"))


def ideal(target: str, python: str) -> dict[str, str]:
    """What environment markers see on `target`."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": TARGETS[target],
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def own_wheels() -> list[Path]:
    """The wheels of this checkout. Made of a copy, because setuptools leaves old files behind where it builds."""
    say("making the wheels of this checkout")
    copy, wheels = BUILD / "source", BUILD / "wheels" / "own"
    for folder in (copy, wheels):
        shutil.rmtree(folder, ignore_errors=True)
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "drivers", copy / "drivers", ignore=leave)
    shutil.copytree(ROOT / "jmp", copy / "jmp", ignore=leave)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = (sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "--no-build-isolation", "--no-index")
    run(*pip, "--wheel-dir", wheels, *(copy / project.relative_to(ROOT) for project in PROJECTS))
    return sorted(wheels.glob("*.whl"))


def merged(wheels: Iterable[Path]) -> tuple[dict[str, bytes], dict[str, str]]:
    """What is needed of the contents of all wheels: path → data, and path → "distribution version".

    Compiled modules carry the Python version in their names, so those of several wheels lie side by side. Two wheels
    that disagree about a file are an error.
    """
    files: dict[str, bytes] = {}
    owners: dict[str, str] = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as source:
            for info in source.infolist():
                path = info.filename
                if ".data/" in path:
                    _, scheme, path = path.split("/", 2)
                    if scheme not in ("purelib", "platlib"):
                        continue  # scripts, manual pages
                if info.is_dir() or is_unneeded(path):
                    continue
                data = source.read(info)
                if path.endswith(".dist-info/WHEEL"):
                    data = with_all_tags(files.get(path, b""), data)
                elif files.setdefault(path, data) != data:
                    fail(f"{wheel.name} and another wheel of {owners[path]} differ in {path}")
                files[path] = data
                owners[path] = " ".join(wheel.name.split("-")[:2])
    return files, owners


def with_all_tags(first: bytes, second: bytes) -> bytes:
    """The WHEEL file that stands for two wheels of one distribution."""
    tags = [line for line in second.splitlines(keepends=True) if line.startswith(b"Tag:") and line not in first]
    return first.rstrip(b"\n") + b"\n" + b"".join(tags) if first else second


def is_unneeded(path: str) -> bool:
    """Whether jmp never needs the file at `path`."""
    parts = PurePosixPath(path)
    if path.startswith(("pygments/lexers/", "pygments/styles/")):
        return parts.stem not in PYGMENTS_KEPT
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in UNNEEDED)


def write_site(site: Path, files: dict[str, bytes]) -> None:
    """Write `files` below `site`, with the same modes whatever the user's umask is."""
    shutil.rmtree(site, ignore_errors=True)
    for path, data in files.items():
        write_file(site / path, data)


def write_zipapp(site: Path, files: dict[str, bytes], out: Path) -> None:
    """Let shiv pack `site`, with our bootstrap; `out` appears complete or not at all."""
    from shiv import __version__, builder
    from shiv.bootstrap.environment import Environment
    from shiv.constants import BUILD_AT_TIMESTAMP_FORMAT, SOURCE_DATE_EPOCH_DEFAULT

    contents = hashlib.sha256()
    for path in sorted(files):
        contents.update(f"{path} {hashlib.sha256(files[path]).hexdigest()}\n".encode())
    build = contents.hexdigest()[:32]
    bootstrap = BUILD / "bootstrap"
    shutil.rmtree(bootstrap, ignore_errors=True)
    for part in sorted((ROOT / "_bootstrap").glob("*.py")):
        write_file(bootstrap / part.name, part.read_bytes().replace(b'"development"', f'"{build}"'.encode()))
    builder.iter_package_files = lambda _: [(path, path.name) for path in sorted(bootstrap.iterdir())]
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH_DEFAULT))
    settings = Environment(
        built_at=datetime.fromtimestamp(moment, UTC).strftime(BUILD_AT_TIMESTAMP_FORMAT),
        shiv_version=__version__,
        build_id=build,
        entry_point="jmp.cli:main",
        reproducible=True,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    made = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        builder.create_archive([site], made, "/usr/bin/env python3", "_bootstrap:start", settings)
        made.chmod(0o755)
        made.replace(out)
    finally:
        made.unlink(missing_ok=True)


def report(out: Path, owners: dict[str, str]) -> None:
    """Print what the zipapp holds: packed size, of which distribution."""
    sizes: Counter[str] = Counter()
    with zipfile.ZipFile(out) as archive:
        for info in archive.infolist():
            sizes[owners.get(info.filename.removeprefix("site-packages/"), "start of the zipapp")] += info.compress_size
        count = len(archive.infolist())
    for owner, size in sizes.most_common():
        print(f"{size / 1000:9.1f} kB  {owner}")
    print(f"{out.stat().st_size / 1000:9.1f} kB  {shown(out)}: {count} files, Python {', '.join(PYTHONS)}")


# --- small things ---


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)


def native_target() -> str:
    """The target that this machine is, else the first."""
    machine = platform.machine()
    return next((target for target, name in TARGETS.items() if name == machine), next(iter(TARGETS)))


def wheel_name(path: Path) -> str:
    """The normalized name of a wheel's distribution."""
    return re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower()


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def run(*command: str | Path) -> None:
    """Run a command; end with its status when it fails, after it has said why."""
    status = subprocess.run(command).returncode
    if status:
        say(f"failed with status {status}: {' '.join(map(str, command[:4]))} …")
        raise SystemExit(status)


def succeeds(*command: str | Path, stdout: int | None = None) -> bool:
    return subprocess.run(command, stdout=stdout).returncode == 0


def say(message: str) -> None:
    print(f"==> {message}", flush=True)


def fail(message: str) -> NoReturn:
    raise SystemExit(f"build.py: {message}")


if __name__ == "__main__":
    main()
