"""A thousand histories of a simulated lab, in which everything that can break does: none of them breaks a promise.

``python3 build.py soak --minutes N`` runs more of them, ``--seed S --schedules 1 --history`` shows one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.bugs import BUGS, IN_A_CLUSTER, ON_FILES

ROOT = Path(__file__).parents[2]
EACH = 250


def run(*arguments: str, hash_seed: int = 0) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a history changes how Trio schedules, and where random numbers come from."""
    environ = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.sim", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=850, check=False)


@pytest.mark.parametrize("first", range(0, 1000, EACH))
def test_no_history_breaks_a_promise(first: int) -> None:
    done = run("--seed", str(first), "--schedules", str(EACH))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{EACH} schedules" in done.stdout
    assert "0 seeds failed" in done.stdout


def test_a_seed_is_a_history() -> None:
    """Also in another process, whose dictionaries and sets are in another order, and whether or not others ran there before."""
    first = run("--seed", "2", "--schedules", "3", "--history", hash_seed=1)
    again = run("--seed", "3", "--schedules", "2", "--history", hash_seed=2)
    history, second = (
        [line for line in done.stdout.splitlines() if " schedules in " not in line] for done in (first, again)
    )
    assert history[-len(second) :] == second
    assert len(second) > 100


SELDOM = {"lease-begins-again", "early-holder-refused"}
"""Found within a thousand, but not within seconds; each has a test of its own in tests/exporter/test_lab.py."""


AT = {
    "epoch-unchecked": 108,
    "router-by-own-clock": 41,
    "sqlite-unsynced": 23,
    "write-unchecked": 28,
    "ends-with-the-first": 75,
    "out-of-turn": 4,
    "by-own-clock": 10,
    "stale-watch-trusted": 2,
    "busy-for-ever": 130,
    "fence-not-renewed": 390,
}
"""Seeds of the thousand that find what the first ones do not. When histories change others do; any that does is as good."""


@pytest.mark.parametrize("bug", sorted(BUGS.keys() - SELDOM))
def test_what_would_be_found(bug: str) -> None:
    """A test of the tests: each of these, put into the product, breaks a promise within a thousand histories."""
    site = ("--site", "cluster" if bug in IN_A_CLUSTER else "sqlite" if bug in ON_FILES else "disk")
    done = run("--seed", str(AT.get(bug, 0)), "--schedules", "1", "--bug", bug, *site)
    if done.returncode == 0:
        done = run("--schedules", "1000", "--bug", bug, *site)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 seeds failed" in done.stdout
    assert f"--bug {bug}" in done.stdout
