"""``python -m tests.sim``: many histories, one after another."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial
from itertools import count

from tests.sim.bugs import BUGS, planted
from tests.sim.lab import Site, simulate


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="build.py soak",
        description="Run many histories of a simulated lab, and stop at the first that breaks a promise.",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed; each history has the next one")
    parser.add_argument("--schedules", type=int, help="how many histories")
    parser.add_argument("--minutes", type=float, help="for how long, if not for a number of them")
    parser.add_argument("--history", action="store_true", help="print all that happened")
    parser.add_argument("--digest", action="store_true", help="print a digest of each history")
    parser.add_argument("--bug", choices=BUGS, help="put this bug into the product, and see whether it is found")
    parser.add_argument("--site", type=Site, choices=Site, help="labs of one kind only, instead of each seed's own")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first seed that fails")
    options = parser.parse_args()
    began = time.monotonic()
    events: Counter[str] = Counter()
    failed = []
    done = 0
    for seed in count(options.seed):
        if options.schedules is not None and done >= options.schedules:
            break
        if options.schedules is None and time.monotonic() - began >= 60 * (options.minutes or 0.0):
            break
        outcome = simulate(seed, partial(planted, options.bug) if options.bug else nullcontext, options.site)
        done += 1
        events.update(event.what for event in outcome.history)
        if options.history:
            print(*outcome.history, sep="\n")
        if options.digest:
            print(f"{seed} {outcome.digest}")
        if outcome.findings:
            failed.append(seed)
            print(f"seed {seed} fails:", *outcome.findings[:5], sep="\n  ")
            more = f" --bug {options.bug}" if options.bug else ""
            more += f" --site {options.site}" if options.site else ""
            print(f"replay it: python3 build.py soak --seed {seed} --schedules 1 --history{more}", flush=True)
            if not options.keep_going:
                break
    seconds = time.monotonic() - began
    print(
        f"{done} schedules in {seconds:.1f} s ({done / seconds:.1f}/s), {events.total()} events:"
        f" {', '.join(f'{number} {what}' for what, number in events.most_common())}"
    )
    print(f"{len(failed)} seeds failed{': ' + ' '.join(map(str, failed)) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
