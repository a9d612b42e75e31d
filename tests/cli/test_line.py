"""Lines of the prompt: what they ask for, and how they can go on."""

from __future__ import annotations

from typing import Any

import pytest

from jmp.cli.line import Health, Kind, Machine, complete, decide, scan, split
from jmp.cli.verbs import Target
from jmp.client.connect import device_of

DRIVERS = {"power", "board", "board.power", "echo", "vm-1"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("power on", ["power", "on"]),
        ("  power\ton  # now", ["power", "on"]),
        ("j power on", ["power", "on"]),
        ("j", []),
        ("board.power state", ["board.power", "state"]),
        ("power 'a  b' \"c'd\" e\\ f g\"\"h ''", ["power", "a  b", "c'd", "e f", "gh", ""]),
        ("power \\\n on", ["power", "on"]),
        ("power '$x|y' [a,b] {a: 1}", ["power", "$x|y", "[a,b]", "{a:", "1}"]),
        ('power "a\\"b\\$"', ["power", 'a"b$']),
    ],
)
def test_a_verbs_line(text: str, words: list[str]) -> None:
    assert decide(text, DRIVERS) == (Kind.VERB, words, "")


@pytest.mark.parametrize(
    ("text", "for_the_shell"),
    [
        ("ls -l", "ls -l"),
        ("pytest test_device.py", "pytest test_device.py"),
        ("./power on", "./power on"),
        ("power on | cat", "j power on | cat"),
        ("power on > log 2>&1", "j power on > log 2>&1"),
        ("power on && board.power off; echo x", "j power on && j board.power off; j echo x"),
        ("sleep 1; power on", "sleep 1; j power on"),
        ("power send $X", "j power send $X"),
        ("power flash ~/x*", "j power flash ~/x*"),
        ("A=1 power on", "A=1 j power on"),
        ("if power on; then vm-1 off; fi", "if j power on; then j vm-1 off; fi"),
        ("cat <power", "cat <power"),
        ("cat 2>power <<x", "cat 2>power <<x"),
        ("j power on | tee log", "j power on | tee log"),
        ("grep 'power | power' x", "grep 'power | power' x"),
        ("!echo hi", "echo hi"),
        ("!power | x", "power | x"),
    ],
)
def test_a_line_for_the_shell(text: str, for_the_shell: str) -> None:
    assert decide(text, DRIVERS) == (Kind.SHELL, [], for_the_shell)


def test_what_the_prompt_knows_itself() -> None:
    assert decide("help power cycle", DRIVERS) == (Kind.HELP, ["power", "cycle"], "")
    assert decide("exit 3", DRIVERS) == (Kind.EXIT, ["3"], "")
    assert decide("cd ~/x && make", DRIVERS) == (Kind.KEPT, [], "cd ~/x && make")
    assert decide("export A=$(power state)", DRIVERS) == (Kind.KEPT, [], "export A=$(j power state)")
    assert decide("", DRIVERS).kind is decide("  # nothing", DRIVERS).kind is Kind.NOTHING


@pytest.mark.parametrize("text", ["a \\", "a 'b", 'a "b', 'a "b\\"', "a 'b\nc"])
def test_what_goes_on(text: str) -> None:
    assert scan(text).open


@pytest.mark.parametrize("text", ["", "a", "a 'b'", "a # don't", "a \\\\", "a 'b\nc'"])
def test_what_does_not(text: str) -> None:
    assert not scan(text).open


def test_pasted_lines() -> None:
    assert split("a\n\n b 'c\nd'\ne \\\nf\n") == ["a", " b 'c\nd'", "e \\\nf"]
    assert split("a 'b") == ["a 'b"]


def test_health_tells_what_changes_and_not_the_tries() -> None:
    health = Health()
    assert health.update({"a": ("ready", ""), "b": ["degraded", "gone"]}) == ["b is degraded: gone"]
    assert health.shown() == "b degraded"
    assert health.update({"a": ("ready", ""), "b": ("opening", "")}) == []
    assert health.update({"a": ("ready", ""), "b": ("degraded", "gone")}) == []
    assert health.update({"a": ("ready", ""), "b": ("ready", "")}) == ["b is ready again"]
    assert health.shown() == ""
    health.update({f"driver-{number}": ("degraded", "x") for number in range(9)})
    assert health.shown() == "9 drivers degraded"


def parameter(name: str, schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "schema": schema, **more}


class Nobody:
    """A session of which nothing is asked."""

    call = items = open = None


def device() -> Target:
    option = {"kind": "keyword-only", "required": False}
    flash = [
        parameter("file", {"type": "string"}),
        parameter("verify", {"type": "boolean"}, default=True, **option),
        parameter("mode", {"enum": ["fast", "safe"]}, doc="how", **option),
    ]
    methods = {
        "on": {"kind": 0, "doc": "Turn it on."},
        "off": {"kind": 0, "doc": "Turn it off."},
        "flash": {"kind": 0, "doc": "Write.", "parameters": flash},
        "dtr": {"kind": 0, "doc": "The line.", "parameters": [parameter("value", {"type": "boolean"})]},
    }
    power = {"type": "x", "description": "The switch.", "methods": methods}
    tree = {"children": {"power": power, "board": {"description": "A group.", "children": {"power": power}}}}
    return Target("", device_of(Nobody(), {"tree": tree}))  # type: ignore[arg-type]


MACHINE = Machine(
    lambda: ["pow", "powertop"], lambda begun: [name for name in ("img a", "x/") if name.startswith(begun)]
)


@pytest.mark.parametrize(
    ("before", "texts"),
    [
        ("pow", ["power ", "pow ", "powertop "]),
        ("!pow", ["pow ", "powertop "]),
        ("power o", ["off ", "on "]),
        ("j power o", ["off ", "on "]),
        ("j po", ["power "]),
        ("x | power of", ["off "]),
        ("board.p", ["board.power "]),
        ("board.power of", ["off "]),
        ("board ", ["power "]),
        ("power flash ", ["'img a' ", "x/"]),
        ("power flash x --", None),
        ("power flash --mode ", ["fast ", "safe "]),
        ("power flash --mode=f", ["--mode=fast "]),
        ("power flash -o ", ["json ", "yaml "]),
        ("power dtr t", ["true "]),
        ("power on ", []),
        ("power fly ", []),
        ("nope.x", []),
        ("help po", ["power "]),
        ("help power fl", ["flash "]),
        ("ls i", ["'img a' "]),
        ("exi", ["exit "]),
    ],
)
def test_completion(before: str, texts: list[str] | None) -> None:
    found = [candidate.text for candidate in complete(before, device(), MACHINE)]
    if texts is None:
        assert set(found) == {"--file ", "--no-verify ", "--mode ", "--output ", "--help "}
    else:
        assert found == texts


def test_completion_tells_what_it_offers_and_where_it_goes() -> None:
    (found,) = complete("power of", device(), MACHINE)
    assert (found.start, found.shown, found.about) == (6, "off", "Turn it off.")
    assert complete("!ls 'im", device(), MACHINE)[0].start == 4
