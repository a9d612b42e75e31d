"""Writes an OCI archive that holds jmp, without a container engine. `python3 build.py image` runs it.

The root filesystem is made of Debian packages (by mmdebstrap, which runs none of their scripts, so any architecture can be made
on any machine), without what no role of jmp needs. The zipapp is unpacked and compiled to bytecode in there by the Python that
will run it: nothing has to be written at the start. The same packages and the same zipapp give the same bytes.
"""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ARCHITECTURES = {"linux-x86_64": "amd64", "linux-aarch64": "arm64"}
SUITE = "trixie"
PACKAGES = (
    "base-files",  # the folders, and which system this is
    "python3-minimal",
    "libpython3-stdlib",
    "ca-certificates",
    "netbase",  # names of protocols and services
    "media-types",
    "tzdata",
    "busybox",  # a shell and the usual small tools, for hooks and for whoever looks into a container
    "tini",  # the first process: waits for orphans, which hooks and drivers may leave behind
)
UNNEEDED = (
    "dev/*",
    "usr/lib/*/gconv/*",
    "usr/lib/python3*/pydoc_data/*",
    "usr/share/bug/*",
    "usr/share/info/*",
    "usr/share/lintian/*",
    "usr/share/locale/*",
    "usr/share/man/*",
    "usr/share/perl5/*",
    "var/cache/*",
    "var/lib/apt/*",
    "var/lib/dpkg/info/*",
    "var/lib/dpkg/parts/*",
    "var/lib/dpkg/status",
    "var/log/*",
)
"""Of what the packages bring; of their documentation the licenses stay."""
TOOLS = (
    *(
        "awk",
        "basename",
        "cat",
        "chmod",
        "cp",
        "cut",
        "date",
        "dirname",
        "echo",
        "env",
        "false",
        "find",
        "grep",
        "gunzip",
    ),
    *(
        "gzip",
        "head",
        "hostname",
        "id",
        "kill",
        "ln",
        "ls",
        "mkdir",
        "mktemp",
        "mv",
        "nslookup",
        "ps",
        "pwd",
        "readlink",
    ),
    *("rm", "rmdir", "sed", "seq", "sh", "sleep", "sort", "stat", "tail", "tar", "tee", "test", "touch", "tr", "true"),
    *("uname", "uniq", "vi", "wc", "wget", "which", "xargs"),
)
USER = 65532
"""Nobody that a host knows; what runs as it owns nothing in the image."""
UNPACKED = "usr/lib"
"""$SHIV_ROOT: the zipapp looks for its files in jmp/BUILD below it."""
ENTRY = ("/usr/bin/tini", "--", "/usr/local/bin/jmp")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "SHIV_ROOT": f"/{UNPACKED}", "LANG": "C.UTF-8"}
EPOCH = 946684800
"""The time of every file, unless SOURCE_DATE_EPOCH says otherwise."""
HOOK = (
    'mkdir -p "$1/var/lib/dpkg/status.d"; for deb in "$1"/var/cache/apt/archives/*.deb; do'
    ' dpkg-deb --field "$deb" >"$1/var/lib/dpkg/status.d/$(dpkg-deb --field "$deb" Package)"; done'
)
"""Leaves what scanners read to know which packages are in an image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", choices=ARCHITECTURES, required=True)
    parser.add_argument("--jmp", type=Path, required=True, help="the zipapp for that target")
    parser.add_argument("--version", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suite", default=SUITE)
    parser.add_argument("--mirror", help="where the packages come from, if not from Debian's own mirrors")
    options = parser.parse_args()
    native = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()
    architecture = ARCHITECTURES[options.target]
    with tempfile.TemporaryDirectory(prefix="jmp-image-") as folder:
        root = Path(folder, "root.tar")
        packages(root, PACKAGES, architecture, options.suite, options.mirror)
        compiler = None
        if architecture != native:
            compiler = Path(folder, "native.tar")
            packages(compiler, ("python3-minimal", "libpython3-stdlib"), native, options.suite, options.mirror)
        write_image(root, options.jmp, options.out, architecture, options.version, compiler)


def packages(out: Path, names: tuple[str, ...], architecture: str, suite: str, mirror: str | None) -> None:
    """Write a tar file of what is in Debian packages and all that they depend on."""
    if shutil.which("mmdebstrap") is None:
        raise SystemExit(
            "image.py: mmdebstrap is needed: install it, or build deploy/container/Containerfile with an engine"
        )
    options = ["--quiet", "--variant=extract", f"--architectures={architecture}", f"--include={','.join(names)}"]
    where = (mirror,) if mirror else ()
    subprocess.run(["mmdebstrap", *options, f"--extract-hook={HOOK}", suite, out, *where], check=True)


def write_image(
    packages: Path, jmp: Path, out: Path, architecture: str, version: str, compiler: Path | None = None
) -> None:
    """Write the archive: ``packages`` is the root filesystem, ``compiler`` one whose Python runs here, if that does not.

    ``out`` appears complete or not at all.
    """
    with tempfile.TemporaryDirectory(prefix="jmp-image-") as folder:
        root, top, tools = Path(folder, "root"), Path(folder, "top"), Path(folder, "root")
        unpack(packages, root)
        if compiler is not None:
            tools = Path(folder, "tools")
            unpack(compiler, tools)
        furnish(root)
        compile_all(tools, root, "usr/lib/python3*")
        install(jmp, top)
        compile_all(tools, top, f"{UNPACKED}/jmp/*/site-packages")
        made = out.with_name(f".{out.name}.{os.getpid()}")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_archive([layer(root), layer(top)], made, architecture, version)
            made.replace(out)
        finally:
            made.unlink(missing_ok=True)


# --- what is in it ---


def unpack(archive: Path, root: Path) -> None:
    """Unpack what is needed of a root filesystem, also as a user who owns nothing of it."""
    with tarfile.open(archive) as source:
        members = []
        for member in source:
            path = member.name.removeprefix("./")
            if path == "." or is_unneeded(path) or member.isdev():
                continue
            member.mode &= 0o1777
            member.mode |= stat.S_IWUSR | stat.S_IRUSR
            members.append(member)
        source.extractall(root, members, numeric_owner=False, filter=lambda member, _: member)


def is_unneeded(path: str) -> bool:
    if fnmatch.fnmatchcase(path, "usr/share/doc/*/*"):
        return not (path.endswith("/copyright") and path.count("/") == 4)
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in UNNEEDED)


def furnish(root: Path) -> None:
    """What the packages' scripts would have done, as far as it matters; and the user."""
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    write(root / "etc/ssl/certs/ca-certificates.crt", "".join(path.read_text() for path in certificates))
    write(
        root / "etc/passwd",
        f"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\njmp:x:{USER}:{USER}:jmp:/tmp:/bin/sh\n",
    )
    write(root / "etc/group", f"root:x:0:\nnogroup:x:65534:\njmp:x:{USER}:\n")
    write(root / "etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
    write(root / "etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    for tool in TOOLS:
        path = root / "usr/bin" / tool
        if not path.exists():
            path.symlink_to("busybox")


def install(jmp: Path, top: Path) -> None:
    """The zipapp, and what its first start would unpack."""
    program = top / "usr/local/bin/jmp"
    program.parent.mkdir(parents=True)
    shutil.copyfile(jmp, program)
    program.chmod(0o755)
    program.with_name("j").symlink_to("jmp")
    with zipfile.ZipFile(jmp) as packed:
        environment = json.loads(packed.read("environment.json"))
        build = top / UNPACKED / "jmp" / environment["build_id"]
        for info in packed.infolist():
            if info.filename.startswith("site-packages/") and not info.is_dir():
                path = build / info.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.read(info))
    write(build / "state", "settled")


def compile_all(tools: Path, root: Path, pattern: str) -> None:
    """Compile to bytecode, by the Python of ``tools``, what is below ``pattern`` in ``root``."""
    [python] = [path for path in (tools / "usr/bin").glob("python3.*") if path.name[8:].isdigit()]
    [loader] = tools.glob("usr/lib*/ld-linux*.so.*")
    [libraries] = tools.glob("usr/lib/*-linux-gnu")
    folders = [path for path in root.glob(pattern) if path.is_dir()]
    how = ("-B", "-m", "compileall", "-q", "-f", "--invalidation-mode=unchecked-hash", "-s", root, "-p", "/")
    subprocess.run(
        [loader, "--library-path", libraries, python, "-s", *how, *folders],
        check=True,
        env={"PYTHONHOME": str(tools / "usr"), "PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin"},
    )


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)


# --- how it is written ---


def layer(root: Path) -> bytes:
    """The files below ``root`` as an uncompressed tar file, which is the same whoever makes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            info = archive.gettarinfo(path, str(path.relative_to(root)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = moment()
            if info.islnk():
                info.type, info.size = tarfile.REGTYPE, path.stat().st_size
            if info.isreg():
                info.mode = 0o755 if info.mode & 0o100 else 0o644
                archive.addfile(info, io.BytesIO(path.read_bytes()))
            else:
                info.mode = info.mode & 0o1777 if info.mode & 0o1000 else 0o755
                archive.addfile(info)
    return buffer.getvalue()


def moment() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))


def write_archive(layers: list[bytes], out: Path, architecture: str, version: str) -> None:
    """Write an OCI image layout as a tar file; with an index for `docker load`, too."""
    created = datetime.fromtimestamp(moment(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {
        "org.opencontainers.image.title": "jmp",
        "org.opencontainers.image.description": "Hardware-in-the-loop testing: client, exporter, controller and router",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": version,
    }
    files: dict[str, bytes] = {}

    def blob(data: bytes, type: str, **more: Any) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": type, "digest": f"sha256:{digest}", "size": len(data), **more}

    packed = [blob(gzip.compress(data, 6, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip") for data in layers]
    config = blob(
        encoded(
            {
                "created": created,
                "architecture": architecture,
                "os": "linux",
                **({"variant": "v8"} if architecture == "arm64" else {}),
                "config": {
                    "User": f"{USER}:{USER}",
                    "ExposedPorts": {"8080/tcp": {}, "8443/tcp": {}},
                    "Env": [f"{name}={value}" for name, value in ENVIRONMENT.items()],
                    "Entrypoint": list(ENTRY),
                    "Cmd": ["--help"],
                    "WorkingDir": "/",
                    "Labels": labels,
                    "StopSignal": "SIGTERM",
                },
                "rootfs": {
                    "type": "layers",
                    "diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers],
                },
                "history": [
                    {"created": created, "created_by": "Debian packages"},
                    {"created": created, "created_by": "jmp"},
                ],
            }
        ),
        "application/vnd.oci.image.config.v1+json",
    )
    type = "application/vnd.oci.image.manifest.v1+json"
    manifest = blob(
        encoded({"schemaVersion": 2, "mediaType": type, "config": config, "layers": packed, "annotations": labels}),
        type,
    )
    names = {"org.opencontainers.image.ref.name": version, "io.containerd.image.name": f"jmp:{version}"}
    platform = {"architecture": architecture, "os": "linux"}
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{**manifest, "platform": platform, "annotations": names}],
    }
    for_docker = [{"Config": _path(config), "RepoTags": [f"jmp:{version}"], "Layers": [_path(each) for each in packed]}]
    files |= {
        "oci-layout": encoded({"imageLayoutVersion": "1.0.0"}),
        "index.json": encoded(index),
        "manifest.json": encoded(for_docker),
    }
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in in_order(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), moment(), 0o644
            archive.addfile(info, io.BytesIO(data))


def in_order(files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The small files first: whoever reads a stream needs them."""
    yield from sorted(files.items(), key=lambda item: ("/" in item[0], item[0]))


def encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _path(blob: Mapping[str, Any]) -> str:
    return f"blobs/{blob['digest'].replace(':', '/')}"


if __name__ == "__main__":
    main()
