"""What a person does with kubectl, and what a lab makes of it; the controller is real, and in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.controller.kubernetes import open_store
from jmp.errors import LabError
from jmp.wire.records import Role, State
from tests.fakes.kube import Cluster
from tests.fakes.memory_lab import MemoryLab, memory_labs

pytestmark = pytest.mark.real


class Kubectl:
    """A lab in a cluster, and who has its kubeconfig."""

    def __init__(self, lab: MemoryLab, cluster: Cluster, namespace: str) -> None:
        self.lab = lab
        self._cluster, self._namespace = cluster, namespace

    async def __call__(self, *arguments: str, input: Any = None, check: bool = True) -> str:
        """What kubectl says."""

        def run() -> str:
            return self._cluster.kubectl("-n", self._namespace, *arguments, input=input, check=check)

        return await trio.to_thread.run_sync(run)

    async def apply(self, kind: str, name: str, check: bool = True, labels: Any = None, **spec: Any) -> str:
        """Apply an object."""
        metadata = {"name": name, "labels": labels or {}}
        made = {"apiVersion": "jmp.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        return await self("apply", "-f", "-", input=made, check=check)

    async def event(self, kind: str, name: str, type: str, reason: str, text: str) -> None:
        """Wait until `kubectl get events` has this."""
        while True:
            listed = json.loads(await self("get", "events", "-o", "json"))
            for event in listed["items"]:
                about = event["involvedObject"]
                if (about["kind"].lower(), about["name"], event["type"], event["reason"]) == (kind, name, type, reason):
                    assert text in event["message"]
                    return
            await trio.sleep(0.05)

    async def ended(self, id: str) -> str:
        """Why a lease has ended."""
        with self.lab.lab.news.listen(("lease", id)) as listener:
            while id not in self.lab.lab.view.lease:
                await listener.wait()
        return (await self.lab.wait(id, State.ENDED)).reason


@pytest.fixture
async def kubectl(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Kubectl]:
    access = cluster.namespace()
    with trio.fail_after(60):
        async with open_store(access) as store, memory_labs(tmp_path, {"a": store}) as [lab]:
            yield Kubectl(lab, cluster, access.namespace)


async def test_a_lease_that_is_applied_is_granted_and_seen(kubectl: Kubectl) -> None:
    async with kubectl.lab.exporter("one"):
        await kubectl.apply("Client", "alice", labels={"team": "x"})
        await kubectl.apply(
            "DeviceLease", "mine", client="alice", wants=[{"selector": "board=lamp"}], durationSeconds=600
        )
        await kubectl("wait", "--for=jsonpath={.status.state}=ready", "devicelease/mine", "--timeout=20s")
        await kubectl("wait", "--for=jsonpath={.status.presence.observed.phase}=ready", "exporter/one", "--timeout=20s")
        listed = await kubectl("get", "jmp")
        [line] = [line for line in listed.splitlines() if "devicelease.jmp.dev/mine" in line]
        assert line.split()[1:4] == ["ready", "alice", "one"]
        [line] = [line for line in listed.splitlines() if "exporter.jmp.dev/one" in line]
        assert line.split()[1:4] == ["ready", "mine", "a"]
        assert await kubectl("get", "exporters", "-l", "board=lamp", "-o", "name") == "exporter.jmp.dev/one\n"
        await kubectl.event("devicelease", "mine", "Normal", "Granted", "on one, to alice")
        await kubectl.event("exporter", "one", "Normal", "Online", "connected to controller a")
        await kubectl("delete", "devicelease/mine")
        await kubectl("wait", "--for=jsonpath={.status.presence.observed.phase}=idle", "exporter/one", "--timeout=20s")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"client": "nobody"}, "there is no client 'nobody'"),
        ({"wants": [{"selector": "board ~ lamp"}]}, "board ~ lamp"),
        ({"wants": [{"selector": "board=fan"}]}, "no exporter is board=fan; one is not board=fan: it has board=lamp"),
        ({"priority": 5}, "priority 5 is more than the policies let alice ask for: 0"),
        ({"wants": []}, "a lease is for one device at least"),
        (
            {"created": "2026-11-26T00:00:00.5Z", "priority": 5},
            "priority 5 is more than the policies let alice ask for: 0",
        ),
    ],
)
async def test_a_lease_that_cannot_be_says_why(kubectl: Kubectl, spec: Any, reason: str) -> None:
    async with kubectl.lab.exporter("one"):
        await kubectl.apply("Client", "alice")
        good = {"client": "alice", "wants": [{"selector": "board=lamp"}], "durationSeconds": 60}
        await kubectl.apply("DeviceLease", "wrong", **{**good, **spec})
        assert reason in await kubectl.ended("wrong")
        await kubectl.event("devicelease", "wrong", "Warning", "Refused", reason)


async def test_what_was_asked_for_stays_as_it_is(kubectl: Kubectl) -> None:
    """A server that knows CEL refuses other things; where one does not, nothing comes of them but an event."""
    await kubectl.apply("Client", "alice")
    async with kubectl.lab.exporter("one"), kubectl.lab.client("boss", Role.ADMIN) as boss:
        good: dict[str, Any] = {"client": "alice", "wants": [{"selector": "board=lamp"}], "durationSeconds": 600}
        await kubectl.apply("DeviceLease", "first", **good)
        await kubectl("wait", "--for=jsonpath={.status.state}=ready", "devicelease/first", "--timeout=20s")
        await kubectl.apply("DeviceLease", "second", **good)
        await kubectl("wait", "--for=jsonpath={.status.state}=queued", "devicelease/second", "--timeout=20s")
        changed = {**good, "wants": [{"selector": "board ~ lamp"}], "priority": 9, "giveUp": "2026-01-01T00:00:00Z"}
        said = await kubectl.apply("DeviceLease", "second", check=False, **changed)
        if "configured" in said:
            await kubectl.event("devicelease", "second", "Warning", "Ignored", "jmp lease extend, transfer and release")
        else:
            assert "what a lease was asked for stays as it is" in said
        lease = await boss.call("lease", "second")
        assert (lease["state"], lease["priority"], lease["give_up"]) == ("queued", 0, None)
        assert lease["wants"] == [{"selector": "board=lamp", "exporter": None}]
        await boss.call("release", "first")
        await kubectl("wait", "--for=jsonpath={.status.state}=ready", "devicelease/second", "--timeout=20s")


async def test_the_server_refuses_what_no_lease_can_have(kubectl: Kubectl) -> None:
    good = {"client": "alice", "wants": [{"selector": "board=lamp"}], "durationSeconds": 60}
    said = await kubectl.apply("DeviceLease", "x", check=False, **{**good, "durationSeconds": -5})
    assert "spec.durationSeconds" in said
    assert "should be greater than 0" in said
    del good["client"]
    assert 'required field "client"' in await kubectl.apply("DeviceLease", "x", check=False, **good)


async def test_what_the_server_does_not_take_is_told(kubectl: Kubectl) -> None:
    async with kubectl.lab.client("boss", Role.ADMIN) as boss:
        with pytest.raises(LabError, match=r"longestSeconds.*should be greater than 0"):
            await boss.call("create", "policy", "odd", {"longest": -5.0})
        with pytest.raises(LabError, match="too large"):
            await boss.call("create", "client", "big", {"disabled": "x" * 2_000_000})
        await boss.call("create", "client", "alice", {})
    assert await kubectl("get", "clients", "-o", "name") == "client.jmp.dev/alice\n"


async def test_status_is_not_the_users(kubectl: Kubectl) -> None:
    await kubectl.apply("Client", "alice")
    made = {
        "apiVersion": "jmp.dev/v1alpha1",
        "kind": "DeviceLease",
        "metadata": {"name": "sly"},
        "spec": {"client": "alice", "wants": [{}], "durationSeconds": 60},
        "status": {"state": "ready", "devices": [{"exporter": "one", "epoch": 1, "phase": "ready"}]},
    }
    await kubectl("apply", "-f", "-", input=made)
    assert await kubectl.ended("sly") == "this lab has no exporters yet"


async def test_a_policy_with_a_wrong_selector_counts_for_nothing(kubectl: Kubectl) -> None:
    async with kubectl.lab.exporter("one"), kubectl.lab.client("alice") as alice:
        await kubectl.apply("AccessPolicy", "odd", clients="team ~ x", manage=True)
        await kubectl.apply("AccessPolicy", "good", priority=7)
        with kubectl.lab.lab.news.listen(("policy", "good")) as listener:
            while "good" not in kubectl.lab.lab.view.policy:
                await listener.wait()
        assert "odd" not in kubectl.lab.lab.view.policy
        await kubectl.event("accesspolicy", "odd", "Warning", "Unreadable", "counts for nothing")
        lease = await alice.call("acquire", [{"selector": "board=lamp", "exporter": None}], 60.0)
        assert lease["priority"] == 7
