"""What docs/operations.md says is to be done with a lab, done while it is in use."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.lab import Program, ServedLab, served_lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ServedLab]:
    with served_lab(tmp_path) as made:
        made.add_client("alice")
        yield made


@pytest.fixture
def exporter(lab: ServedLab) -> Program:
    return lab.add_exporter("solo")


def use(lab: ServedLab) -> None:
    """Somebody leases the device, uses it and gives it back."""
    assert lab.ok("alice", "shell", "--name", "solo", "--", "j", "power", "state") == "off\n"


def test_a_store_is_backed_up_and_restored_under_a_running_exporter(lab: ServedLab, exporter: Program) -> None:
    data, copy = lab.directory / "data", lab.directory / "copy"
    lab.ok("controller", "controller", "backup", str(copy), "--data", str(data))
    kept = lab.ok("alice", "lease", "acquire", "--name", "solo", "--context", "job=17", "--tag", "night").strip()
    exporter.until(rf"lease {kept} of alice begins job=17 exporter=solo tags=night")  # says what it is for
    lab.kill()
    for name in ("lab.db-wal", "lab.db-shm"):
        (data / name).unlink(missing_ok=True)
    shutil.copy(copy, data / "lab.db")
    lab.start()
    exporter.until("its store was restored from an old copy")
    exporter.until(f"lease {kept} of alice ends: ")
    use(lab)  # above the epoch that the copy did not know of
    done = lab.run("alice", "lease", "show", kept)
    assert (done.returncode, f"there is no lease '{kept}'" in done.stderr) == (64, True)


def test_keys_and_tokens_are_replaced_while_a_device_is_in_use(lab: ServedLab, exporter: Program) -> None:
    lease = lab.ok("alice", "lease", "acquire", "--name", "solo").strip()
    lab.ok("admin", "admin", "rotate", "key")
    assert lab.ok("alice", "shell", "--lease", lease, "--", "j", "power", "on") == ""
    made = lab.ok("admin", "admin", "rotate", "token", "exporter/solo")
    exporter.until("no controller: the token was revoked")
    lab.run_join("solo", made)
    exporter.until("connected to the controller")
    assert lab.ok("alice", "shell", "--lease", lease, "--", "j", "power", "state") == "on\n"
    lab.run_join("alice", lab.ok("admin", "admin", "rotate", "token", "client/alice"))
    assert lab.ok("alice", "shell", "--lease", lease, "--", "j", "power", "state") == "on\n"
    tokens = json.loads(lab.ok("admin", "admin", "get", "tokens", "-o", "json"))
    assert len([token for token in tokens if token["revoked"]]) == 2, tokens


def test_a_controller_that_is_stopped_says_so(lab: ServedLab, exporter: Program) -> None:
    os.kill(lab.pid, signal.SIGTERM)
    exporter.until("no controller: .*1001 the controller is stopping.*; trying again")


def test_a_new_ca_is_trusted_by_those_who_join_again_only(lab: ServedLab, exporter: Program) -> None:
    lab.kill()
    for name in ("ca-with-key.pem", "server.pem"):
        (lab.directory / "data" / name).unlink()
    lab.start()
    exporter.until("no controller: the server's certificate is not trusted")
    done = lab.run("alice", "whoami")
    assert (done.returncode, done.stderr.count("\n"), "is not trusted" in done.stderr) == (77, 1, True)
    for user in ("alice", "admin"):
        assert lab.run(user, "login", "--ca-fingerprint", lab.fingerprint).returncode == 0
    lab.run_join("solo", lab.ok("admin", "admin", "rotate", "token", "exporter/solo"))
    exporter.until("connected to the controller")
    use(lab)
