"""Interpreters to run the zipapp with: those installed here, and Debian's, unpacked below build/pythons.

Debian's packages are fetched with apt's own keys and from the mirror this system uses, into a state folder of their
own: neither root nor the system's dpkg is needed, and they may be of another release or architecture.
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

RELEASES = {"3.11": "bookworm", "3.13": "trixie", "3.14": "forky"}
"""Which Debian release has which Python."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

LOADERS = {"amd64": "lib64/ld-linux-x86-64.so.2", "arm64": "lib/ld-linux-aarch64.so.1"}


@dataclass(frozen=True)
class Python:
    """An interpreter, and the command that runs it."""

    version: str
    command: tuple[str, ...]


@functools.cache
def installed(version: str) -> Python | None:
    """The Python `version` on PATH or among pyenv's, if there is one that runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    folders = [*map(Path, os.get_exec_path()), *sorted(pyenv.glob(f"versions/{version}.*/bin"))]
    for folder in folders:
        python = folder / f"python{version}"
        asked = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        # A shim of pyenv's exists for versions that are not switched on, and fails.
        if python.exists() and subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
            return Python(version, (str(python),))
    return None


def available() -> list[str]:
    """The versions that `get` can give."""
    from build import PYTHONS

    debian = RELEASES if shutil.which("apt-get") else {}
    return [version for version in PYTHONS if version in debian or installed(version)]


def get(version: str) -> Python:
    """A Python `version` of this machine's architecture."""
    return installed(version) or debian(version, ARCHITECTURES[platform.machine()])


def debian(version: str, architecture: str) -> Python:
    """Debian's Python `version` for `architecture`; fetched at first (20 MB), emulated where it is another machine's."""
    root = ROOT / "build" / "pythons" / f"{version}-{architecture}"
    root.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "complete").exists():
            _fetch(root, f"python{version}", RELEASES[version], architecture)
            (root / "complete").touch()
    program = str(root / "usr" / "bin" / f"python{version}")
    if ARCHITECTURES[platform.machine()] != architecture:
        machine = next(machine for machine, name in ARCHITECTURES.items() if name == architecture)
        return Python(version, (f"qemu-{machine}-static", "-L", str(root), program))
    # Its C library may be newer than the system's, so it has to come with its own loader.
    libraries = ":".join(str(folder) for place in ("lib", "usr/lib") for folder in root.glob(f"{place}/*-linux-gnu"))
    return Python(version, (str(root / LOADERS[architecture]), "--library-path", libraries, program))


def _fetch(root: Path, package: str, release: str, architecture: str) -> None:
    """Unpack `package` and all that it depends on into `root`."""
    shutil.rmtree(root)
    apt = root / "apt"
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    mirror, keys = _mirror()
    source = f"Types: deb\nURIs: {mirror}\nSuites: {release}\nComponents: main\nSigned-By: {keys}\n"
    (apt / "etc" / "debian.sources").write_text(source)
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": apt / "etc",
    }
    command = ["apt-get", "--quiet=2", *(part for key, value in options.items() for part in ("-o", f"{key}={value}"))]
    subprocess.run([*command, "update"], check=True)
    install = ["install", "--yes", "--no-install-recommends", "--download-only", package]
    subprocess.run([*command, *install], check=True, stdout=subprocess.DEVNULL)
    for archive in (apt / "cache" / "archives").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", archive, root], check=True)
    for name in ("lib", "lib64"):  # newer packages leave these links to the system's first installation
        if not (root / name).exists():
            (root / name).symlink_to(f"usr/{name}")
    shutil.rmtree(apt)


def _mirror() -> tuple[str, str]:
    """Where this system gets Debian's packages from, and the file with the keys that sign them."""
    listed = Path("/etc/apt/sources.list.d/debian.sources")
    if listed.exists():
        uris = re.search(r"^URIs: *(\S+)", listed.read_text(), re.MULTILINE)
    else:
        uris = re.search(r"^deb (?:\[.*?\] )?(\S+)", Path("/etc/apt/sources.list").read_text(), re.MULTILINE)
    assert uris, "apt has no source of packages"
    return uris[1], "/usr/share/keyrings/debian-archive-keyring.gpg"
