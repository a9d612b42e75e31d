"""A lab machine: user-mode Linux (a process) that runs on this machine's files, read-only, with hardware of its own.

Its kernel (``build_kernel.sh``) simulates GPIO lines, CAN, I2C, SPI, USB with both ends and a camera, so drivers meet the real
interfaces of the kernel. It makes networks bad, too (netem). ``JMP_LAB_KERNEL`` names a folder with another kernel.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNEL = Path(
    os.environ.get("JMP_LAB_KERNEL") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "jmp", "lab")
)
SETTINGS = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("JMP_TEST_")]
"""What makes tests longer, read before they get an environment without it; the kernel hands it on."""


def run(command: str, folder: Path, *, seconds: float = 800) -> tuple[int | None, str]:
    """Boot the machine, run a command of ``sh`` in the checkout, power off; its exit code (None: out of time) and output.

    ``folder`` is /mnt there, and all that it can write to. It takes two seconds besides the command's own.
    """
    (folder / "command").write_text(command)
    argv = [
        str(KERNEL / "linux"),
        *("mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={HERE / 'init.sh'}"),
        *("con=null", "con0=null,fd:1", "console=tty0", "panic=1", "quiet"),
        *(f"LAB={folder}", f"KERNEL={KERNEL}", f"HERE={ROOT}"),
        *SETTINGS,
    ]
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
        finally:
            with suppress(ProcessLookupError):  # its processes are in its group
                os.killpg(process.pid, signal.SIGKILL)
    status = folder / "status"
    return int(status.read_text()) if status.exists() else None, output.decode(errors="replace")


def pytest_command(file: Path) -> str:
    """What runs a file of tests there, whatever its name. It is this machine that limits their time."""
    options = "-q -x -s --color=no --basetemp=/run/pytest -p no:xdist -o faulthandler_timeout=0"
    return f"{shlex.quote(sys.executable)} -m pytest {options} {shlex.quote(str(file))}"
