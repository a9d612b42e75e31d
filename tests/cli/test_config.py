"""``jmp config`` and ``jmp whoami``, at a real controller."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.fakes.lab import JMP, PATIENCE, ServedLab, served_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLab]:
    with served_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture
def joining(lab: ServedLab, request: pytest.FixtureRequest) -> dict[str, str]:
    """A client of the test's own that has not joined yet: its name, its token and what else it needs to."""
    name = "-".join(re.findall("[a-z]+", request.node.name))
    made: dict[str, str] = json.loads(lab.ok("admin", "admin", "create", "client", name, "-o", "json"))
    return made


def arguments(made: dict[str, str]) -> list[str]:
    return ["--endpoint", made["endpoint"], "--ca-fingerprint", made["ca_fingerprint"]]


def folder(lab: ServedLab, user: str) -> Path:
    return lab.directory / "home" / user / "config" / "jmp"


def test_joining_says_who_one_is_and_keeps_it_to_oneself(lab: ServedLab, joining: dict[str, str]) -> None:
    name = joining["name"]
    done = lab.run(name, "config", "client", "create", name, *arguments(joining), JMP_TOKEN=joining["token"])
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"you are {name} (client) at {lab.url}, kept as {name}\n"
    for file in (folder(lab, name) / "clients").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert lab.ok(name, "whoami").startswith(
        f"{name} (client) at {lab.url}; the token expires in 36"
    )  # days, to the second
    assert json.loads(lab.ok(name, "whoami", "-o", "json"))["role"] == "client"


def test_a_file_that_others_can_read_is_made_private(lab: ServedLab, joining: dict[str, str]) -> None:
    name = joining["name"]
    lab.ok(name, "config", "client", "create", name, *arguments(joining), JMP_TOKEN=joining["token"])
    file = folder(lab, name) / "clients" / f"{name}.yaml"
    file.chmod(0o644)
    done = lab.run(name, "whoami")
    assert (done.returncode, done.stderr.count("\n"), "the secret in it may be known" in done.stderr) == (0, 1, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_first_lab_is_in_use_until_another_is_chosen(lab: ServedLab, joining: dict[str, str]) -> None:
    user, token = "several", joining["token"]
    lab.ok(user, "config", "client", "create", "one", *arguments(joining), JMP_TOKEN=token)
    done = lab.run(user, "config", "client", "create", "two", *arguments(joining), JMP_TOKEN=token)
    assert "one stays in use; to use this one: jmp config client use two" in done.stderr

    def marked() -> dict[str, bool]:
        rows = json.loads(lab.ok(user, "config", "client", "list", "-o", "json"))
        return {row["name"]: row["current"] for row in rows}

    assert marked() == {"one": True, "two": False}
    assert lab.run(user, "config", "client", "use", "two").stderr == f"two is in use now, for the lab at {lab.url}\n"
    assert marked() == {"one": False, "two": True}
    assert lab.ok(user, "config", "client", "show", "-o", "name") == "two\n"
    lab.ok(user, "config", "client", "delete", "two")
    assert marked() == {"one": True}
    done = lab.run(user, "config", "client", "use", "tow")
    assert (done.returncode, done.stderr) == (64, "jmp: there is no client configuration 'tow' (known: one)\n")


def test_a_listing_tells_no_token(lab: ServedLab, joining: dict[str, str]) -> None:
    name, token = joining["name"], joining["token"]
    lab.ok(name, "config", "client", "create", name, *arguments(joining), JMP_TOKEN=token)
    (folder(lab, name) / "clients" / "broken.yaml").write_text("apiVersion: jmp/v1\nkind: Client\ntoken: " + token)
    for form in ("table", "json", "yaml", "name"):
        for command in ("list", "show"):
            done = lab.run(name, "config", "client", command, *([name] if command == "show" else []), "-o", form)
            assert done.returncode == 0
            assert name in done.stdout
            assert token not in done.stdout + done.stderr
            assert token.split(".")[2] not in done.stdout + done.stderr
            if command == "list":
                assert "broken.yaml:" in done.stderr


def test_the_environment_alone_will_do(lab: ServedLab, joining: dict[str, str], tmp_path: Path) -> None:
    lab.ok("file", "config", "client", "create", "x", *arguments(joining), JMP_TOKEN=joining["token"])
    ca = folder(lab, "file") / "clients" / "x.ca.pem"
    environment = {"JMP_ENDPOINT": lab.url, "JMP_TOKEN": joining["token"], "JMP_CA": str(ca)}
    assert lab.ok("nobody", "whoami", "-o", "name", **environment) == f"{joining['name']}\n"
    listed = lab.run("nobody", "config", "client", "list", **environment)
    assert "JMP_ENDPOINT and JMP_TOKEN are set: they are used" in listed.stderr
    assert lab.ok("nobody", "config", "client", "show", **environment).startswith("name\tenvironment\n")


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_the_token_may_come_from_a_file(lab: ServedLab, joining: dict[str, str], tmp_path: Path, way: str) -> None:
    file = tmp_path / "token"
    file.write_text(joining["token"] + "\n")
    source = "-" if way == "standard input" else str(file)
    create = ["config", "client", "create", "x", "--replace", *arguments(joining), "--token-file", source]
    assert lab.run(f"by {way}", *create, input=file.read_text()).returncode == 0


def test_what_is_wrong_is_said_and_nothing_is_kept(lab: ServedLab, joining: dict[str, str], tmp_path: Path) -> None:
    token = joining["token"]
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "bad.pem").write_text("nothing")
    admin = json.loads(lab.ok("admin", "admin", "create", "exporter", "wrong-kind", "-o", "json"))["token"]
    forged = f"{token[:-6]}AAAAAA"
    endpoint, fingerprint = ["--endpoint", lab.url], ["--ca-fingerprint", joining["ca_fingerprint"]]
    cases: list[tuple[list[str], str, int, str]] = [
        ([*endpoint, *fingerprint], "", 64, "a token is needed: in JMP_TOKEN"),
        ([*endpoint, *fingerprint, "--token-file", "/nowhere"], "", 78, "cannot be read from /nowhere"),
        ([*endpoint, *fingerprint, "--token-file", str(tmp_path / "empty")], "", 78, "empty holds no token"),
        ([*endpoint, *fingerprint], "nonsense", 77, "this is no token"),
        ([*endpoint, *fingerprint], forged, 77, "signature is wrong"),
        ([*endpoint, *fingerprint], admin, 77, "for exporter wrong-kind, not for a client: jmp config exporter create"),
        ([*endpoint, "--ca-fingerprint", "ab" * 32], token, 77, f"its fingerprint is {joining['ca_fingerprint']}"),
        ([*endpoint, "--ca-fingerprint", "abc"], token, 64, "is not a SHA-256 fingerprint"),
        ([*endpoint, *fingerprint, "--ca", "x"], token, 64, "--ca-fingerprint and --ca are two ways"),
        ([*endpoint, "--ca", "/nowhere"], token, 78, "/nowhere cannot be read"),
        ([*endpoint, "--ca", str(tmp_path / "bad.pem")], token, 78, "CA certificates"),
        (endpoint, token, 77, "certificate is not trusted"),
        (["--endpoint", "http://x"], token, 64, "http://x"),
        (["--endpoint", "wss://localhost:1", *fingerprint], token, 69, "cannot reach wss://localhost:1"),
    ]
    for more, secret, code, said in cases:
        done = lab.run("unlucky", "config", "client", "create", "x", *more, JMP_TOKEN=secret)
        assert (done.returncode, said in done.stderr) == (code, True), (more, done.stderr)
        assert done.stderr.count("\n") == 1
        assert not secret or secret not in done.stderr
    assert not list(folder(lab, "unlucky").rglob("*"))
    done = lab.run("unlucky", "whoami")
    assert (done.returncode, "no lab is configured" in done.stderr) == (64, True)


def test_another_labs_configuration_is_not_overwritten_unasked(lab: ServedLab, joining: dict[str, str]) -> None:
    user, create = "careful", ["config", "client", "create", "x"]
    lab.ok(user, *create, *arguments(joining), JMP_TOKEN=joining["token"])
    lab.ok(user, *create, *arguments(joining), JMP_TOKEN=joining["token"])  # the same lab: a new token, say
    other = ["--endpoint", lab.url.replace("localhost", "127.0.0.1"), "--ca-fingerprint", joining["ca_fingerprint"]]
    done = lab.run(user, *create, *other, JMP_TOKEN=joining["token"])
    assert done.returncode == 64
    assert f"x is in another lab already ({lab.url}): take another name, or add --replace" in done.stderr
    lab.ok(user, *create, *other, "--replace", JMP_TOKEN=joining["token"])


def test_a_token_is_renewed_by_whom_it_is_for(lab: ServedLab, joining: dict[str, str]) -> None:
    name = joining["name"]
    lab.ok(name, "config", "client", "create", name, *arguments(joining), JMP_TOKEN=joining["token"])
    first = json.loads(lab.ok(name, "whoami", "-o", "json"))["token"]
    assert "expires in 36" in lab.run(name, "config", "client", "renew").stderr
    assert json.loads(lab.ok(name, "whoami", "-o", "json"))["token"] != first


def test_an_exporter_is_told_how_to_go_on(lab: ServedLab) -> None:
    name = "bench"
    said = lab.run_join(name, lab.ok("admin", "admin", "create", "exporter", name))
    assert f"exporter {name} is in the lab at {lab.url}. Serve it:\n\n  jmp exporter serve {name}\n" in said
    commands = [line for line in said.splitlines() if line.startswith("  ")][1:]
    jmp = f'jmp() {{ {shlex.join(JMP)} "$@"; }}\n'
    script = jmp + "\n".join(commands) + f"\njmp exporter check {name}"
    subprocess.run(
        ["sh", "-ec", script], env=lab.environment(name), stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True
    )
    assert lab.ok(name, "config", "exporter", "list", "-o", "name") == f"{name}\n"
    again = lab.run_join(name, lab.ok("admin", "admin", "rotate", "token", f"exporter/{name}"))
    assert "no configuration" not in again
    lab.ok(name, "config", "exporter", "renew", name)
    lab.ok(name, "config", "exporter", "delete", name)
    assert "has joined a lab" in lab.run(name, "config", "exporter", "list").stderr


# ---- login and logout


def test_login_takes_what_the_admin_prints_and_uses_that_lab(lab: ServedLab, joining: dict[str, str]) -> None:
    user, name = "logging in", joining["name"]
    done = lab.run(user, "login", *arguments(joining), JMP_TOKEN=joining["token"])
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"you are {name} (client) at {lab.url}, kept as {name}\n"
    by_input = lab.run(user, "login", "second", *arguments(joining), "--token-file", "-", input=joining["token"] + "\n")
    assert by_input.returncode == 0
    assert lab.ok(user, "config", "client", "show", "-o", "name") == "second\n"
    done = lab.run(user, "logout")
    assert (done.returncode, done.stderr) == (0, f"second is forgotten; {name} is in use now\n")
    assert lab.ok(user, "whoami", "-o", "name") == f"{name}\n"
    done = lab.run(user, "logout", name)
    assert (done.returncode, done.stderr) == (0, f"{name} is forgotten\n")
    assert not list((folder(lab, user) / "clients").iterdir())
    done = lab.run(user, "logout")
    assert (done.returncode, done.stderr) == (64, "jmp: you are in no lab\n")


def test_login_gives_the_lab_in_use_a_new_token(lab: ServedLab, joining: dict[str, str], tmp_path: Path) -> None:
    user, file = "new token", folder(lab, "new token") / "clients" / "x.yaml"
    lab.ok(user, "login", "x", *arguments(joining), JMP_TOKEN=joining["token"])
    fresh = json.loads(lab.ok("admin", "admin", "create", "client", "successor", "-o", "json"))["token"]
    (tmp_path / "token").write_text(fresh)
    done = lab.run(user, "login", "--token-file", str(tmp_path / "token"))
    assert (done.returncode, done.stderr) == (0, f"you are successor (client) at {lab.url}, kept as x\n")
    assert fresh in file.read_text()
    assert lab.ok(user, "whoami", "-o", "name") == "successor\n"


def test_one_that_cannot_be_read_can_be_forgotten(lab: ServedLab, joining: dict[str, str]) -> None:
    user = "broken"
    lab.ok(user, "login", "x", *arguments(joining), JMP_TOKEN=joining["token"])
    (folder(lab, user) / "clients" / "x.yaml").write_text("kind: [")
    lab.ok(user, "logout", "x")
    assert not list((folder(lab, user) / "clients").iterdir())


def test_login_says_what_is_missing_and_keeps_what_there_is(lab: ServedLab, joining: dict[str, str]) -> None:
    user, token = "no login", joining["token"]
    cases: list[tuple[list[str], str, int, str]] = [
        ([], token, 64, "which lab? jmp login --endpoint"),
        (["nope"], token, 64, "which lab? jmp login --endpoint"),
        (arguments(joining), "", 64, "a token is needed: in JMP_TOKEN"),
        (arguments(joining), "nonsense", 77, "this is no token"),
        (["--endpoint", lab.url], token, 77, "certificate is not trusted"),
        (["a/b", *arguments(joining)], token, 64, "'a/b' is no name"),
    ]
    for more, secret, code, said in cases:
        done = lab.run(user, "login", *more, JMP_TOKEN=secret)
        assert (done.returncode, said in done.stderr) == (code, True), (more, done.stderr)
        assert done.stderr.count("\n") == 1
        assert not secret or secret not in done.stderr
    assert not list(folder(lab, user).rglob("*"))


def test_login_asks_for_the_token_unseen(lab: ServedLab, joining: dict[str, str]) -> None:
    command = shlex.join([*JMP, "login", *arguments(joining)])
    child = pexpect.spawn(
        "sh", ["-c", command], env=dict(lab.environment("typist")), encoding="utf-8", timeout=PATIENCE
    )
    try:
        child.expect_exact("token: ")
        child.sendline(joining["token"])
        child.expect_exact(f"you are {joining['name']} (client)")
        assert joining["token"] not in str(child.before)
        child.expect(pexpect.EOF)
    finally:
        child.close(force=True)
