"""A Linux for arm64 as the story needs it: with a screen and an SSH server, as kernel and RAM disk, and as a disk of 1 GiB.

Debian's full kernel, for the sake of its driver of the screen; the rest is as in :mod:`tests.real.linux_image`. The result is
kept below build/ in the checkout. ``python -m tests.real.story_image`` builds it ahead of the tests.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.real import linux_image as base

PACKAGES = (
    "linux-image-arm64",
    "busybox-static",
    *("dropbear-bin", "libc6", "libcrypt1", "libtomcrypt1", "libtommath1", "libgmp10", "zlib1g"),
)
MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_gpu"),
    *("crc32c_generic", "ext4"),
)
MIB = 1 << 20
SIZE = 1024 * MIB
PARTITION = MIB
DATA = 16 * MIB
APPEND = "console=ttyAMA0 quiet panic=1 vt.global_cursor_default=0"

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /root /tmp /run /disk /usr/bin /usr/sbin /sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec </dev/console >/dev/console 2>&1
if [ ! -e /etc/disk ]; then
    for module in $(cat /modules/order); do insmod /modules/$module.ko; done
    if grep -q root=/dev/vda1 /proc/cmdline; then
        mount -t ext4 /dev/vda1 /disk
        umount /proc /sys /dev
        exec switch_root /disk /init
    fi
fi
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
hostname dut
ifconfig lo 127.0.0.1
ifconfig eth0 10.0.2.15
[ -e /etc/dropbear.key ] || dropbearkey -t ed25519 -f /etc/dropbear.key >/dev/null 2>&1
dropbear -s -r /etc/dropbear.key
exec init
"""
EXTLINUX = f"""\
default linux
label linux
  kernel /boot/Image
  initrd /boot/initrd.gz
  append {APPEND} root=/dev/vda1
"""


@dataclass(frozen=True)
class StoryImage:
    """What the story needs of it."""

    kernel: Path
    initrd: Path
    disk: Path
    """Packed with zstd."""
    key: Path
    """With which root is let in."""
    data: str
    """sha256 of /data on the disk."""


def story_image() -> StoryImage:
    """The image, built unless one made by the same recipe is there. Takes half a minute and a network for that."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + Path(base.__file__).read_bytes()).hexdigest()[:12]
    folder = base.CHECKOUT / "build" / f"story-{recipe}"
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
    data = (folder / "data.sha256").read_text()
    return StoryImage(folder / "Image", folder / "initrd.gz", folder / "disk.img.zst", folder / "key", data)


def _build(scratch: Path, built: Path) -> None:
    root = scratch / "root"
    for package in base.download(scratch / "apt", PACKAGES):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    (kernel,) = (root / "boot").glob("vmlinuz-*")
    shutil.copyfile(kernel, built / "Image")
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "story", "-f", str(built / "key")]
    subprocess.run(keygen, check=True)
    files = list(_files(root, (built / "key.pub").read_bytes()))
    archive = base.cpio([*files, *_modules(root), ("dev/console", stat.S_IFCHR | 0o600, b"")])
    (built / "initrd.gz").write_bytes(gzip.compress(archive, 1, mtime=0))

    data = os.urandom(DATA)
    (built / "data.sha256").write_text(hashlib.sha256(data).hexdigest())
    tree = scratch / "tree"
    for name, mode, content in (
        *files,
        ("etc/disk", 0o644, b"This is the disk's own system.\n"),
        ("data", 0o644, data),
        ("extlinux/extlinux.conf", 0o644, EXTLINUX.encode()),
        ("boot/Image", 0o644, (built / "Image").read_bytes()),
        ("boot/initrd.gz", 0o644, (built / "initrd.gz").read_bytes()),
    ):
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(stat.S_IMODE(mode))
    (tree / "dev").mkdir()
    (tree / "root").chmod(0o700)
    disk = scratch / "disk.img"
    _make_disk(disk, tree)
    subprocess.run(["zstd", "-q", "-1", "--rm", disk, "-o", built / "disk.img.zst"], check=True)


def _make_disk(disk: Path, tree: Path) -> None:
    """A disk with one partition, which boots: what a boot loader reads has no newer features of ext4."""
    features = "^metadata_csum,^64bit,^orphan_file"
    size = f"{(SIZE - PARTITION) // 1024}k"
    with disk.open("wb") as file:
        file.truncate(SIZE)
        file.seek(446)
        sectors = (PARTITION // 512, (SIZE - PARTITION) // 512)
        file.write(struct.pack("<BBHBBHII", 0x80, 0xFE, 0xFFFF, 0x83, 0xFE, 0xFFFF, *sectors) + bytes(48) + b"\x55\xaa")
    where = ["-E", f"offset={PARTITION},root_owner=0:0", "-O", features, "-d", str(tree)]
    subprocess.run(["mkfs.ext4", "-q", "-F", *where, disk, size], check=True)


def _files(root: Path, key: bytes) -> Iterator[tuple[str, int, bytes]]:
    """Path, mode and content of each file that both systems have."""
    files = base.FILES | {
        "init": INIT,
        "etc/inittab": base.INITTAB + "tty1::respawn:/sbin/getty -L tty1 38400 linux\n",
        "etc/issue": "A board of the lab\n\n",
    }
    for name, text in files.items():
        yield name, stat.S_IFREG | (0o755 if name == "init" else 0o644), text.encode()
    yield "root/.ssh/authorized_keys", stat.S_IFREG | 0o600, key
    for name in ("bin/busybox", "usr/sbin/dropbear", "usr/bin/dropbearkey"):
        yield name, stat.S_IFREG | 0o755, (root / name).read_bytes()
    needed = "ld-linux-aarch64|libc|libcrypt|libtomcrypt|libtommath|libgmp|libz"
    found = {}
    for path in sorted(root.rglob("*.so*")):
        if match := re.fullmatch(rf"(?:{needed})\.so\.\d+", path.name):
            found[match[0]] = path.resolve() if path.resolve().is_relative_to(root.resolve()) else path
    for name, path in found.items():
        yield f"lib/{name}", stat.S_IFREG | 0o755, path.read_bytes()


def _modules(root: Path) -> Iterator[tuple[str, int, bytes]]:
    modules = {
        path.name.split(".")[0].replace("-", "_"): base.module(path)
        for path in root.glob("lib/modules/*/kernel/**/*.ko*")
    }
    order = list(dict.fromkeys(name for module in MODULES for name in base.with_dependencies(module, modules)))
    yield "modules/order", stat.S_IFREG | 0o644, "\n".join(order).encode()
    for name in order:
        yield f"modules/{name}.ko", stat.S_IFREG | 0o644, modules[name]


if __name__ == "__main__":
    print(story_image())
