"""The rules of leasing, one example each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jmp.controller.leases import (
    CLEANUP,
    DEFERENCE,
    HOLDER_GRACE,
    LEFT,
    LEGAL,
    OFFLINE_ENDING,
    PREPARE_LIMIT,
    RETENTION,
    TOGETHER,
    Code,
    Engine,
    Kind,
)
from jmp.errors import BadValue, JmpError, NotFound, Refused
from jmp.wire.records import Client, Exporter, Held, Lease, Observed, Phase, Policy, State, Want

T = 1_000_000.0
ANY = Want()


class Lab:
    """An engine with a clock, and exporters that do at once what a test says."""

    def __init__(
        self, *exporters: str, policy: Policy | None = None, engine: Engine | None = None, **labels: dict[str, str]
    ) -> None:
        self.engine = engine or Engine()
        self.now = T
        self.engine.put(policy or Policy(name="all"), T)
        self.engine.put(Policy(name="boss", clients="name=boss", manage=True, priority=9), T)
        for name in ("ada", "bob", "boss"):
            self.engine.put(Client(name=name, labels={"name": name}), T)
        for name in exporters:
            self.engine.put(Exporter(name=name, labels=labels.get(name, {})), T)
            self.online(name)

    def online(self, name: str) -> None:
        self.engine.online(name, self.now)
        self.say(name, None, Phase.IDLE)

    def say(self, name: str, lease: Lease | None, phase: Phase, reason: str = "", epoch: int | None = None) -> None:
        known = self.engine.exporters[name].epoch if epoch is None else epoch
        self.engine.observed(name, lease.id if lease else None, known, phase, reason, self.now)

    def request(self, client: str = "ada", *wants: Want, duration: float = 600.0, **options: Any) -> Lease:
        return self.engine.request(client, wants or (ANY,), duration, self.now, **options)

    def use(self, client: str = "ada", *wants: Want, **options: Any) -> Lease:
        """A lease that is ready."""
        lease = self.request(client, *wants, **options)
        for held in lease.devices:
            self.say(held.exporter, lease, Phase.READY)
        return self.at(lease)

    def finish(self, lease: Lease) -> None:
        """It is released, and its exporters are done with it."""
        self.release(lease)
        for held in lease.devices:
            self.say(held.exporter, lease, Phase.IDLE)

    def release(self, lease: Lease, by: str | None = None) -> None:
        self.engine.release(lease.id, by, "released", self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.engine.tick(self.now)

    def at(self, lease: Lease) -> Lease:
        return self.engine.leases[lease.id]

    def state(self, lease: Lease) -> State:
        return self.at(lease).state

    def has(self, lease: Lease) -> list[str]:
        return [held.exporter for held in self.at(lease).devices]

    def restarted(self, engine: Engine | None = None) -> Lab:
        """The same lab after its controller was started again."""
        again = object.__new__(Lab)
        again.engine, again.now = engine or Engine(), self.now
        tables = self.engine.clients, self.engine.exporters, self.engine.policies, self.engine.leases
        again.engine.load([record for table in tables for record in table.values()], self.now)
        return again


def on(name: str) -> Want:
    return Want(exporter=name)


# ---- the life of a lease


def test_a_free_exporter_is_granted_at_once_with_a_higher_epoch() -> None:
    lab = Lab("x")
    lease = lab.request()
    assert lease.state is State.PREPARING
    assert [(held.exporter, held.epoch) for held in lease.devices] == [("x", 1)]
    assert lab.engine.exporters["x"].epoch == 1


def test_its_time_runs_from_when_it_is_ready() -> None:
    lab = Lab("x")
    lease = lab.request(duration=100.0)
    lab.wait(30)
    lab.say("x", lease, Phase.READY)
    assert lab.at(lease).ends == T + 130
    lab.wait(99)
    assert lab.state(lease) is State.READY
    lab.wait(1)
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDING, "its time was over")


@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_clock_that_is_set_lets_it_last_as_long_as_ever(step: float) -> None:
    lab = Lab("x", "y")
    lease = lab.use(duration=100.0)
    ahead = lab.request(duration=100.0)
    queued = lab.request(wait=60.0)
    assert [lab.state(one) for one in (lease, ahead, queued)] == [State.READY, State.PREPARING, State.QUEUED]
    lab.wait(50)
    lab.now += step
    lab.engine.clock_set(step, lab.now)
    lab.wait(9)
    assert lab.state(queued) is State.QUEUED
    lab.wait(1)
    assert lab.at(queued).reason == "nothing was free within 1m"
    lab.wait(39)
    assert [lab.state(one) for one in (lease, ahead)] == [State.READY, State.PREPARING]
    lab.wait(1)
    assert lab.at(lease).reason == "its time was over"
    lab.wait(800)
    assert lab.at(ahead).reason == "it was not ready within 15m"


def test_it_has_ended_when_its_exporter_is_idle() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.release(lease)
    assert lab.state(lease) is State.ENDING
    lab.say("x", lease, Phase.ENDING)
    assert lab.state(lease) is State.ENDING
    lab.say("x", lease, Phase.IDLE)
    assert (lab.state(lease), lab.at(lease).ended) == (State.ENDED, T)


def test_an_exporter_that_never_gets_ready_does_not_keep_a_lease_for_ever() -> None:
    lab = Lab("x")
    lease = lab.request()
    lab.wait(PREPARE_LIMIT)
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDING, "it was not ready within 15m")


def test_ended_leases_are_kept_for_a_while() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.finish(lease)
    lab.wait(RETENTION - 1)
    assert lease.id in lab.engine.leases
    lab.wait(1)
    assert lease.id not in lab.engine.leases


def test_every_state_but_the_last_has_a_next_one() -> None:
    assert set(LEGAL) == set(State)
    assert [state for state, following in LEGAL.items() if not following] == [State.ENDED]


def test_what_the_exporter_needs_is_carried_on_the_lease() -> None:
    lease = Lab("x").request(idle_limit=60.0, tags=("nightly",), context={"job": "7"})
    assert (lease.idle_limit, lease.tags, lease.context) == (60.0, ("nightly",), {"job": "7"})


def test_changes_are_from_what_was_to_what_is() -> None:
    lab = Lab("x")
    lab.engine.take_changes()
    lease = lab.request()
    changes = {(change.kind, change.name): (change.old, change.new) for change in lab.engine.take_changes()}
    assert changes[("lease", lease.id)] == (None, lease)
    assert set(changes) == {("lease", lease.id), ("exporter", "x")}
    assert lab.engine.take_changes() == []


# ---- the queue


def test_first_come_first_served() -> None:
    lab = Lab("x")
    first, second, third = lab.use(), lab.request("bob"), lab.request("ada")
    lab.finish(first)
    assert (lab.state(second), lab.state(third)) == (State.PREPARING, State.QUEUED)


def test_priority_goes_first() -> None:
    lab = Lab("x")
    first, second, third = lab.use(), lab.request("bob"), lab.request("boss")
    lab.finish(first)
    assert (lab.state(second), lab.state(third)) == (State.QUEUED, State.PREPARING)


def test_one_may_ask_for_less_priority_than_one_has() -> None:
    assert Lab("x").request("boss", priority=0).priority == 0


def test_no_more_priority_than_the_policies_give() -> None:
    with pytest.raises(Refused, match=r"^priority 3 is more than the policies let ada ask for: 0$"):
        Lab("x").request(priority=3)


def test_a_gang_has_the_lowest_of_the_priorities_of_its_devices() -> None:
    lab = Lab("x", "y", x={"kind": "x"})
    lab.engine.put(Policy(name="more", exporters="kind=x", priority=5), T)
    assert lab.request("ada", on("x"), on("y")).priority == 0


def test_the_least_recently_used_one_is_taken() -> None:
    lab = Lab("x", "y")
    for expected in ("x", "y", "x"):
        lease = lab.use()
        assert lab.has(lease) == [expected]
        lab.finish(lease)
        lab.wait(1)


def test_an_exporter_that_is_busy_does_not_hold_up_who_wants_another() -> None:
    lab = Lab("x", "y")
    lab.use("ada", on("x"))
    lab.request("bob", on("x"))
    assert lab.state(lab.request("ada", on("y"))) is State.PREPARING


def test_not_to_wait_is_now_or_not_at_all() -> None:
    lab = Lab("x")
    first, second = lab.request(wait=0.0), lab.request(wait=0.0)
    assert first.state is State.PREPARING
    assert (second.state, second.reason) == (State.ENDED, "nothing was free at once")


def test_a_request_gives_up_after_its_wait() -> None:
    lab = Lab("x")
    lab.use()
    second = lab.request(wait=60.0)
    lab.wait(59)
    assert lab.state(second) is State.QUEUED
    lab.wait(1)
    assert (lab.state(second), lab.at(second).reason) == (State.ENDED, "nothing was free within 1m")


def test_who_has_given_up_is_not_granted_anything_later() -> None:
    lab = Lab("x")
    lab.engine.offline("x", T)
    lease = lab.request(wait=60.0)
    lab.now += 61
    lab.online("x")
    lab.wait(0)
    assert lab.state(lease) is State.ENDED


def test_position_counts_those_ahead_who_want_the_same() -> None:
    lab = Lab("x", "y")
    lab.use("ada", on("x"))
    lab.use("ada", on("y"))
    one, other, third = lab.request("bob", on("x")), lab.request("bob", on("y")), lab.request("ada", on("x"))
    places = {id: place for id, (place, _) in lab.engine.standing(T).items()}
    assert places == {one.id: 1, other.id: 1, third.id: 2}


def test_expected_start_follows_from_those_ahead() -> None:
    lab = Lab("x")
    lab.use(duration=600.0)
    second, third = lab.request(duration=100.0), lab.request()
    starts = {id: start for id, (_, start) in lab.engine.standing(T).items()}
    assert starts == {second.id: T + 600 + CLEANUP, third.id: T + 600 + CLEANUP + 100 + CLEANUP}


def test_nobody_can_tell_when_an_exporter_that_is_away_will_be_free() -> None:
    lab = Lab("x")
    lab.engine.offline("x", T)
    lease = lab.request()
    assert lab.engine.standing(T) == {lease.id: (1, None)}


def test_maintenance_counts_in_one_expectation_and_not_in_that_of_who_may_use_it() -> None:
    lab = Lab("x")
    lab.use()
    lab.engine.put(replace(lab.engine.exporters["x"], disabled="fan"), T)
    plain, boss = lab.request("ada"), lab.request("boss", allow_disabled=True, priority=0)
    starts = {id: start for id, (_, start) in lab.engine.standing(T).items()}
    assert starts == {plain.id: None, boss.id: T + 600 + CLEANUP}


# ---- at a later time


def test_a_scheduled_lease_begins_at_its_time() -> None:
    lab = Lab("x")
    lease = lab.request(begin=T + 3600)
    assert (lease.state, lab.engine.deadline()) == (State.QUEUED, T + 3600)
    lab.wait(3600)
    assert lab.state(lease) is State.PREPARING


def test_a_scheduled_lease_that_does_not_wait_is_tried_at_its_time() -> None:
    lab = Lab("x")
    lease = lab.request(begin=T + 3600, wait=0.0)
    lab.wait(3600)
    assert lab.state(lease) is State.PREPARING


def test_only_who_is_gone_by_then_gets_what_is_scheduled() -> None:
    lab = Lab("x")
    lab.request("bob", begin=T + 7200)
    assert lab.request(duration=7200.0, wait=0.0).state is State.ENDED
    assert lab.request(duration=7200.0 - PREPARE_LIMIT - CLEANUP).state is State.PREPARING


# ---- several at once


def test_a_gang_gets_all_in_the_order_of_its_wants() -> None:
    lab = Lab("x", "y", x={"kind": "x"})
    lease = lab.request("ada", ANY, Want(selector="kind=x"))
    assert lab.has(lease) == ["y", "x"]


def test_a_gang_gets_all_or_none() -> None:
    lab = Lab("x", "y")
    lab.use("bob", on("x"))
    lease = lab.request("ada", on("x"), on("y"))
    assert (lab.state(lease), lab.has(lease)) == (State.QUEUED, [])


def test_a_gang_is_ready_when_all_are() -> None:
    lab = Lab("x", "y")
    lease = lab.request("ada", on("x"), on("y"))
    lab.say("x", lease, Phase.READY)
    assert lab.state(lease) is State.PREPARING
    lab.say("y", lease, Phase.READY)
    assert lab.state(lease) is State.READY


def test_a_gang_has_ended_when_all_are_idle_and_those_that_are_idle_are_free() -> None:
    lab = Lab("x", "y")
    lease = lab.use("ada", on("x"), on("y"))
    lab.release(lease)
    lab.say("x", lease, Phase.IDLE)
    assert lab.state(lease) is State.ENDING
    assert lab.request("bob", on("x")).state is State.PREPARING
    lab.say("y", lease, Phase.IDLE)
    assert lab.state(lease) is State.ENDED


def test_a_gang_ends_as_soon_as_one_of_its_exporters_does() -> None:
    lab = Lab("x", "y")
    lease = lab.use("ada", on("x"), on("y"))
    lab.say("y", lease, Phase.IDLE, "the exporter was restarted")
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDING, "the exporter was restarted")


def test_a_gang_ends_though_one_is_away_when_the_other_is_done() -> None:
    lab = Lab("x", "y")
    lease = lab.use("ada", on("x"), on("y"))
    lab.engine.offline("y", T)
    lab.release(lease)
    lab.wait(OFFLINE_ENDING)
    assert lab.state(lease) is State.ENDING
    lab.say("x", lease, Phase.IDLE)
    lab.wait(0)
    assert lab.state(lease) is State.ENDED


def test_more_devices_than_there_are_are_refused() -> None:
    with pytest.raises(NotFound, match=r"^there are not 3 different exporters for any device and any device and x$"):
        Lab("x", "y").request("ada", ANY, ANY, on("x"))


def test_a_gang_is_not_starved_by_small_requests() -> None:
    lab = Lab("x", "y")
    busy = lab.use("bob", on("x"), duration=600.0)
    gang = lab.request("ada", on("x"), on("y"))
    small = lab.request("bob", on("y"), duration=3600.0)
    assert lab.state(small) is State.QUEUED
    lab.finish(busy)
    assert lab.state(gang) is State.PREPARING


def test_who_is_sure_to_be_gone_fills_the_gap_before_a_gang() -> None:
    lab = Lab("x", "y")
    lab.use("bob", on("x"), duration=7200.0)
    lab.request("ada", on("x"), on("y"))
    assert lab.request("bob", on("y"), duration=7200.0 - PREPARE_LIMIT).state is State.PREPARING


def test_two_gangs_that_want_the_same_do_not_wait_for_each_other() -> None:
    lab = Lab("x", "y")
    busy = lab.use("bob", on("x"))
    one, other = lab.request("ada", on("x"), on("y")), lab.request("bob", on("y"), on("x"))
    lab.finish(busy)
    assert (lab.state(one), lab.state(other)) == (State.PREPARING, State.QUEUED)
    lab.finish(lab.at(one))
    assert lab.state(other) is State.PREPARING


def test_a_gang_that_nobody_can_serve_now_keeps_nothing() -> None:
    lab = Lab("x", "y")
    lab.engine.offline("x", T)
    lab.request("ada", on("x"), on("y"))
    assert lab.request("bob", on("y")).state is State.PREPARING


# ---- more time


def test_extension_moves_the_end() -> None:
    lab = Lab("x")
    lease = lab.use(duration=600.0)
    lab.engine.extend(lease.id, 300.0, "ada", T)
    lab.wait(899)
    assert lab.state(lease) is State.READY
    lab.wait(1)
    assert lab.state(lease) is State.ENDING


def test_extension_counts_towards_the_longest_lease() -> None:
    lab = Lab("x", policy=Policy(name="all", longest=900.0))
    lease = lab.use(duration=600.0)
    with pytest.raises(Refused, match=r"^ada may lease x for 15m at most, extensions included$"):
        lab.engine.extend(lease.id, 301.0, "ada", T)
    lab.engine.extend(lease.id, 301.0, None, T)
    assert lab.at(lease).duration == 901.0


def test_what_is_promised_to_a_gang_is_not_extended() -> None:
    lab = Lab("x", "y")
    lease = lab.use("ada", on("x"))
    lab.request("bob", on("x"), on("y"))
    with pytest.raises(Refused, match=r"^x is promised to another request in 11m$"):
        lab.engine.extend(lease.id, 60.0, "ada", T)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_extension_is_by_some_time(seconds: float) -> None:
    lab = Lab("x")
    with pytest.raises(BadValue, match="more than 0 seconds"):
        lab.engine.extend(lab.use().id, seconds, "ada", T)


@pytest.mark.parametrize(("what", "value"), [("extend", 1.0), ("transfer", "bob")])
def test_a_lease_that_ends_is_neither_extended_nor_transferred(what: str, value: Any) -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.release(lease)
    with pytest.raises(Refused, match=rf"^lease {lease.id} has ended: released$"):
        getattr(lab.engine, what)(lease.id, value, "ada", T)


# ---- another holder


def test_transfer_raises_the_epoch_and_keeps_the_lease() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.transfer(lease.id, "bob", "ada", T)
    after = lab.at(lease)
    assert (after.client, after.state, after.devices[0].epoch, after.ends) == ("bob", State.READY, 2, lease.ends)
    assert lab.engine.exporters["x"].epoch == 2


def test_transfer_is_only_to_whom_the_policies_let_have_it() -> None:
    lab = Lab("x", policy=Policy(name="all", clients="name in (ada, boss)"))
    lease = lab.use()
    with pytest.raises(Refused, match=r"^bob may not lease x$"):
        lab.engine.transfer(lease.id, "bob", "ada", T)


def test_transfer_is_not_for_longer_than_the_new_holder_may() -> None:
    lab = Lab("x", policy=Policy(name="all", longest=900.0))
    lease = lab.use("boss", duration=1000.0)
    with pytest.raises(Refused, match=r"^bob may lease x for 15m at most$"):
        lab.engine.transfer(lease.id, "bob", "boss", T)


def test_transfer_in_the_queue_does_not_hand_on_a_priority() -> None:
    lab = Lab("x")
    lab.use()
    lease = lab.request("boss")
    lab.engine.transfer(lease.id, "bob", "boss", T)
    assert (lab.at(lease).client, lab.at(lease).priority) == ("bob", 0)


def test_the_new_holder_of_a_tied_lease_has_time_to_come() -> None:
    lab = Lab("x")
    lease = lab.use(tied=True)
    lab.engine.holder(lease.id, True, T)
    lab.engine.transfer(lease.id, "bob", "ada", T)
    lab.wait(HOLDER_GRACE)
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDING, "its holder was gone")


# ---- a holder that vanishes


def test_a_tied_lease_ends_when_its_holder_has_been_gone_for_a_while() -> None:
    lab = Lab("x")
    lease = lab.use(tied=True)
    lab.engine.holder(lease.id, True, T)
    lab.wait(300)
    lab.engine.holder(lease.id, False, lab.now)
    lab.wait(HOLDER_GRACE - 1)
    assert lab.state(lease) is State.READY
    lab.wait(1)
    assert lab.state(lease) is State.ENDING


def test_a_holder_that_comes_back_in_time_keeps_its_lease() -> None:
    lab = Lab("x")
    lease = lab.use(tied=True)
    lab.engine.holder(lease.id, True, T)
    lab.engine.holder(lease.id, False, T)
    lab.wait(HOLDER_GRACE - 1)
    lab.engine.holder(lease.id, True, lab.now)
    lab.wait(300)
    assert lab.state(lease) is State.READY


def test_a_lease_that_is_not_tied_needs_no_holder() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.holder(lease.id, False, T)
    lab.wait(300)
    assert lab.state(lease) is State.READY


def test_a_tied_lease_that_is_to_be_kept_needs_its_holder_no_more() -> None:
    lab = Lab("x")
    lease = lab.use(tied=True)
    lab.engine.holder(lease.id, True, T)
    with pytest.raises(Refused, match="bob may not keep lease"):
        lab.engine.keep(lease.id, "bob")
    lab.engine.keep(lease.id, "ada")
    lab.engine.holder(lease.id, False, T)
    lab.wait(300)
    assert lab.state(lease) is State.READY
    lab.engine.release(lease.id, "ada", "done", lab.now)
    with pytest.raises(Refused, match="has ended: done"):
        lab.engine.keep(lease.id, "ada")


def test_nothing_is_granted_to_somebody_who_has_vanished() -> None:
    lab = Lab("x")
    first, gone, third = lab.use(), lab.request("bob", tied=True), lab.request("ada")
    lab.engine.holder(gone.id, True, T)
    lab.engine.holder(gone.id, False, T)
    lab.finish(first)
    assert (lab.state(gone), lab.state(third)) == (State.QUEUED, State.PREPARING)


# ---- maintenance


def test_an_exporter_in_maintenance_is_not_granted_until_it_is_back() -> None:
    lab = Lab("x")
    lab.engine.put(replace(lab.engine.exporters["x"], disabled="fan"), T)
    lease = lab.request()
    assert lease.state is State.QUEUED
    lab.engine.put(replace(lab.engine.exporters["x"], disabled=None), T)
    assert lab.state(lease) is State.PREPARING


def test_who_manages_an_exporter_may_lease_it_in_maintenance() -> None:
    lab = Lab("x")
    lab.engine.put(replace(lab.engine.exporters["x"], disabled="fan"), T)
    assert lab.request("boss", allow_disabled=True).state is State.PREPARING
    with pytest.raises(Refused, match="only one who manages an exporter may lease it in maintenance, and ada does not"):
        lab.request("ada", allow_disabled=True)


# ---- exporters come, go and start again


def test_an_exporter_that_has_said_nothing_yet_is_not_granted() -> None:
    lab = Lab("x")
    lab.engine.offline("x", T)
    lease = lab.request()
    lab.engine.online("x", T)
    assert lab.state(lease) is State.QUEUED
    lab.say("x", None, Phase.IDLE)
    assert lab.state(lease) is State.PREPARING


def test_a_lease_goes_on_while_its_exporter_is_away() -> None:
    lab = Lab("x")
    lease = lab.use(duration=7200.0)
    lab.engine.offline("x", T)
    lab.wait(7000)
    assert lab.state(lease) is State.READY


def test_a_lease_ends_for_its_holder_though_its_exporter_is_away_but_that_is_not_free() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.offline("x", T)
    lab.release(lease)
    lab.wait(OFFLINE_ENDING)
    assert lab.state(lease) is State.ENDED
    waiting = lab.request("bob")
    lab.engine.online("x", lab.now)
    lab.say("x", lease, Phase.READY)
    assert lab.state(waiting) is State.QUEUED
    lab.say("x", lease, Phase.IDLE)
    assert lab.state(waiting) is State.PREPARING


def test_a_lease_ends_when_its_exporter_has_started_again() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.online("x", T)
    lab.say("x", lease, Phase.IDLE, "the exporter was restarted")
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDED, "the exporter was restarted")


def test_an_exporter_that_has_not_heard_of_its_lease_yet_keeps_it() -> None:
    lab = Lab("x")
    lease = lab.request()
    lab.say("x", None, Phase.IDLE, epoch=0)
    assert lab.state(lease) is State.PREPARING


def test_an_exporter_that_has_not_heard_of_the_end_yet_is_not_free() -> None:
    lab = Lab("x")
    lease = lab.request()
    lab.release(lease)
    lab.say("x", None, Phase.IDLE, epoch=0)
    assert lab.state(lease) is State.ENDING
    lab.say("x", None, Phase.IDLE, epoch=1)
    assert lab.state(lease) is State.ENDED


def test_word_of_an_earlier_lease_changes_nothing() -> None:
    lab = Lab("x")
    earlier = lab.use()
    lab.finish(earlier)
    lease = lab.use("bob")
    for phase in Phase:
        lab.say("x", earlier, phase, epoch=1)
    assert lab.state(lease) is State.READY


def test_what_is_said_twice_counts_once() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.take_changes()
    lab.say("x", lease, Phase.READY)
    assert lab.engine.take_changes() == []


def test_an_exporter_that_this_lab_does_not_know_is_not_heard() -> None:
    lab = Lab("x")
    lab.engine.take_changes()
    lab.engine.observed("stranger", None, 7, Phase.IDLE, "", T)
    assert lab.engine.take_changes() == []


# ---- the store was restored, the controller started again


def test_no_epoch_is_given_twice_after_the_store_was_restored() -> None:
    lab = Lab("x")
    lab.say("x", None, Phase.IDLE, epoch=41)
    assert lab.request().devices[0].epoch == 42


def test_a_grant_that_a_restored_store_forgot_ends_the_one_it_remembers() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.observed("x", "forgotten", 5, Phase.READY, "", T)
    assert lab.state(lease) is State.ENDING
    assert lab.at(lease).reason == "x knows of a newer grant: was the lab's store restored?"


def test_of_leases_that_have_ended_only_so_many_are_kept() -> None:
    lab = Lab("x", engine=Engine(history=2))
    waiting = lab.use()
    leases = []
    for _ in range(4):
        leases.append(lab.request("bob"))
        lab.wait(1)
        lab.release(leases[-1])
    lab.wait(1)
    assert list(lab.engine.leases) == [waiting.id, leases[2].id, leases[3].id]
    again = lab.restarted(Engine(history=1))
    again.wait(1)
    assert set(again.engine.leases) == {waiting.id, leases[3].id}


def test_a_restart_keeps_leases_and_the_order_of_the_queue() -> None:
    lab = Lab("x")
    lease, second, third = lab.use(), lab.request("bob"), lab.request("ada")
    again = lab.restarted()
    assert again.state(lease) is State.READY
    again.engine.online("x", T)
    again.say("x", lease, Phase.IDLE)
    assert (again.state(second), again.state(third)) == (State.PREPARING, State.QUEUED)
    assert again.request().number == third.number + 1


def test_after_a_restart_holders_have_time_to_come_back() -> None:
    lab = Lab("x")
    lease = lab.use(tied=True)
    lab.now += 3
    again = lab.restarted()
    again.wait(HOLDER_GRACE - 1)
    assert again.state(lease) is State.READY
    again.wait(1)
    assert again.state(lease) is State.ENDING


# ---- clients, exporters and policies change


@pytest.mark.parametrize("how", ["disabled", "deleted"])
def test_who_is_no_client_any_more_has_no_leases(how: str) -> None:
    lab = Lab("x", "y")
    lease, waiting = lab.use("ada", on("x")), lab.request("ada", on("x"))
    if how == "disabled":
        lab.engine.put(replace(lab.engine.clients["ada"], disabled="left"), T)
    else:
        lab.engine.drop("client", "ada", T)
    assert (lab.state(lease), lab.state(waiting)) == (State.ENDING, State.ENDED)
    assert lab.at(lease).reason.startswith(f"client ada was {how}")


def test_a_lease_ends_with_its_exporter() -> None:
    lab = Lab("x")
    lease = lab.use()
    lab.engine.drop("exporter", "x", T)
    assert (lab.state(lease), lab.at(lease).reason) == (State.ENDED, "exporter x was deleted")


def test_a_request_for_an_exporter_by_name_ends_with_it_and_others_wait_on() -> None:
    lab = Lab("x", "y")
    lab.use(duration=60)
    lab.use(duration=60)
    named, any_ = lab.request("bob", Want(exporter="x")), lab.request("bob")
    lab.engine.drop("exporter", "x", T)
    assert (lab.state(named), lab.at(named).reason) == (State.ENDED, "exporter x was deleted")
    assert lab.state(any_) is State.QUEUED


def test_a_policy_that_comes_later_lets_a_request_go_on() -> None:
    lab = Lab("x", "y", x={"kind": "x"}, policy=Policy(name="all", exporters="kind=x"))
    lab.use("ada")
    waiting = lab.request("bob")
    lab.engine.put(Policy(name="more"), T)
    assert lab.has(waiting) == ["y"]


def test_a_policy_that_is_gone_stops_requests_but_not_leases() -> None:
    lab = Lab("x")
    lease, waiting = lab.use(), lab.request("bob")
    lab.engine.drop("policy", "all", T)
    lab.finish(lab.at(lease)) if lab.state(lease) is State.READY else pytest.fail("it ended")
    assert lab.state(waiting) is State.QUEUED


def test_what_is_not_there_cannot_be_dropped() -> None:
    with pytest.raises(NotFound, match=r"^there is no policy 'al'.*all"):
        Lab("x").engine.drop("policy", "al", T)


# ---- refusals


@pytest.mark.parametrize(
    ("client", "wants", "options", "error", "line"),
    [
        ("eve", (ANY,), {}, NotFound, "there is no client 'eve'"),
        ("ada", (), {}, BadValue, "a lease is for one device at least: give a selector or an exporter's name"),
        ("ada", (on("xx"),), {}, NotFound, "there is no exporter 'xx'"),
        ("ada", (Want(selector="kind=z"),), {}, NotFound, "no exporter is kind=z; x is not kind=z: it has kind=x"),
        (
            "ada",
            (Want(selector="kind="),),
            {"duration": 901.0},
            NotFound,
            "no exporter is kind=; x is not kind=: it has",
        ),
        ("ada", (ANY,), {"duration": 901.0}, Refused, "ada may lease this for 15m at most, not for 15m 1s"),
        ("bob", (ANY,), {}, Refused, "no policy lets bob lease x"),
        ("ada", (ANY,), {"duration": 0.0}, BadValue, "a lease's duration is more than 0 seconds"),
        ("ada", (ANY,), {"idle_limit": 0.0}, BadValue, "a lease's idle limit is more than 0 seconds"),
        ("ada", (ANY,), {"wait": -1.0}, BadValue, "a request waits for 0 seconds or more"),
        ("ada", (ANY,), {"begin": float("inf")}, BadValue, "a lease begins at a certain time, or at once"),
    ],
)
def test_what_can_never_be_granted_is_refused(
    client: str, wants: tuple[Want, ...], options: dict[str, Any], error: type[JmpError], line: str
) -> None:
    lab = Lab("x", x={"kind": "x"}, policy=Policy(name="all", clients="name=ada", longest=900.0))
    lab.engine.take_changes()
    with pytest.raises(error) as caught:
        lab.engine.request(client, wants, now=T, **{"duration": 600.0, **options})
    assert caught.value.message.startswith(line)
    assert "\n" not in caught.value.message
    assert lab.engine.take_changes() == []


def test_a_lab_without_exporters_says_so() -> None:
    with pytest.raises(NotFound, match=r"^this lab has no exporters yet$"):
        Lab().request()


def test_a_client_that_is_disabled_is_told_why() -> None:
    lab = Lab("x")
    lab.engine.put(replace(lab.engine.clients["ada"], disabled="left us"), T)
    with pytest.raises(Refused, match=r"^client ada is disabled: left us$"):
        lab.request()


def test_a_lease_that_is_not_there_cannot_be_released() -> None:
    with pytest.raises(NotFound, match=r"^there is no lease 'abc'$"):
        Lab("x").engine.release("abc", None, "", T)


def test_nobody_ends_anothers_lease_but_who_manages_its_exporter() -> None:
    lab = Lab("x")
    lease = lab.use()
    with pytest.raises(Refused, match=rf"^bob may not release lease {lease.id}, which is ada's$"):
        lab.release(lease, "bob")
    lab.release(lease, "boss")
    assert lab.state(lease) is State.ENDING


def test_a_queued_request_is_its_clients_alone() -> None:
    lab = Lab("x")
    lab.use()
    waiting = lab.request()
    with pytest.raises(Refused):
        lab.release(waiting, "boss")
    lab.release(waiting, "ada")
    assert lab.state(waiting) is State.ENDED


# ---- why


def why(lab: Lab, *wants: Want, client: str = "bob") -> dict[str, tuple[Code, str]]:
    reasons = lab.engine.why(client, wants or (ANY,), lab.now)
    return {reason.exporter: (reason.code, reason.text) for reason in reasons}


def test_why_names_what_excludes_each_exporter() -> None:
    lab = Lab("away", "busy", "clean", "fan", "free", "other", other={"kind": "z"})
    lab.use("ada", on("busy"))
    lab.release(lab.use("ada", on("clean")))
    lab.engine.put(replace(lab.engine.exporters["fan"], disabled="loud"), T)
    lab.engine.offline("away", T)
    lab.now += 120
    assert why(lab, Want(selector="!kind"), on("gone")) == {
        "away": (Code.OFFLINE, "it has been offline for 2m"),
        "busy": (Code.IN_USE, "ada has it for 8m more at most"),
        "clean": (Code.CLEANING, "it is being cleaned up after a lease"),
        "fan": (Code.DISABLED, "it is in maintenance: loud"),
        "free": (Code.AVAILABLE, "it is free"),
        "gone": (Code.NOT_FOUND, "there is no such exporter"),
        "other": (Code.MISMATCH, "not !kind: it has kind=z"),
    }


def test_why_tells_what_is_reserved() -> None:
    lab = Lab("x", "y")
    lab.use("ada", on("x"))
    lab.request("ada", on("x"), on("y"))
    assert why(lab, on("y"))["y"] == (Code.RESERVED, "a request ahead will have it in 11m")


def test_why_does_not_tell_who_to_those_who_may_not_see() -> None:
    lab = Lab("x", policy=Policy(name="all", see=False))
    lab.use("ada")
    assert why(lab)["x"] == (Code.IN_USE, "somebody has it for 10m more at most")


def test_why_shows_what_was_asked_for_by_name_only_though_it_may_not_be_leased() -> None:
    lab = Lab("x", "y", x={"kind": "x"}, policy=Policy(name="all", exporters="kind=x"))
    assert set(why(lab)) == {"x"}
    assert why(lab, on("y"))["y"] == (Code.NO_ACCESS, "no policy lets bob lease it")


# ---- beside other controllers


def shared(*here: str, elsewhere: tuple[str, ...] = ()) -> Lab:
    """A lab with another controller, to which some exporters are connected."""
    lab = Lab(*here, *elsewhere)
    lab.engine.is_mine = lambda id: True
    for name in elsewhere:
        lab.engine.seen(name, Observed(epoch=0), T, "other")
    return lab


def test_nobody_is_granted_anything_before_those_ahead_have_theirs() -> None:
    lab = shared("x", "y", "z")
    first, second, third = (lab.request() for _ in range(3))
    assert [lab.state(lease) for lease in (first, second, third)] == [State.PREPARING, State.QUEUED, State.QUEUED]
    lab.engine.settled(first.id, lab.now)
    assert [lab.state(lease) for lease in (second, third)] == [State.PREPARING, State.PREPARING], "that is one commit"
    for lease, name in (second, "y"), (third, "z"):  # another one was faster somewhere: it is decided again
        lab.engine.learn("lease", lease.id, lease, lab.now)
        lab.engine.learn("exporter", name, Exporter(name=name), lab.now)
    lab.engine.reconsider(lab.now)
    assert [lab.state(lease) for lease in (second, third)] == [State.PREPARING, State.PREPARING]


def test_not_more_are_granted_at_once_than_others_can_wait_for() -> None:
    names = [f"x{number:02}" for number in range(TOGETHER + 3)]
    lab = shared(*names)
    first, *others = (lab.request() for _ in names)
    lab.engine.settled(first.id, lab.now)
    states = [lab.state(lease) for lease in others]
    assert states == [State.PREPARING] * TOGETHER + [State.QUEUED] * 2


def test_what_is_connected_elsewhere_is_not_granted_together_with_what_is_here() -> None:
    lab = shared("w", "y", elsewhere=("x",))
    first, second, third = (lab.request() for _ in range(3))
    lab.engine.settled(first.id, lab.now)
    assert lab.has(first) == ["w"]
    assert [lab.state(lease) for lease in (second, third)] == [State.QUEUED, State.QUEUED], "x is next"


def test_a_lease_that_another_controller_has_locked_something_for_is_waited_for() -> None:
    lab = shared(elsewhere=("x", "y"))
    lease = lab.request()
    lab.engine.seen("z", Observed(epoch=0), T)
    lab.engine.learn("exporter", "z", Exporter(name="z"), T)
    lab.engine.learn("exporter", "x", replace(lab.engine.exporters["x"], epoch=1, lease=lease.id, used=T), T)
    lab.engine.reconsider(T)
    assert lab.state(lease) is State.QUEUED
    lab.wait(LEFT)
    assert lab.has(lease) == ["z"], "nor for ever"


@pytest.mark.parametrize("order", ["before it was started", "before the request", "after it"])
def test_an_exporter_that_was_locked_for_a_request_that_has_ended_is_free(order: str) -> None:
    lease = Lab("x").engine.request("ada", (ANY,), 60.0, T, begin=T + 3600)
    lab = shared(elsewhere=("x",))
    locked = replace(lab.engine.exporters["x"], epoch=1, lease=lease.id, used=T)
    records: list[tuple[Kind, str, Lease | Exporter]] = [("exporter", "x", locked), ("lease", lease.id, lease)]
    if order == "before it was started":
        lab.engine = Engine()
        lab.engine.load([*Lab("x").engine.clients.values(), Policy(name="all"), locked, lease], T)
    else:
        for record in records if order == "before the request" else reversed(records):
            lab.engine.learn(*record, T)
    lab.engine.seen("x", None, T)
    lab.engine.seen("x", Observed(epoch=0), T, "other")
    assert why(lab)["x"][0] is Code.CLEANING
    lab.engine.learn("lease", lease.id, replace(lease, state=State.ENDED, ended=T), T)
    assert why(lab)["x"][0] is Code.AVAILABLE


def test_those_who_want_something_else_do_not_wait_for_that() -> None:
    lab = shared("x", "y")
    lab.request("ada", on("x"))
    assert lab.state(lab.request("ada", on("y"))) is State.PREPARING


def test_what_another_controller_is_to_grant_is_waited_for() -> None:
    lab = shared("y", "z", elsewhere=("x",))
    first, second = lab.request(), lab.request()
    assert [lab.state(first), lab.state(second)] == [State.QUEUED, State.QUEUED]
    lab.engine.learn("exporter", "x", replace(lab.engine.exporters["x"], epoch=1, lease=first.id, used=T), T)
    granted = replace(first, state=State.PREPARING, devices=(Held(exporter="x", epoch=1),), granted=T)
    lab.engine.learn("lease", first.id, granted, T)
    lab.engine.reconsider(T)
    assert lab.has(second) == ["y"]


def test_one_that_grants_nothing_is_left_nothing_until_it_is_heard_of() -> None:
    lab = shared("y", "z", elsewhere=("x", "w"))
    first, second = lab.request(), lab.request()
    lab.wait(LEFT)
    assert lab.has(first) == ["y"]
    lab.engine.settled(first.id, lab.now)
    assert lab.has(second) == ["z"], "nor is it waited for again, for another exporter of its"
    lab.engine.settled(second.id, lab.now)
    lab.finish(second)
    lab.engine.alive("other", lab.now)
    assert lab.state(lab.request()) is State.QUEUED


def test_now_or_not_at_all_waits_until_it_is_clear_what_there_is() -> None:
    lab = shared("x", "y")
    first, second, third = lab.request(), lab.request(wait=0), lab.request(wait=0)
    lab.wait(0)
    assert lab.state(second) is State.QUEUED
    lab.engine.settled(first.id, lab.now)
    assert lab.state(second) is State.PREPARING
    lab.engine.settled(second.id, lab.now)
    lab.wait(DEFERENCE)
    assert lab.state(third) is State.ENDED
