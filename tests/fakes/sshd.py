"""A real sshd on loopback: one process for each connection, as from inetd, so that no port has to be guessed."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from getpass import getuser
from pathlib import Path


@dataclass(frozen=True)
class Sshd:
    port: int
    user: str
    key: Path
    host_key: str
    """As ``TYPE KEY``."""


@contextmanager
def sshd(folder: Path, *, password: str = "", options: str = "", port: int = 0) -> Iterator[Sshd]:
    """Serves this user; with a password, which takes root, only that lets one in. Without a port, one that is free."""
    for name in ("host", "user"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nSubsystem sftp internal-sftp\nPasswordAuthentication {'yes' if password else 'no'}\n"
        f"PubkeyAuthentication {'no' if password else 'yes'}\nPrintMotd no\nPrintLastLog no\n{options}"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    command = ["/usr/sbin/sshd", "-i", "-e", "-f", f"{folder}/sshd_config"]
    if password:
        # Another /etc/shadow for this process alone.
        hashed = subprocess.run(["openssl", "passwd", "-6", password], check=True, capture_output=True, text=True)
        (folder / "shadow").write_text(f"root:{hashed.stdout.strip()}:19000:0:99999:7:::\n")
        script = f"mount --bind {folder}/shadow /etc/shadow && exec {' '.join(command)}"
        command = ["unshare", "--mount", "sh", "-c", script]
    running: list[subprocess.Popen[bytes]] = []
    with socket.create_server(("127.0.0.1", port)) as listener:

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, (folder / "log").open("ab") as log:
                    running.append(
                        subprocess.Popen(command, stdin=connection.fileno(), stdout=connection.fileno(), stderr=log)
                    )

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            host_key = " ".join((folder / "host.pub").read_text().split()[:2])
            yield Sshd(listener.getsockname()[1], getuser(), folder / "user", host_key)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for process in running:
                process.terminate()
                process.wait()
