"""The service account's rights, on a real API server: each is needed, and there are no others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import yaml

from jmp.audit import Audit
from jmp.controller.keys import Keys
from jmp.controller.kubernetes import KubernetesStore
from jmp.controller.kubernetes_accounts import REVIEWS, Reviewer
from jmp.controller.kubernetes_api import Access, Api, Denied, Gone, connect, find_access
from jmp.controller.kubernetes_events import Happening
from jmp.controller.kubernetes_keys import JOIN, ROUTER, SECRET, SharedKeys, _see_to_router, keep_join
from jmp.controller.kubernetes_objects import RESOURCES
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.store import Change, Record, Rejected
from jmp.wire.records import Client, Exporter, Lease, Observed, Policy, Presence, Replica, Role, Token, Want
from tests.fakes.kube import ROOT, Cluster

pytestmark = pytest.mark.real

RIGHTS: Final = ROOT / "deploy/kubernetes/overlays/replicated/rbac.yaml"
VERBS: Final = {
    "get": ("GET", True),
    "list": ("GET", False),
    "watch": ("GET", False),
    "create": ("POST", False),
    "update": ("PUT", True),
    "patch": ("PATCH", True),
    "delete": ("DELETE", True),
    "deletecollection": ("DELETE", False),
}
GROUPS: Final = {"secrets": "", "events": "", "tokenreviews": "authentication.k8s.io"}
OWN: Final = "/apis/jmp.dev/v1alpha1/namespaces/{namespace}/"
PLACES: Final = {
    **{resource.plural: f"{OWN}{resource.plural}" for resource in RESOURCES.values()},
    "secrets": "/api/v1/namespaces/{namespace}/secrets",
    "pods": "/api/v1/namespaces/{namespace}/pods",
    "configmaps": "/api/v1/namespaces/{namespace}/configmaps",
    "events": "/api/v1/namespaces/{namespace}/events",
    "serviceaccounts": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "roles": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "rolebindings": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "deployments": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "leases": "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases",
    "customresourcedefinitions": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "tokenreviews": REVIEWS,
    "subjectaccessreviews": "/apis/authorization.k8s.io/v1/subjectaccessreviews",
    "nodes": "/api/v1/nodes",
    "namespaces": "/api/v1/namespaces",
}


@dataclass(frozen=True)
class Right:
    """To do something with objects of a kind, or with one of them."""

    verb: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.verb}-{self.resource}" + (f"-{self.name}" if self.name else "")


def rules(number: int = 0) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list(yaml.safe_load_all(RIGHTS.read_text()))[number]["rules"]
    return found


def rights_of(rule: Mapping[str, Any]) -> list[Right]:
    return [
        Right(verb, resource, name)
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    ]


GIVEN: Final = [right for rule in rules() for right in rights_of(rule)]
EVERYWHERE: Final = [right for rule in rules(2) for right in rights_of(rule)]
"""Those that are bound to no namespace."""


@pytest.fixture
async def admin(cluster: Cluster) -> AsyncIterator[Api]:
    access = cluster.namespace()
    cluster.account(access.namespace)
    with trio.fail_after(600):
        async with connect(access) as api:
            yield api


@pytest.fixture
def account(cluster: Cluster, admin: Api) -> Access:
    return find_access(cluster.directory / f"{admin.namespace}.kubeconfig", admin.namespace)


# ---- none too many


async def test_whatever_else_is_tried_is_refused(admin: Api, account: Access) -> None:
    tried = 0
    async with connect(account) as api, connect(replace(account, namespace="default")) as elsewhere:
        for here in (api, elsewhere):
            for resource, place in PLACES.items():
                for verb, (method, named) in VERBS.items():
                    given = [*EVERYWHERE, *(GIVEN if here is api else ())]
                    if any((right.verb, right.resource) == (verb, resource) for right in given):
                        continue
                    path = place.format(namespace=here.namespace) + ("/other" if named else "")
                    with pytest.raises(Denied, match=f'cannot {verb} resource "{resource}"'):
                        await here.request(method, path, {}, {"watch": "1"} if verb == "watch" else None)
                    tried += 1
        for verb in ("get", "update", "patch", "delete"):  # a secret that is not the lab's
            with pytest.raises(Denied, match=f'cannot {verb} resource "secrets"'):
                await api.request(VERBS[verb][0], f"/api/v1/namespaces/{api.namespace}/secrets/other", {})
    assert tried > 200


# ---- none too few, and none for nothing

NOW: Final = 1_800_000_000.0
RECORDS: Final[dict[str, Record]] = {
    "client": Client(name="x", created=1.0),
    "exporter": Exporter(name="x", created=1.0),
    "policy": Policy(name="x", created=1.0),
    "lease": Lease(id="x", client="c", wants=(Want(),), duration=60.0, created=1.0, number=0),
    "token": Token(id="x", subject="x", role=Role.CLIENT, issued=1.0, expires=NOW),
    "replica": Replica(name="x", beat=1),
}
CHANGED: Final[dict[str, Any]] = {
    "client": {"disabled": "ill"},
    "exporter": {"disabled": "ill"},
    "policy": {"priority": 3},
    "lease": {"tags": ("new",)},
    "token": {"revoked": 2.0},
    "replica": {"beat": 2},
}


def other(kind: str, record: Record) -> Record:
    """A record that is not the same."""
    changed: Record = replace(record, **CHANGED[kind])
    return changed if changed != record else replace(RECORDS[kind], version=record.version)


KINDS: Final = {resource.plural: kind for kind, resource in RESOURCES.items()}


class Stage:
    """A lab's objects, and what a controller does with them with the account's rights."""

    def __init__(self, admin: Api, api: Api, directory: Path) -> None:
        self.admin, self.api, self.directory = admin, api, directory

    async def made(self, kind: str) -> tuple[KubernetesStore, Record]:
        """An object of a kind, and a store of the account that knows it."""
        store = KubernetesStore(self.admin)
        await store.load()
        record = store._records.get((kind, "x"))
        if record is None:
            [record] = await store.commit([Change(kind, "x", None, RECORDS[kind])])
        assert record is not None
        mine = KubernetesStore(self.api)
        mine._objects, mine._records, mine._listed = store._objects, store._records, store._listed
        return mine, record

    async def gone(self, kind: str) -> KubernetesStore:
        """A store of the account that knows that there is none."""
        store = KubernetesStore(self.admin)
        await store.load()
        if (record := store._records.get((kind, "x"))) is not None:
            await store.commit([Change(kind, "x", record, None)])
        mine = KubernetesStore(self.api)
        mine._objects, mine._records, mine._listed = store._objects, store._records, store._listed
        return mine

    async def do(self, right: Right) -> None:
        """What needs a right. Raises ``Denied`` or ``Rejected`` without it."""
        if right.resource == "events":
            await self.tell()
        elif right.resource == "secrets":
            await getattr(self, f"{right.verb}_{right.name.replace('-', '_') or 'secret'}")()
        elif right.resource.endswith("/status"):
            await self.status(KINDS[right.resource.removesuffix("/status")])
        else:
            await getattr(self, right.verb)(KINDS[right.resource])

    async def tell(self) -> None:
        store, record = await self.made("client")
        store.events.tell(store._objects["client", "x"], Happening(True, "Tested", str(record.version)))
        event = await store.events._receive.receive()
        await self.api.request("POST", f"/api/v1/namespaces/{self.api.namespace}/events", event)

    async def list(self, kind: str) -> None:
        await KubernetesStore(self.api)._list(RESOURCES[kind])

    async def watch(self, kind: str) -> None:
        await self.made(kind)
        _, version = await self.admin.list(RESOURCES[kind].path(self.admin.namespace))
        await self._touch(RESOURCES[kind].path(self.admin.namespace, "x"))
        await self._watched(RESOURCES[kind].path(self.api.namespace), version)

    async def _watched(self, path: str, version: str) -> None:
        with suppress(Gone):
            await self._heard(self.api.watch(path, version))

    async def _heard(self, watching: AsyncIterator[Any]) -> None:
        """Wait for the first event."""
        async with aclosing(watching) as events:  # type: ignore[type-var]
            await anext(events)

    async def _touch(self, path: str) -> None:
        """Somebody else changes it."""
        there = (await self.admin.request("GET", path)).body
        there["metadata"].setdefault("annotations", {})["touched"] = there["metadata"]["resourceVersion"]
        assert (await self.admin.request("PUT", path, there)).status == 200

    async def create(self, kind: str) -> None:
        store = await self.gone(kind)
        await store.commit([Change(kind, "x", None, RECORDS[kind])])

    async def update(self, kind: str) -> None:
        store, record = await self.made(kind)
        await store.commit([Change(kind, "x", record, other(kind, record))])

    async def delete(self, kind: str) -> None:
        store, record = await self.made(kind)
        await store.commit([Change(kind, "x", record, None)])

    async def get(self, kind: str) -> None:
        """After somebody else has changed it."""
        store, record = await self.made(kind)
        await self._touch(RESOURCES[kind].path(self.admin.namespace, "x"))
        await store.commit([Change(kind, "x", record, other(kind, record))])

    async def status(self, kind: str) -> None:
        if kind == "exporter":
            store, record = await self.made(kind)
            presence = store._records.get(("presence", "x"))
            since = getattr(presence, "since", 0.0) + 1.0
            new = Presence(name="x", replica="one", since=since, peer="", observed=Observed(epoch=0))
            await store.commit([Change("presence", "x", presence, new)])
        else:
            store, record = await self.made(kind)
            assert isinstance(record, Lease)
            await store.commit([Change(kind, "x", record, replace(record, duration=record.duration + 1))])

    # -- secrets

    async def opened(self) -> SharedKeys:
        self.directory.mkdir(exist_ok=True)
        return await SharedKeys.open(self.api, self.directory, ["localhost"])

    async def get_jmp_keys(self) -> None:
        await self.opened()

    async def update_jmp_keys(self) -> None:
        await (await self.opened()).keys.rotate()

    async def watch_jmp_keys(self) -> None:
        await self._watched_secret()

    async def _watched_secret(self) -> None:
        await self.opened()
        path = f"/api/v1/namespaces/{self.api.namespace}/secrets"
        _, version = await self.admin.list(path)
        await self._touch(f"{path}/{SECRET}")
        await self._heard(self.api.watch(path, version, {"fieldSelector": f"metadata.name={SECRET}"}))

    async def create_secret(self) -> None:
        await self.admin.request("DELETE", f"/api/v1/namespaces/{self.api.namespace}/secrets/{SECRET}")
        await (await self.opened()).keep()

    @asynccontextmanager
    async def lab(self) -> AsyncIterator[Lab]:
        from tests.fakes.memory_store import MemoryStore

        lab = Lab(Engine(), MemoryStore(), Keys.open(self.directory / "lab", []), Audit(None))
        await lab.load()
        async with trio.open_nursery() as nursery:
            await nursery.start(lab.run)
            yield lab
            nursery.cancel_scope.cancel()

    async def get_jmp_router(self) -> None:
        refused: Denied | None = None
        async with self.lab() as lab:
            try:
                await _see_to_router(self.api, lab)
            except Denied as error:  # not through the lab's nursery, which would wrap it
                refused = error
        if refused is not None:
            raise refused

    async def get_jmp_admin_join(self) -> None:
        """A controller has kept a command, and died."""
        refused: Denied | None = None
        async with self.lab() as lab:
            token, _ = lab.keys.identity("admin", Role.ADMIN, 3600.0)
            path = f"/api/v1/namespaces/{self.admin.namespace}/secrets/{JOIN}"
            await self.admin.request("DELETE", path)
            await keep_join(self.admin, lab, "of one that died", token)
            try:
                assert await keep_join(self.api, lab, "mine", "other") == token
            except Denied as error:
                refused = error
        if refused is not None:
            raise refused

    async def update_jmp_admin_join(self) -> None:
        """What is kept is another lab's."""
        refused: Denied | None = None
        async with self.lab() as lab:
            path = f"/api/v1/namespaces/{self.admin.namespace}/secrets/{JOIN}"
            await self.admin.request("DELETE", path)
            await keep_join(self.admin, lab, "another lab's", "odd")
            try:
                assert await keep_join(self.api, lab, "mine", "new") == "new"
            except Denied as error:
                refused = error
        if refused is not None:
            raise refused

    async def update_jmp_router(self) -> None:
        path = f"/api/v1/namespaces/{self.api.namespace}/secrets/{ROUTER}"
        if (await self.admin.request("GET", path)).status == 404:
            await self.get_jmp_router()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jmp.controller.kubernetes_keys._LATE", 0.0)
            await self.get_jmp_router()  # another lab's: its token is not known here


async def test_each_right_is_needed(admin: Api, account: Access, tmp_path: Path) -> None:
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{admin.namespace}/roles/jmp-controller"
    async with connect(account) as api:
        stage = Stage(admin, api, tmp_path / "keys")
        (tmp_path / "keys").mkdir()
        for right in GIVEN:
            await stage.do(right)
        for right in GIVEN:
            await give(admin, path, without(right))
            await until(admin, api, right, allowed=False)
            with pytest.raises((Denied, Rejected), match=f'cannot {right.verb} resource "{right.resource}"'):
                await stage.do(right)
            await give(admin, path, rules())
            await until(admin, api, right, allowed=True)


async def test_it_asks_whose_a_token_is(cluster: Cluster, admin: Api, account: Access) -> None:
    """And needs the right that lets it."""
    cluster.kubectl("-n", admin.namespace, "create", "serviceaccount", "pod")
    token = cluster.kubectl("-n", admin.namespace, "create", "token", "pod", "--audience=lab.example").strip()
    [right] = EVERYWHERE
    async with connect(account) as api:
        await until(admin, api, right, allowed=True)
        assert await Reviewer(api, "lab.example")(token) == f"{admin.namespace}/pod"
        cluster.kubectl("delete", "clusterrolebinding", f"jmp-token-reviewer-jmp-{admin.namespace}")
        await until(admin, api, right, allowed=False)
        with pytest.raises(Denied, match='cannot create resource "tokenreviews"') as caught:
            await Reviewer(api, "lab.example")(token)
        assert token not in str(caught.value)


def without(right: Right) -> list[dict[str, Any]]:
    """The rules, one for each right, without one."""
    group = {resource: rule["apiGroups"] for rule in rules() for resource in rule["resources"]}
    return [
        {"apiGroups": group[other.resource], "resources": [other.resource], "verbs": [other.verb]}
        | ({"resourceNames": [other.name]} if other.name else {})
        for other in GIVEN
        if other != right
    ]


async def give(admin: Api, path: str, wanted: list[dict[str, Any]]) -> None:
    role = (await admin.request("GET", path)).body
    assert (await admin.request("PUT", path, {**role, "rules": wanted})).status == 200


async def until(admin: Api, api: Api, right: Right, *, allowed: bool) -> None:
    """Wait until the API server goes by its rules, which takes it a moment."""
    resource, _, part = right.resource.partition("/")
    asked = {"namespace": api.namespace, "verb": right.verb, "resource": resource, "subresource": part}
    asked |= {"name": right.name, "group": GROUPS.get(resource, "jmp.dev")}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    while True:
        answer = await api.request("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        if answer.body["status"]["allowed"] == allowed:
            return
        await trio.sleep(0.01)
