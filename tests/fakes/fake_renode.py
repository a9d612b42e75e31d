"""A program that behaves as Renode's does towards whoever starts it: its options, its monitor behind telnet, its ptys.

What it says is taken from Renode's documentation and sources, since Renode itself is in no package registry. The "firmware" says
who it is whenever the board starts, and answers each line. Run as ``fake_renode.py --port N …``.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import tty
from pathlib import Path

BANNER = "Renode, version 1.15.3.40045 (fake)"
NEGOTIATION = bytes(
    [255, 253, 0, 255, 251, 1, 255, 251, 3, 255, 252, 34]
)  # do binary, will echo, will not go ahead, no lines


class Renode:
    """One of it."""

    def __init__(self, arguments: list[str]) -> None:
        assert {"--disable-gui", "--plain", "--hide-analyzers"} <= set(arguments)
        self.port = int(arguments[arguments.index("--port") + 1])
        self.machine = "monitor"
        self.firmware = "nothing"
        self.variables: dict[str, str] = {}
        self.running = False
        self.ptys: dict[str, tuple[int, int, str]] = {}
        self.console: int | None = None
        self.boots = 0

    def serve(self) -> None:
        with socket.create_server(("127.0.0.1", self.port), backlog=1) as server:
            print(f"12:00:00.0000 [INFO] Monitor available in telnet mode on port {self.port}", flush=True)
            connection, _ = server.accept()
            connection.sendall(NEGOTIATION + f"{BANNER}\r\n\r\n({self.machine}) ".encode())
            line = b""
            while True:
                watched = [connection.fileno(), *([self.console] if self.console is not None else [])]
                for ready in select.select(watched, [], [])[0]:
                    if ready != connection.fileno():
                        self.hear(os.read(ready, 4096))
                        continue
                    data = connection.recv(4096)
                    if not data:
                        return
                    line += re.sub(rb"\xff[\xfb-\xfe].", b"", data)
                    while b"\n" in line:
                        one, _, line = line.partition(b"\n")
                        command = one.decode().strip()
                        if command == "quit":
                            return
                        if command == "crash":
                            print("Fatal error: it has crashed", flush=True)
                            os._exit(3)
                        said = self.obey(command)
                        answer = f"{command}\r\n" + "".join(f"{each}\r\n" for each in said.splitlines())
                        connection.sendall(f"{answer}({self.machine}) ".encode())

    def obey(self, command: str) -> str:
        word, _, rest = command.partition(" ")
        match word, rest:
            case "mach", _ if match := re.fullmatch(r'create "([\w-]+)"', rest):
                self.machine = match[1]
            case "machine", _ if rest.startswith("LoadPlatformDescription @"):
                path = file(rest.split("@", 1)[1])
                if not path.startswith("platforms/") and "cpu:" not in Path(path).read_text():
                    return (
                        f"There was an error executing command 'machine LoadPlatformDescription'\nError E02: in {path}"
                    )
            case "sysbus", _ if rest.startswith("LoadELF @"):
                self.firmware = Path(file(rest.split("@", 1)[1])).read_bytes()[4:].decode()
            case "sysbus", "ReadDoubleWord 0x0":
                return "0x20001000"
            case "include", _:
                script = Path(file(rest[1:]))
                if not script.exists():
                    return f"Could not find file: {script}"
                return "\n".join(filter(None, map(self.obey, script.read_text().splitlines())))
            case "emulation", _ if match := re.fullmatch(r'CreateUartPtyTerminal "(\S+)" "(.+)" true', rest):
                master, slave = os.openpty()
                tty.setraw(slave)
                Path(match[2]).unlink(missing_ok=True)
                Path(match[2]).symlink_to(os.ttyname(slave))
                self.ptys[match[1]] = (master, slave, match[2])
            case "connector", _ if match := re.fullmatch(r"Connect (sysbus\.\w+) (\S+)", rest):
                if match[1] != "sysbus.uart0":
                    return f"Parameters did not match the signature: {match[1]}"
                self.console = self.ptys[match[2]][0]
            case "start", "":
                started, self.running = self.running, True
                if not started and not self.boots:
                    self.boot()
                return "Starting emulation..."
            case "pause", "":
                self.running = False
                return "Pausing emulation..."
            case "machine", "Reset":
                self.boot()
            case _ if match := re.fullmatch(r"\$(\w+)=(@.+)", command):
                self.variables[match[1]] = file(match[2][1:])
            case "sysbus", "LoadELF $bin":
                self.firmware = Path(self.variables["bin"]).read_bytes()[4:].decode()
            case _:
                return f"No such command or device: {word}"
        return ""

    def boot(self) -> None:
        self.boots += 1
        if self.console is not None:
            os.write(self.console, f"{self.firmware} boots, time {self.boots}\r\n".encode())

    def hear(self, data: bytes) -> None:
        assert self.console is not None
        if self.running:
            os.write(self.console, b"heard " + data)


def file(written: str) -> str:
    return written.replace("\\ ", " ")


if __name__ == "__main__":
    if "--broken" in sys.argv:
        print("System.Exception: it does not start here")
        sys.exit(1)
    Renode(sys.argv[1:]).serve()
