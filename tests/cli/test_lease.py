"""``jmp lease``, with a real controller and real exporters."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.lab import JMP, ServedLab, served_lab
from tests.fakes.terminal import Terminal


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedLab]:
    with served_lab(tmp_path_factory.mktemp("lab")) as lab:
        lab.add_client("alice")
        lab.add_client("bob")
        lab.add_exporter("red", board="pair")
        lab.add_exporter("blue", board="pair")
        lab.add_exporter("solo", board="solo")
        yield lab


@pytest.fixture(autouse=True)
def _all_released(lab: ServedLab) -> Iterator[None]:
    yield
    lab.release_all()


def acquire(lab: ServedLab, user: str, *arguments: str) -> str:
    """A lease's id, as ``lease=$(jmp lease acquire …)`` gets it."""
    out = lab.ok(user, "lease", "acquire", *arguments)
    assert out.count("\n") == 1
    return out.strip()


def shown(lab: ServedLab, user: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.ok(user, "lease", "show", id, "-o", "json"))
    return found


def test_only_the_id_is_on_standard_output(lab: ServedLab) -> None:
    done = lab.run("alice", "lease", "acquire", "-l", "board=solo", "--for", "10m", "--tag", "ci", "--context", "job=5")
    id = done.stdout.strip()
    assert done.stdout == f"{id}\n"
    assert re.search(f"lease {id}: solo for (10m|[1-9]m \\d+s)\n$", done.stderr), done.stderr
    assert lab.ok("alice", "lease", "list").split("\t")[:4] == [id, "ready", "alice", "solo"]
    assert lab.ok("alice", "lease", "list", "--tag", "ci", "-o", "name") == f"{id}\n"
    assert lab.ok("alice", "lease", "list", "--tag-filter", "qa", "-o", "name") == ""
    lease = shown(lab, "alice", id)
    assert (lease["state"], lease["tags"], lease["context"]) == ("ready", ["ci"], {"job": "5"})
    assert lease["duration"] == 600.0
    assert lease["ends"].endswith("Z")
    details = dict(line.split("\t") for line in lab.ok("alice", "lease", "show", JMP_LEASE=id).splitlines())
    assert (details["id"], details["devices"]) == (id, "solo (ready)")


def test_next_in_line_sees_his_place_and_starts_when_the_device_is_released(lab: ServedLab) -> None:
    first = acquire(lab, "alice", "-l", "board=solo", "--for", "20m")
    with lab.program("bob", "lease", "acquire", "-l", "board=solo", "--for", "5m") as waiting:
        said = waiting.until(r"lease (\w+) \(board=solo\) is queued: number 1, expected to start in [12]\dm")
        assert lab.ok("bob", "lease", "list").split("\t")[:2] == [said[1], "queued"]
        assert re.search("alice has it for (20m|1[1-9]m)", lab.ok("bob", "lease", "why", "--name", "solo"))
        done = lab.run("alice", "lease", "release", first)
        assert done.stderr == f"released {first}: solo\n"
        code, out, err = waiting.finish()
    assert (code, out) == (0, f"{said[1]}\n")
    assert f"lease {said[1]}: solo for " in err
    assert "released by alice" in lab.ok("alice", "lease", "list", "--ended")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_request_is_taken_back_by_a_signal(lab: ServedLab, number: signal.Signals, code: int) -> None:
    acquire(lab, "alice", "-l", "board=solo")
    with lab.program("bob", "lease", "acquire", "-l", "board=solo") as waiting:
        id = waiting.until(r"lease (\w+) \(board=solo\) is queued: .*\n")[1]
        assert waiting.interrupt(number) == (code, "", f"lease {id} is released\n")
    assert lab.ok("bob", "lease", "list") == ""


def test_a_request_is_its_programs_until_the_lease_is_told(lab: ServedLab) -> None:
    """Tied in the queue, so that it ends with a program that is killed; what was told outlives its program."""
    first = acquire(lab, "alice", "-l", "board=solo")
    assert "tied" not in lab.ok("alice", "lease", "show", first)
    with lab.program("bob", "lease", "acquire", "-l", "board=solo") as waiting:
        id = waiting.until(r"lease (\w+) \(board=solo\) is queued: .*\n")[1]
        assert "tied\tyes" in lab.ok("bob", "lease", "show", id)
        lab.ok("alice", "lease", "release", first)
        assert waiting.finish()[:2] == (0, f"{id}\n")
    assert "tied" not in lab.ok("bob", "lease", "show", id)


def test_a_line_on_a_terminal_is_renewed(lab: ServedLab) -> None:
    first = acquire(lab, "alice", "-l", "board=solo", "--for", "20m")
    arguments = [*JMP, "lease", "acquire", "-l", "board=solo", "--for", "5m"]
    with Terminal(arguments, lab.environment("bob"), columns=100) as terminal:
        terminal.until("is queued: number 1, expected to start")
        lab.ok("alice", "lease", "release", first)
        terminal.until("solo for [1-5]m")
        assert terminal.end() == 0
        lines = [line.rstrip() for line in terminal.text.splitlines() if line.strip()]
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"lease {lines[1]}: solo for ")


def test_without_waiting_it_fails_and_says_where_to_look(lab: ServedLab) -> None:
    acquire(lab, "alice", "-l", "board=solo")
    done = lab.run("bob", "lease", "acquire", "-l", "board=solo", "--no-wait")
    assert (done.returncode, done.stdout) == (124, "")
    assert "nothing was free at once; jmp lease why -l 'board=solo' says what keeps each device" in done.stderr
    done = lab.run("bob", "lease", "acquire", "--name", "solo", "--wait", "1s")
    assert (done.returncode, done.stdout) == (124, "")
    assert "nothing was free within 1s" in done.stderr
    assert lab.ok("bob", "lease", "list") == ""


def test_several_devices_are_granted_together(lab: ServedLab) -> None:
    one = acquire(lab, "alice", "-l", "board=pair")
    detached = acquire(lab, "bob", "-l", "board=pair", "-l", "board=pair", "--detach")
    assert shown(lab, "bob", detached)["state"] == "queued"
    with lab.program("bob", "lease", "wait", detached) as waiting:
        waiting.until("is queued")
        lab.ok("alice", "lease", "release", one)
        assert waiting.finish()[:2] == (0, f"{detached}\n")
    held = {device["exporter"] for device in shown(lab, "bob", detached)["devices"]}
    assert held == {"red", "blue"}


UNEVEN = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {{name: {name}, labels: {{board: {board}}}}}
export: {{power: {{type: mock-power}}}}
hooks: {{beforeLease: {{script: 'test {name} = quick || sleep 1'}}}}
"""


def test_the_time_of_several_devices_begins_when_all_are_ready(lab: ServedLab) -> None:
    exporters = [lab.add_exporter(name, board="uneven", config=UNEVEN) for name in ("quick", "slow")]
    id = acquire(lab, "alice", "-l", "board=uneven", "-l", "board=uneven", "--for", "1s")
    ends = []
    for exporter in exporters:
        said = exporter.until(r"(\S+ [\d:]+,\d+) .*lease \w+ of alice ends: its time was over")
        ends.append(datetime.fromisoformat(said[1].replace(",", ".")).astimezone())
    ready = datetime.fromisoformat(shown(lab, "alice", id)["ready"])
    assert min(ends) >= ready + timedelta(seconds=0.95)
    for name in ("quick", "slow"):
        lab.ok("admin", "admin", "delete", "exporter", name)


def test_one_selector_and_one_name_are_one_device(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "-l", "board=pair", "--name", "blue")
    assert [device["exporter"] for device in shown(lab, "alice", id)["devices"]] == ["blue"]
    done = lab.run("alice", "lease", "acquire", "-l", "board=pair", "--name", "solo")
    assert (done.returncode, "it has board=solo" in done.stderr) == (64, True), done.stderr


def test_a_lease_is_extended_and_handed_over(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "-l", "board=solo", "--for", "10m")
    extended = lab.ok("alice", "lease", "extend", "5m", JMP_LEASE=id)
    assert re.fullmatch(f"lease {id} of alice: solo, ready, 1[1-5]m .*left\n", extended), extended
    done = lab.run("bob", "lease", "extend", id, "5m")
    assert (done.returncode, done.stderr) == (77, f"jmp: bob may not extend lease {id}, which is alice's\n")
    moved = lab.ok("alice", "lease", "transfer", id, "bob")
    assert re.fullmatch(f"lease {id} of bob: solo, ready, 1[1-5]m .*left\n", moved), moved
    assert lab.ok("alice", "lease", "list") == ""
    assert lab.ok("bob", "lease", "list", "-o", "name") == f"{id}\n"
    assert id in lab.ok("alice", "lease", "list", "--all", "-o", "name")


def test_leases_begin_later(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "-l", "board=solo", "--at", "+2h", "--detach")
    assert re.search(r"begins in (2h|1h 5\dm)", lab.ok("alice", "lease", "list"))
    assert shown(lab, "alice", id)["begin"] is not None


def test_why(lab: ServedLab) -> None:
    lab.ok("admin", "admin", "disable", "exporter", "red", "--reason", "new cable")
    rows = [line.split("\t") for line in lab.ok("bob", "lease", "why", "-l", "board=pair").splitlines()]
    lab.ok("admin", "admin", "enable", "exporter", "red")
    assert rows == [
        ["blue", "available", "it is free"],
        ["red", "disabled", "it is in maintenance: new cable"],
        ["solo", "mismatch", "not board=pair: it has board=solo"],
    ]


def test_leases_end_by_maintenance_that_cannot_wait(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "--name", "solo")
    done = lab.run("admin", "admin", "disable", "exporter", "solo", "--reason", "smoke")
    assert f"lease {id} of alice goes on; --now would have ended it" in done.stderr
    lab.ok("admin", "admin", "disable", "exporter", "solo", "--reason", "smoke", "--now")
    assert "solo was taken for maintenance: smoke" in shown(lab, "alice", id)["reason"]
    lab.ok("admin", "admin", "enable", "exporter", "solo")


def test_release_goes_on_whatever_happens_to_one(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "-l", "board=solo")
    done = lab.run("alice", "lease", "release", "nope", id)
    assert done.returncode == 64
    assert "there is no lease 'nope' of yours" in done.stderr
    assert f"released {id}: solo\n" in done.stderr
    again = lab.run("alice", "lease", "release", id)
    assert (again.returncode, again.stderr) == (0, f"{id} had ended already: released by alice\n")
    assert lab.run("alice", "lease", "release", "--all").stderr == "you have no leases\n"


def test_a_policy_is_heeded_and_said(lab: ServedLab) -> None:
    lab.ok("admin", "update", "policy", "default", "--longest", "30m")
    done = lab.run("alice", "lease", "acquire", "-l", "board=solo", "--for", "1h")
    assert (done.returncode, done.stderr) == (77, "jmp: alice may lease this for 30m at most, not for 1h\n")
    id = acquire(lab, "alice", "-l", "board=solo", "--for", "20m")
    assert lab.run("alice", "lease", "extend", id, "20m").returncode == 77
    lab.ok("admin", "update", "policy", "default", "--longest", "any")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["acquire"], 64, "which device? -l SELECTOR or --name EXPORTER says it"),
        (["acquire", "-l", "board=rpi9"], 64, "no exporter is board=rpi9"),
        (["acquire", "-l", "board="], 64, "no exporter is board="),
        (["acquire", "-l", "a=("], 64, "selector 'a=(', character 3"),
        (["acquire", "--name", "sole"], 64, "there is no exporter 'sole' (did you mean 'solo'?)"),
        (["acquire", "-l", "board", "--for", "10"], 64, "'10' is no duration"),
        (["acquire", "-l", "board", "--at", "noon"], 64, "'noon' is no time"),
        (["acquire", "-l", "board", "--at", "2020-01-01T00:00"], 64, "--at 2020-01-01T00:00 is over"),
        (["acquire", "-l", "board", "--tag", ""], 64, "a tag has one character at least"),
        (["acquire", "-l", "board", "--no-wait", "--wait", "1m"], 64, "--no-wait says what --wait"),
        (["acquire", "-l", "board", "--context", "x"], 64, "--context takes NAME=VALUE, not 'x'"),
        (["acquire", "-l", "board", "--priority", "5"], 77, "priority 5 is more than the policies let alice ask for"),
        (["acquire", "-l", "board", "--allow-disabled"], 77, "only one who manages an exporter"),
        (["show"], 64, "which lease? name one (jmp lease list shows yours), or set JMP_LEASE"),
        (["show", "nope"], 64, "there is no lease 'nope' of yours"),
        (["extend", "a", "b", "c"], 64, "a lease's id and a duration, such as 30m are expected"),
        (["list", "-o", "xml"], 64, "'xml' is not one of"),
        (["wait", "nope"], 64, "there is no lease 'nope' of yours"),
    ],
)
def test_what_is_wrong_is_one_line(lab: ServedLab, arguments: list[str], code: int, said: str) -> None:
    done = lab.run("alice", "lease", *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_an_admin_is_told_that_leases_are_for_clients(lab: ServedLab) -> None:
    done = lab.run("admin", "lease", "acquire", "-l", "board=solo")
    assert (done.returncode, "jmp admin create client NAME" in done.stderr) == (77, True)
    assert "an admin as such leases none" in lab.run("admin", "lease", "why").stderr


def test_waiting_outlives_the_controller(tmp_path: Path) -> None:
    with served_lab(tmp_path) as lab:
        lab.add_client("alice")
        lab.add_exporter("solo")
        first = acquire(lab, "alice", "--name", "solo")
        with lab.program("alice", "lease", "acquire", "--name", "solo") as waiting:
            id = waiting.until(r"lease (\w+) \(solo\) is queued: .*\n")[1]
            lab.kill()
            waiting.until("the controller is away")
            lab.start()
            waiting.until(f"lease {id} .solo. is queued")
            lab.ok("alice", "lease", "release", first)
            assert waiting.finish()[:2] == (0, f"{id}\n")
        lab.kill()
        done = lab.run("alice", "lease", "list")
        assert (done.returncode, "cannot reach" in done.stderr) == (69, True)


# ---- from Python, and j without a shell

PYTHON = [sys.executable, "-c"]


def python(lab: ServedLab, user: str, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, f"import jmp\n{code}"],
        env=lab.environment(user, **environment),
        cwd=lab.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_device_is_leased_for_a_block(lab: ServedLab) -> None:
    code = (
        "import subprocess\n"
        "with jmp.connect(selector='board=solo', duration=90) as dut:\n"
        "    dut.power.on()\n"
        "    print(dut.info['name'], dut.power.state(), flush=True)\n"
        f"    subprocess.run({[*JMP, 'lease', 'list', '-o', 'json']!r}, check=True)\n"
    )
    done = python(lab, "alice", code)
    assert done.returncode == 0, done.stderr
    said, _, listed = done.stdout.partition("\n")
    assert said == "solo on"
    (lease,) = json.loads(listed)
    assert lease["duration"] == 90.0
    lab.once("alice", "lease", "list", "-o", "name", says="")  # it is released


def test_a_device_is_leased_for_a_block_under_trio(lab: ServedLab) -> None:
    code = (
        "import trio\n"
        "async def main():\n"
        "    async with jmp.connect(name='solo', wait=0) as dut:\n"
        "        await dut.power.on()\n"
        "        print(dut.info['name'], await dut.power.state())\n"
        "        raise ValueError('the block fails')\n"
        "trio.run(main)\n"
    )
    done = python(lab, "alice", code)
    assert done.stdout == "solo on\n"
    assert done.stderr.endswith("ValueError: the block fails\n")
    lab.once("alice", "lease", "list", "-o", "name", says="")  # it is released


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("selector='board=solo', wait=0", "jmp.errors.Timeout: lease "),
        ("selector='board=solo', wait=0.5", "jmp.errors.Timeout: lease "),
        ("selector='board=nowhere'", "board=nowhere"),
        ("selector='=='", "=="),
        ("name='solo', duration='soon'", "jmp.errors.UsageError: 'soon' is no duration"),
        ("lease='01nothere'", "01nothere"),
        ("url='unix:/x', lease='1'", "UsageError: connect takes a url or a lease, not both"),
        ("selector='a=b', device='c'", "UsageError: connect takes device for"),
    ],
)
def test_a_lease_that_is_not_to_be_had_in_python(lab: ServedLab, arguments: str, error: str) -> None:
    acquire(lab, "bob", "-l", "board=solo")
    done = python(lab, "alice", f"with jmp.connect({arguments}): print('never')")
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("jmp.errors."), done.stderr
    assert error in last
    assert lab.ok("alice", "lease", "list", "-o", "name") == ""


def test_a_lease_in_the_environment_is_used_outside_of_a_shell(lab: ServedLab) -> None:
    id = acquire(lab, "alice", "-l", "board=solo")
    done = python(lab, "alice", "with jmp.connect() as dut: dut.power.on(); print(dut.info['name'])", JMP_LEASE=id)
    assert (done.stdout, done.stderr) == ("solo\n", "")
    j = subprocess.run(
        [sys.executable, "-c", "from jmp.cli.j import main; import sys; sys.exit(main())", "power", "state"],
        env=lab.environment("alice", JMP_LEASE=id),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (j.returncode, j.stdout) == (0, "on\n"), j.stderr
    assert shown(lab, "alice", id)["state"] == "ready", "the lease is kept"


def test_several_devices_are_told_apart(lab: ServedLab) -> None:
    script = (
        "j --device red power on; j --device=blue power off; j --device red power state; j --device blue power state\n"
        "j --device green power on\n"
        'python3 -c "$CODE"'
    )
    code = "import jmp\nwith jmp.connect(device='blue') as one, jmp.connect(device='red') as other:\n"
    code += "    print(one.info['name'], one.power.state(), other.info['name'], other.power.state())"
    done = lab.run("alice", "shell", "--name", "red", "--name", "blue", "--", "sh", "-c", script, CODE=code)
    assert done.stdout == "on\noff\nblue off red on\n", done.stderr
    assert "jmp: this session has no device 'green': it has red, blue\n" in done.stderr


def test_bare_shell_on_a_terminal_lets_one_choose(lab: ServedLab) -> None:
    red, solo = acquire(lab, "alice", "--name", "red"), acquire(lab, "alice", "--name", "solo")
    with Terminal([*JMP, "shell", "--", "sh", "-c", "echo =$JMP_LEASE="], lab.environment("alice")) as terminal:
        terminal.until("For a new one: jmp shell -l SELECTOR")
        terminal.until(r"Which one \(Enter: 1\)\?")
        terminal.type("3\r")
        terminal.until("a number from 1 to 2 or an id, please")
        terminal.type(f"{solo}\r")
        terminal.until(f"={solo}=")
        assert terminal.end() == 0
    assert shown(lab, "alice", red)["state"] == shown(lab, "alice", solo)["state"] == "ready"


def test_bare_shell_without_a_lease_says_how_to_get_one(lab: ServedLab) -> None:
    with Terminal([*JMP, "shell"], lab.environment("bob")) as terminal:
        terminal.until("you have no active lease at")
        assert terminal.end() == 64
    done = lab.run("alice", "shell")
    assert (done.returncode, done.stderr.count("\n"), "--lease ID" in done.stderr) == (64, 1, True)
    done = lab.run("alice", "shell", "--exporter", "solo", "--", "true")  # which is the lab's
    assert (done.returncode, done.stderr.count("\n"), "is leased by --name" in done.stderr) == (64, 1, True)


def test_shell_as_another_client(lab: ServedLab) -> None:
    made = json.loads(lab.ok("admin", "admin", "create", "token", "client/bob", "-o", "json"))
    join = ["--endpoint", lab.url, "--ca-fingerprint", made["ca_fingerprint"]]
    lab.ok("alice", "config", "client", "create", "as-bob", *join, JMP_TOKEN=made["token"])
    inside = [*JMP, "whoami", "-o", "name"]
    assert lab.ok("alice", "shell", "--client", "as-bob", "--name", "solo", "--", *inside) == "bob\n"
    assert lab.run("alice", "shell", "--client", "nobody", "--name", "solo", "--", "true").returncode == 64
    done = lab.run("alice", "shell", "--client", "as-bob", "--connect", "unix:x", "--", "true")
    assert (done.returncode, "--client says who you are in a lab" in done.stderr) == (64, True)
