"""A real Kubernetes API server with its etcd, for tests. Nothing else of a cluster runs: no pods, and nobody who cleans up."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from jmp.controller.kubernetes_api import Access, find_access
from jmp.controller.kubernetes_objects import definitions
from tests.fakes.ports import reserved_ports

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jmp", "kube")
PATIENCE = 240.0
LATER = ("policy/v1", "autoscaling/v2", "admissionregistration.k8s.io/v1")
"""What the API server that we build is too old for."""
_numbers = itertools.count(1)


def programs() -> Path:
    """The folder with kube-apiserver and etcd: that of $KUBEBUILDER_ASSETS, or one of ours, made if it is missing."""
    given = os.environ.get("KUBEBUILDER_ASSETS")
    if given:
        return Path(given)
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (CACHE / "kube-apiserver").exists():
            subprocess.run([ROOT / "tests" / "kube" / "build_apiserver.sh", CACHE], check=True)
    return CACHE


class Cluster:
    """An API server; made by :func:`cluster`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kubeconfig = directory / "kubeconfig"
        self._programs = programs()
        self._stack = ExitStack()
        self._ports = self._stack.enter_context(reserved_ports(3))
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start both, or the one that is not there, and wait until they answer."""
        etcd, peer, port = self._ports
        directory = self.directory
        client_url, peer_url = f"http://127.0.0.1:{etcd}", f"http://127.0.0.1:{peer}"
        if self._etcd is None:
            arguments = {
                "data-dir": directory / "etcd",
                "name": "test",
                "listen-client-urls": client_url,
                "advertise-client-urls": client_url,
                "listen-peer-urls": peer_url,
                "initial-advertise-peer-urls": peer_url,
                "initial-cluster": f"test={peer_url}",
            }
            self._etcd = self._run("etcd", "--unsafe-no-fsync", *_flags(arguments))
        key = directory / "sa.key"
        if not key.exists():
            private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (directory / "tokens.csv").write_text('admintoken,admin,admin-uid,"system:masters"\n')
        arguments = {
            "etcd-servers": client_url,
            "bind-address": "127.0.0.1",
            "advertise-address": "127.0.0.1",
            "secure-port": port,
            "cert-dir": directory / "certificates",
            "service-cluster-ip-range": "10.0.0.0/24",
            "authorization-mode": "RBAC",
            "token-auth-file": directory / "tokens.csv",
            "service-account-issuer": "https://kubernetes.default.svc",
            "api-audiences": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "endpoint-reconciler-type": "none",
        }
        version = subprocess.run([self._programs / "kube-apiserver", "--version"], capture_output=True, text=True)
        if "v1.20." in version.stdout:
            arguments["insecure-port"] = 0
        self._api = self._run("kube-apiserver", *_flags(arguments))
        self.kubeconfig.write_text(yaml.safe_dump(self._config(port, {"token": "admintoken"})))
        deadline = time.monotonic() + PATIENCE
        while self.kubectl("get", "--raw", "/readyz", check=False) != "ok":
            assert self._api.poll() is None, (directory / "kube-apiserver.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the API server does not get ready"
            select_nothing(0.1)

    def _config(self, port: int, user: dict[str, Any]) -> dict[str, Any]:
        authority = str(self.directory / "certificates" / "apiserver.crt")
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {
                    "name": "test",
                    "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": authority},
                }
            ],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "user"}}],
            "current-context": "test",
        }

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{program}.log").open("ab") as log:
            return subprocess.Popen([self._programs / program, *arguments], stdout=log, stderr=log)

    def kill_api(self) -> None:
        """Kill the API server; what it has acknowledged is in etcd."""
        assert self._api is not None
        self._api.send_signal(signal.SIGKILL)
        self._api.wait()

    def stop(self) -> None:
        """End both."""
        with self._stack:
            for process in (self._api, self._etcd):
                if process is not None:
                    process.kill()
                    process.wait()

    # ---- its users

    def kubectl(self, *arguments: str, input: Any = None, check: bool = True) -> str:
        """What kubectl prints; ``input`` is what it is to apply."""
        text = None if input is None else json.dumps(input)
        command = ["kubectl", "--kubeconfig", str(self.kubeconfig), "--cache-dir", str(self.directory / "cache")]
        done = subprocess.run([*command, *arguments], input=text, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout or done.stderr

    def namespace(self) -> Access:
        """A namespace of one's own, and the right to do everything in it."""
        name = f"lab-{os.getpid()}-{next(_numbers)}"
        self.kubectl("create", "namespace", name)
        return find_access(self.kubeconfig, name)

    def account(self, namespace: str) -> Path:
        """A kubeconfig of the controller's service account there, with the rights that it is deployed with."""
        name = "jmp-controller"
        self.kubectl("-n", namespace, "create", "serviceaccount", name)
        rights = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/overlays/replicated/rbac.yaml").read_text()))
        for right in rights:
            for subject in right.get("subjects", ()):
                subject["namespace"] = namespace
            if right["kind"] == "ClusterRoleBinding":
                right["metadata"]["name"] += f"-{namespace}"
        self.kubectl("-n", namespace, "apply", "-f", "-", input={"apiVersion": "v1", "kind": "List", "items": rights})
        return self.kubeconfig_of(namespace, name)

    def kubeconfig_of(self, namespace: str, name: str) -> Path:
        """A kubeconfig of a service account that is there."""
        token = self.kubectl("-n", namespace, "create", "token", name, "--duration=2h").strip()
        config = self._config(self._ports[2], {"token": token})
        config["contexts"][0]["context"]["namespace"] = namespace
        path = self.directory / f"{namespace}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def shim(self, folder: Path) -> None:
        """Puts a ``kubectl`` into ``folder`` that does not apply the kinds for which this server is too old."""
        real = shutil.which("kubectl")
        shim = folder / "kubectl"
        shim.write_text(
            f"#!{sys.executable}\n"
            "import subprocess, sys, yaml\n"
            f"sys.path[:0] = {sys.path!r}\n"
            "from tests.fakes.kube import without_later\n"
            f"command, given = [{real!r}, *sys.argv[1:]], None\n"
            "if 'apply' in command and '-' in command:\n"
            "    items = list(yaml.safe_load_all(sys.stdin))\n"
            f"    given = yaml.safe_dump_all(without_later(items) if {self.is_old} else items)\n"
            "sys.exit(subprocess.run(command, input=given, text=True).returncode)\n"
        )
        shim.chmod(0o755)

    @property
    def is_old(self) -> bool:
        """Whether it is the one that we build."""
        return '"v1.20' in self.kubectl("version", "-o", "json")

    def known(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What it knows of this."""
        return without_later(items) if self.is_old else items


def without_later(items: Any) -> Any:
    """Manifests without what the API server that we build is too old for."""
    if isinstance(items, list):
        return [without_later(one) for one in items if not (isinstance(one, dict) and one.get("apiVersion") in LATER)]
    if isinstance(items, dict):
        return {key: without_later(one) for key, one in items.items() if key != "x-kubernetes-validations"}
    return items


def select_nothing(seconds: float) -> None:
    """Let a little time pass for a process that has no way to tell that it is ready."""
    import select

    select.select([], [], [], seconds)


def _flags(arguments: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in arguments.items()]


@contextmanager
def cluster(directory: Path) -> Iterator[Cluster]:
    """A cluster that knows our kinds, for the length of a block."""
    made = Cluster(directory)
    try:
        made.start()
        listed = {"apiVersion": "v1", "kind": "List", "items": made.known(definitions())}
        made.kubectl("apply", "-f", "-", input=listed)
        made.kubectl("wait", "--for=condition=Established", "crd", "--all", f"--timeout={PATIENCE:g}s")
        shutil.rmtree(directory / "cache")  # kubectl would not ask again for what there is
        yield made
    finally:
        made.stop()
