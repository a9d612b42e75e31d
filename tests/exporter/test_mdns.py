"""Services in the network: what comes is understood whatever it is, and Avahi is asked for what it announces."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jmp.exporter import config, mdns
from jmp.exporter.mdns import Search, answers, question
from tests.fakes.bundled import ROOT, driver_class

SHELLY = ("shelly1pm", "_shelly", "_tcp", "local")


def record(name: bytes, kind: int, data: bytes) -> bytes:
    return name + struct.pack("!2HIH", kind, 0x8001, 120, len(data)) + data


def answer(*records: bytes) -> bytes:
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def wire(*labels: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def test_a_search_asks_for_what_is_missing() -> None:
    search = Search(["_shelly._tcp"])
    assert search.open() == [(("_shelly", "_tcp", "local"), 12)]
    instance, host = wire(*SHELLY), wire("Shelly1PM", "local")
    assert search.take(answer(record(wire("_shelly", "_tcp", "local"), 12, instance)))
    assert not search.take(answer(record(wire("_SHELLY", "_tcp", "local"), 12, instance))), "nothing new"
    assert search.missing() == [(SHELLY, 33), (SHELLY, 16)]
    assert search.missing() == [], "they have been asked for"
    assert search.take(answer(record(instance, 33, struct.pack("!3H", 0, 0, 8080) + host)))
    assert search.take(answer(record(instance, 16, b"\x05gen=2\x07app=1PM\x04auth\x05gen=9\x00")))
    assert search.missing() == [(("Shelly1PM", "local"), 1)]
    assert search.services() == []
    assert search.take(answer(record(wire("shelly1pm", "local"), 1, bytes([192, 168, 7, 9]))))
    (found,) = search.services()
    assert (found.name, found.host, found.at(80)) == ("shelly1pm", "Shelly1PM.local", "192.168.7.9:8080")
    assert found.properties == {"gen": "2", "app": "1PM", "auth": ""}


def test_what_nobody_asked_for_is_left_out() -> None:
    search = Search(["_shelly._tcp"])
    search.take(answer(record(wire("_ssh", "_tcp", "local"), 12, wire("x", "_ssh", "_tcp", "local"))))
    search.take(answer(record(wire("_shelly", "_tcp", "local"), 12, wire("x", "_ssh", "_tcp", "local"))))
    assert search.missing() == []


def test_tricks_are_not_shown() -> None:
    search, bad = Search(["_ssh._tcp"]), wire("\x1b[2Jx\n- y", "_ssh", "_tcp", "local")
    search.take(answer(record(wire("_ssh", "_tcp", "local"), 12, bad)))
    search.take(answer(record(bad, 33, struct.pack("!3H", 0, 0, 22) + b"\x02\xff\x07\0")))
    search.take(answer(record(bad, 16, b"\x04a=\x1b\x07"), record(b"\x02\xff\x07\0", 1, bytes(4))))
    (found,) = search.services()
    assert (found.name, found.host, found.properties) == ("?[2Jx?- y", "??", {"a": "??"})


def test_names_that_stand_elsewhere() -> None:
    whole = answer(record(wire("_ssh", "_tcp", "local"), 12, b"\x03box\xc0\x0c"))
    assert answers(whole) == [(("_ssh", "_tcp", "local"), 12, ("box", "_ssh", "_tcp", "local"))]


@given(st.binary(max_size=300))
def test_nothing_confuses_it(data: bytes) -> None:
    search = Search(["_ssh._tcp"])
    for message in (data, answer(data), answer(record(wire("_ssh", "_tcp", "local"), 12, data))):
        search.take(message)
        search.services()
        question(search.open()[:5])


@pytest.mark.parametrize(
    "bad", [b"", b"\0" * 11, question([(("x",), 1)]), answer(b"\xc0\x0c"), answer(b"\x03ab"), answer(wire("x") + b"\0")]
)
def test_what_is_no_answer(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        answers(bad)
    assert not Search([]).take(bad)


SERVICE = """<?xml version="1.0"?><!DOCTYPE service-group SYSTEM "avahi-service.dtd">
<service-group><name>{name}</name><service><type>{type}</type><port>{port}</port>{texts}</service></service-group>"""
ANNOUNCED = {
    "shelly": ("shellyplus1pm-a8032a", "_shelly._tcp", 80, ["gen=2", "app=Plus1PM"]),
    "shelly1": ("shelly1-old", "_shelly._tcp", 80, []),
    "ssh": ("board 7", "_ssh._tcp", 2222, []),
    "tasmota": ("tasmota-4F21", "_http._tcp", 80, []),
    "printer": ("Printer", "_http._tcp", 80, []),
    "scope": ("Scope", "_scpi-raw._tcp", 5025, ["Manufacturer=Rigol", "Model=DS1054Z", "SerialNumber=DS1Z"]),
    "axis": ("AXIS M1065", "_axis-video._tcp", 80, []),
    "vnc": ("panel", "_rfb._tcp", 5901, []),
    "telnet": ("ts1", "_telnet._tcp", 23, []),
    "bmc": ("bmc7", "_redfish._tcp", 443, []),
}
PATIENT = "import sys, jmp.cli.scan as it; it._SECONDS = 10; from jmp.cli import main; sys.exit(main())"
INSIDE = """
set -e
mount -t tmpfs none /run
mount --bind {services} /etc/avahi/services
ip link set lo up
ip link add here type veth peer name there
ip address add 10.9.0.1/24 dev here
ip link set here up
unshare --net sh -c 'echo $$ > {folder}/pid; exec sleep 1000' &
holder=$!
until [ -s {folder}/pid ]; do sleep 0.02; done
ip link set there netns $holder
nsenter -t $holder -n sh -c 'ip address add 10.9.0.2/24 dev there; ip link set there up; ip link set lo up'
nsenter -t $holder -n avahi-daemon --no-drop-root --no-rlimits --no-chroot -f {folder}/avahi.conf >{folder}/log 2>&1 &
until grep -q 'Service "bmc7".*successfully established' {folder}/log; do sleep 0.05; done
status=0
{python} -c '{scan}' scan --network --root {folder} --name bench || status=$?
kill $! $holder
exit $status
"""


def test_devices_that_avahi_announces(tmp_path: Path) -> None:
    assert shutil.which("avahi-daemon"), "install avahi-daemon"
    services = tmp_path / "services"
    services.mkdir()
    for file, (name, type_, port, texts) in ANNOUNCED.items():
        records = "".join(f"<txt-record>{text}</txt-record>" for text in texts)
        text = SERVICE.format(name=name, type=type_, port=port, texts=records)
        (services / f"{file}.service").write_text(text)
    (tmp_path / "avahi.conf").write_text(
        "[server]\nhost-name=lab\nenable-dbus=no\nuse-ipv6=no\n[publish]\npublish-hinfo=no\n"
    )
    script = INSIDE.format(services=services, folder=tmp_path, python=sys.executable, scan=PATIENT)
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, (done.stdout, done.stderr, (tmp_path / "log").read_text())
    assert config.read_text(done.stdout, Path("bench.yaml"), driver_class)[1] == []
    found = {name: (each["type"], each["config"]) for name, each in yaml.safe_load(done.stdout)["export"].items()}
    tasmota = "http://10.9.0.2/cm?cmnd=Power"
    assert found == {
        "camera": (
            "http-camera",
            {
                "snapshot": "http://10.9.0.2/axis-cgi/jpg/image.cgi",
                "stream": "http://10.9.0.2/axis-cgi/mjpg/video.cgi",
            },
        ),
        "power": ("http-power", {"on": f"{tasmota}%20On", "off": f"{tasmota}%20Off", "state": tasmota}),
        "power-2": ("redfish-power", {"url": "https://10.9.0.2"}),
        "instrument": ("scpi", {"host": "10.9.0.2"}),
        "power-3": ("shelly", {"host": "10.9.0.2"}),
        "ssh": ("ssh", {"host": "10.9.0.2", "port": 2222}),
        "console": ("telnet", {"host": "10.9.0.2"}),
        "screen": ("vnc", {"host": "10.9.0.2", "port": 5901}),
    }
    assert "  # Rigol DS1054Z DS1Z 'Scope' (lab.local)\n" in done.stdout
    assert "  # SSH 'board 7' (lab.local): 10.9.0.2:2222\n" in done.stdout


def test_a_machine_in_no_network() -> None:
    script = f"{sys.executable} -c 'import sys; from jmp.cli import main; sys.exit(main())' scan --network"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        69,
        "",
        "jmp: this machine is in no network that can be asked (multicast)\n",
    )
    assert mdns.answers(answer()) == []
