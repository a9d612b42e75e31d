"""``jmp admin``, at a real controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fakes.lab import ServedLab, served_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLab]:
    with served_lab(tmp_path_factory.mktemp("lab")) as lab:
        lab.add_client("carol")
        admin(lab, "create", "exporter", "bench", "--label", "rack=a", "--description", "On the left")
        yield lab


def admin(lab: ServedLab, *arguments: str) -> str:
    return lab.ok("admin", "admin", *arguments)


def got(lab: ServedLab, *arguments: str) -> Any:
    return json.loads(admin(lab, "get", *arguments, "-o", "json"))


def test_what_is_created_is_listed_and_its_token_only_told_once(lab: ServedLab) -> None:
    done = lab.run("admin", "admin", "create", "client", "dora", "--label", "team=ci", "--token-days", "7")
    assert done.stderr.startswith("client dora is created\n")
    assert "told only now and expires in 6d 23h" in done.stderr or "expires in 7d" in done.stderr
    assert done.stdout.startswith("JMP_TOKEN=ey")
    assert done.stdout.count("\n") == 1
    token = done.stdout.split()[0].removeprefix("JMP_TOKEN=")
    assert got(lab, "client", "dora")["labels"] == {"team": "ci"}
    assert [row["name"] for row in got(lab, "clients", "-l", "team in (ci, qa)")] == ["dora"]
    ids = [row["id"] for row in got(lab, "tokens") if row["subject"] == "dora"]
    assert len(ids) == 1
    for form in ("table", "wide", "json", "yaml", "name"):
        listed = admin(lab, "get", "tokens", "-o", form)
        assert ids[0] in listed
        assert token not in listed
    assert lab.ok("admin", "admin", "create", "client", "emil", "-o", "name") == "emil\n"


def test_labels_of_an_exporter(lab: ServedLab) -> None:
    done = lab.run("admin", "admin", "update", "exporter", "bench", "--label", "rack-", "--label", "board=rpi4")
    assert (done.returncode, done.stderr) == (0, "exporter bench is changed\n")
    shown = got(lab, "exporters", "bench")
    assert (shown["labels"], shown["description"], shown["state"]) == ({"board": "rpi4"}, "On the left", "offline")
    assert admin(lab, "get", "exporters") == "bench\toffline\t\tboard=rpi4\n"
    assert admin(lab, "get", "exporters", "-l", "board=rpi5") == ""


def test_a_policy_has_all_its_fields(lab: ServedLab) -> None:
    done = lab.run(
        *("admin", "admin", "create", "policy", "ci", "--clients", "team=ci", "--exporters", "board"),
        *("--longest", "4h", "--priority", "10", "--allow", "power.*", "--allow", "console.*", "--deny", "storage.*"),
        *("--package", "jmp-drivers", "--manage", "--no-see"),
    )
    assert done.returncode == 0
    assert "policy default still lets every client use every exporter" in done.stderr
    expected = {
        "name": "ci",
        "clients": "team=ci",
        "exporters": "board",
        "lease": True,
        "see": False,
        "manage": True,
        "priority": 10,
        "longest": 14400.0,
        "allow": ["power.*", "console.*"],
        "deny": ["storage.*"],
        "packages": ["jmp-drivers"],
    }
    shown = got(lab, "policy", "ci")
    assert {key: shown[key] for key in expected} == expected
    admin(lab, "update", "policy", "ci", "--longest", "any", "--package", "any", "--no-manage", "--clients", "")
    shown = got(lab, "policy", "ci")
    changed = {"longest": None, "packages": None, "manage": False, "clients": ""}
    assert {key: shown[key] for key in expected} == {**expected, **changed}
    assert "ci\tall\tboard\tlease\tany\t10\n" in admin(lab, "get", "policies")
    admin(lab, "delete", "policy", "ci")
    assert "ci" not in [row["name"] for row in got(lab, "policies")]


def test_a_disabled_client_is_told_why(lab: ServedLab) -> None:
    lab.add_client("frank")
    admin(lab, "disable", "client", "frank", "--reason", "left the company")
    assert "frank\tdisabled\tleft the company\t\n" in admin(lab, "get", "clients")
    done = lab.run("frank", "whoami")
    assert (done.returncode, "client frank is disabled: left the company" in done.stderr) == (77, True), done.stderr
    admin(lab, "enable", "client", "frank")
    assert lab.ok("frank", "whoami", "-o", "name") == "frank\n"


def test_rotation_ends_what_was_before_and_keep_does_not(lab: ServedLab) -> None:
    lab.add_client("grete")
    kept = admin(lab, "rotate", "token", "client/grete", "--keep")
    assert lab.ok("grete", "whoami", "-o", "name") == "grete\n"
    lab.run_join("grete at home", kept)
    rotated = admin(lab, "rotate", "token", "client/grete")
    for user in ("grete", "grete at home"):
        done = lab.run(user, "whoami")
        assert (done.returncode, "the token was revoked" in done.stderr) == (77, True), done.stderr
    lab.run_join("grete", rotated)
    assert lab.ok("grete", "whoami", "-o", "name") == "grete\n"
    states = [
        line.split("\t")[2]
        for line in admin(lab, "get", "tokens").splitlines()
        if line.split("\t")[1] == "client/grete"
    ]
    assert sorted(states) == ["good", "revoked", "revoked"]


def test_an_admin_does_not_lock_himself_out(lab: ServedLab) -> None:
    lab.run_join("second", admin(lab, "create", "admin", "second"))
    done = lab.run("second", "admin", "rotate", "token", "admin/second")
    id = json.loads(lab.ok("second", "whoami", "-o", "json"))["token"]
    assert f"when you have joined anew: jmp admin revoke token {id}" in done.stderr
    lab.run_join("second", done.stdout)
    lab.ok("second", "admin", "revoke", "token", id)
    assert lab.ok("second", "whoami", "-o", "name") == "second\n"


def test_tokens_stay_good_when_the_key_is_rotated(lab: ServedLab) -> None:
    assert "the lab signs with key" in lab.run("admin", "admin", "rotate", "key").stderr
    assert lab.ok("carol", "whoami", "-o", "name") == "carol\n"
    lab.add_client("hanna")
    assert lab.ok("hanna", "whoami", "-o", "name") == "hanna\n"


def test_a_deleted_client_is_gone(lab: ServedLab) -> None:
    lab.add_client("ida")
    id = lab.ok("ida", "lease", "acquire", "--name", "bench", "--at", "+1h", "--detach").strip()
    done = lab.run("admin", "admin", "delete", "client", "ida", "nobody")
    assert done.returncode == 64
    said = f"client ida is deleted\nlease {id} of ida ends with it\njmp: there is no client 'nobody'"
    assert done.stderr.startswith(said)
    assert lab.run("ida", "whoami").returncode == 77


def test_a_client_is_no_admin(lab: ServedLab) -> None:
    for arguments in (["get", "tokens"], ["create", "client", "x"], ["delete", "exporter", "x"], ["rotate", "key"]):
        done = lab.run("carol", "admin", *arguments)
        assert done.returncode == 77
        assert done.stderr == f"jmp: carol is no admin of the lab at {lab.url}, and only an admin may do that\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "client", "carol"], 64, "there is a client 'carol' already"),
        (["create", "exporter", "bench"], 64, "there is an exporter 'bench' already"),
        (["create", "client", "a/b"], 64, "'a/b' is no name"),
        (["create", "client", "x", "--label", "a"], 64, "--label takes NAME=VALUE, not 'a'"),
        (["create", "client", "x", "--label", "a=/"], 64, "'/' is no value for label a"),
        (["create", "client", "x", "--token-days", "9999"], 64, "9999.0 is not in the range 0.001<=x<=3650"),
        (["create", "policy", "x", "--clients", "a=="], 0, ""),
        (["create", "policy", "y", "--clients", "a=("], 64, "selector 'a=(', character 3"),
        (["create", "policy", "y", "--deny", "power on"], 64, "'power on' is no pattern of methods"),
        (["create", "policy", "y", "--longest", "4"], 64, "'4' is no duration"),
        (["create", "token", "carol"], 64, "whose token? client/NAME"),
        (["create", "token", "client/nobody"], 64, "there is no client 'nobody'"),
        (["rotate", "token", "client/nobody"], 64, "there is no token of client/nobody to rotate"),
        (["revoke", "token", "nope"], 64, "there is no token 'nope'"),
        (["update", "client", "carol"], 64, "nothing to change was given"),
        (["update", "client", "carl", "--label", "a=b"], 64, "did you mean 'carol'?"),
        (["disable", "exporter", "x"], 64, "Missing option '--reason'"),
        (["get", "leases"], 64, "a lab has no 'leases'"),
        (["get", "clients", "carl"], 64, "did you mean 'carol'?"),
        (["get", "tokens", "-l", "a=b"], 64, "tokens have no labels"),
        (["get", "clients", "-l", "a=("], 64, "selector"),
    ],
)
def test_what_is_wrong_is_one_line(lab: ServedLab, arguments: list[str], code: int, said: str) -> None:
    done = lab.run("admin", "admin", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    if code:
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
        assert "x" not in [row["name"] for row in got(lab, "clients")]


def test_a_router_gets_its_command(lab: ServedLab) -> None:
    command = admin(lab, "create", "router", "north")
    assert "jmp router serve --name north" in command
    assert [row["id"] for row in got(lab, "tokens") if row["subject"] == "north"]
