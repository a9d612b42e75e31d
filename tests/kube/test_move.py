"""A lab that is brought from a machine to a cluster and back, with those who belong to it; all of them processes."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.kube import Cluster
from tests.fakes.lab import JMP, ServedLab, served_lab

pytestmark = pytest.mark.real


def shown(lab: ServedLab, user: str, *arguments: str) -> Any:
    return json.loads(lab.ok(user, *arguments, "-o", "json"))


def history(lab: ServedLab) -> dict[str, tuple[str, str]]:
    return {
        row["id"]: (row["state"], row["reason"]) for row in shown(lab, "admin", "lease", "list", "--all", "--ended")
    }


def until_one_is(lab: ServedLab, state: str) -> None:
    while [row["state"] for row in shown(lab, "alice", "get", "exporters")] != [state]:
        pass


def use(lab: ServedLab, lease: str) -> str:
    """The device, held by a lease of alice's."""
    return lab.ok("alice", "shell", "--lease", lease, "--", "j", "power", "state")


def move(lab: ServedLab, source: list[str], target: list[str], start: list[str]) -> Path:
    """Have a lab kept elsewhere from now on."""
    file = lab.directory / "lab.jmp"
    lab.stop()
    lab.ok("root", "admin", "export", str(file), "--with-keys", *source)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    done = lab.run("root", "admin", "import", str(file), *target)
    assert done.returncode == 0, done.stderr
    assert "and its keys" in done.stderr
    lab.where = start
    lab.start()
    return file


def test_to_a_cluster_and_back(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.namespace().namespace
    cloud = ["--store", "kubernetes", "--namespace", namespace]
    as_admin = [*cloud, "--kubeconfig", str(cluster.kubeconfig)]
    as_itself = [*cloud, "--kubeconfig", str(cluster.account(namespace))]
    with served_lab(tmp_path) as lab:
        lab.add_client("alice", "--label", "team=x")
        lab.add_client("bob")
        lab.add_exporter("one")
        [bobs] = [row["id"] for row in shown(lab, "admin", "admin", "get", "tokens") if row["subject"] == "bob"]
        lab.ok("admin", "admin", "revoke", "token", bobs)
        lab.ok("admin", "admin", "create", "policy", "long", "--longest", "4h")
        ended = acquire(lab)
        lab.ok("alice", "lease", "release", ended)
        held = acquire(lab)
        queued = [acquire(lab, "--detach") for _ in range(3)]
        before = history(lab)
        start = [*as_itself, "--data", str(tmp_path / "replica"), "--replica", "a", "--router-url", lab.url]
        file = move(lab, lab.where, as_admin, start)

        # Everybody comes back by themselves, with the tokens that they have; what waits keeps its order.
        until_one_is(lab, "leased")
        assert history(lab) == before
        use(lab, held)
        lab.ok("alice", "lease", "extend", held, "10m")
        assert lab.run("bob", "whoami").returncode == 77
        lab.ok("alice", "lease", "release", held)
        for lease in queued[:2]:
            lab.ok("alice", "lease", "wait", lease)
            use(lab, lease)
            lab.ok("alice", "lease", "release", lease)
        lab.ok("alice", "lease", "wait", queued[2])
        found = json.loads(cluster.kubectl("-n", namespace, "get", "exporter/one", "-o", "json"))
        assert found["status"]["epoch"] == 5, "each grant has raised it, here as there"
        before = history(lab)

        # It is not brought to where there is one.
        done = lab.run("root", "admin", "import", str(file), *as_admin)
        assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
        assert "there is another lab already" in done.stderr

        home = ["--data", str(tmp_path / "again")]
        move(lab, as_admin, home, home)
        until_one_is(lab, "leased")
        assert history(lab) == before
        use(lab, queued[2])
        assert lab.run("bob", "whoami").returncode == 77
        lab.ok("alice", "lease", "release", queued[2])
        use(lab, acquire(lab))
        assert [row["name"] for row in shown(lab, "admin", "admin", "get", "policies")] == ["default", "long"]
        [alice] = [row for row in shown(lab, "admin", "admin", "get", "clients") if row["name"] == "alice"]
        assert alice["labels"] == {"team": "x"}


def acquire(lab: ServedLab, *options: str) -> str:
    return lab.ok("alice", "lease", "acquire", "-l", "board=mock", *options).strip()


def test_without_its_keys_everybody_joins_anew(cluster: Cluster, tmp_path: Path) -> None:
    namespace = cluster.namespace().namespace
    there = ["--store", "kubernetes", "--namespace", namespace, "--kubeconfig", str(cluster.kubeconfig)]
    file = str(tmp_path / "lab.jmp")
    with served_lab(tmp_path) as lab:
        lab.add_client("alice")
        done = lab.run("root", "admin", "export", file, *lab.where)
        assert "what it does from now on is not in the file" in done.stderr
        assert "PRIVATE" not in Path(file).read_text()
        done = lab.run("root", "admin", "import", file, *there)
        assert done.returncode == 0
        assert "its 2 tokens are left out, and everybody joins anew" in done.stderr
        lab.stop()
        lab.where = [*there, "--data", str(tmp_path / "replica"), "--router-url", lab.url]
        lab.start()
        assert lab._controller is not None
        lab._controller.until("This is its first start")
        done = lab.run("alice", "whoami")
        assert done.returncode != 0
    assert cluster.kubectl("-n", namespace, "get", "clients", "-o", "name") == "client.jmp.dev/alice\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["export", "lab.jmp", "--data", "none"], 69, "there is no lab in none"),
        (["import", "none.jmp"], 78, "none.jmp cannot be read: No such file"),
        (["import", "wrong.jmp"], 78, "wrong.jmp is not what jmp admin export writes"),
        (["export", "lab.jmp", "--store", "etcd"], 64, "sqlite"),
        (["export", "lab.jmp", "--store", "kubernetes", "--kubeconfig", "none"], 78, "none cannot be read"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    (tmp_path / "wrong.jmp").write_text("[]\n")
    done = subprocess.run(
        [*JMP, "admin", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert said in done.stderr
