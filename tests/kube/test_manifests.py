"""deploy/kubernetes, on a real API server; and what those do not load who have no cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jmp.controller.kubernetes_keys import ROUTER
from jmp.controller.kubernetes_objects import definitions
from jmp.router.http import pages
from jmp.router.serve import Router
from tests.fakes.kube import Cluster

pytestmark = pytest.mark.real
DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
PRESENT = "1.37"
FOREIGN = ("gateway.networking.k8s.io/", "monitoring.coreos.com/")
"""What Kubernetes itself does not have."""
VARIANTS = {
    "sqlite": ("sqlite",),
    "replicated": ("replicated",),
    "sqlite, all": ("sqlite", "ingress/controller", "gateway/controller", "monitoring", "loadbalancer"),
    "replicated, all": (
        "replicated",
        *(
            "ingress/controller",
            "ingress/routers",
            "gateway/controller",
            "gateway/routers",
            "own-leases",
            "monitoring",
            "loadbalancer",
        ),
    ),
}
"""Overlays, by themselves and with all components that can be added to them."""
FULL = [name for name in VARIANTS if name.endswith("all")]


@cache
def rendered(variant: str) -> list[dict[str, Any]]:
    overlay, *components = VARIANTS[variant]
    with TemporaryDirectory() as folder:
        to = os.path.relpath(DEPLOY, os.path.realpath(folder))
        own = {
            "resources": [f"{to}/overlays/{overlay}"],
            "components": [f"{to}/components/{name}" for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(own))
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def named(variant: str, kind: str) -> dict[str, Any]:
    return {item["metadata"]["name"]: item for item in rendered(variant) if item["kind"] == kind}


def templates(variant: str) -> Iterator[dict[str, Any]]:
    for item in rendered(variant):
        if item["kind"] in ("Deployment", "StatefulSet"):
            assert (
                item["spec"]["selector"]["matchLabels"].items()
                <= item["spec"]["template"]["metadata"]["labels"].items()
            )
            yield item["spec"]["template"]


def test_all_there_is_is_tried() -> None:
    assert {path.name for path in (DEPLOY / "overlays").iterdir()} == {names[0] for names in VARIANTS.values()}
    components = {str(path.parent.relative_to(DEPLOY / "components")) for path in DEPLOY.rglob("components/**/kustom*")}
    assert components == {name for names in VARIANTS.values() for name in names[1:]}


def test_definitions_are_those_of_the_code() -> None:
    """After a change of a record: `python3 -m jmp.controller.kubernetes_objects` prints what is to be there."""
    assert list(yaml.safe_load_all((DEPLOY / "overlays/replicated/crds.yaml").read_text())) == definitions()


@pytest.mark.parametrize("variant", FULL)
def test_it_is_as_the_present_kubernetes_has_it(variant: str) -> None:
    for item in rendered(variant):
        if not item["apiVersion"].startswith(FOREIGN):
            kubernetes_validate.validate(item, PRESENT, strict=True)


@pytest.mark.parametrize("variant", FULL)
def test_server_accepts_it(cluster: Cluster, variant: str) -> None:
    items = [item for item in rendered(variant) if not item["apiVersion"].startswith(FOREIGN)]
    namespace = next(item for item in items if item["kind"] == "Namespace")
    cluster.kubectl("apply", "-f", "-", input=namespace)
    listed = {"apiVersion": "v1", "kind": "List", "items": cluster.known(items)}
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=listed)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_it_refers_to_is_there(variant: str) -> None:
    services, configs = named(variant, "Service"), named(variant, "ConfigMap")
    secrets = {ROUTER}  # a controller makes it
    pods = list(templates(variant))
    for template in pods:
        spec = template["spec"]
        assert spec["serviceAccountName"] in named(variant, "ServiceAccount")
        for volume in spec["volumes"]:
            assert volume.get("secret", {}).get("secretName", ROUTER) in secrets
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim is None or claim in named(variant, "PersistentVolumeClaim")
        for container in spec["containers"]:
            refers = [item["valueFrom"].get("configMapKeyRef") for item in container["env"] if "valueFrom" in item]
            assert all(ref is None or ref["key"] in configs[ref["name"]]["data"] for ref in refers)
            given = {item["name"] for item in container["env"]}
            used = {word.partition(")")[0] for text in container["args"] for word in text.split("$(")[1:]}
            assert used <= given
    for service in services.values():
        labels = {**service["spec"]["selector"]}
        labels.pop("statefulset.kubernetes.io/pod-name", None)  # the controller of StatefulSets gives it
        [template] = [template for template in pods if labels.items() <= template["metadata"]["labels"].items()]
        ports = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for item in (*named(variant, "PodDisruptionBudget").values(), *named(variant, "NetworkPolicy").values()):
        chosen = item["spec"].get("selector") or item["spec"]["podSelector"]
        assert any(chosen["matchLabels"].items() <= template["metadata"]["labels"].items() for template in pods)
    for ingress in named(variant, "Ingress").values():
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]["spec"]["ports"]}
    for route in named(variant, "TLSRoute").values():
        assert [parent["name"] for parent in route["spec"]["parentRefs"]] == [*named(variant, "Gateway")]
        [backend] = route["spec"]["rules"][0]["backendRefs"]
        assert backend["port"] in {port["port"] for port in services[backend["name"]]["spec"]["ports"]}
    for monitor in named(variant, "ServiceMonitor").values():
        [chosen] = monitor["spec"]["selector"]["matchExpressions"]
        found = [
            service
            for service in services.values()
            if service["metadata"].get("labels", {}).get(chosen["key"]) in chosen["values"]
        ]
        assert len(found) == len(pods)
        [port] = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
        assert all(port in {item["name"] for item in service["spec"]["ports"]} for service in found)


def test_each_router_has_an_address_of_its_own() -> None:
    """And it scales by a figure that it shows."""
    variant = "replicated, all"
    [scaler] = named(variant, "HorizontalPodAutoscaler").values()
    names = [f"jmp-router-{number}" for number in range(scaler["spec"]["maxReplicas"])]
    services = named(variant, "Service")
    assert [name for name in services if name.startswith("jmp-router-")] == names
    assert all(services[name]["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == name for name in names)
    [host] = [item["data"]["host"] for item in named(variant, "ConfigMap").values()]
    assert [rule["host"] for rule in named(variant, "Ingress")["jmp-router"]["spec"]["rules"]] == [
        f"{name}.{host}" for name in names
    ]
    routes = named(variant, "TLSRoute")
    assert [routes[name]["spec"]["hostnames"] for name in names] == [[f"{name}.{host}"] for name in names]
    assert routes["jmp-controller"]["spec"]["hostnames"] == [host]
    assert scaler["spec"]["scaleTargetRef"]["name"] in named(variant, scaler["spec"]["scaleTargetRef"]["kind"])
    [metric] = scaler["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in metrics_of_a_router()


def metrics_of_a_router() -> str:
    import trio

    return trio.run(pages(Router())["/metrics"]).body.decode()


def test_the_account_may_do_no_more(cluster: Cluster) -> None:
    access = cluster.namespace()
    account = ("--kubeconfig", str(cluster.account(access.namespace)), "--namespace", access.namespace)
    for verb, what in (
        ("get", "secret/other"),
        ("list", "secrets"),
        ("delete", "secret/jmp-keys"),
        ("list", "pods"),
        ("get", "configmaps"),
        ("create", "serviceaccounts/token"),
        ("list", "deviceleases --all-namespaces"),
        ("delete", "customresourcedefinitions"),
        ("patch", "clients"),
    ):
        assert cluster.kubectl(*account, "auth", "can-i", verb, *what.split(), check=False).strip() == "no", what
    assert (
        cluster.kubectl(*account, "auth", "can-i", "update", "deviceleases/l1", "--subresource=status").strip() == "yes"
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_pods_are_restricted(variant: str) -> None:
    for template in templates(variant):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"startupProbe", "livenessProbe", "readinessProbe", "resources"} <= container.keys()
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_nothing_of_it_is_loaded_where_it_is_not_needed() -> None:
    code = "import jmp.cli.controller, sys; print([name for name in sys.modules if 'kube' in name or 'httpx' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
