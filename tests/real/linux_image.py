"""A small Linux for arm64 that tests boot under QEMU: Debian's cloud kernel, and an initial RAM disk made here.

It boots in about two seconds to a login (root, password `PASSWORD`) on the serial port, serves its ``/www`` on TCP port 80
and echoes on port 7. The packages come through apt, whatever the host's architecture; nothing is installed, and the
result is kept below build/ in the checkout. ``python -m tests.real.linux_image`` builds it ahead of the tests.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PASSWORD = "dut"
PACKAGES = ("linux-image-cloud-arm64", "busybox-static")
MODULES = ("virtio_mmio", "virtio_blk", "virtio_net")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root /tmp /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
hostname dut
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15
httpd -h /www
nc -ll -p 7 -e cat &
exec init
"""
INITTAB = """\
ttyAMA0::respawn:/sbin/getty -L ttyAMA0 115200 vt100
::ctrlaltdel:/sbin/reboot
"""
FILES = {
    "init": INIT,
    "etc/inittab": INITTAB,
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
    "etc/group": "root:x:0:\n",
    "etc/shadow": "root:$1$jmp$Rl90wx5RfJ8yFA5uhE6YS0:19000::::::\n",  # PASSWORD; MD5, as it costs an emulated machine least
    "etc/profile": "PS1='dut# '\n",
    "etc/issue": "\n",
    "www/index.html": "hello from the dut\n",
}


@dataclass(frozen=True)
class LinuxImage:
    """What QEMU needs to boot it."""

    kernel: Path
    initrd: Path
    append: str = "console=ttyAMA0 quiet panic=1"


def linux_image() -> LinuxImage:
    """The image, built unless one made by the same recipe is there. Takes about ten seconds and a network for that."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    folder = CHECKOUT / "build" / f"linux-arm64-{recipe}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            built = Path(scratch) / "built"
            built.mkdir()
            _build(Path(scratch), built)
            try:
                built.rename(folder)  # whole or not at all, should several processes build at once
            except OSError:
                if not folder.exists():
                    raise
    return LinuxImage(folder / "Image", folder / "initrd.gz")


def _build(scratch: Path, built: Path) -> None:
    root = scratch / "root"
    for package in download(scratch / "apt", PACKAGES):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, built / "Image")
    archive = cpio([*_files(root), ("dev/console", stat.S_IFCHR | 0o600, b"")])
    (built / "initrd.gz").write_bytes(gzip.compress(archive, 1, mtime=0))


def download(folder: Path, packages: Sequence[str]) -> list[Path]:
    """Fetch packages for arm64, the first of which is a kernel, with an apt of our own that leaves the host's alone."""
    for each in ("lists/partial", "cache/archives/partial"):
        (folder / each).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text("".join(f"deb [signed-by={KEYRING}] {source}\n" for source in _sources()))
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::State": folder,
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
    }
    options = [f"-o{name}={value}" for name, value in settings.items()]
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    depends = _output("apt-cache", *options, "depends", packages[0])
    kernel = re.findall(r"Depends: (linux-image-\S+)", depends)  # the package of today's version
    subprocess.run(["apt-get", *options, "-qq", "download", *kernel[:1], *packages[1:]], check=True, cwd=folder)
    return list(folder.glob("*.deb"))


def _sources() -> list[str]:
    """Where this host gets Debian from: "URL suite component", for each."""
    fields = "$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)"
    targets = _output("apt-get", "indextargets", "--format", fields, "Created-By: Packages").splitlines()
    sources = {target.removeprefix("Debian ") for target in targets if target.startswith("Debian ")}
    if not sources:
        raise RuntimeError("apt knows no Debian sources here; run apt-get update first")
    return sorted(sources)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _files(root: Path) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of each file in the RAM disk."""
    for name, text in FILES.items():
        yield name, stat.S_IFREG | (0o755 if name == "init" else 0o644), text.encode()
    yield "bin/busybox", stat.S_IFREG | 0o755, (root / "bin/busybox").read_bytes()
    modules = {path.name.split(".")[0]: module(path) for path in root.glob("lib/modules/*/kernel/**/*.ko*")}
    order = list(dict.fromkeys(name for module in MODULES for name in with_dependencies(module, modules)))
    yield "modules/order", stat.S_IFREG | 0o644, "\n".join(order).encode()
    for name in order:
        yield f"modules/{name}.ko", stat.S_IFREG | 0o644, modules[name]


def module(path: Path) -> bytes:
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def with_dependencies(module: str, modules: dict[str, bytes]) -> Iterator[str]:
    """What to load, dependencies first; a module names them in its .modinfo section."""
    named = re.search(rb"\0depends=([^\0]*)", modules[module])
    for name in named[1].decode().replace("-", "_").split(",") if named and named[1] else ():
        yield from with_dependencies(name, modules)
    yield module


def cpio(files: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive in the format of initial RAM disks ("newc"): path, mode and content of each file; folders are added.

    A character device becomes /dev/console's, the only one that the kernel needs before ``/dev`` is mounted.
    """
    archive = bytearray()
    folders: dict[str, None] = {}
    entries = []
    for name, mode, data in files:
        folders |= dict.fromkeys(str(parent) for parent in reversed(Path(name).parents) if parent.name)
        entries.append((name, mode, data))
    first = [(folder, stat.S_IFDIR | 0o755, b"") for folder in folders]
    for number, (name, mode, data) in enumerate([*first, *entries, ("TRAILER!!!", 0, b"")]):
        major, minor = (5, 1) if stat.S_ISCHR(mode) else (0, 0)
        encoded = name.encode() + b"\0"
        header = [number, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(encoded), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in header) + encoded
        archive += b"\0" * (-len(archive) % 4)
        archive += data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)


if __name__ == "__main__":
    print(linux_image())
