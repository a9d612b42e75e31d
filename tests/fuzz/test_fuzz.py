"""What was kept for each fuzz target, and a thousand changes of it. ``build.py soak --fuzz all`` goes on from there."""

from __future__ import annotations

import pytest

from tests.fuzz.engine import corpus, run
from tests.fuzz.targets import CORPUS, TARGETS

COUNT = 1000


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes(target: str) -> None:
    assert run(target, 1, COUNT) == len(corpus(target)) + COUNT


def test_each_target_has_a_corpus_and_nobody_else() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == TARGETS.keys()
    assert all(corpus(target) for target in TARGETS)
