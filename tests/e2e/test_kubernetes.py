"""docs/kubernetes.md as it stands: dist/jmp, kubectl, a real API server; pods are processes."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

import build
from jmp.cli.install import SETTINGS
from tests.e2e.test_lab import place, run, server  # noqa: F401  # a fixture
from tests.fakes.kube import Cluster
from tests.fakes.kubelet import Kubelet, kubelet
from tests.fakes.ports import free_port

pytestmark = [pytest.mark.zipapp, pytest.mark.real]
TEXT = (build.ROOT / "docs/kubernetes.md").read_text()


def test_all_that_can_be_set_is_told() -> None:
    table = TEXT.partition("<!-- settings -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (?:`(.*?)`)? \| (.*) \|$", table, re.MULTILINE)
    assert rows == [(key, setting.default or "", setting.help) for key, setting in SETTINGS.items()]


def follow(block: str, pods: Kubelet) -> str:
    """Do what is said, line by line; the cluster runs what was installed."""
    said = ""
    for line in block.strip().splitlines():
        said += run(line).stdout
        if "admin install kubernetes" in line:
            pods.sync()
    return said


def test_as_it_stands(cluster: Cluster, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    cluster.shim(place.parent / "bin")
    said = ""
    with ExitStack() as stack:
        pods = stack.enter_context(kubelet(cluster, "jmp", free_port(), place.parent / "pods"))
        for language, block in re.findall(r"^```(sh|yaml)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
            first, _, rest = block.replace("lab.example", "localhost").partition("\n")
            if language == "yaml":
                (place / first.removeprefix("# ")).write_text(block)
            elif first == "# where jmp is built":
                assert re.findall(r"build\.py (\w+)", rest) == ["image"], "tests/e2e/test_image.py does that"
            elif first == "# the lab host":
                stack.enter_context(server(rest.strip(), place / "host.log", "exporter board1 serves"))
                run("until jmp get exporters | grep -q free; do :; done")
            elif first == "# in the job":
                job(cluster, place, rest)
            elif first == "# the move":
                pods.end()
                move(cluster, place, rest)
            else:
                said += follow(f"{first}\n{rest}", pods)
    assert re.search(r"devicelease.jmp.dev/nightly +ready +alice +board1", said)
    assert re.search(r"^exporter.jmp.dev/board1 ", said, re.MULTILINE), "its phase and lease may be some seconds late"
    assert "deployment.apps/jmp-controller configured" in said


def job(cluster: Cluster, place: Path, block: str) -> None:  # noqa: F811
    """The pod of job.yaml, which has no home of anybody's; its kubelet writes the token."""
    pod = yaml.safe_load((place / "job.yaml").read_text())["spec"]["template"]["spec"]
    [source] = pod["volumes"][0]["projected"]["sources"]
    audience = source["serviceAccountToken"]["audience"].replace("lab.example", "localhost")
    made = ("-n", "ci", "create", "token", pod["serviceAccountName"], f"--audience={audience}")
    (place / "token").write_text(cluster.kubectl(*made))
    mounted = f"{pod['containers'][0]['volumeMounts'][0]['mountPath']}/{source['serviceAccountToken']['path']}"
    login, _, rest = block.partition("\n")
    printed = (place / "builder.login").read_text()
    assert re.sub("[0-9a-f]{64}", "HEX", re.sub(r"localhost:\d+", "localhost:443", printed)) == f"{login}\n"
    home = place / "pod"
    home.mkdir()
    for line in (printed.replace(mounted, str(place / "token")), rest):
        run(f"export HOME={home} XDG_CONFIG_HOME={home}/config; {line}")
    assert "builder (client)" in run(f"XDG_CONFIG_HOME={home}/config jmp whoami").stdout


def move(cluster: Cluster, place: Path, block: str) -> None:  # noqa: F811
    """Its lab has been on a machine until now; here it gets a namespace of its own."""
    port = free_port()
    command = f"jmp controller serve --router --name localhost --data old --http none --listen 127.0.0.1:{port}"
    with server(command, place / "old.log", "Then these print"):
        run("sed 's/$/ --replace/' old/admin.join | sh")
        run("JMP_CLIENT_CONFIG=admin jmp admin create client olga > olga.join; sh olga.join")
    block = block.replace("/var/lib/jmp", "old").replace("--namespace jmp", "--namespace moved")
    block = block.replace("install kubernetes", "install kubernetes --set namespace=moved")
    with kubelet(cluster, "moved", port, place.parent / "moved") as pods:
        follow(block, pods)
        assert "olga" in run("jmp whoami --client olga").stdout
        assert run("JMP_CLIENT_CONFIG=admin jmp admin get clients -o name").stdout == "olga\n"
    assert not (place / "lab.jmp").exists()
