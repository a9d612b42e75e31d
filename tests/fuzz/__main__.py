"""``build.py soak --fuzz``: fuzz targets guided by coverage (atheris, which is libFuzzer), for as long as asked.

What gets further than what was kept goes below build/fuzz, where the next run goes on from; an input that fails is printed, with
the command that tries it again. What is worth keeping is for people to put into tests/fuzz/corpus.

All time is the processor's: ten minutes are as much work on a busy machine, or one that slept in between, as on a quiet one.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

ROOT = Path(__file__).parents[2]
LONGEST = 4096
TICK = 5.0
"""Seconds of the processor between looks at whether the target still gets on: one input may take twice that at most."""
NAMES = sorted(folder.name for folder in Path(__file__).with_name("corpus").iterdir())
"""Those of tests.fuzz.targets, which is not to be imported before atheris can watch."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py soak", description="Fuzz what reads bytes of others.")
    parser.add_argument(
        "--fuzz",
        choices=[*NAMES, "all"],
        required=True,
        nargs="+",
        metavar="TARGET",
        help=f"all, or {', '.join(NAMES)}",
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="of processor time, for each target")
    parser.add_argument("--input", type=Path, help="only try this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    targets = NAMES if "all" in options.fuzz else options.fuzz
    if options.here:
        fuzz(targets[0], 60 * options.minutes)
    if options.input:
        from tests.fuzz.targets import TARGETS

        for name in targets:
            TARGETS[name](options.input.read_bytes())
        return 0
    failed = [name for name in targets if not soak(name, options.minutes)]
    print(f"{len(failed)} targets failed{': ' + ' '.join(failed) if failed else ''}")
    return 1 if failed else 0


def soak(target: str, minutes: float) -> bool:
    """One target, in a process of its own; whether nothing was found."""
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--fuzz", target, "--minutes", str(minutes)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = done.stdout.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", said)
    covered = re.findall(r"cov: (\d+)", said)
    count = int(runs[1]) if runs else 0
    print(f"{target}: {count} executions in {used:.0f} s, coverage {covered[-1] if covered else '?'}", flush=True)
    if done.returncode or not count:
        kept = re.search(r"written to (\S+)", said)
        print(said[-3000:])
        if kept:
            print(f"try it again: python3 build.py soak --fuzz {target} --input {kept[1]}", flush=True)
        return False
    return True


def fuzz(target: str, seconds: float) -> NoReturn:
    import atheris  # installed for this alone

    with atheris.instrument_imports(include=["jmp", "h11", "wsproto", "yaml"]):
        from tests.fuzz.targets import CORPUS, TARGETS
    found = ROOT / "build" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_len={LONGEST}",
        "-timeout=1000000",  # its own would count the time in which the process is stopped, see watched
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        f"-artifact_prefix={found}-",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(found), str(CORPUS / target)], watched(TARGETS[target], seconds))
    atheris.Fuzz()
    raise AssertionError("it ends the process")


class Hangs(BaseException):
    """One input takes too long. Nothing that is tried may catch it."""


def watched(target: Callable[[bytes], None], seconds: float) -> Callable[[bytes], None]:
    """The target, which ends the process in order after so many seconds of its processor time, and fails where it hangs."""
    begun = seen = ticks = 0

    def one(data: bytes) -> None:
        nonlocal begun
        begun += 1
        target(data)

    def tick(number: int, frame: FrameType | None) -> None:
        nonlocal seen, ticks
        ticks += 1
        if ticks * TICK >= seconds:
            os.kill(os.getpid(), signal.SIGUSR1)  # libFuzzer then stops where it can, and says what it has done
        elif begun == seen:
            raise Hangs(f"one input takes more than {TICK:g} s")
        seen = begun

    signal.signal(signal.SIGPROF, tick)
    signal.setitimer(signal.ITIMER_PROF, min(TICK, seconds), min(TICK, seconds))
    return one


if __name__ == "__main__":
    sys.exit(main())
