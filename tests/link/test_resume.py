"""Sessions that outlive their links, as conversations between two cores whose links lose what is under way."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmp.errors import ProtocolViolation
from jmp.link.resume import ACK_MESSAGES, MAX_KEPT, MAX_KEPT_MESSAGES, Ended, Opening, Resume, opening_of, refusal
from jmp.mux.protocol import Mux, Role
from jmp.wire.frames import Kind, pack, unpack

KEY = b"k" * 32


class Ends:
    """Both ends of a session, and one link at a time; ``arrived`` is what each of them has got (0: the dialler)."""

    def __init__(self) -> None:
        self.ends = Resume(KEY), Resume()
        self.arrived: tuple[list[bytes], list[bytes]] = ([], [])
        self._under_way: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.link()

    def link(self) -> None:
        for end, messages in zip(self.ends, self._under_way, strict=True):
            messages.clear()
            end.attach()

    def begin(self) -> None:
        """The dialler's first message arrives, with which the listener gets to know the session."""
        self.ends[0].put([b"first"])
        self.settle()
        assert self.arrived[1].pop() == b"first"

    def cut(self) -> None:
        for end, messages in zip(self.ends, self._under_way, strict=True):
            messages.clear()
            end.detach()

    def send(self, end: int, *, ack: bool = False) -> bool:
        """Give the link one message, if there is one."""
        parts = self.ends[end].take(ack=ack)
        if parts:
            self._under_way[1 - end].append(b"".join(parts))
        return bool(parts)

    def deliver(self, end: int) -> bool:
        """Let one message arrive, if there is one."""
        if not self._under_way[end]:
            return False
        message = self.ends[end].receive(self._under_way[end].popleft())
        if message is not None:
            self.arrived[end].append(message)
        return True

    def settle(self) -> None:
        """Until nothing moves."""
        while sum(step(end) for step in (self.send, self.deliver) for end in (0, 1)):
            pass


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 1)),
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("ack"), st.integers(0, 1)),
        st.tuples(st.just("deliver"), st.integers(0, 1)),
        st.tuples(st.sampled_from(["cut", "link"]), st.just(0)),
    ),
    max_size=200,
)


@given(STEPS)
def test_whatever_is_cut_everything_arrives_once_and_in_order(steps: list[tuple[str, int]]) -> None:
    ends = Ends()
    ends.begin()  # before, there is nothing to go on with
    put: tuple[list[bytes], list[bytes]] = ([], [])
    for step, end in steps:
        match step:
            case "put":
                message = pack_number(len(put[end]))
                put[end].append(message)
                ends.ends[end].put([message[:1], memoryview(message)[1:]])
            case "send":
                ends.send(end)
            case "ack":
                ends.send(end, ack=True)
            case "deliver":
                ends.deliver(end)
            case "cut":
                ends.cut()
            case "link":
                ends.link()
        for direction in (0, 1):
            assert ends.arrived[1 - direction] == put[direction][: len(ends.arrived[1 - direction])]
    ends.link()
    ends.settle()
    assert ends.arrived == (put[1], put[0])


def pack_number(number: int) -> bytes:
    return b"\x94" + number.to_bytes(4, "big")


def test_a_first_message_waits_for_no_answer() -> None:
    ends = Ends()
    ends.ends[0].put([b"hello"])
    assert ends.send(0)
    ends.deliver(1)
    assert ends.arrived[1] == [b"hello"]


def test_a_listener_says_nothing_first() -> None:
    ends = Ends()
    ends.ends[1].put([b"hello"])
    assert not ends.send(1)
    ends.begin()
    assert ends.arrived[0] == [b"hello"]


def test_what_is_acknowledged_is_kept_no_longer() -> None:
    ends = Ends()
    for _ in range(MAX_KEPT_MESSAGES):
        ends.ends[0].put([b"x"])
    assert ends.ends[0].full
    ends.settle()  # the other side has nothing to say, and acknowledges all the same
    assert not ends.ends[0].full
    assert len(ends.ends[0]._kept) < ACK_MESSAGES


def test_bytes_fill_it_too() -> None:
    end = Resume(KEY)
    end.put([bytes(MAX_KEPT - 1)])
    assert not end.full
    end.put([b"x"])
    assert end.full


def test_a_message_costs_nothing_when_there_is_nothing_to_tell() -> None:
    ends = Ends()
    ends.begin()
    ends.ends[0].put([b"x"])
    assert ends.ends[0].take() == [b"x"]


def test_small_messages_are_acknowledged_by_some_that_go_the_other_way() -> None:
    ends = Ends()
    ends.begin()
    took = []
    for _ in range(100):
        ends.ends[0].put([b"call"])
        ends.settle()
        ends.ends[1].put([b"answer"])
        took.append(len(ends.ends[1].take()))
        assert ends.ends[1].take() == []
    assert took.count(2) == 100 // 16
    assert took.count(1) == 100 - 100 // 16


def test_what_has_arrived_is_known_once_it_is_acknowledged() -> None:
    ends = Ends()
    ends.begin()
    end = ends.ends[0]
    end.put([b"12345"])
    end.put([b"67890"])
    begin = len(b"first")
    assert end.arrived(begin + 5) is False  # it has not gone
    assert ends.send(0)
    assert end.arrived(begin + 5) is None
    assert end.arrived(begin + 10) is False
    ends.deliver(1)
    ends.send(1, ack=True)
    ends.deliver(0)
    assert end.arrived(begin + 5) is True
    ends.cut()
    assert (end.arrived(begin + 5), end.arrived(begin + 10)) == (True, False)


def test_a_session_begins_with_its_first_message_and_goes_on_without_one() -> None:
    ends = Ends()
    assert not ends.send(0)
    ends.ends[0].put([b"first"])
    assert opening_of(b"".join(ends.ends[0].take())) == Opening(KEY, again=False, token=None)
    ends.cut()
    ends.ends[0].attach("a token")
    assert opening_of(b"".join(ends.ends[0].take())) == Opening(KEY, again=True, token="a token")


def test_an_end_that_is_without_a_link_says_nothing() -> None:
    ends = Ends()
    ends.begin()
    assert ends.ends[0].detach()
    ends.ends[0].put([b"x"])
    assert ends.ends[0].take(ack=True) == []


# ---- those who know nothing of it


@pytest.mark.parametrize("early", [0, 1, 3])
def test_a_listener_without_resume_gets_every_message(early: int) -> None:
    dialler, old = Resume(KEY), Mux(Role.LISTENER)
    dialler.attach()
    mux = Mux(Role.DIALLER)
    dialler.put(mux.outgoing())
    for _ in range(early):
        mux.open(b"early")
        dialler.put(mux.outgoing())
    events = []
    while parts := dialler.take():
        events += old.receive(b"".join(parts))
    answer = b"".join(old.outgoing())
    assert dialler.receive(answer) == answer
    assert dialler.plain
    assert not dialler.detach()
    assert len(events) == 2 * early


def test_a_dialler_without_resume_is_served() -> None:
    listener = Resume()
    listener.attach()
    hello = b"".join(Mux(Role.DIALLER).outgoing())
    assert opening_of(hello) is None
    assert listener.receive(hello) == hello
    listener.put([b"answer"])
    assert listener.take() == [b"answer"]
    assert listener.take() == []
    assert not listener.detach()


def test_its_words_are_frames_that_others_ignore() -> None:
    dialler = Resume(KEY)
    dialler.attach()
    dialler.put([pack(Kind.PING, 0, b"")])
    assert len(unpack(b"".join(dialler.take()))) == 1


# ---- what cannot be


def test_what_an_end_without_resume_may_have_got_is_not_sent_again() -> None:
    dialler = Resume(KEY)
    dialler.attach()
    dialler.put([b"call"])
    assert dialler.take()
    dialler.detach()
    dialler.attach()
    with pytest.raises(ProtocolViolation, match="without saying which session"):
        dialler.receive(b"\x95")


def test_a_session_that_cannot_go_on_is_told() -> None:
    ends = Ends()
    ends.begin()
    ends.cut()
    ends.ends[0].attach()
    assert ends.ends[0].take()
    with pytest.raises(Ended, match="the lease has ended"):
        ends.ends[0].receive(refusal("the lease has ended"))


def resume(**properties: object) -> bytes:
    return pack(10, 0, properties)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        (b"\x95", "without saying which session"),
        (resume(key=b"o" * 32, received=0), "another session"),
        (resume(key=b"k", received=0), "names no key"),
        (resume(key=KEY), "not how many"),
        (resume(key=KEY, received=True), "not how many"),
        (resume(key=KEY, received=1), "cannot be"),
        (resume(key=KEY, received=-1), "cannot be"),
        (resume(key=KEY, received=0)[:-1], "no valid RESUME"),
        (b"\x93\x0a\x00\x01", "no properties"),
        (resume(key=KEY, received=0) + b"\x93\x0b\x00\xcf\x00", "inside a frame"),
        (resume(key=KEY, received=0) + b"\x93\x0b\x00\xcf" + (7).to_bytes(8, "big"), "cannot be"),
    ],
)
def test_who_breaks_the_rules_is_told_how(message: bytes, wrong: str) -> None:
    ends = Ends()
    ends.begin()
    ends.link()
    ends.ends[1].put([b"not sent yet"])
    with pytest.raises(ProtocolViolation, match=wrong):
        ends.ends[1].receive(message)
