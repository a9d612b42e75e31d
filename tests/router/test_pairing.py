"""Which two links belong together, in all orders in which they can come and go."""

from __future__ import annotations

import pytest

from jmp.errors import Busy
from jmp.router.pairing import Pairing


def test_who_comes_second_meets_the_first() -> None:
    pairing = Pairing[str](2)
    assert pairing.arrive("s", "client", "c1") == (None, ())
    assert (pairing.waiting, pairing.pairs) == (1, 0)
    assert pairing.arrive("s", "exporter", "e1") == ("c1", ())
    assert (pairing.waiting, pairing.pairs) == (0, 1)
    pairing.leave("s", "e1")
    pairing.leave("s", "c1")
    assert (pairing.waiting, pairing.pairs) == (0, 0)


def test_who_waits_gives_way_to_its_own_next_link() -> None:
    pairing = Pairing[str](1)
    pairing.arrive("s", "client", "c1")
    assert pairing.arrive("s", "client", "c2") == (None, ("c1",))
    pairing.leave("s", "c1")  # later, and of no consequence
    assert pairing.arrive("s", "exporter", "e1") == ("c2", ())


@pytest.mark.parametrize("first", ["client", "exporter"])
def test_a_pair_of_which_one_comes_again_is_over_and_both_meet_anew(first: str) -> None:
    pairing = Pairing[str](1)
    pairing.arrive("s", "client", "c1")
    pairing.arrive("s", "exporter", "e1")
    again = {"client": "c2", "exporter": "e2"}
    here = again.pop(first)
    assert pairing.arrive("s", first, here) == (None, ("c1", "e1"))  # type: ignore[arg-type]
    assert (pairing.waiting, pairing.pairs) == (1, 0)
    pairing.leave("s", "e1")
    [(end, there)] = again.items()
    assert pairing.arrive("s", end, there) == (here, ())  # type: ignore[arg-type]
    pairing.leave("s", "c1")
    assert (pairing.waiting, pairing.pairs) == (0, 1)


def test_there_is_room_for_so_many_sessions_and_those_that_are_here_keep_theirs() -> None:
    pairing = Pairing[str](1)
    pairing.arrive("s", "client", "c1")
    pairing.arrive("s", "exporter", "e1")
    with pytest.raises(Busy, match="joins 1 sessions"):
        pairing.arrive("t", "client", "c1")
    assert pairing.arrive("s", "client", "c2") == (None, ("c1", "e1"))
    pairing.leave("s", "c2")
    pairing.arrive("t", "client", "c1")
    assert pairing.waiting == 1
