"""``build.py soak --fuzz``: fuzz targets guided by coverage (atheris, which is libFuzzer), for as long as asked.

What gets further than what was kept goes below build/fuzz, where the next run goes on from; an input that fails is printed, with
the command that tries it again. What is worth keeping is for people to put into tests/fuzz/corpus.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST = 4096
NAMES = sorted(folder.name for folder in Path(__file__).with_name("corpus").iterdir())
"""Those of tests.fuzz.targets, which is not to be imported before atheris can watch."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py soak", description="Fuzz what reads bytes of others.")
    parser.add_argument("--fuzz", choices=[*NAMES, "all"], required=True, metavar="TARGET|all", help=", ".join(NAMES))
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--input", type=Path, help="only try this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        fuzz(options.fuzz, round(60 * options.minutes))
    if options.input:
        from tests.fuzz.targets import TARGETS

        TARGETS[options.fuzz](options.input.read_bytes())
        return 0
    failed = [name for name in (NAMES if options.fuzz == "all" else [options.fuzz]) if not soak(name, options.minutes)]
    print(f"{len(failed)} targets failed{': ' + ' '.join(failed) if failed else ''}")
    return 1 if failed else 0


def soak(target: str, minutes: float) -> bool:
    """One target, in a process of its own; whether nothing was found."""
    command = [sys.executable, "-m", "tests.fuzz", "--here", "--fuzz", target, "--minutes", str(minutes)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace")
    runs = re.search(r"Done (\d+) runs in (\d+) second", said) or re.search(
        r"stat::number_of_executed_units: (\d+)", said
    )
    covered = re.findall(r"cov: (\d+)", said)
    count = int(runs[1]) if runs else 0
    print(f"{target}: {count} executions in {60 * minutes:g} s, coverage {covered[-1] if covered else '?'}", flush=True)
    if done.returncode or not count:
        kept = re.search(r"written to (\S+)", said)
        print(said[-3000:])
        if kept:
            print(f"try it again: python3 build.py soak --fuzz {target} --input {kept[1]}", flush=True)
        return False
    return True


def fuzz(target: str, seconds: int) -> None:
    """Never returns."""
    import atheris  # installed for this alone

    with atheris.instrument_imports(include=["jmp", "h11", "wsproto", "yaml"]):
        from tests.fuzz.targets import CORPUS, TARGETS
    found = ROOT / "build" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        f"-artifact_prefix={found}-",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(found), str(CORPUS / target)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
