"""The image, unpacked and run by others' tools as Kubernetes would run it: user, read-only root, empty folders, no rights."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import build
from deploy.container import image
from tests.e2e.product import wait_for
from tests.kube.test_manifests import named

pytestmark = [pytest.mark.real, pytest.mark.zipapp]

CONTAINERFILE = (build.ROOT / "deploy/container/Containerfile").read_text()
ARCHITECTURE = image.ARCHITECTURES[build.native_target()]
MIRROR = os.environ.get("JMP_TEST_MIRROR")


@pytest.fixture(scope="module")
def archive() -> Path:
    """The archive that is made of dist/jmp; once for all who test at the same time."""
    folder = build.BUILD / "e2e-image"
    folder.mkdir(parents=True, exist_ok=True)
    made = hashlib.sha256((build.DIST / "jmp").read_bytes() + Path(image.__file__).read_bytes()).hexdigest()[:16]
    out, packages = folder / f"{made}.tar", folder / "packages.tar"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            for old in folder.glob("*.tar"):
                old.unlink()
            image.packages(packages, image.PACKAGES, ARCHITECTURE, image.SUITE, MIRROR)
            image.write_image(packages, build.DIST / "jmp", out, ARCHITECTURE, "1.2")
    return out


class Container:
    """A container that runs; made by :func:`running`."""

    def __init__(self, name: str, runc: list[str], process: subprocess.Popen[str], log: Path) -> None:
        self.name, self.process, self.log = name, process, log
        self._runc = runc

    def run(self, script: str, expect: int = 0) -> str:
        """What a line of shell says in there."""
        done = subprocess.run(
            [*self._runc, "exec", self.name, "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, f"{script}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def terminate(self) -> int:
        """What becomes of it when it is told to end."""
        subprocess.run([*self._runc, "kill", self.name, "TERM"], check=True)
        return self.process.wait(30)


@contextmanager
def running(archive: Path, folder: Path, pod: dict[str, Any], env: dict[str, str], says: str) -> Iterator[Container]:
    """The container of a pod, as a kubelet has it run, once it has said something."""
    with tarfile.open(archive) as source:
        source.extractall(folder / "layout", filter="data")
    bundle = folder / "bundle"
    subprocess.run(["umoci", "unpack", "--image", f"{folder / 'layout'}:1.2", bundle], check=True)
    config = json.loads((bundle / "config.json").read_text())
    [container] = pod["containers"]
    context, own = pod["securityContext"], container["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    groups = [context["fsGroup"]]
    given = env | {item["name"]: item["value"] for item in container["env"] if "value" in item}
    process = config["process"]
    entry = process["args"][: -len(["--help"])]
    arguments = [re.sub(r"\$\((\w+)\)", lambda name: given[name[1]], text) for text in container["args"]]
    process |= {
        "terminal": False,
        "user": {"uid": context["runAsUser"], "gid": context["runAsGroup"], "additionalGids": groups},
        "args": [*entry, *arguments],
        "env": [item for item in process["env"] if item.partition("=")[0] not in (*given, "TERM", "HOME")],
        "capabilities": {},
        "noNewPrivileges": True,
    }
    process["env"] += [f"{name}={value}" for name, value in given.items()]
    config["root"]["readonly"] = True
    options = ["nosuid", "nodev", "mode=2777", f"gid={groups[0]}", "size=64m"]
    for mount in container["volumeMounts"]:
        made = {"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs", "options": options}
        config["mounts"].append(made)
    (bundle / "config.json").write_text(json.dumps(config))
    runc = ["runc", "--root", str(folder / "state")]
    name, log = f"jmp-test-{os.getpid()}", folder / "log"
    with log.open("w") as sink:
        command = [*runc, "run", "--bundle", str(bundle), name]
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, text=True)
    with started:
        try:
            wait_for(log, started, says)
            yield Container(name, runc, started, log)
        finally:
            subprocess.run([*runc, "delete", "--force", name], check=False, capture_output=True)


def test_every_role_runs_as_in_a_pod(archive: Path, tmp_path: Path) -> None:
    """The controller (and router) of the manifest; an exporter and a client beside it, in the same container."""
    pod = named("sqlite", "Deployment")["jmp-controller"]["spec"]["template"]["spec"]
    values = {"LAB_HOST": "localhost", "NAMESPACE": "jmp"}
    with running(archive, tmp_path, pod, values, "controller is ready at wss://localhost:443") as container:
        run = container.run
        assert run("id -u; id -g") == "65532\n65532\n"
        assert "Read-only file system" in run("touch /usr/x", expect=1)
        assert run("grep -E '^(CapEff|NoNewPrivs)' /proc/self/status") == "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n"
        [checked] = pod["containers"]
        ports = {port["name"]: port["containerPort"] for port in checked["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = checked[probe]["httpGet"]
            assert run(f"wget -q -O - http://127.0.0.1:{ports[asked['port']]}{asked['path']}") == "ok\n"
        assert run("ls -A /tmp") == "", "nothing had to be unpacked"
        # Within the cluster the Service leads from 443 to the container's port; here nobody does.
        run(f"sed s/localhost:443/localhost:{ports['wss']}/ /data/admin.join | sh && rm /data/admin.join")
        run("cd /tmp && jmp admin create exporter one >one.join && sh one.join && jmp admin create client al | sh")
        run("jmp exporter example virtual-board | sed 's/^  name: .*/  name: one/' >/tmp/one.yaml")
        run(
            "jmp exporter serve /tmp/one.yaml </dev/null >/tmp/one.log 2>&1 & until jmp get exporters | grep -q free; do :; done"
        )
        said = run("jmp shell --client al -l board=virtual -- sh -c 'j board power on && j board power state'")
        assert "on" in said.split()
        assert '"action": "acquire"' in container.log.read_text(), "the audit log is what the container prints"
        assert container.terminate() == 0


def test_two_archives_of_the_same_are_the_same(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    image.write_image(archive.with_name("packages.tar"), build.DIST / "jmp", again, ARCHITECTURE, "1.2")
    assert again.read_bytes() == archive.read_bytes()


def test_the_file_for_engines_says_the_same() -> None:
    def said(word: str) -> list[str]:
        return re.findall(rf"^{word} (.*)$", CONTAINERFILE, re.MULTILINE)

    assert said("USER") == [f"{image.USER}:{image.USER}"]
    assert [json.loads(text) for text in said("ENTRYPOINT")] == [list(image.ENTRY)]
    assert [dict(word.split("=") for word in text.split()) for text in said("ENV")] == [image.ENVIRONMENT]
    assert said("EXPOSE") == ["8080 8443"]
    assert said("CMD") == ['["--help"]']


def test_what_nobody_needs_is_not_there(archive: Path) -> None:
    zipapp = (build.DIST / "jmp").stat().st_size
    assert archive.stat().st_size < 30e6 + 2.5 * zipapp, "the system, the zipapp, and what its start would unpack"
    names = []
    with tarfile.open(archive) as outer:
        [index] = json.load(outer.extractfile("manifest.json"))  # type: ignore[arg-type]
        for name in index["Layers"]:
            with tarfile.open(fileobj=outer.extractfile(name), mode="r:gz") as layer:
                names += layer.getnames()
    assert not [name for name in names if image.is_unneeded(name)]
    assert "usr/local/bin/jmp" in names
    assert "usr/share/doc/libc6/copyright" in names
    assert "var/lib/dpkg/status.d/libc6" in names
