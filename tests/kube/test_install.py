"""``jmp admin install kubernetes``: what it prints, and what a real API server gets."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from jmp.cli.install import SETTINGS, customization, read_settings
from jmp.errors import UsageError
from tests.e2e.product import argv
from tests.fakes.kube import Cluster
from tests.fakes.lab import JMP
from tests.kube.test_manifests import rendered

pytestmark = pytest.mark.real
HOST = "host=lab.example"


def install(*settings: str, command: list[str] = JMP, **more: Any) -> subprocess.CompletedProcess[str]:
    options = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [*command, "admin", "install", "kubernetes", *options, *more.pop("options", ())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **more,
    )


def printed(*settings: str, **more: Any) -> list[dict[str, Any]]:
    done = install(HOST, *settings, options=("--dry-run",), **more)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def one(items: list[dict[str, Any]], kind: str) -> Any:
    [found] = [item for item in items if item["kind"] == kind]
    return found


@pytest.mark.parametrize(("store", "overlay"), [("kubernetes", "replicated"), ("sqlite", "sqlite")])
def test_it_prints_the_manifests_of_deploy(store: str, overlay: str) -> None:
    assert printed(f"store={store}") == rendered(overlay)


@pytest.mark.zipapp
def test_the_one_file_is_the_installer(tmp_path: Path) -> None:
    """In an empty folder, with an empty home, from dist/jmp alone."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SHIV_ROOT": os.environ.get("SHIV_ROOT", "")}
    assert printed(command=argv(), cwd=tmp_path, env=environment) == rendered("replicated")


def test_all_that_can_be_set_in_a_cluster() -> None:
    items = printed(
        *("namespace=hil", "image=registry.example:5000/lab/jmp:2.1", "pull-secret=pull", "replicas=5", "routers=3"),
        *("expose=gateway", "class=cilium", "monitoring=true", "own-leases=true"),
    )
    unbound = {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    unbound |= {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    namespaced = [item for item in items if item["kind"] not in unbound]
    assert {item["metadata"]["namespace"] for item in namespaced} == {"hil"}
    assert one(items, "Namespace")["metadata"]["name"] == "hil"
    assert one(items, "RoleBinding")["subjects"][0]["namespace"] == "hil"
    assert one(items, "ClusterRoleBinding")["subjects"][0]["namespace"] == "hil"
    assert one(items, "ClusterRoleBinding")["metadata"]["name"] == "jmp-token-reviewer-hil", "one for each lab"
    for kind in ("Deployment", "StatefulSet"):
        pod = one(items, kind)["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == "registry.example:5000/lab/jmp:2.1"
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert one(items, "Deployment")["spec"]["replicas"] == 5
    assert one(items, "HorizontalPodAutoscaler")["spec"]["minReplicas"] == 3
    assert one(items, "Gateway")["spec"]["gatewayClassName"] == "cilium"
    routes = [item["spec"]["hostnames"] for item in items if item["kind"] == "TLSRoute"]
    assert sorted(routes) == [[f"jmp-router-{number}.lab.example"] for number in range(4)] + [["lab.example"]]
    assert one(items, "ServiceMonitor")
    assert one(items, "ValidatingAdmissionPolicyBinding")


def test_all_that_can_be_set_for_one_machine() -> None:
    digest = "sha256:" + "0" * 64
    items = printed(
        "store=sqlite", f"image=jmp@{digest}", "storage=5Gi", "storage-class=fast", "expose=ingress", "class=x"
    )
    assert one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"] == f"jmp@{digest}"
    claim = one(items, "PersistentVolumeClaim")["spec"]
    assert (claim["resources"]["requests"]["storage"], claim["storageClassName"]) == ("5Gi", "fast")
    ingress = one(items, "Ingress")["spec"]
    assert (ingress["ingressClassName"], ingress["rules"][0]["host"]) == ("x", "lab.example")
    items = printed("store=sqlite", "replicas=0", "expose=loadbalancer", "host=10.0.0.7")
    assert one(items, "Deployment")["spec"]["replicas"] == 0
    assert one(items, "ConfigMap")["data"] == {"host": "10.0.0.7"}
    types = {item["metadata"]["name"]: item["spec"].get("type") for item in items if item["kind"] == "Service"}
    assert types == {"jmp-controller": "LoadBalancer", "jmp-controller-metrics": None}


def test_no_setting_is_without_effect() -> None:
    other = {
        "host": "a.b",
        "image": "i:1",
        "pull-secret": "p",
        "namespace": "n",
        "store": "sqlite",
        "replicas": "7",
        "routers": "1",
        "expose": "ingress",
        "class": "c",
        "storage": "2Gi",
        "storage-class": "s",
        "own-leases": "true",
        "monitoring": "true",
    }
    needs = {"class": ["expose=ingress"], "storage": ["store=sqlite"], "storage-class": ["store=sqlite"]}
    assert other.keys() == SETTINGS.keys()
    for key, value in other.items():
        before = [HOST, *needs.get(key, [])]
        assert customization(read_settings([*before, f"{key}={value}"])) != customization(read_settings(before)), key


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hots=x"], "--set hots: there is no such setting (did you mean 'host'?)"),
        (["replica=3"], "(did you mean 'replicas'?)"),
        (["host"], "--set 'host' is not KEY=VALUE"),
        ([], "--set host=lab.example"),
        (["host=Lab_1"], "--set host=Lab_1: it has to be a name of small letters, digits, - and ."),
        ([HOST, "replicas=many"], "a number from 0 to 99"),
        ([HOST, "routers=9"], "a number from 1 to 4"),
        ([HOST, "image=jmp"], "NAME:TAG or NAME@sha256:DIGEST"),
        ([HOST, "store=etcd"], "it has to be kubernetes or sqlite"),
        ([HOST, "storage=5Gi"], "--set storage is for store=sqlite, and this is store=kubernetes"),
        ([HOST, "store=sqlite", "replicas=2"], "one controller at most can use a store=sqlite"),
        (["host=10.0.0.7"], "a name is needed"),
        ([HOST, "expose=gateway"], "kubectl get gatewayclasses"),
        ([HOST, "class=x"], "--set class is for expose=ingress or expose=gateway"),
    ],
)
def test_what_cannot_be_is_told(given: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_settings(given)
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_bad_input_is_one_line() -> None:
    done = install("hots=x")
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == "jmp: --set hots: there is no such setting (did you mean 'host'?)\n"
    done = install(HOST, env={**os.environ, "PATH": ""})
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "kubectl is needed" in done.stderr


def test_a_cluster_gets_it(cluster: Cluster, tmp_path: Path) -> None:
    """And gets it again, changed. The kinds that the server is too old for are taken out on the way."""
    cluster.shim(tmp_path)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(cluster.kubeconfig)}
    name = cluster.namespace().namespace
    done = install(HOST, f"namespace={name}", env=environment)
    assert done.returncode == 0, done.stderr
    assert "deployment.apps/jmp-controller created" in done.stdout
    assert f"kubectl --namespace {name} get secret jmp-admin-join" in done.stderr
    done = install(HOST, f"namespace={name}", "replicas=4", env=environment, options=("--context", "test"))
    assert "deployment.apps/jmp-controller configured" in done.stdout
    assert "service/jmp-controller unchanged" in done.stdout
    assert f"kubectl --context test --namespace {name}" in done.stderr
    found = cluster.kubectl("-n", name, "get", "deployment/jmp-controller", "-o", "jsonpath={.spec.replicas}")
    assert found == "4"
    done = install(HOST, f"namespace={name}", env=environment, options=("--context", "nowhere"))
    assert done.returncode == 69
    assert done.stderr.endswith("jmp: kubectl could not apply all of it; what it has said above tells why\n")
