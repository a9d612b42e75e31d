"""deploy/kubernetes, on a real API server; and what those do not load who have no cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jmp.controller.kubernetes_objects import definitions
from tests.fakes.kube import Cluster

pytestmark = pytest.mark.real
DEPLOY = Path(__file__).parents[2] / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
LATER = {"policy/v1"}
"""What the API server that we build is too old for."""


def rendered(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        ["kubectl", "kustomize", DEPLOY / "overlays" / overlay], capture_output=True, text=True, check=True
    )
    return list(yaml.safe_load_all(done.stdout))


def test_definitions_are_those_of_the_code() -> None:
    """After a change of a record: `python3 -m jmp.controller.kubernetes_objects` prints what is to be there."""
    assert list(yaml.safe_load_all((DEPLOY / "overlays/replicated/crds.yaml").read_text())) == definitions()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_server_accepts_it(cluster: Cluster, overlay: str) -> None:
    items = rendered(overlay)
    namespace = next(item for item in items if item["kind"] == "Namespace")
    cluster.kubectl("apply", "-f", "-", input=namespace)
    version = cluster.kubectl("version", "-o", "json")
    known = [item for item in items if item["apiVersion"] not in LATER or '"v1.20' not in version]
    cluster.kubectl("apply", "--dry-run=server", "-f", "-", input={"apiVersion": "v1", "kind": "List", "items": known})


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


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    for item in rendered(overlay):
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                mounted = {mount["name"] for mount in container["volumeMounts"]}
                assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_nothing_of_it_is_loaded_where_it_is_not_needed() -> None:
    code = "import jmp.cli.controller, sys; print([name for name in sys.modules if 'kube' in name or 'httpx' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
