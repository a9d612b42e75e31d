"""``jmp admin install``: put a lab's server where it shall run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Annotated, Any, Final

import typer

import jmp
from jmp.cli import output
from jmp.cli.typed import new_app
from jmp.errors import ConfigError, LabError, UsageError

app = new_app("Put a lab's server where it shall run.")

MOST_ROUTERS: Final = 4
"""As many as there are Services for them in the manifests."""
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Setting:
    """What can be set by ``--set``."""

    default: str | None
    help: str
    check: Callable[[str], bool]
    shape: str
    """What a value has to be."""


def _one_of(*values: str) -> tuple[Callable[[str], bool], str]:
    return (lambda value: value in values), " or ".join(values)


def _number(least: int, most: int) -> tuple[Callable[[str], bool], str]:
    return (lambda value: value.isdecimal() and least <= int(value) <= most), f"a number from {least} to {most}"


def _is_name(value: str) -> bool:
    return len(value) < 254 and all(_LABEL.fullmatch(label) for label in value.split("."))


def _is_address(value: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


_NAME: Final = (_is_name, "a name of small letters, digits, - and .")

SETTINGS: Final[Mapping[str, Setting]] = {
    "host": Setting(
        None, "by which clients and exporters reach the lab, at port 443; routers are jmp-router-N below it", *_NAME
    ),
    "image": Setting(
        f"jmp:{jmp.__version__}",
        "of jmp, as build.py image makes it: NAME:TAG or NAME@DIGEST",
        lambda value: re.fullmatch(r"[^\s:@]+(:\d+/[^\s:@]+)?(:[\w.-]+|@sha256:[0-9a-f]{64})", value) is not None,
        "NAME:TAG or NAME@sha256:DIGEST",
    ),
    "pull-secret": Setting("", "Secret to get the image with", *_NAME),
    "namespace": Setting(
        "jmp",
        "of all that is installed",
        lambda value: _LABEL.fullmatch(value) is not None,
        "a name of letters, digits, -",
    ),
    "store": Setting("kubernetes", "where records are kept: kubernetes or sqlite", *_one_of("kubernetes", "sqlite")),
    "replicas": Setting("3", "controllers; 1 with sqlite, 0 for none at present", *_number(0, 99)),
    "routers": Setting(
        "2", f"of {MOST_ROUTERS}, that there are at least; with sqlite the controller is it", *_number(1, MOST_ROUTERS)
    ),
    "expose": Setting(
        "none",
        "by ingress, gateway or loadbalancer; none: you do that yourself",
        *_one_of("none", "ingress", "gateway", "loadbalancer"),
    ),
    "class": Setting("", "of the ingress or gateway (a gateway needs one)", *_NAME),
    "storage": Setting(
        "1Gi",
        "of the volume, with sqlite",
        lambda value: re.fullmatch(r"\d+(Ki|Mi|Gi|Ti|k|M|G|T)?", value) is not None,
        "a size such as 1Gi",
    ),
    "storage-class": Setting("", "of the volume, with sqlite", *_NAME),
    "own-leases": Setting(
        "false",
        "true refuses leases that kubectl makes for another client than the pod's own (Kubernetes 1.30)",
        *_one_of("true", "false"),
    ),
    "monitoring": Setting("false", "true adds a ServiceMonitor for the Prometheus operator", *_one_of("true", "false")),
}
_OF_STORE: Final = {"routers": "kubernetes", "own-leases": "kubernetes", "storage": "sqlite", "storage-class": "sqlite"}


def settings_help() -> str:
    """What ``--help`` and the documentation say of ``--set``."""
    width = max(map(len, SETTINGS)) + 2
    lines = []
    for key, setting in SETTINGS.items():
        default = f" (default: {setting.default})" if setting.default else ""
        text = f"{setting.help}{default}"
        lines.append(fill(text, 76, initial_indent=f"{key:{width}}", subsequent_indent=" " * width))
    return "\n".join(lines)


@app.callback()
def install() -> None:
    """Put a lab's server where it shall run."""


@app.command(
    "kubernetes",
    epilog="What can be set:\n\n\b\n" + settings_help(),
)
def kubernetes(
    given: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="See below; host is needed. Repeatable.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the manifests, and change nothing.")] = False,
    context: Annotated[
        str | None, typer.Option(metavar="NAME", help="The cluster, by kubectl's context (default: the present one).")
    ] = None,
) -> int:
    """Install a lab's server in a Kubernetes cluster by kubectl, or change one that is there."""
    import subprocess

    values = read_settings(given or [])
    manifests = render(values)
    if dry_run:
        sys.stdout.write(manifests)
        return 0
    kubectl = ("kubectl", *(("--context", context) if context else ()))
    done = subprocess.run([*kubectl, "apply", "-f", "-"], input=manifests, text=True)
    if done.returncode:
        raise LabError("kubectl could not apply all of it; what it has said above tells why")
    output.note(_next_steps(values, " ".join(kubectl)))
    return 0


def read_settings(given: list[str]) -> dict[str, str]:
    """All settings, as given or by default. Raises ``UsageError``."""
    from jmp.driver.schema import did_you_mean

    values = {key: setting.default for key, setting in SETTINGS.items()}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(f"--set {item!r} is not KEY=VALUE")
        if key not in SETTINGS:
            raise UsageError(f"--set {key}: there is no such setting{did_you_mean(key, list(SETTINGS))}")
        if not SETTINGS[key].check(value):
            raise UsageError(f"--set {key}={value}: it has to be {SETTINGS[key].shape}")
        values[key] = value
    store, own = values["store"], {item.partition("=")[0] for item in given}
    for key, needed in _OF_STORE.items():
        if key in own and store != needed:
            raise UsageError(f"--set {key} is for store={needed}, and this is store={store}")
    if values["host"] is None:
        raise UsageError("by which name do clients and exporters reach the lab? --set host=lab.example")
    if store == "sqlite":
        values["replicas"] = values["replicas"] if "replicas" in own else "1"
        if values["replicas"] not in ("0", "1"):
            raise UsageError("one controller at most can use a store=sqlite; store=kubernetes is for several")
    if _is_address(values["host"]) and (store != "sqlite" or values["expose"] in ("ingress", "gateway")):
        raise UsageError(
            f"--set host={values['host']}: a name is needed, as what is on port 443 is told apart by names"
        )
    if values["expose"] == "gateway" and not values["class"]:
        raise UsageError("which gateway? --set class=NAME, one of: kubectl get gatewayclasses")
    if values["class"] and values["expose"] not in ("ingress", "gateway"):
        raise UsageError("--set class is for expose=ingress or expose=gateway")
    return {key: value or "" for key, value in values.items()}


def render(values: Mapping[str, str]) -> str:
    """The manifests, made by kubectl of those in deploy/kubernetes. Raises ``ConfigError``, ``LabError``."""
    import shutil
    import subprocess
    from importlib.resources import as_file, files
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import yaml

    if shutil.which("kubectl") is None:
        raise ConfigError("kubectl is needed to install in Kubernetes, and there is none on the PATH")
    with TemporaryDirectory(prefix="jmp-") as folder, as_file(files("jmp") / "manifests") as manifests:
        shutil.copytree(manifests, Path(folder, "jmp"))
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(customization(values), sort_keys=False))
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"kubectl cannot make the manifests: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def customization(values: Mapping[str, str]) -> dict[str, Any]:
    """The kustomization that makes of the manifests (in ``jmp``) what was asked for."""
    store, expose = values["store"], values["expose"]
    overlay = {"kubernetes": "replicated", "sqlite": "sqlite"}[store]
    components = []
    if expose == "loadbalancer":
        components.append("loadbalancer")
    elif expose != "none":
        components += [f"{expose}/controller", *([f"{expose}/routers"] if store == "kubernetes" else [])]
    components += [name for name in ("own-leases", "monitoring") if values[name] == "true"]
    patches: list[tuple[str, str, Any]] = []
    if store == "kubernetes":
        patches.append(("HorizontalPodAutoscaler", "/spec/minReplicas", int(values["routers"])))
        patches.append(("ClusterRoleBinding", "/metadata/name", f"jmp-token-reviewer-{values['namespace']}"))
    else:
        patches.append(("PersistentVolumeClaim", "/spec/resources/requests/storage", values["storage"]))
        if values["storage-class"]:
            patches.append(("PersistentVolumeClaim", "/spec/storageClassName", values["storage-class"]))
    if values["pull-secret"]:
        secrets = [{"name": values["pull-secret"]}]
        patches.append(("Deployment|StatefulSet", "/spec/template/spec/imagePullSecrets", secrets))
    if values["class"]:
        kind, path = {"ingress": ("Ingress", "ingressClassName"), "gateway": ("Gateway", "gatewayClassName")}[expose]
        patches.append((kind, f"/spec/{path}", values["class"]))
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": values["namespace"],
        "resources": [f"jmp/overlays/{overlay}"],
        "components": [f"jmp/components/{name}" for name in components],
        "configMapGenerator": [{"name": "jmp", "behavior": "merge", "literals": [f"host={values['host']}"]}],
        "images": [{"name": "jmp", **_image(values["image"])}],
        "replicas": [{"name": "jmp-controller", "count": int(values["replicas"])}],
        "patches": [
            {
                "target": {"kind": kind},
                "patch": output.data([{"op": "add", "path": path, "value": value}], "yaml"),
                "options": {"allowNameChange": True},
            }
            for kind, path, value in patches
        ],
    }


def _image(image: str) -> dict[str, str]:
    name, at, digest = image.partition("@")
    if at:
        return {"newName": name, "digest": digest}
    name, _, tag = image.rpartition(":")
    return {"newName": name, "newTag": tag}


def _next_steps(values: Mapping[str, str], kubectl: str) -> str:
    """How to become the admin of what was installed."""
    inside = f"{kubectl} --namespace {values['namespace']}"
    if values["replicas"] == "0":
        return "No controller runs: what belongs to a lab can be brought there (jmp admin import), then install again."
    join = {
        "kubernetes": f"{inside} get secret jmp-admin-join -o jsonpath='{{.data.join}}' | base64 -d | sh",
        "sqlite": f"{inside} exec deployment/jmp-controller -- cat /data/admin.join | sh",
    }[values["store"]]
    remove = {
        "kubernetes": f"{inside} delete secret jmp-admin-join",
        "sqlite": f"{inside} exec deployment/jmp-controller -- rm /data/admin.join",
    }[values["store"]]
    return (
        f"When it runs, whoever shall administer it becomes that, and removes the secret:\n\n"
        f"  {inside} rollout status deployment/jmp-controller\n  {join}\n  {remove}\n\n"
        f"{values['host']} has to lead there at port 443, with TLS passed through"
        + (f"; jmp-router-N.{values['host']}, too." if values["store"] == "kubernetes" else ".")
    )
