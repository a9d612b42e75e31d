"""The life of the drivers of a session: opened, degraded, tried again, lost, closed; and the calls they meanwhile carry out."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import field
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from jmp.driver import BadValue, DeviceError, Driver, Stream, cancelled, export, exportstream, sleep
from jmp.driver.tree import GRACE, PATIENCE, RETRY, Node, State, ThreadStream, Tree
from jmp.errors import Cancelled, NotFound, Refused
from jmp.rpc.serve import Method

Hook = Callable[[], Awaitable[None]]


async def nothing() -> None:
    pass


class Probe(Driver):
    """A device that writes down what is done with it, and lets a test do the rest."""

    _name: str = field(init=False, default="")
    _journal: list[str] = field(init=False, default_factory=list)
    _on_open: Hook = field(init=False, default=nothing)
    _on_close: Hook = field(init=False, default=nothing)

    async def open(self) -> None:
        self._journal.append(f"open {self._name}")
        await self._on_open()
        self._journal.append(f"opened {self._name}")

    async def close(self) -> None:
        self._journal.append(f"close {self._name}")
        await self._on_close()
        self._journal.append(f"closed {self._name}")

    async def reset(self) -> None:
        self._journal.append(f"reset {self._name}")

    @export
    async def hello(self) -> str:
        """Say so."""
        return f"hello from {self._name}"

    @export
    async def wait(self) -> None:
        """Never return."""
        self._journal.append(f"wait {self._name}")
        try:
            await trio.sleep_forever()
        finally:
            self._journal.append(f"waited {self._name}")

    @export
    async def numbers(self) -> AsyncIterator[int]:
        """Two, and no more."""
        yield 1
        yield 2
        await trio.sleep_forever()


def probe(journal: list[str], name: str, *, on_open: Hook = nothing, on_close: Hook = nothing) -> Probe:
    made = Probe()
    made._name, made._journal, made._on_open, made._on_close = name, journal, on_open, on_close
    return made


def lasting(seconds: float) -> Hook:
    async def last() -> None:
        await trio.sleep(seconds)

    return last


def failing(*problems: Exception | None) -> Hook:
    """Raises each of them once, and what is the last for ever."""
    left = list(problems)

    async def fail() -> None:
        problem = left.pop(0) if len(left) > 1 else left[0]
        if problem is not None:
            raise problem

    return fail


def group(**nodes: Node | Driver) -> Node:
    return Node(children={name: node if isinstance(node, Node) else Node.of(node) for name, node in nodes.items()})


def parent(driver: Driver, **children: Node | Driver) -> Node:
    node = Node.of(driver)
    node.add(group(**children).children)
    return node


async def call(tree: Tree, path: str, name: str, *args: Any) -> Any:
    method = tree.method(path, name, args, {})
    with begun(method):
        return await method.function()


@contextmanager
def begun(method: Method) -> Iterator[None]:
    """As the one who answers a call does."""
    error: Exception | None = None
    with trio.CancelScope() as scope:
        over = method.begun(scope)
        try:
            yield
        finally:
            error = over()
    if scope.cancelled_caught and error is not None:
        raise error


class Watch:
    """Waits for states."""

    def __init__(self) -> None:
        self._news = trio.lowlevel.ParkingLot()
        self.seen: list[tuple[str, State, str]] = []

    def changed(self, node: Node) -> None:
        self.seen.append((node.path, node.state, node.reason))
        self._news.unpark_all()

    async def until(self, path: str, state: State) -> str:
        """The reason that came with it."""
        while True:
            for at, found, reason in self.seen:
                if (at, found) == (path, state):
                    self.seen.clear()
                    return reason
            await self._news.park()


@asynccontextmanager
async def running(root: Node) -> AsyncIterator[tuple[Tree, Watch]]:
    watch = Watch()
    tree = Tree(root, changed=watch.changed)
    async with tree.running():
        watch.seen.clear()
        yield tree, watch


# ---- opening and closing


async def test_children_open_first_and_close_last() -> None:
    journal: list[str] = []
    root = group(
        board=parent(probe(journal, "board"), power=parent(probe(journal, "power"), fuse=probe(journal, "fuse")))
    )
    async with running(root) as (tree, _):
        assert tree.find("board").state is State.READY
        assert await call(tree, "board.power.fuse", "hello") == "hello from fuse"
    names = ["fuse", "power", "board"]
    assert journal == [line for name in names for line in (f"open {name}", f"opened {name}")] + [
        line for name in reversed(names) for line in (f"close {name}", f"closed {name}")
    ]
    assert [tree.find(path).state for path in tree.paths()] == 3 * [State.CLOSED]


async def test_siblings_open_at_the_same_time(autojump_clock: trio.testing.MockClock) -> None:
    root = group(a=probe([], "a", on_open=lasting(5)), b=probe([], "b", on_open=lasting(5)))
    async with running(root):
        assert trio.current_time() == 5


async def test_a_driver_that_takes_long_to_open_does_not_hold_up_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = probe([], "slow", on_open=lasting(PATIENCE + 100))
    async with running(group(slow=slow, quick=probe([], "quick"))) as (tree, watch):
        assert trio.current_time() == PATIENCE
        assert await call(tree, "quick", "hello") == "hello from quick"
        with pytest.raises(DeviceError, match=r"^slow is opening$"):
            await call(tree, "slow", "hello")
        await watch.until("slow", State.READY)
        assert trio.current_time() == PATIENCE + 100
        assert await call(tree, "slow", "hello") == "hello from slow"


async def test_a_driver_of_its_own_children() -> None:
    class Board(Driver):
        """A composite."""

        def __post_init__(self) -> None:
            self.children["console"] = probe([], "console")

        @export
        async def relay(self) -> Any:
            child = self.children["console"]
            assert isinstance(child, Probe)
            return await child.hello()

    async with running(group(board=Node.of(Board()))) as (tree, _):
        assert await call(tree, "board", "relay") == "hello from console"
        assert await call(tree, "board.console", "hello") == "hello from console"


async def test_the_nursery_lives_until_close_has_returned() -> None:
    journal: list[str] = []

    class Tasked(Probe):
        async def open(self) -> None:
            self.nursery.start_soon(self.task)

        async def task(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                journal.append("task over")

    driver = Tasked()
    driver._journal, driver._on_close = journal, trio.lowlevel.checkpoint
    async with running(group(it=driver)):
        await trio.testing.wait_all_tasks_blocked()
    assert journal == ["close ", "closed ", "task over"]


# ---- degraded


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (DeviceError("no /dev/ttyUSB0: plug it in"), "no /dev/ttyUSB0: plug it in"),
        (KeyError("x"), "KeyError: 'x'"),
        (OSError(5, "two\nlines"), "OSError: [Errno 5] two lines"),
        (ExceptionGroup("", [ExceptionGroup("", [DeviceError("inside")])]), "inside"),
        (DeviceError(""), "DeviceError"),
    ],
)
async def test_a_driver_that_cannot_be_opened_is_degraded_and_the_others_work(problem: Exception, reason: str) -> None:
    root = group(bad=probe([], "bad", on_open=failing(problem)), good=probe([], "good"))
    async with running(root) as (tree, _):
        assert (tree.find("bad").state, tree.find("bad").reason) == (State.DEGRADED, reason)
        with pytest.raises(DeviceError) as raised:
            await call(tree, "bad", "hello")
        assert raised.value.message == f"bad is degraded: {reason}"
        assert await call(tree, "good", "hello") == "hello from good"
        report = tree.report()["children"]["bad"]
        assert (report["state"], report["reason"]) == ("degraded", reason)


async def test_what_never_opened_is_never_closed() -> None:
    journal: list[str] = []
    async with running(group(bad=probe(journal, "bad", on_open=failing(DeviceError("x"))))):
        pass
    assert journal == ["open bad"]


async def test_it_is_tried_again_with_longer_pauses_until_it_opens(autojump_clock: trio.testing.MockClock) -> None:
    attempts: list[float] = []

    async def attempt() -> None:
        attempts.append(trio.current_time())
        if len(attempts) < 9:
            raise DeviceError("not yet")

    async with running(group(it=probe([], "it", on_open=attempt))) as (tree, watch):
        await watch.until("it", State.READY)
        pauses = [after - before for before, after in pairwise(attempts)]
        assert pauses == [*RETRY, *3 * [RETRY[-1]]]
        assert await call(tree, "it", "hello") == "hello from it"
        assert tree.find("it").reason == ""


async def test_an_open_that_fails_takes_its_tasks_along() -> None:
    ended = trio.Event()

    class Half(Driver):
        async def open(self) -> None:
            self.nursery.start_soon(self.task)
            await trio.testing.wait_all_tasks_blocked()
            raise DeviceError("half-way")

        async def task(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                ended.set()

    async with running(group(it=Half())) as (tree, _):
        assert tree.find("it").reason == "half-way"
        assert ended.is_set()


async def test_a_barred_driver_is_never_opened() -> None:
    journal: list[str] = []
    root = group(it=probe(journal, "it"))
    root.children["it"].barred = "a policy says no"
    async with running(root) as (tree, _):
        with pytest.raises(Refused, match="it cannot be used: a policy says no"):
            await call(tree, "it", "hello")
    assert journal == []


# ---- lost


async def test_a_lost_device_fails_its_calls_is_closed_and_opened_again(autojump_clock: trio.testing.MockClock) -> None:
    journal: list[str] = []
    driver = probe(journal, "it")
    async with running(group(it=driver)) as (tree, watch), trio.open_nursery() as nursery:
        failures: list[str] = []

        async def wait() -> None:
            with pytest.raises(DeviceError) as raised:
                await call(tree, "it", "wait")
            failures.append(raised.value.message)

        async def count() -> None:
            method = tree.method("it", "numbers", (), {})
            seen = []

            async def see() -> None:
                with begun(method):
                    async for item in method.function():
                        seen.append(item)

            with pytest.raises(DeviceError, match="it was lost: unplugged"):
                await see()
            failures.append(str(seen))

        nursery.start_soon(wait)
        nursery.start_soon(count)
        await trio.testing.wait_all_tasks_blocked()
        journal.clear()
        driver.lost("unplugged")
        driver.lost("said twice")
        with pytest.raises(DeviceError, match="it was lost: unplugged"):
            await call(tree, "it", "hello")
        assert await watch.until("it", State.DEGRADED) == "unplugged"
        assert sorted(failures) == ["[1, 2]", "it was lost: unplugged"]
        await watch.until("it", State.READY)
        assert trio.current_time() == RETRY[0]
        assert await call(tree, "it", "hello") == "hello from it"
    assert journal == ["waited it", "close it", "closed it", "open it", "opened it", "close it", "closed it"]


async def test_a_lost_child_does_not_wait_for_its_parent(autojump_clock: trio.testing.MockClock) -> None:
    journal: list[str] = []
    child = probe(journal, "child")
    async with running(group(board=parent(probe([], "board"), child=child))) as (tree, watch):
        journal.clear()
        child.lost("unplugged")
        await watch.until("board.child", State.DEGRADED)
        assert trio.current_time() == 0
        assert journal == ["close child", "closed child"]
        assert tree.find("board").state is State.READY
        await watch.until("board.child", State.READY)


async def test_a_driver_may_be_lost_for_no_reason(autojump_clock: trio.testing.MockClock) -> None:
    driver = probe([], "it")
    async with running(group(it=driver)) as (_, watch):
        driver.lost("")
        assert await watch.until("it", State.DEGRADED) == "the driver gave no reason"


async def test_a_task_that_fails_degrades_its_driver_only(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    journal: list[str] = []
    driver = probe(journal, "it")
    child = probe(journal, "child")
    async with running(
        group(board=parent(probe([], "board"), it=parent(driver, child=child)), other=probe([], "other"))
    ) as (
        tree,
        watch,
    ):
        journal.clear()
        driver.nursery.start_soon(failing(ZeroDivisionError("oops")))
        assert await watch.until("board.it", State.DEGRADED) == "ZeroDivisionError: oops"
        assert trio.current_time() == 0
        assert journal == ["close it", "closed it"]
        assert await call(tree, "other", "hello") == "hello from other"
        await watch.until("board.it", State.READY)
    assert "a task of the driver failed" in caplog.text


async def test_losing_can_be_told_from_a_thread(autojump_clock: trio.testing.MockClock) -> None:
    driver = probe([], "it")
    async with running(group(it=driver)) as (_, watch):
        thread = threading.Thread(target=driver.lost, args=("seen by a thread",))
        thread.start()
        thread.join()
        assert await watch.until("it", State.DEGRADED) == "seen by a thread"


# ---- closing


async def test_a_failing_close_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    journal: list[str] = []
    bad = probe(journal, "bad", on_close=failing(RuntimeError("stuck")))
    async with running(group(board=parent(bad, child=probe(journal, "child")), good=probe(journal, "good"))):
        journal.clear()
    assert sorted(journal) == ["close bad", "close child", "close good", "closed child", "closed good"]
    assert "close() failed" in caplog.text


async def test_a_close_that_takes_too_long_is_given_up(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    journal: list[str] = []
    stuck = probe(journal, "stuck", on_close=trio.sleep_forever)
    child = probe(journal, "child", on_close=lasting(GRACE - 1))
    async with running(group(board=parent(stuck, child=child))):
        journal.clear()
    assert trio.current_time() == 2 * GRACE - 1  # the child has a grace time of its own
    assert journal == ["close stuck", "close child", "closed child"]
    assert "did not close within 10 s: given up" in caplog.text


@pytest.mark.parametrize("when", ["opening", "ready", "degraded"])
async def test_cancellation_at_any_time_closes_once_what_was_opened(
    when: str, autojump_clock: trio.testing.MockClock
) -> None:
    journal: list[str] = []
    tree = Tree(
        group(
            slow=probe(journal, "slow", on_open=lasting(30)),
            quick=probe(journal, "quick"),
            bad=probe(journal, "bad", on_open=failing(DeviceError("x"))),
        )
    )
    with trio.move_on_after(0 if when == "opening" else 30.5 if when == "degraded" else 40):
        async with tree.running():
            await trio.sleep_forever()
    opened = sorted(line.split()[1] for line in journal if line.startswith("opened "))
    assert opened == (["quick"] if when == "opening" else ["quick", "slow"])
    assert sorted(line for line in journal if line.startswith("close")) == sorted(
        f"{what} {name}" for name in opened for what in ("close", "closed")
    )
    assert tree.find("quick").state is State.CLOSED


async def test_calls_end_before_the_driver_closes() -> None:
    journal: list[str] = []
    failures: list[str] = []
    async with trio.open_nursery() as nursery:
        async with running(group(it=probe(journal, "it"))) as (tree, _):

            async def wait() -> None:
                with pytest.raises(DeviceError) as raised:
                    await call(tree, "it", "wait")
                failures.append(raised.value.message)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
    assert failures == ["it was lost: it is being closed"]
    assert journal.index("waited it") > journal.index("wait it")
    assert journal[-1] == "closed it"


async def test_an_error_on_the_way_out_comes_neither_out_nor_in_the_way(caplog: pytest.LogCaptureFixture) -> None:
    class Sore(Probe):
        async def open(self) -> None:
            self.nursery.start_soon(self.task)

        async def task(self) -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("a sore loser")

    journal: list[str] = []
    tree = Tree(group(sore=Sore(), other=probe(journal, "other")))
    with trio.CancelScope() as scope:
        async with tree.running():
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.sleep_forever()
    assert journal[-1] == "closed other"
    assert "a sore loser" in caplog.text
    assert [tree.find(path).state for path in ("sore", "other")] == 2 * [State.CLOSED]


# ---- plain methods, in threads


class Plain(Driver):
    """A device whose library blocks."""

    _journal: list[str] = field(init=False, default_factory=list)
    _go: threading.Event = field(init=False, default_factory=threading.Event)
    _inside: threading.Event = field(init=False, default_factory=threading.Event)

    def close(self) -> None:
        self._journal.append("close")

    @export
    def block(self) -> str:
        """Until the test lets it go."""
        self._inside.set()
        assert self._go.wait(60)
        self._journal.append("blocked")
        return "done"

    @export
    def polite(self) -> None:
        """Sleeps as drivers should."""
        self._inside.set()
        try:
            sleep(20)
        except Cancelled as error:
            self._journal.append(str(error))
            raise

    @export
    def quick(self) -> str:
        return "quick"

    @export
    async def agile(self) -> str:
        return "agile"

    @export
    def numbers(self) -> Iterator[int]:
        try:
            for number in range(3):
                yield number
                self._inside.set()
                if number == 1:
                    assert self._go.wait(60)
        finally:
            self._journal.append("generator closed")

    @exportstream
    def shout(self, stream: ThreadStream) -> None:
        """A byte stream in a thread."""
        try:
            for data in stream:
                stream.send_all(bytes(data).upper())
            stream.send_eof()
        except Cancelled as error:
            self._journal.append(f"{error}: {cancelled()}")
            raise


async def wait_for(event: threading.Event) -> None:
    assert await trio.to_thread.run_sync(event.wait, 20, abandon_on_cancel=True)


@pytest.mark.parametrize("name", ["block", "numbers"])
async def test_a_plain_method_that_blocks_stalls_no_other_driver(name: str) -> None:
    one = Plain()
    async with running(group(one=one, two=Plain())) as (tree, _), trio.open_nursery() as nursery:
        done: list[Any] = []

        async def use() -> None:
            method = tree.method("one", name, (), {})
            done.append([item async for item in method.function()] if name == "numbers" else await method.function())

        nursery.start_soon(use)
        await wait_for(one._inside)
        with trio.fail_after(60):
            assert await call(tree, "two", "quick") == "quick"
            assert await call(tree, "one", "agile") == "agile"
        assert done == []
        one._go.set()
    assert done == [[0, 1, 2] if name == "numbers" else "done"]


async def test_plain_methods_of_one_driver_take_turns() -> None:
    one = Plain()
    async with running(group(one=one)) as (tree, _), trio.open_nursery() as nursery:
        nursery.start_soon(call, tree, "one", "block")
        await wait_for(one._inside)

        async def quick() -> None:
            await call(tree, "one", "quick")
            one._journal.append("quick")

        nursery.start_soon(quick)
        await trio.testing.wait_all_tasks_blocked(0.01)
        one._go.set()
    assert one._journal == ["blocked", "quick", "close"]


async def test_cancelling_reaches_a_thread_that_sleeps_as_it_should() -> None:
    one = Plain()
    async with running(group(one=one)) as (tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, tree, "one", "polite")
            await wait_for(one._inside)
            nursery.cancel_scope.cancel()
        assert await call(tree, "one", "quick") == "quick"  # after the other one has returned
        assert one._journal == ["the caller gave up"]


async def test_one_that_does_not_runs_on_and_close_waits_for_it() -> None:
    """The limit of threads: the caller is free at once, the driver's plain methods and close() come after it."""
    one = Plain()
    async with running(group(one=one)) as (tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, tree, "one", "block")
            await wait_for(one._inside)
            nursery.cancel_scope.cancel()
        assert one._journal == []
        assert await call(tree, "one", "agile") == "agile"
        one._go.set()
    assert one._journal == ["blocked", "close"]


async def test_leaving_a_plain_generator_closes_it() -> None:
    one = Plain()
    async with running(group(one=one)) as (tree, _):
        async with aclosing(tree.method("one", "numbers", (), {}).function()) as items:
            assert await anext(items) == 0
        assert one._journal == ["generator closed"]


async def test_a_plain_byte_stream() -> None:
    one = Plain()
    near, far = trio.testing.memory_stream_pair()
    async with running(group(one=one)) as (tree, _), trio.open_nursery() as nursery:
        nursery.start_soon(tree.method("one", "shout", (), {}).function, far)
        await near.send_all(b"hello")
        assert await near.receive_some() == b"HELLO"
        await near.send_eof()
        assert await near.receive_some() == b""


async def test_a_plain_byte_stream_whose_caller_gives_up() -> None:
    one = Plain()
    near, far = trio.testing.memory_stream_pair()
    async with running(group(one=one)) as (tree, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.method("one", "shout", (), {}).function, far)
            await near.send_all(b"hello")
            assert await near.receive_some() == b"HELLO"
            nursery.cancel_scope.cancel()
        await far.aclose()  # as the one who answers calls does
        assert await call(tree, "one", "quick") == "quick"
    while not one._journal[:-1]:
        await trio.lowlevel.checkpoint()
    assert sorted(one._journal) == ["close", "the caller gave up: True"]


class Opening(Driver):
    """A device whose library blocks in opening it."""

    _inside: threading.Event = field(init=False, default_factory=threading.Event)
    _go: threading.Event = field(init=False, default_factory=threading.Event)
    _problem: Exception | None = field(init=False, default=None)
    _journal: list[str] = field(init=False, default_factory=list)

    def open(self) -> None:
        self._inside.set()
        assert self._go.wait(60)
        if self._problem is not None:
            raise self._problem
        self._journal.append("opened")

    def close(self) -> None:
        self._journal.append("closed")


@pytest.mark.parametrize("problem", [None, DeviceError("not there")])
async def test_a_plain_open_that_outlives_the_session_is_closed(problem: Exception | None) -> None:
    it = Opening()
    it._problem = problem
    tree = Tree(group(it=it))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await wait_for(it._inside)
                scope.cancel()
                await trio.lowlevel.cancel_shielded_checkpoint()
                it._go.set()

            nursery.start_soon(cancel)
            async with tree.running():
                pass
    assert it._journal == ([] if problem else ["opened", "closed"])
    assert tree.find("it").state is State.CLOSED


# ---- finding


async def test_refs_lead_to_the_same_driver() -> None:
    journal: list[str] = []
    root = group(
        board=parent(probe(journal, "board"), power=probe(journal, "power")),
        alias=Node(ref="board"),
        deep=Node(ref="alias.power", description="the same"),
    )
    async with running(root) as (tree, _):
        assert journal.count("open power") == 1
        for path in ("board.power", "alias.power", "deep"):
            assert await call(tree, path, "hello") == "hello from power"
        assert tree.report()["children"]["deep"] == {"ref": "board.power", "description": "the same"}


@pytest.mark.parametrize(
    ("path", "name", "said"),
    [
        ("powr", "hello", "there is no driver 'powr' here (did you mean 'power'?)"),
        ("power.deeper", "hello", "there is no driver 'power.deeper' here"),
        ("power", "helo", "'power' has no method 'helo' (did you mean 'hello'?)"),
        ("power", "open", "'power' has no method 'open'"),
        ("power", "_on_open", "'power' has no method '_on_open'"),
        ("group", "hello", "'group' is a group without methods of its own (known: group.inner)"),
        ("", "hello", "'' is a group without methods of its own"),
        ("..", "hello", "there is no driver '..' here"),
    ],
)
async def test_what_does_not_exist(path: str, name: str, said: str) -> None:
    async with running(group(power=probe([], "power"), group=group(inner=probe([], "inner")))) as (tree, _):
        with pytest.raises(NotFound) as raised:
            await call(tree, path, name)
        assert raised.value.message.startswith(said)


async def test_arguments_are_checked_before_the_method_is_called() -> None:
    async with running(group(it=probe([], "it"))) as (tree, _):
        with pytest.raises(BadValue, match="takes at most 0 positional arguments, got 1"):
            tree.method("it", "hello", (1,), {})
        with pytest.raises(BadValue, match=r"^it\.hello: unexpected argument 'loud'"):
            tree.method("it", "hello", (), {"loud": True})


# ---- reset


async def test_reset_goes_children_first_and_leaves_out_what_is_not_ready() -> None:
    journal: list[str] = []
    root = group(
        board=parent(probe(journal, "board"), power=probe(journal, "power")),
        bad=probe(journal, "bad", on_open=failing(DeviceError("x"))),
        alias=Node(ref="board"),
    )
    async with running(root) as (tree, _):
        journal.clear()
        await tree.reset()
        assert journal == ["reset power", "reset board"]
        journal.clear()
        await tree.reset("alias")
        await tree.reset("board.power")
        assert journal == ["reset power", "reset board", "reset power"]
        with pytest.raises(NotFound):
            await tree.reset("nothing")


async def test_a_device_that_is_lost_while_it_is_reset() -> None:
    class Fragile(Driver):
        async def reset(self) -> None:
            self.lost("it broke")
            await trio.sleep_forever()

    async with running(group(it=Fragile())) as (tree, _):
        with pytest.raises(DeviceError, match="it was lost: it broke"):
            await tree.reset()


# ---- report


async def test_the_report_has_what_the_configuration_overrides() -> None:
    node = Node.of(probe([], "it"), type="probe")
    node.description, node.help = "My probe.", {"hello": "Greets."}
    async with running(Node(children={"it": node})) as (tree, _):
        report = tree.report()["children"]["it"]
        assert (report["type"], report["description"]) == ("probe", "My probe.")
        assert {name: method["doc"] for name, method in report["methods"].items()} == {
            "hello": "Greets.",
            "wait": "Never return.",
            "numbers": "Two, and no more.",
        }


async def test_states_move_as_the_table_says() -> None:
    tree = Tree(group(it=probe([], "it")))
    with pytest.raises(RuntimeError, match="it: a closed driver cannot become ready"):
        tree._set(tree.find("it"), State.READY)


async def test_errors_of_the_log_name_the_driver(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(group(board=group(it=probe([], "it", on_open=failing(DeviceError("unplugged")))))):
        pass
    (warning, *_) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert (warning.name, warning.getMessage()) == ("jmp.driver.board.it", "cannot be opened: unplugged")


async def test_a_stream_method_gets_the_stream_and_its_arguments() -> None:
    class Greeter(Driver):
        @exportstream
        async def connect(self, stream: Stream, name: str = "you") -> None:
            await stream.send_all(f"hello {name}".encode())

    near, far = trio.testing.memory_stream_pair()
    async with running(group(it=Greeter())) as (tree, _):
        await tree.method("it", "connect", ("all",), {}).function(far)
        assert await near.receive_some() == b"hello all"
