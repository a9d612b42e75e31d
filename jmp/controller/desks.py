"""What each role may call at a controller: the methods of ``@lab``. One object for each connection, made for its identity.

A desk checks who asks and says what comes of it; deciding is the engine's, telling the :class:`~jmp.controller.lab.Lab`'s.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, Final, Literal

import jmp
from jmp.controller import policies
from jmp.controller.lab import Lab
from jmp.controller.meeting import Attendance, RouterLink
from jmp.controller.store import Change, Full
from jmp.driver import export
from jmp.driver.schema import did_you_mean
from jmp.errors import BadValue, JmpError, NotFound, Refused
from jmp.rpc.later import Later
from jmp.wire import selector
from jmp.wire.records import (
    SERVICE_ACCOUNT,
    Client,
    Desired,
    Exporter,
    Lease,
    Observed,
    Phase,
    Policy,
    Role,
    State,
    Want,
    changed,
    from_wire,
    to_wire,
)
from jmp.wire.tokens import Identity

DEFAULT_TOKEN_DAYS: Final = 365
"""How long an identity token is good for, unless its admin says otherwise. It can be revoked at any time."""
LOGIN_DAYS: Final = 1 / 24
"""How long one is that was got with a service account's own: that is there to get the next one."""
NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._@-]{0,61}[A-Za-z0-9])?")

Kind = Literal["client", "exporter", "policy"]
_RECORDS: Final[dict[str, type[Client] | type[Exporter] | type[Policy]]] = {
    "client": Client,
    "exporter": Exporter,
    "policy": Policy,
}
_SETTABLE: Final[dict[str, frozenset[str]]] = {
    "client": frozenset({"labels", "disabled", "service_accounts"}),
    "exporter": frozenset({"labels", "disabled", "description"}),
    "policy": frozenset(item.name for item in fields(Policy)) - {"name", "created", "version"},
}
"""What an admin may set; the rest is the lab's own."""


class Desk:
    """What every identity may ask."""

    def __init__(self, lab: Lab, who: Identity, peer: str) -> None:
        self.lab = lab
        self.who = who
        self.peer = peer

    @property
    def now(self) -> float:
        return self.lab.clock()

    def note(self, action: str, object: str, result: str = "ok", **more: Any) -> None:
        """Leave a line in the audit log."""
        self.lab.audit.record(
            actor=self.who.name,
            role=str(self.who.role),
            peer=self.peer,
            action=action,
            object=object,
            result=result,
            **more,
        )

    @export
    async def whoami(self) -> dict[str, Any]:
        """Who the controller takes this connection for."""
        return {
            "name": self.who.name,
            "role": str(self.who.role),
            "token": self.who.id,
            "expires": self.who.expires,
            "version": jmp.__version__,
        }

    @export
    async def renew(self, days: float = DEFAULT_TOKEN_DAYS) -> dict[str, Any]:
        """A new identity token for oneself; the present one stays good until it is revoked or expires."""
        if not 0 < days <= DEFAULT_TOKEN_DAYS:
            raise BadValue(f"a token is good for up to {DEFAULT_TOKEN_DAYS} days")
        if self.lab.view.token[self.who.id].service_account:
            raise Refused("a service account's token is what the next one is got with: jmp login")
        answer = await self.lab.do(lambda: issue(self.lab, self.who.name, self.who.role, days))
        self.note("renew", f"token/{answer['id']}")
        return answer


class LoginDesk:
    """What a pod may ask that has shown the token of its service account, which may log in as a client."""

    def __init__(self, lab: Lab, client: str, account: str, peer: str) -> None:
        self._lab, self._client, self._account, self._peer = lab, client, account, peer

    @export
    async def login(self) -> dict[str, Any]:
        """An identity token of the client, for an hour."""
        answer = await self._lab.do(lambda: issue(self._lab, self._client, Role.CLIENT, LOGIN_DAYS, self._account))
        self._lab.audit.record(
            actor=self._client,
            role=str(Role.CLIENT),
            peer=self._peer,
            action="login",
            object=f"token/{answer['id']}",
            result="ok",
            account=self._account,
        )
        return answer


# ---- exporters


class ExporterDesk(Desk):
    """What an exporter may ask."""

    _attendance: Attendance | None = None

    @export
    async def attend(self, registration: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Take part in the lab: what the exporter shall do, from now on and whenever it changes."""
        name = self.who.name
        attendance = self._attendance = self._read(registration)
        with suppress(Full):  # its labels may wait for its next connection
            known = self.lab.view.exporter.get(name)
            if known is None or self._described(known, registration) != known:  # else it need not wait for the store
                await self.lab.do(lambda: self._register(registration))
        self.lab.attend(name, attendance)
        with self.lab.news.listen(("exporter", name), "keys") as listener:
            try:
                keys, desired = -1, None
                while self.lab.attending.get(name) is attendance and name in self.lab.view.exporter:
                    if keys != self.lab.key_changes:
                        keys = self.lab.key_changes
                        yield {"keys": self.lab.key_news()}
                    wish = self.lab.desired(name)
                    if desired != (steady := _steady(wish)):
                        desired = steady
                        yield {"desired": to_wire(wish)}
                    while attendance.dials:
                        yield {"dial": attendance.dials.pop(0)}
                    await listener.wait()
            finally:
                self.lab.leave(name, attendance)
        if name not in self.lab.view.exporter:
            if desired is not None:  # whoever has it now is to be cut off, as with any lease that ends
                yield {"desired": to_wire(Desired(epoch=desired.epoch, reason=f"exporter {name} was deleted"))}
            raise Refused(f"exporter {name} was deleted")
        raise Refused(f"another exporter has connected as {name}")

    @export
    async def observe(self, observed: dict[str, Any]) -> Later[None]:
        """What the exporter is doing."""
        if self._attendance is None:
            raise Refused("attend first")
        self.lab.observe(self.who.name, self._attendance, from_wire(Observed, observed))
        return self.lab.ask(lambda: None, patient=True)  # it has been heard when what follows from it is durable

    def _read(self, registration: dict[str, Any]) -> Attendance:
        endpoints = [
            {"url": str(item.get("url", "")), "fingerprint": item.get("fingerprint")}
            for item in registration.get("endpoints", [])
            if isinstance(item, dict)
        ]
        tree = registration.get("tree")
        return Attendance(
            peer=self.peer,
            version=str(registration.get("version", "")),
            endpoints=endpoints,
            tree=tree if isinstance(tree, dict) else {},
            observed=from_wire(Observed, registration.get("observed")),
            since=self.now,
        )

    def _register(self, registration: dict[str, Any]) -> None:
        """Take over what the exporter's configuration says of it; labels that an admin has set stay."""
        exporter = self.lab.engine.exporters.get(self.who.name)
        if exporter is None:
            raise Refused(f"exporter {self.who.name} was deleted")
        described = self._described(exporter, registration)
        if described != exporter:
            self.lab.engine.put(described, self.now)

    @staticmethod
    def _described(exporter: Exporter, registration: dict[str, Any]) -> Exporter:
        labels = registration.get("labels", {})
        selector.check_labels(labels)
        description = str(registration.get("description", ""))
        return replace(exporter, labels={**labels, **exporter.own_labels}, description=description)


def _steady(wish: Desired) -> Desired:
    """What an exporter is told anew when it changes: not what changes by itself as time passes (an extension shows in the
    duration), nor why there is nothing more to be done of what is over already."""
    if wish.grant is None:
        return changed(wish, reason="")
    running = None if wish.grant.running is None else 0.0
    return changed(wish, grant=changed(wish.grant, remaining=0.0, running=running))


# ---- routers


class RouterDesk(Desk):
    """What a router may ask."""

    _link: RouterLink | None = None

    @export
    async def route(self, registration: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Take part in the lab as a router: the keys to verify tokens with, from now on and whenever they change."""
        link = RouterLink(str(registration.get("url", "")), registration.get("fingerprint"), self.peer)
        if not link.url:
            raise BadValue("a router has to say at which url it is reached")
        own = str(registration.get("name") or self.who.name)
        name = self.who.name if own == self.who.name else f"{self.who.name}/{own}"  # several may share a token
        routers = self.lab.routers
        routers[name] = self._link = link
        self.lab.others.say()
        with self.lab.news.listen("keys") as listener:
            try:
                while routers.get(name) is link:
                    yield {"keys": self.lab.key_news()}
                    await listener.wait()
            finally:
                if routers.get(name) is link:
                    del routers[name]
                    self.lab.others.say()
        raise Refused(f"another router has connected as {name}")

    @export
    async def load(self, pairs: int, draining: bool = False) -> None:
        """How many pairs the router joins now; and whether it takes no more."""
        link = self._link
        if link is None:
            raise Refused("route first")
        if draining and not link.draining:
            self.lab.others.say()
        link.load, link.draining = pairs, draining


# ---- clients


class ClientDesk(Desk):
    """What a client may ask; an admin may ask it of everything."""

    @property
    def is_admin(self) -> bool:
        return self.who.role is Role.ADMIN

    # -- one's leases

    @export
    async def acquire(
        self,
        wants: list[Want],
        duration: float,
        *,
        begin: float | None = None,
        wait: float | None = None,
        priority: int | None = None,
        tied: bool = False,
        idle_limit: float | None = None,
        allow_disabled: bool = False,
        tags: list[str] = [],  # noqa: B006  # never changed
        context: dict[str, str] = {},  # noqa: B006
    ) -> Later[dict[str, Any]]:
        """Ask for a lease; it is queued, or granted at once. Times are seconds since the epoch, durations seconds."""
        if self.is_admin and self.who.name not in self.lab.view.client:
            raise Refused(
                f"{self.who.name} is an admin here, and leases are for clients: jmp admin create client NAME makes one"
            )

        def acquired(lease: Lease) -> dict[str, Any]:
            self.note("acquire", f"lease/{lease.id}", context=context)
            return self._shown(self.lab.view.lease[lease.id])

        return self.lab.ask(
            lambda: self.lab.engine.request(
                self.who.name,
                tuple(wants),
                duration,
                self.now,
                begin=begin,
                wait=wait,
                priority=priority,
                tied=tied,
                idle_limit=idle_limit,
                allow_disabled=allow_disabled,
                tags=tuple(tags),
                context=context,
            )
        ).then(acquired)

    @export
    async def watch(self, lease: str) -> AsyncGenerator[dict[str, Any], None]:
        """A lease as it stands, and again whenever that has changed, until it has ended. Its holder is there while it watches."""
        own = (await self._own(lease)).client == self.who.name
        if own:
            self.lab.hold(lease, present=True)
        try:
            last = found = None
            with (
                self.lab.news.listen(("lease", lease)) as alone,
                self.lab.news.listen(("lease", lease), "queue") as queued,
            ):
                self.lab.hurry(("lease", lease))
                while (there := self.lab.view.lease.get(lease)) is not None:
                    found = there
                    if found.client != self.who.name and own:
                        raise Refused(f"lease {lease} was handed over to {found.client}")
                    if (shown := self._shown(found)) != last:
                        last = shown
                        yield shown
                    if found.state is State.ENDED:
                        return
                    await (queued if found.state is State.QUEUED else alone).wait()
            if found is not None:  # somebody has deleted its object
                yield self._shown(replace(found, state=State.ENDED, ended=self.now, reason="it was deleted"))
        finally:
            if own:
                self.lab.hold(lease, present=False)

    @export
    async def meet(
        self, lease: str, exporter: str | None = None, via: Literal["direct", "router"] = "direct"
    ) -> dict[str, Any]:
        """What it takes to use a device of a lease: a session token, and where to go with it."""
        found = await self._own(lease)
        if found.client != self.who.name:
            raise Refused(f"lease {lease} is {found.client}'s: transfer it to use its devices")
        if found.state is State.QUEUED:
            raise Refused(f"lease {lease} is still queued")
        if found.state not in (State.PREPARING, State.READY):
            raise Refused(f"lease {lease} has ended: {found.reason}")
        names = [held.exporter for held in found.devices]
        if exporter is None and len(names) > 1:
            raise BadValue(f"lease {lease} has several devices: say which of {', '.join(names)}")
        if exporter is not None and exporter not in names:
            raise NotFound(f"lease {lease} does not hold {exporter}{did_you_mean(exporter, names)}")
        return self.lab.meet(found, exporter or names[0], via)

    @export
    async def release(self, lease: str, reason: str = "") -> dict[str, Any] | Later[dict[str, Any]]:
        """End a lease now: its devices cannot be used from this moment on. ``released`` tells whether this did it."""
        if (found := await self._own(lease)).state in (State.ENDING, State.ENDED):
            return {**self._shown(found), "released": False}

        def released(_: None) -> dict[str, Any]:
            self.note("release", f"lease/{lease}")
            return {**self._shown(self.lab.view.lease[lease]), "released": True}

        said = f"released by {self.who.name}" + (f": {reason}" if reason else "")
        return self.lab.ask(lambda: self.lab.engine.release(lease, self._by, said, self.now)).then(released)

    @export
    async def extend(self, lease: str, duration: float) -> dict[str, Any]:
        """Give a lease ``duration`` more seconds."""
        await self._own(lease)
        await self.lab.do(lambda: self.lab.engine.extend(lease, duration, self._by, self.now))
        self.note("extend", f"lease/{lease}", seconds=duration)
        return self._shown(self.lab.view.lease[lease])

    @export
    async def keep(self, lease: str) -> dict[str, Any]:
        """Let a lease that is tied to its holder go on without one."""
        await self._own(lease)
        await self.lab.do(lambda: self.lab.engine.keep(lease, self._by))
        self.note("keep", f"lease/{lease}")
        return self._shown(self.lab.view.lease[lease])

    @export
    async def transfer(self, lease: str, client: str) -> dict[str, Any]:
        """Hand a lease over to another client: who used its devices until now is cut off at once."""
        await self._own(lease)
        await self.lab.do(lambda: self.lab.engine.transfer(lease, client, self._by, self.now))
        self.note("transfer", f"lease/{lease}", to=client)
        return self._shown(self.lab.view.lease[lease])

    # -- what there is

    @export
    async def lease(self, lease: str) -> dict[str, Any]:
        """One lease."""
        return self._shown(await self._own(lease))

    @export
    async def leases(self, *, everybody: bool = False, ended: bool = False, tag: str = "") -> list[dict[str, Any]]:
        """One's leases, oldest first; or all that one may see. Those that have ended only if asked for."""
        found = [
            lease
            for lease in (self.lab.view.lease if ended else self.lab.view.active).values()
            if (lease.client == self.who.name or (everybody and self._may_see(lease)))
            and (not tag or tag in lease.tags)
        ]
        return [self._shown(lease) for lease in sorted(found, key=lambda lease: lease.number)]

    @export
    async def exporters(self, matching: str = "") -> list[dict[str, Any]]:
        """The exporters that one may lease or see, by name, without their drivers."""
        chosen = selector.parse(matching)
        return [
            self._exporter(exporter)
            for _, exporter in sorted(self.lab.view.exporter.items())
            if chosen.matches(exporter.labels) and self._may_know(exporter.name)
        ]

    @export
    async def exporter(self, name: str) -> dict[str, Any]:
        """One exporter, with its drivers if it is online."""
        known = [other for other in self.lab.view.exporter if self._may_know(other)]
        if name not in known:
            raise NotFound(f"there is no exporter {name!r}{did_you_mean(name, known)}")
        attendance = self.lab.attending.get(name)
        return {
            **self._exporter(self.lab.view.exporter[name]),
            "tree": attendance.tree if attendance is not None else None,
        }

    @export
    async def why(self, wants: list[Want], allow_disabled: bool = False) -> list[dict[str, str]]:
        """For each exporter what keeps it from being leased now: its name, a code and a text."""
        reasons = self.lab.engine.why(self.who.name, tuple(wants), self.now, allow_disabled=allow_disabled)
        return [{"exporter": reason.exporter, "code": str(reason.code), "text": reason.text} for reason in reasons]

    # -- rights

    @property
    def _by(self) -> str | None:
        """Who asks, for the engine: None may do everything."""
        return None if self.is_admin else self.who.name

    async def _own(self, id: str) -> Lease:
        """A lease that one may deal with. That there are others' is nobody else's business."""
        if id not in self.lab.view.lease:
            await self.lab.look(("lease", id))
        lease = self.lab.view.lease.get(id)
        if lease is None or not (lease.client == self.who.name or self._may_see(lease)):
            mine = [lease.id for lease in self.lab.view.lease.values() if lease.client == self.who.name]
            raise NotFound(f"there is no lease {id!r} of yours{did_you_mean(id, mine)}")
        return lease

    def _may_see(self, lease: Lease) -> bool:
        if self.is_admin:
            return True
        return bool(lease.devices) and all(
            (access := self.lab.engine.access(self.who.name, held.exporter)).see or access.manage
            for held in lease.devices
        )

    def _may_know(self, name: str) -> bool:
        if self.is_admin:
            return True
        access = self.lab.engine.access(self.who.name, name)
        return access.lease or access.see or access.manage

    def _shown(self, lease: Lease) -> dict[str, Any]:
        shown: dict[str, Any] = to_wire(lease)
        if lease.state is State.QUEUED:
            shown["position"], shown["expected"] = self.lab.standing(lease.id)
        return shown

    def _exporter(self, exporter: Exporter) -> dict[str, Any]:
        attendance = self.lab.attending.get(exporter.name)
        lease = self.lab.view.lease.get(self.lab.view.holding.get(exporter.name, ""))
        shown: dict[str, Any] = to_wire(exporter)
        del shown["lease"]  # who may see that is told below
        shown["state"] = state_of(self.lab, exporter)
        shown["version"] = attendance.version if attendance is not None else ""
        if lease is not None:
            shown["until"] = lease.ends
            if lease.client == self.who.name or self._may_see(lease):
                shown |= {"lease": lease.id, "client": lease.client}
        return shown


def state_of(lab: Lab, exporter: Exporter) -> str:
    """What an exporter is doing, in the word that people read."""
    attendance = lab.attending.get(exporter.name)
    lease = lab.view.lease.get(lab.view.holding.get(exporter.name, ""))
    if attendance is None:
        return "offline"
    if lease is not None:
        return {State.PREPARING: "preparing", State.READY: "leased"}.get(lease.state, "cleaning")
    if exporter.disabled is not None:
        return "disabled"
    return "free" if attendance.observed.phase is Phase.IDLE else "cleaning"


# ---- admins


class AdminDesk(ClientDesk):
    """What an admin may ask besides."""

    @export
    async def list(self, kind: Kind | Literal["token"]) -> list[dict[str, Any]]:
        """All records of a kind, by name; tokens by whom they are for. The tokens themselves are kept nowhere."""
        records = getattr(self.lab.view, kind)
        return [to_wire(record) for _, record in sorted(records.items())]

    @export
    async def create(self, kind: Kind, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Make a client, an exporter or a policy."""
        if NAME.fullmatch(name) is None:
            raise BadValue(f"{name!r} is no name: letters, digits, and inside also '.', '_', '@', '-'; 63 at most")
        return await self._store(kind, name, values, "create")

    @export
    async def update(self, kind: Kind, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Set what ``values`` names and leave the rest."""
        return await self._store(kind, name, values, "update")

    @export
    async def delete(self, kind: Kind, name: str) -> Sequence[dict[str, Any]]:
        """Remove a client, an exporter or a policy; tokens of it are revoked, leases of it end. Returns those leases."""
        self._record(kind, name)
        ended = [
            lease.id
            for lease in self.lab.view.active.values()
            if (kind == "client" and lease.client == name)
            or (kind == "exporter" and name in {held.exporter for held in lease.devices})
        ]
        await self.lab.do(lambda: self._drop(kind, name))
        self.lab.keys_changed()
        self.note("delete", f"{kind}/{name}", leases=ended)
        return [self._shown(lease) for id in ended if (lease := self.lab.view.lease.get(id)) is not None]

    @export
    async def issue(self, name: str, role: Role, days: float = DEFAULT_TOKEN_DAYS) -> dict[str, Any]:
        """A new identity token: it is told here and kept nowhere."""
        if role in (Role.CLIENT, Role.EXPORTER):
            self._record(str(role), name)
        answer = await self.lab.do(lambda: issue(self.lab, name, role, days))
        self.note("issue", f"token/{answer['id']}", subject=f"{role}/{name}")
        return answer

    @export
    async def revoke(self, token: str) -> None:
        """Let an identity token be good for nothing from now on; connections made with it end."""
        known = self.lab.view.token
        if token not in known:
            raise NotFound(f"there is no token {token!r}{did_you_mean(token, known)}")
        await self.lab.do(lambda: self._revoke(token))
        self.lab.keys_changed()
        self.note("revoke", f"token/{token}")

    @export
    async def rotate(self) -> str:
        """Sign with a new key from now on; returns its id. Tokens signed with older ones stay good."""
        kid = await self.lab.keys.rotate()
        self.lab.keys_changed()
        self.note("rotate", f"key/{kid}")
        return kid

    @export
    async def disable(
        self, kind: Literal["client", "exporter"], name: str, reason: str, now: bool = False
    ) -> dict[str, Any]:
        """Keep a client from doing anything, or an exporter from being leased (maintenance).

        With ``now`` the exporter's present lease is ended, too.
        """
        answer = await self._store(kind, name, {"disabled": reason}, "disable")
        lease = self.lab.view.holding.get(name) if kind == "exporter" and now else None
        if lease is not None:
            said = f"{name} was taken for maintenance: {reason}"
            await self.lab.do(lambda: self.lab.engine.release(lease, None, said, self.now))
        return answer

    @export
    async def enable(self, kind: Literal["client", "exporter"], name: str) -> dict[str, Any]:
        """Undo :meth:`disable`."""
        return await self._store(kind, name, {"disabled": None}, "enable")

    def _record(self, kind: str, name: str) -> Any:
        known = getattr(self.lab.view, kind)
        if name not in known:
            raise NotFound(f"there is no {kind} {name!r}{did_you_mean(name, known)}")
        return known[name]

    async def _store(self, kind: str, name: str, values: dict[str, Any], action: str) -> dict[str, Any]:
        for key in values:
            if key not in _SETTABLE[kind]:
                raise BadValue(f"{kind} has no {key!r} to set{did_you_mean(key, _SETTABLE[kind])}")
        if "labels" in values:
            selector.check_labels(values["labels"])
        await self.lab.do(lambda: self._put(kind, name, values, new=action == "create"))
        self.note(action, f"{kind}/{name}", values=values)
        answer: dict[str, Any] = to_wire(getattr(self.lab.view, kind)[name])
        return answer

    def _put(self, kind: str, name: str, values: dict[str, Any], *, new: bool) -> None:
        # What the engine has, which may be ahead of the view: an epoch must not be taken back.
        engine = self.lab.engine
        known: Any = {"client": engine.clients, "exporter": engine.exporters, "policy": engine.policies}[kind]
        if new and name in known:
            raise BadValue(f"there is {'an' if kind == 'exporter' else 'a'} {kind} {name!r} already")
        if not new and name not in known:
            raise NotFound(f"there is no {kind} {name!r}{did_you_mean(name, known)}")
        present: dict[str, Any] = {"created": self.now} if new else to_wire(known[name])
        if kind == "exporter" and "labels" in values:
            own = values["labels"]
            of_old = present.get("own_labels", {})
            configured = {key: value for key, value in present.get("labels", {}).items() if key not in of_old}
            values = {**values, "own_labels": own, "labels": {**configured, **own}}
        try:
            record = from_wire(_RECORDS[kind], {**present, **values, "name": name})
            if isinstance(record, Policy):
                policies.check(record)
        except JmpError as error:
            raise BadValue(error.message) from None
        if isinstance(record, Client):
            _check_accounts(record, engine.clients.values())
        engine.put(record, self.now)

    def _drop(self, kind: Kind, name: str) -> None:
        self.lab.engine.drop(kind, name, self.now)
        if kind != "policy":
            for token in self.lab.view.token.values():
                if token.subject == name and token.role == kind:
                    self._revoke(token.id)

    def _revoke(self, id: str) -> None:
        revoke(self.lab, id)


def _check_accounts(client: Client, others: Iterable[Client]) -> None:
    for account in client.service_accounts:
        if re.fullmatch(SERVICE_ACCOUNT, account) is None:
            raise BadValue(f"{account!r} is no service account: NAMESPACE/NAME")
        for other in others:
            if other.name != client.name and account in other.service_accounts:
                raise BadValue(f"service account {account} logs in as client {other.name} already")


def issue(lab: Lab, name: str, role: Role, days: float, account: str = "") -> dict[str, Any]:
    """Make an identity token, got with that of ``account`` if given; it is good once the lab has settled."""
    if not 0 < days <= 3650:
        raise BadValue("a token is good for more than 0 and at most 3650 days")
    text, record = lab.keys.identity(name, role, days * 86400)
    lab.put(Change("token", record.id, None, replace(record, service_account=account)))
    return {"id": record.id, "token": text, "expires": record.expires, "name": name, "role": str(role)}


def revoke(lab: Lab, id: str) -> None:
    """Let an identity token be good for nothing any more, once the lab has settled."""
    token = lab.view.token.get(id)
    if token is not None and token.revoked is None:
        lab.put(Change("token", id, token, replace(token, revoked=lab.clock())))
