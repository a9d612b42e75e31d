"""Leases at the exporter: who is let in, who is cut off, and what runs around them. The controller and the clients are real."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jmp.client.connect import TARGET
from jmp.client.lab import Lab as ClientLab
from jmp.controller import lab as controller
from jmp.errors import Cancelled, JmpError, LabError, LinkLost, NotFound, Refused
from jmp.exporter import session
from jmp.exporter.lab import LabExporter, Memory
from jmp.rpc import reconnect
from jmp.rpc.call import Caller
from jmp.wire import records
from jmp.wire.records import State
from tests.fakes.clocks import leaping
from tests.fakes.memory_lab import WANT, Lamp, MemoryLab, memory_lab
from tests.fakes.memory_store import MemoryStore


@contextmanager
def refused(kind: type[JmpError], match: str) -> Iterator[None]:
    """As pytest.raises, whatever nurseries the error has come through."""
    with pytest.RaisesGroup(pytest.RaisesExc(kind, match=match), flatten_subgroups=True):
        yield


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """Leaps when all have waited for 10 ms: until then they may wait for programs and sockets."""
    return leaping(0.01)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[MemoryLab]:
    async with memory_lab(tmp_path) as made:
        yield made


async def test_a_lease_from_its_request_to_the_next_one(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice, lab.client("bob") as bob:
        first = await alice.acquire(WANT, 60.0)
        granted = await lab.wait(first.id, State.READY)
        second = await bob.acquire(WANT, 60.0)
        assert second.state is State.QUEUED
        async with lab.visit(alice, exporter, first.id) as (_, device):
            Lamp.lit = False
            await device.lamp.on()
            assert Lamp.lit
        await alice.release(first.id)
        ended = await lab.wait(first.id, State.ENDED)
        assert ended.reason == "released by alice"
        following = await lab.wait(second.id, State.READY)
        assert following.devices[0].epoch == granted.devices[0].epoch + 1


async def test_release_cuts_calls_and_streams_at_once_with_the_reason(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device), trio.open_nursery() as nursery:
            seen: list[str] = []

            async def wait_for_ever() -> None:
                with pytest.raises(Cancelled) as raised:
                    await device.lamp.wait()
                seen.append(raised.value.message)

            nursery.start_soon(wait_for_ever)
            async with device.lamp.echo() as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                await alice.release(lease.id)
                with pytest.raises(Cancelled, match="has ended: released by alice"):
                    await stream.receive_some()
            await trio.testing.wait_all_tasks_blocked()
            assert seen == [f"lease {lease.id} has ended: released by alice"]
            with pytest.raises((Refused, LinkLost)):
                await device.lamp.on()


async def test_the_exporter_says_who_did_what_to_the_device_under_which_lease(
    lab: MemoryLab, autojump_clock: trio.testing.MockClock
) -> None:
    await lab.add(records.Policy(name="default", deny=("lamp.on",)))
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0, context={"job": "7"}, tags=["night"])
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            with pytest.raises(Refused, match="a policy forbids it"):
                await device.lamp.on()
            async with device.lamp.echo() as stream:
                await stream.send_all(b"secret")
                await stream.receive_some()
            with trio.move_on_after(0.2):
                await device.lamp.wait()
    said = [json.loads(line) for line in lab.audit_of("one").read_text().splitlines()]
    assert [(line["action"], line["result"].partition(":")[0]) for line in said] == [
        ("lamp.on", "refused"),
        ("lamp.echo", "ok"),
        ("lamp.wait", "timeout"),
    ]
    assert {line["lease"] for line in said} == {lease.id}
    assert said[0]["actor"] == "alice"
    assert said[0]["object"] == "exporter/one"
    assert said[0]["context"] == {"job": "7"}
    assert said[0]["tags"] == ["night"]
    assert "secret" not in str(said)


async def test_a_transfer_cuts_the_old_holder_off_and_lets_the_new_one_in(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice, lab.client("bob") as bob:
        lease = await alice.acquire(WANT, 60.0)
        old = await alice.meet(lease.id)
        async with lab.visit_with(exporter, old["token"]) as (connection, device):
            await device.lamp.on()
            await alice.call("transfer", lease.id, "bob")
            await connection.wait_over()
        with refused(Refused, "was handed over"):
            async with lab.visit_with(exporter, old["token"]):
                pass
        with pytest.raises(Refused, match="is bob's: transfer it to use its devices"):
            await alice.meet(lease.id)
        async with lab.visit(bob, exporter, lease.id) as (_, device):
            await device.lamp.on()


async def test_who_is_faster_than_the_controllers_word_of_the_grant_waits_for_it(
    lab: MemoryLab, autojump_clock: trio.testing.MockClock
) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice, lab.client("bob") as bob:
        to_exporter = lab.ends["one"]
        to_exporter.delay = 3.0
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device):  # before the exporter knows of it
            await device.lamp.on()
        await alice.call("transfer", lease.id, "bob")
        async with lab.visit(bob, exporter, lease.id) as (_, device):
            await device.lamp.on()
        to_exporter.delay = 30.0
        await bob.call("transfer", lease.id, "alice")
        began = trio.current_time()
        with refused(Refused, "was handed over or granted anew since"):
            async with lab.visit(alice, exporter, lease.id):
                pass
        assert trio.current_time() - began == pytest.approx(8.0)


async def test_a_thousand_stale_tokens_are_refused(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        await lab.wait(lease.id, State.READY)
        token = (await alice.meet(lease.id))["token"]
        await alice.release(lease.id)
        await lab.wait(lease.id, State.ENDED)
        for number in range(1000):
            claims = exporter.verify(token)
            with pytest.raises(Refused):  # it is over, or another lease's time, or a newer epoch of the exporter
                exporter.hold_for(claims).admit(None, claims)  # type: ignore[arg-type]  # never gets so far
            if number % 100 == 0:
                lease = await alice.acquire(WANT, 60.0)
                await lab.wait(lease.id, State.READY)
                with pytest.raises(Refused, match="is not this exporter's present one"):
                    exporter.hold_for(claims).admit(None, claims)  # type: ignore[arg-type]
                await alice.release(lease.id)
                await lab.wait(lease.id, State.ENDED)


def end_soon(exporter: LabExporter) -> None:
    """Let the present lease's time be over in a moment, as that of a shorter one would be by now."""
    hold = exporter.hold
    assert hold is not None
    hold.renew(replace(hold.grant, duration=trio.current_time() - hold._term._began + 0.1), hold.epoch)


async def test_the_exporter_ends_a_lease_by_its_own_clock_with_the_controller_dead(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            await lab.wait(lease.id, State.READY)
            lab.kill_controller()
            end_soon(exporter)
            with pytest.raises(Cancelled, match="its time was over"):
                await device.lamp.wait()
        assert exporter.hold is not None
        await exporter.hold.over.wait()
    assert isinstance(lab.store, MemoryStore)
    assert lab.store.records["lease", lease.id].state is State.READY  # the controller could not hear of it


async def test_a_lease_is_no_longer_than_its_duration_though_the_controllers_clock_was_set_back(
    lab: MemoryLab, autojump_clock: trio.testing.MockClock
) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 30.0)
        await lab.wait(lease.id, State.READY)
        began = trio.current_time()
        lab.kill_controller()
        lab.offset -= 3600
        await lab.start_controller()
        assert exporter.hold is not None
        await exporter.hold.over.wait()
        assert trio.current_time() - began == pytest.approx(30.0, abs=0.1)


LIMIT = 100.0
"""Seconds that exporters may take to get ready, in this test."""


@dataclass
class Gang:
    """A lease of two devices, one of which is ready at once, and the other one 20 s later."""

    lab: MemoryLab
    lease: str

    async def extend(self) -> None:
        await self.lab.lab.do(lambda: self.lab.lab.engine.extend(self.lease, 20.0, None, self.lab.clock()))

    async def transfer(self) -> None:
        await self.lab.lab.do(lambda: self.lab.lab.engine.transfer(self.lease, "bob", None, self.lab.clock()))

    async def kill(self) -> None:
        self.lab.kill_controller()

    async def start(self) -> None:
        await self.lab.start_controller()

    async def an_hour_forth(self) -> None:
        self.lab.offset += 3600

    async def an_hour_back(self) -> None:
        self.lab.offset -= 3600


@pytest.mark.parametrize(
    ("events", "after"),
    [
        ({}, 50.0),
        ({10: Gang.extend}, 70.0),
        ({30: Gang.extend}, 70.0),
        ({30: Gang.transfer}, 50.0),
        ({30: Gang.kill}, 50.0),
        ({30: Gang.kill, 35: Gang.start, 45: Gang.extend}, 70.0),
        ({10: Gang.kill, 15: Gang.start}, 50.0),
        ({10: Gang.kill, 25: Gang.start, 45: Gang.kill}, 55.0),
        ({10: Gang.an_hour_forth, 30: Gang.an_hour_back}, 50.0),
        ({10: Gang.an_hour_back, 30: Gang.kill, 31: Gang.an_hour_back, 35: Gang.start}, 50.0),
        ({10: Gang.kill}, LIMIT + 30),
    ],
    ids=lambda value: "-".join(f"{at}-{do.__name__}" for at, do in value.items()) if isinstance(value, dict) else "",
)
async def test_a_lease_of_several_devices_lasts_from_when_all_are_ready_and_ends_for_all_at_once(
    lab: MemoryLab,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    events: dict[int, Callable[[Gang], Awaitable[None]]],
    after: float,
) -> None:
    """Also while the controller is away, was started anew, or has its clock set; cut off before all were ready, each ends it."""

    async def hook(*_: object) -> None:
        await trio.sleep(20)

    async def note_end(exporter: LabExporter) -> None:
        assert exporter.hold is not None
        await exporter.hold.over.wait()
        ends.append((trio.current_time() - began, exporter.hold.reason))

    monkeypatch.setattr(session, "run_hook", hook)
    monkeypatch.setattr(controller, "PREPARE_LIMIT", LIMIT)
    ends: list[tuple[float, str]] = []
    slow = "hooks: {beforeLease: {script: takes a while}}"
    async with lab.exporter("one") as one, lab.exporter("two", slow) as two, lab.client("alice") as alice:
        await lab.add(records.Client(name="bob"))
        lease = await alice.acquire(WANT * 2, 30.0, idle_limit=52.0)
        began = trio.current_time()
        with lab.lab.news.listen(("observed", "one"), ("observed", "two")) as listener:
            while one.hold is None or two.hold is None:
                await listener.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_end, one)
            nursery.start_soon(note_end, two)
            for at, event in events.items():
                await trio.sleep_until(began + at)
                await event(Gang(lab, lease.id))
    assert [reason for _, reason in ends] == ["its time was over"] * 2
    assert [time for time, _ in ends] == pytest.approx([after] * 2, abs=reconnect.LONGEST + 0.5)
    assert ends[1][0] - ends[0][0] < 0.1


async def test_what_is_over_does_not_begin_again_though_the_controller_has_not_heard_of_it(
    lab: MemoryLab, tmp_path: Path
) -> None:
    hooks = f"""
    hooks:
      beforeLease: {{script: echo before >> {tmp_path}/ran}}
      afterLease: {{script: echo after >> {tmp_path}/ran}}
    """
    async with lab.exporter("one", hooks), lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        await lab.wait(lease.id, State.READY)
        lab.kill_controller()
    await lab.start_controller()
    assert lab.lab.view.lease[lease.id].state is State.READY
    async with lab.exporter("one", hooks):
        assert (await lab.wait(lease.id, State.ENDED)).reason == "the exporter was restarted"
        assert (tmp_path / "ran").read_text().split() == ["before", "after"]


async def test_a_controller_that_comes_back_finds_the_session_going_on(lab: MemoryLab) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device), device.lamp.echo() as stream:
            await stream.send_all(b"before")
            assert await stream.receive_some() == b"before"
            await lab.wait(lease.id, State.READY)  # so that this is kept
            lab.kill_controller()
            await stream.send_all(b"meanwhile")
            assert await stream.receive_some() == b"meanwhile"
            await lab.start_controller()
            await stream.send_all(b"after")
            assert await stream.receive_some() == b"after"
            async with lab.client("alice") as again:
                assert (await again.call("lease", lease.id))["state"] == "ready"
                await again.release(lease.id)
            with pytest.raises(Cancelled, match="released by alice"):
                await stream.receive_some()
        await lab.wait(lease.id, State.ENDED)


async def test_a_method_that_a_policy_forbids_is_refused_in_one_line(lab: MemoryLab) -> None:
    await lab.add(records.Policy(name="default", deny=("lamp.o*",)))
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            with pytest.raises(Refused, match=r"^alice may not use lamp\.on here: a policy forbids it$"):
                await device.lamp.on()
            async with device.lamp.echo():
                pass
    await lab.add(records.Policy(name="default", allow=("lamp.echo",)))
    async with lab.exporter("two") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire([records.Want(exporter="two")], 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            with pytest.raises(Refused, match=r"^alice may not use lamp\.on here: no policy allows it$"):
                await device.lamp.on()


async def test_a_driver_of_a_package_that_a_policy_does_not_allow_is_never_opened(lab: MemoryLab) -> None:
    await lab.add(records.Policy(name="default", packages=("others",)))
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            with pytest.raises(Refused, match=r"^lamp cannot be used: a policy does not allow drivers of"):
                await device.lamp.on()


async def test_a_token_for_another_exporter_and_a_link_without_a_token_get_nowhere(lab: MemoryLab) -> None:
    async with lab.exporter("one") as one, lab.exporter("two") as two, lab.client("alice") as alice:
        await lab.attended("one")
        await lab.attended("two")
        lease = await alice.acquire([records.Want(exporter="one")], 60.0)
        token = (await alice.meet(lease.id))["token"]
        with refused(Refused, "this token is for exporter one, not for two"):
            async with lab.visit_with(two, token):
                pass
        with refused(Refused, "this is no token"):
            async with lab.visit_with(one, ""):
                pass


async def test_what_nobody_uses_for_long_ends(lab: MemoryLab, autojump_clock: trio.testing.MockClock) -> None:
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0, idle_limit=0.3)
        async with lab.visit(alice, exporter, lease.id) as (_, device):
            with trio.move_on_after(0.6):
                while True:
                    await device.lamp.on()
                    await trio.sleep(0.1)
            ended = await lab.wait(lease.id, State.ENDED)
        assert ended.reason == "nobody used it for 0s"


async def test_an_exporter_that_was_killed_cleans_up_before_the_next_lease(lab: MemoryLab, tmp_path: Path) -> None:
    hooks = f"""
    hooks:
      afterLease: {{script: echo "$JMP_LEASE $JMP_CLIENT" >> {tmp_path}/after}}
    """
    async with lab.client("alice") as alice:
        async with lab.exporter("one", hooks) as exporter:
            lease = await alice.acquire(WANT, 60.0)
            await lab.wait(lease.id, State.READY)
            state = (tmp_path / "one.json").read_text()
            assert exporter.hold is not None
        await lab.wait(lease.id, State.ENDED)
        (tmp_path / "after").unlink()
        (tmp_path / "one.json").write_text(state)  # as a kill would have left it
        async with lab.exporter("one", hooks):
            following = await alice.acquire(WANT, 60.0)
            await lab.wait(following.id, State.READY)
            assert (tmp_path / "after").read_text() == f"{lease.id} alice\n"


FAILURES = {
    "status": ("exit 3", "failed with exit status 3"),
    "killed": ("kill -9 $$", "failed with exit status -9"),
    "timeout": ("sleep 60", "did not end within 0.2 s"),
}


@pytest.mark.parametrize("policy", ["warn", "endLease", "exit"])
@pytest.mark.parametrize("hook", ["beforeLease", "afterLease"])
@pytest.mark.parametrize("failure", FAILURES)
async def test_a_hook_that_fails_while_somebody_waits(
    lab: MemoryLab, tmp_path: Path, failure: str, hook: str, policy: str
) -> None:
    """Fails for alice; bob is next."""
    script, said = FAILURES[failure]
    scripts = {name: f"echo {name} $JMP_CLIENT >> {tmp_path}/ran" for name in ("beforeLease", "afterLease")}
    scripts[hook] += f"; test $JMP_CLIENT = bob || {script}"
    hooks = "\nhooks:\n" + "".join(
        f"  {name}: {{script: '{text}', timeout: {0.2 if name == hook and failure == 'timeout' else 60}, onFailure: {policy}}}\n"
        for name, text in scripts.items()
    )
    ends_early = hook == "beforeLease" and policy != "warn"
    stops = policy == "exit"
    seen: list[State] = []
    with refused(LabError, f"^hook {hook} {said}$") if stops else nullcontext():
        async with lab.exporter("one", hooks) as exporter, lab.client("alice") as alice, lab.client("bob") as bob:
            lease = await alice.acquire(WANT, 60.0)
            following = await bob.acquire(WANT, 60.0)
            assert following.state is State.QUEUED
            async with trio.open_nursery() as nursery:
                nursery.start_soon(note_states, alice, lease.id, seen)
                if not ends_early:
                    await lab.wait(lease.id, State.READY)
                    await alice.release(lease.id)
                ended = await lab.wait(lease.id, State.ENDED)
            assert ended.reason == (f"hook {hook} {said}" if ends_early else "released by alice")
            assert exporter.hold is not None
            if not stops:
                await lab.wait(following.id, State.READY)
                await bob.release(following.id)
                assert (await lab.wait(following.id, State.ENDED)).reason == "released by bob"
            else:
                await trio.sleep_forever()
    legal = [State.PREPARING, *([] if ends_early else [State.READY]), State.ENDING, State.ENDED]
    assert seen == [state for state in legal if state in seen]  # one may pass unseen
    assert seen[-1] is State.ENDED
    both = ["beforeLease alice", "afterLease alice", *(["beforeLease bob", "afterLease bob"] if not stops else [])]
    assert (tmp_path / "ran").read_text().splitlines() == both


async def note_states(lab: ClientLab, lease: str, seen: list[State]) -> None:
    """What a client sees of a lease, to its end."""
    async with aclosing(lab.watch(lease)) as watching:
        async for standing in watching:
            if standing.lease.state not in seen[-1:]:
                seen.append(standing.lease.state)


@pytest.mark.parametrize(
    ("policy", "said"), [("warn", b"hook beforeLease failed with exit status 3\n"), ("endLease", b"")]
)
async def test_what_the_holder_reads_of_a_hook_that_fails(
    lab: MemoryLab, tmp_path: Path, policy: str, said: bytes
) -> None:
    hooks = f"""
    hooks:
      beforeLease: {{script: "echo hello; until [ -e {tmp_path}/go ]; do sleep 0.01; done; exit 3", onFailure: {policy}}}
      afterLease: {{script: "echo bye"}}
    """
    async with lab.exporter("one", hooks) as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        got = b""
        async with lab.listen(alice, exporter, lease.id) as output:
            async for _, data in output:
                got += data
                (tmp_path / "go").touch()
                if said and got.endswith(said):
                    await lab.wait(lease.id, State.READY)
                    await alice.release(lease.id)
    assert got == b"hello\n" + said + b"bye\n"


@pytest.mark.parametrize(
    ("before", "after", "duration", "release", "reason"),
    [
        ("true", "sleep 3.5", 3.0, True, "released by alice"),  # its time is over during afterLease
        ("true", "true", 0.01, False, "its time was over"),  # just after beforeLease
        ("true", "sleep 0.3", 0.2, False, "its time was over"),  # just before afterLease
        (
            "sleep 0.6",
            "true",
            0.2,
            False,
            "its time was over",
        ),  # beforeLease takes longer than the lease, which it is no part of
    ],
)
async def test_a_lease_that_expires_around_a_hook(
    lab: MemoryLab, tmp_path: Path, before: str, after: str, duration: float, release: bool, reason: str
) -> None:
    hooks = f"""
    hooks:
      beforeLease: {{script: "echo before $JMP_CLIENT >> {tmp_path}/ran; {before}"}}
      afterLease: {{script: "{after}; echo after $JMP_CLIENT >> {tmp_path}/ran"}}
    """
    seen: list[State] = []
    async with lab.exporter("one", hooks), lab.client("alice") as alice, lab.client("bob") as bob:
        lease = await alice.acquire(WANT, duration)
        following = await bob.acquire(WANT, 60.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note_states, alice, lease.id, seen)
            await lab.wait(lease.id, State.READY, State.ENDING, State.ENDED)
            if release:
                await alice.release(lease.id)
            ended = await lab.wait(lease.id, State.ENDED)
        assert ended.reason == reason
        await lab.wait(following.id, State.READY)
        assert (tmp_path / "ran").read_text().splitlines() == ["before alice", "after alice", "before bob"]
    assert seen == [state for state in (State.PREPARING, State.READY, State.ENDING, State.ENDED) if state in seen]


async def test_an_exporter_that_does_not_get_ready_in_time(lab: MemoryLab, tmp_path: Path) -> None:
    hooks = f"""
    hooks:
      beforeLease: {{script: "echo begin; sleep 60"}}
      afterLease: {{script: "echo after >> {tmp_path}/ran"}}
    """
    async with lab.exporter("one", hooks) as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.listen(alice, exporter, lease.id) as output:
            assert await anext(output) == ("beforeLease", b"begin\n")
            assert exporter.hold is not None
            exporter.hold.renew(replace(exporter.hold.grant, remaining=0.0), exporter.hold.epoch)
            ended = await lab.wait(lease.id, State.ENDED)
    assert ended.reason == "its exporter did not get ready in time"
    assert (tmp_path / "ran").read_text() == "after\n"


@pytest.mark.parametrize("hook", ["beforeLease", "afterLease"])
async def test_a_client_that_is_killed_during_a_hook(
    lab: MemoryLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str
) -> None:
    scripts = {"beforeLease": "true", "afterLease": "true", hook: "echo begun; sleep 0.6"}
    hooks = f"""
    hooks:
      beforeLease: {{script: "{scripts["beforeLease"]}"}}
      afterLease: {{script: "{scripts["afterLease"]}; echo after $JMP_CLIENT >> {tmp_path}/ran"}}
    """
    async with lab.exporter("one", hooks) as exporter, lab.client("bob") as bob:
        async with lab.client("alice") as alice:
            lease = await alice.acquire(WANT, 60.0, tied=True)
            following = await bob.acquire(WANT, 60.0)
            async with aclosing(alice.watch(lease.id)) as watching, lab.listen(alice, exporter, lease.id) as output:
                await anext(watching)
                monkeypatch.setattr(lab.lab.engine, "_holder_grace", 0.2)
                if hook == "afterLease":
                    await lab.wait(lease.id, State.READY)
                    await alice.release(lease.id)
                assert await anext(output) == (hook, b"begun\n")
        ended = await lab.wait(lease.id, State.ENDED)
        assert ended.reason == ("released by alice" if hook == "afterLease" else "its holder was gone")
        assert (tmp_path / "ran").read_text() == "after alice\n"
        await lab.wait(following.id, State.READY)


@pytest.mark.parametrize("how", ["release", "kick", "transfer", "expiry", "maintenance", "disabled", "deleted"])
async def test_an_open_console_dies_within_a_second(lab: MemoryLab, caplog: pytest.LogCaptureFixture, how: str) -> None:
    async with (
        lab.exporter("one") as exporter,
        lab.client("alice") as alice,
        lab.client("bob"),
        lab.client("admin", records.Role.ADMIN) as admin,
    ):
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (_, device), device.lamp.echo() as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some() == b"x"
            await lab.wait(lease.id, State.READY)
            async with trio.open_nursery() as nursery:
                began = trio.current_time()
                calls = {
                    "release": (alice, "release", (lease.id,)),
                    "kick": (admin, "release", (lease.id, "go home")),
                    "transfer": (admin, "transfer", (lease.id, "bob")),
                    "maintenance": (admin, "disable", ("exporter", "one", "new fan", True)),
                    "disabled": (admin, "disable", ("client", "alice", "left us")),
                    "deleted": (admin, "delete", ("exporter", "one")),
                }
                if how in calls:
                    who, method, arguments = calls[how]
                    nursery.start_soon(partial(who.call, method, *arguments))
                else:
                    end_soon(exporter)
                with pytest.raises((Cancelled, LinkLost)):
                    await stream.receive_some()
                took = trio.current_time() - began
    assert took < 10, "it is told, and does not have to notice that nobody is there any more"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    print(f"\n{how}: {took * 1000:.0f} ms")


async def test_the_output_of_hooks_comes_live_with_its_source_and_outlives_the_lease(lab: MemoryLab) -> None:
    hooks = """
    hooks:
      beforeLease: {script: echo hello $JMP_CLIENT}
      afterLease: {script: echo goodbye $JMP_CLIENT}
    """
    async with lab.exporter("one", hooks) as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        async with lab.visit(alice, exporter, lease.id) as (connection, _):
            items: list[Any] = []
            async with aclosing(Caller(connection).items(TARGET, "output", (), {})) as output:
                async for source, data in output:
                    items.append((source, data))
                    if source == "beforeLease":
                        await alice.release(lease.id)
    assert items == [("beforeLease", b"hello alice\n"), ("afterLease", b"goodbye alice\n")]


@pytest.mark.parametrize("when", ["during", "before"])
async def test_afterlease_runs_once_when_the_lease_is_released_around_beforelease(
    lab: MemoryLab, tmp_path: Path, when: str
) -> None:
    hooks = f"""
    hooks:
      beforeLease: {{script: "echo begin; sleep 60"}}
      afterLease: {{script: "echo after >> {tmp_path}/ran"}}
    """
    async with lab.exporter("one", hooks) as exporter, lab.client("alice") as alice:
        await lab.attended("one")
        lease = await alice.acquire(WANT, 60.0)
        if when == "during":
            async with lab.listen(alice, exporter, lease.id) as output:
                assert await anext(output) == ("beforeLease", b"begin\n")
        await alice.release(lease.id)
        ended = await lab.wait(lease.id, State.ENDED)
    assert ended.reason == "released by alice"
    assert (tmp_path / "ran").read_text().split().count("after") == 1


async def test_a_holder_that_vanishes_loses_a_tied_lease(lab: MemoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.lab.engine, "_holder_grace", 0.2)
    async with lab.exporter("one"), lab.client("bob") as bob:
        async with lab.client("alice") as alice:
            lease = await alice.acquire(WANT, 60.0, tied=True)
            async with aclosing(alice.watch(lease.id)) as watching:
                async for standing in watching:
                    if standing.lease.state is State.READY:
                        break
            following = await bob.acquire(WANT, 60.0)
        ended = await lab.wait(lease.id, State.ENDED)
        assert ended.reason == "its holder was gone"
        await lab.wait(following.id, State.READY)


async def test_nobody_reads_or_ends_anothers_lease_unless_a_policy_says_so(lab: MemoryLab) -> None:
    await lab.add(records.Policy(name="default", see=False))
    async with lab.exporter("one"), lab.client("alice") as alice, lab.client("bob") as bob:
        lease = await alice.acquire(WANT, 60.0)
        await lab.wait(lease.id, State.READY)
        for method in ("lease", "release", "meet"):
            with pytest.raises(NotFound, match=f"^there is no lease '{lease.id}' of yours$"):
                await bob.call(method, lease.id)
        assert await bob.call("leases", everybody=True) == []
        [exporter] = await bob.call("exporters")
        assert exporter["state"] == "leased"
        assert "client" not in exporter
        await lab.add(records.Policy(name="staff", clients="", manage=True))
        await bob.release(lease.id)
        assert (await lab.wait(lease.id, State.ENDED)).reason == "released by bob"


async def test_a_token_that_is_revoked_ends_the_connection(lab: MemoryLab) -> None:
    async with lab.client("admin", records.Role.ADMIN) as admin, lab.exporter("one"), lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 60.0)
        me = await alice.call("whoami")
        watching = alice.watch(lease.id)
        await anext(watching)
        await admin.call("revoke", me["token"])
        with pytest.raises((LinkLost, Cancelled), match=r"revoked|session ended"):
            await anext(watching)


async def test_an_exporter_of_the_same_name_takes_over(lab: MemoryLab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with lab.exporter("one"):
        await lab.attended("one")
        async with lab.exporter("one"):
            while not any("another exporter has connected as one" in record.message for record in caplog.records):  # noqa: ASYNC110  # a log does not tell of news
                await trio.sleep(0.01)


async def test_what_an_exporter_keeps_is_written_in_one_block_or_as_a_new_file(tmp_path: Path) -> None:
    file = tmp_path / "one.json"
    memory = Memory(file)
    memory.save(synced=False)
    before = file.stat().st_ino
    memory.epoch, memory.finished = 7, "k" * 8
    memory.save(synced=False)
    assert file.stat().st_ino == before, "a new one would be written to the disk"
    assert Memory.load(file) == memory
    memory.owed = {"lease": "k" * 8, "client": "c" * 600}
    memory.save(synced=False)
    assert Memory.load(file) == memory
    memory.owed = None
    memory.save(synced=False)
    assert Memory.load(file) == memory
    before = file.stat().st_ino
    memory.save()
    assert file.stat().st_ino != before
    assert Memory.load(file) == memory
    assert os.listdir(tmp_path) == ["one.json"]
