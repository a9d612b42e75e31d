"""``jmp get|create|update|delete``: the same as ``jmp lease`` and ``jmp admin``, in kubectl's order of words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.fakes.lab import PATIENCE, ServedLab, served_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLab]:
    with served_lab(tmp_path_factory.mktemp("lab")) as lab:
        lab.add_client("alice")
        lab.add_exporter("widget", board="v2")
        yield lab


def test_a_lease_from_its_creation_to_its_end(lab: ServedLab) -> None:
    id = lab.ok("alice", "create", "lease", "--selector", "board=v2", "--duration", "20m").strip()
    assert lab.ok("alice", "get", "leases", "-o", "name") == f"{id}\n"
    for row in (lab.ok("alice", "get", "lease", id), lab.ok("alice", "get", "leases", "-l", "board=v2")):
        assert row.split("\t")[:4] == [id, "ready", "alice", "widget"]  # then how long it has left, which goes on
    assert lab.ok("alice", "get", "leases", "-l", "board=v3") == ""
    assert json.loads(lab.ok("alice", "get", "lease", id, "-o", "json"))["id"] == id
    assert [row["id"] for row in yaml.safe_load(lab.ok("alice", "get", "leases", "-o", "yaml"))] == [id]
    assert lab.ok("admin", "get", "leases", "-A", "-o", "name") == f"{id}\n"

    longer = lab.ok("alice", "update", "lease", id, "--for", "1h")
    assert re.fullmatch(f"lease {id} of alice: widget, ready, (1h|59m.*) left\n", longer), longer
    assert lab.ok("alice", "update", "lease", id, "--for", "1h", "-o", "name") == f"{id}\n"
    done = lab.run("alice", "update", "lease", id, "--for", "10m")
    assert (done.returncode, f"lease {id} is for 1h, and can only be made longer" in done.stderr) == (64, True)

    assert lab.run("alice", "delete", "leases", id).stderr == f"released {id}: widget\n"
    lab.once("alice", "get", "exporters", says="widget\tfree\t.*")  # it has been cleaned up
    assert lab.run("alice", "get", "leases").stderr == "you have no leases; jmp lease list --all lists everybody's\n"
    assert "released by alice" in lab.ok("alice", "get", "leases", "--ended")


def test_exporters_are_for_everybody(lab: ServedLab) -> None:
    assert lab.ok("alice", "get", "exporters") == "widget\tfree\t\tboard=v2\n"
    wide = lab.ok("alice", "get", "exporters", "-l", "board in (v1,v2)", "-o", "wide").rstrip("\n").split("\t")
    assert wide[:4] == ["widget", "free", "", "board=v2"]
    assert len(wide) == 7
    done = lab.run("alice", "get", "exporters", "-l", "board=v3")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no exporter matches board=v3\n")
    shown = yaml.safe_load(lab.ok("alice", "get", "exporter", "widget", "-o", "yaml"))
    assert set(shown["tree"]["children"]) == {"power"}
    done = lab.run("alice", "get", "exporter", "gadget")
    assert (done.returncode, "there is no exporter 'gadget'" in done.stderr) == (64, True)


def test_clients_and_policies_by_an_admin(lab: ServedLab) -> None:
    for order in (["create", "{}"], ["admin", "create", "{}"]):
        create = [word.format("client") for word in order]
        delete = [word.format("client").replace("create", "delete") for word in order]
        command = lab.ok("admin", *create, "zoe", "--label", "team=qa")
        assert re.fullmatch(
            r"JMP_TOKEN=\S+ jmp config client create zoe --endpoint \S+ --ca-fingerprint \w{64}\n", command
        )
        lab.ok("admin", "update", "clients", "zoe", "--label", "floor=3")
        assert lab.ok("admin", "get", "clients", "-l", "floor") == "zoe\tenabled\t\tfloor=3,team=qa\n"
        assert lab.run("admin", *delete, "zoe").stderr == "client zoe is deleted\n"
    lab.ok("admin", "create", "policy", "qa", "--clients", "team=qa", "--longest", "2h")
    lab.ok("admin", "update", "policy", "qa", "--priority", "3")
    assert lab.ok("admin", "get", "policy", "qa") == "qa\tteam=qa\tall\tlease, see\t2h\t3\n"
    lab.ok("admin", "delete", "policies", "qa")
    assert "admin/admin" in lab.ok("admin", "get", "tokens")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["get", "lease5"], 64, "a lab has no 'lease5' (did you mean 'leases'?)"),
        (["get", "exporters", "--ended"], 64, "--all, --ended and --tag are for leases, not for exporters"),
        (["get", "clients"], 77, "alice is no admin of the lab"),
        (["get", "exporters", "-l", "a=("], 64, "selector 'a=('"),
        (["create", "lease"], 64, "which device?"),
        (["create", "client", "x"], 77, "alice is no admin of the lab"),
        (["create", "thing"], 64, "No such command 'thing'"),
        (["update", "lease", "x"], 64, "nothing to change was given"),
        (["delete", "lease"], 64, "which lease?"),
    ],
)
def test_what_is_wrong_is_one_line(lab: ServedLab, arguments: list[str], code: int, said: str) -> None:
    done = lab.run("alice", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def on_tab(lab: ServedLab, user: str, typed: str) -> str:
    """What fish is told, however long the lab takes."""
    code = "import jmp.cli.completion as it; it.LAB_SECONDS = 60.0; from jmp.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "completion", "fish", "--line", typed],
        env=lab.environment(user),
        cwd=lab.directory,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize(
    ("user", "typed", "offered"),
    [
        ("alice", "jmp shell --name ", ["widget"]),
        ("alice", "jmp lease acquire -l x=y,b", ["x=y,board=v2"]),
        ("alice", "jmp get exporters w", ["widget"]),
        ("admin", "jmp admin delete client a", ["alice"]),
        ("alice", "jmp admin delete client a", []),  # for admins only, and nobody wants to read that here
        ("admin", "jmp config client use ", ["admin"]),
    ],
)
def test_tab_offers_what_there_is(lab: ServedLab, user: str, typed: str, offered: list[str]) -> None:
    assert [line.partition("\t")[0] for line in on_tab(lab, user, typed).splitlines()] == offered


def test_tab_offers_ones_leases(lab: ServedLab) -> None:
    id = lab.ok("alice", "lease", "acquire", "--name", "widget").strip()
    assert on_tab(lab, "alice", "jmp lease extend ") == f"{id}\twidget\n"
    lab.ok("alice", "lease", "release", id)
