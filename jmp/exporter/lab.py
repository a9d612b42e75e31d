"""An exporter in a lab: it does what the controller desires, and tells the controller what is.

Theory of operation. Both are levels, not events: whatever was lost or doubled on the way, saying both again after a reconnect
puts things right. ``_desired`` is what the controller said last. :meth:`LabExporter._work` compares it with the present
:class:`~jmp.exporter.hold.Hold` and begins, renews or ends that. ``_observed`` is what is; a task tells it to the controller
whenever it has changed. A controller that is away changes nothing here: a hold goes on until its time is over.

What must outlive this process is in one small file: the newest epoch, whether an afterLease is owed, and the last lease that is
over: until the controller has heard of that it still wants it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

import jmp
from jmp import logs
from jmp.audit import Audit
from jmp.driver.tree import Tree
from jmp.errors import ConfigError, JmpError, LabError, ProtocolViolation, Refused
from jmp.exporter.config import ExporterConfig
from jmp.exporter.hold import Hold, Visit
from jmp.exporter.hooks import HookFailed
from jmp.link import Link, websocket
from jmp.link.sessions import Again, Sessions
from jmp.rpc.call import Caller
from jmp.rpc.keys import verifier_of
from jmp.rpc.reconnect import keep_connected
from jmp.wire.records import Desired, Grant, Observed, Phase, from_wire, to_wire
from jmp.wire.tokens import SessionClaims, Verifier

log = logging.getLogger("jmp.exporter")

TARGET: Final = "@lab"
BLOCK: Final = 512
"""Bytes that a disk writes whole or not at all."""
RESTARTED: Final = "the exporter was restarted"
FAREWELL_SECONDS: Final = 5.0
"""How long a stopping exporter tries to tell its controller how its last lease ended."""
ROUTER_SECONDS: Final = 12.0
"""How long it tries to reach a router where a client waits: as long as that one does."""
GIVE_WAY_SECONDS: Final = 1.0
"""How long it leaves a client whose link was lost to the controller, if that is there, before it looks for it by itself."""
AHEAD_SECONDS: Final = 8.0
"""How long a holder's link may wait for the controller's word that the lease is theirs: below what a handshake may take."""
LINGER: Final = 0.05
"""Seconds for which it is not told that what the controller wants has begun: most often it is done by then."""
NO_AUDIT: Final = Audit(None)


@dataclass
class Memory:
    """What an exporter keeps in its state directory: the newest epoch it has heard of, the lease whose afterLease is owed, and
    the one that was over last."""

    file: Path
    epoch: int = 0
    owed: dict[str, str] | None = field(default=None)
    finished: str = ""

    @classmethod
    def load(cls, file: Path) -> Memory:
        """Raises ``ConfigError`` if the file cannot be read; a missing or empty one is new."""
        try:
            text = file.read_text()
        except FileNotFoundError:
            return cls(file)
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        if not text:  # the machine lost its power before it was on the disk
            return cls(file)
        try:
            value = json.loads(text)
            return cls(file, int(value["epoch"]), value["owed"], str(value.get("finished", "")))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{file} is damaged: remove it once no lease of this exporter runs") from None

    def save(self, *, synced: bool = True) -> None:
        """Write it, whole or not at all; ``synced``: so that it outlives the machine's end, too. Raises ``LabError``."""
        text = json.dumps({"epoch": self.epoch, "owed": self.owed, "finished": self.finished}).ljust(BLOCK)
        try:
            if not synced and self._overwrite(text.encode()):
                return
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            new = self.file.with_name(f".{self.file.name}.{os.getpid()}")
            with new.open("w") as opened:
                opened.write(text)
                if synced:
                    opened.flush()
                    os.fsync(opened.fileno())
            new.replace(self.file)
        except OSError as error:
            raise LabError(f"{self.file} cannot be written: {error.strerror}") from error

    def _overwrite(self, data: bytes) -> bool:
        """Write it over what is there: one write of one block, which no signal divides. False: it does not fit.

        ext4 and others write a file that replaces another one to the disk, and that takes a hundred times as long.
        """
        if len(data) > BLOCK:
            return False
        try:
            file = os.open(self.file, os.O_WRONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return os.fstat(file).st_size <= BLOCK and os.pwrite(file, data, 0) == len(data)
        finally:
            os.close(file)


class LabExporter:
    """One exporter's part in its lab; :meth:`run` is all of it.

    ``dial`` connects to the controller, which is at ``endpoint``; ``ca`` is what it and its routers are verified against.
    ``endpoints`` are where clients may reach this exporter directly, each ``{url, fingerprint}``. ``audit`` gets a line for
    each call of a holder.
    """

    def __init__(
        self,
        config: ExporterConfig,
        memory: Memory,
        dial: Callable[[], Any],
        endpoints: Sequence[Mapping[str, Any]] = (),
        *,
        endpoint: str = "",
        ca: Path | None = None,
        audit: Audit = NO_AUDIT,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.hold: Hold | None = None
        self.connected = False
        self.audit = audit
        self._memory = memory
        self._dial = dial
        self._endpoints = [dict(endpoint) for endpoint in endpoints]
        self._endpoint = endpoint
        self._ca = ca
        self._wall_clock = wall_clock
        self._desired = Desired(epoch=memory.epoch)
        self._finished = memory.finished
        self._observed = Observed(epoch=memory.epoch, lease=memory.finished or None, reason=RESTARTED)
        if memory.owed is not None:
            self._observed = replace(self._observed, lease=memory.owed["lease"], phase=Phase.ENDING, reason=RESTARTED)
        self._verifier: Verifier | None = None
        self._stop: HookFailed | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._changes = trio.lowlevel.ParkingLot()
        self._told: Observed | None = None
        self._nursery: trio.Nursery | None = None
        self._sessions = Sessions()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part in the lab until cancelled; then the present lease is ended in order, and the controller told.

        Raises the failure of a hook whose ``onFailure`` is ``exit``.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            control = trio.CancelScope(shield=True)
            nursery.start_soon(self._stay_connected, control)
            task_status.started()
            try:
                await self._work()
            finally:
                with trio.move_on_after(FAREWELL_SECONDS, shield=True):
                    while self.connected and self._told != self._observed:
                        await self._changes.park()
                control.cancel()
                nursery.cancel_scope.cancel()

    # ---- the present lease

    async def _work(self) -> None:
        if self._memory.owed is not None:
            await self._settle_what_is_owed(self._memory.owed)
        while self._stop is None:
            grant = self._desired.grant
            if grant is None or grant.lease == self._finished:
                await self._news.park()
                continue
            self._remember(self._desired.epoch, {"lease": grant.lease, "client": grant.client})
            hold = self.hold = Hold(grant, self._desired.epoch, self._hold_changed, self.config.metadata.name)
            with logs.about(hold.subject):
                log.info("lease %s of %s begins", grant.lease, grant.client)
                self._hold_changed()
                try:
                    await hold.run(self.config)
                finally:
                    self._settled(hold)
        raise self._stop

    def _settled(self, hold: Hold) -> None:
        self._finished = self._memory.finished = hold.grant.lease
        if isinstance(hold.failure, HookFailed) and hold.failure.hook.on_failure == "exit":
            self._stop = hold.failure
        self._remember(self._memory.epoch, None)
        self._hold_changed()

    async def _settle_what_is_owed(self, owed: Mapping[str, str]) -> None:
        """The process ended in the middle of a lease: nobody is let in before its afterLease has run."""
        log.warning("lease %s of %s was cut off: cleaning up after it", owed["lease"], owed["client"])
        grant = Grant(lease=owed["lease"], client=owed["client"], duration=0.0, remaining=0.0)
        hold = self.hold = Hold(grant, self._memory.epoch, self._hold_changed, self.config.metadata.name)
        with logs.about(hold.subject):
            try:
                await hold.settle(self.config, RESTARTED)
            finally:
                self._settled(hold)

    def _hold_changed(self) -> None:
        hold = self.hold
        if hold is None:
            return
        over = hold.grant.lease == self._finished
        phase = Phase.ENDING if hold.phase is Phase.IDLE and not over else hold.phase  # idle is said once that is kept
        self._observed = Observed(
            epoch=max(hold.epoch, self._memory.epoch) if over else hold.epoch,
            lease=hold.grant.lease,
            phase=phase,
            reason=hold.reason,
            attached=len(hold.visits),
        )
        self._observe()

    def _observe(self) -> None:
        self._changes.unpark_all()

    def _remember(self, epoch: int, owed: dict[str, str] | None) -> None:
        self._memory.epoch, self._memory.owed = epoch, owed
        # A killed exporter finds it either way. What would be lost with the machine's power is the epoch, which the controller
        # tells before anybody is let in, and who is owed an afterLease: waiting for the disk is for those who have one.
        self._memory.save(synced=self.config.hooks.after_lease is not None)

    # ---- what the controller says

    async def _stay_connected(self, scope: trio.CancelScope) -> None:
        with scope:
            await keep_connected(self._dial, self._attend, told=self._say)

    def _say(self, problem: JmpError | None) -> None:
        self.connected = problem is None
        self._changes.unpark_all()
        if problem is None:
            log.info("connected to the controller")
        elif self.hold is not None and self.hold.phase is not Phase.IDLE:
            log.warning("no controller: %s; trying again, and lease %s goes on", problem, self.hold.grant.lease)
        else:
            log.warning("no controller: %s; trying again", problem)

    async def _attend(self, caller: Caller) -> None:
        registration = {
            "labels": self.config.metadata.labels,
            "description": self.config.description or "",
            "version": jmp.__version__,
            "endpoints": self._endpoints,
            "tree": Tree(self.config.tree()).report(),
            "observed": to_wire(self._observed),
        }
        self._told = None
        async with trio.open_nursery() as nursery:
            async with aclosing(caller.items(TARGET, "attend", (registration,), {})) as items:
                self._hear(await anext(items))
                nursery.start_soon(self._tell, caller)
                async for item in items:
                    self._hear(item)
            raise LabError("the controller has ended the connection")

    async def _tell(self, caller: Caller) -> None:
        while True:
            observed = self._observed
            await caller.call(TARGET, "observe", (to_wire(observed),), {})
            self._told = observed
            self._changes.unpark_all()
            while self._told == self._observed:
                await self._changes.park()
            with trio.move_on_after(LINGER):
                while self._is_on_its_way:
                    await self._changes.park()

    @property
    def _is_on_its_way(self) -> bool:
        """Whether it does what the controller has just told it, and has nothing to tell of that yet."""
        observed, grant = self._observed, self._desired.grant
        wanted = grant is not None and grant.lease == observed.lease
        if observed.phase is Phase.PREPARING:
            return wanted and not observed.attached
        return observed.phase is Phase.ENDING and not wanted

    def _hear(self, item: Any) -> None:
        match item:
            case {"desired": dict(desired)}:
                self._wish(from_wire(Desired, desired))
            case {"keys": {"now": float(now)} as keys}:
                if abs(wrong := self._wall_clock() - now) > 5:
                    log.warning("this machine's clock is %+.0f s from the controller's, whose time is used", wrong)
                self._verifier = verifier_of(keys)
            case {"dial": dict(dial)}:
                assert self._nursery is not None
                self._nursery.start_soon(self._visit_router, dial)
            case _:
                log.debug("the controller said something that this version does not know")

    def _wish(self, desired: Desired) -> None:
        if desired.epoch < self._memory.epoch:
            log.warning(
                "the controller is at epoch %d, this exporter has heard of %d: its store was restored from an old copy, or it is"
                " another lab's. Nobody is let in before it has caught up, as it does when it hears of this",
                desired.epoch,
                self._memory.epoch,
            )
            return
        self._desired = desired
        hold, grant = self.hold, desired.grant
        if desired.epoch > self._memory.epoch:
            if grant is not None and self._is_to_begin(grant.lease) and self._stop is None:
                self._memory.epoch = desired.epoch  # written with the lease, before anybody is let in
            else:
                self._remember(desired.epoch, self._memory.owed)
            self._changes.unpark_all()
        if hold is not None and not hold.over.is_set():
            if grant is not None and grant.lease == hold.grant.lease:
                hold.renew(grant, desired.epoch)
            else:
                hold.end(desired.reason or "the controller ended it")
        elif self._observed.epoch != desired.epoch and grant is None:
            self._observed = replace(self._observed, epoch=desired.epoch)
            self._observe()
        self._news.unpark_all()

    # ---- who comes to use the device

    def verify(self, token: str, *, expired: bool = False) -> SessionClaims:
        """As in :class:`~jmp.exporter.hold.Host`."""
        if self._verifier is None:
            raise Refused("this exporter has no keys yet to verify tokens with: it has not reached its controller")
        claims = self._verifier.session(token, expired=expired)
        if claims.exporter != self.config.metadata.name:
            raise Refused(f"this token is for exporter {claims.exporter}, not for {self.config.metadata.name}")
        if claims.end != "client":
            raise Refused("this token is not for a client's end")
        return claims

    def hold_for(self, claims: SessionClaims) -> Hold:
        """The hold that the claims are about; raises ``Refused``."""
        if self.hold is None or self.hold.over.is_set():
            raise Refused(f"lease {claims.lease} is not this exporter's present one")
        return self.hold

    async def expect(self, claims: SessionClaims) -> Hold:
        """The same, waited for if the claims are of a grant or a transfer that the controller has not told yet: its word and
        the holder come by different ways. Raises ``Refused``."""
        with trio.move_on_after(AHEAD_SECONDS):
            while claims.epoch > self._memory.epoch or self._is_to_begin(claims.lease):
                await self._changes.park()
        return self.hold_for(claims)

    def _is_to_begin(self, lease: str) -> bool:
        grant = self._desired.grant
        begun = self._finished if self.hold is None else self.hold.grant.lease
        return grant is not None and grant.lease == lease and lease not in (begun, self._finished)

    async def authenticate(self, request: websocket.UpgradeRequest) -> SessionClaims:
        """For the exporter's own listener: lets in who shows a session token for the present lease."""
        if request.token is None:
            raise Refused("a session token is needed: use this exporter through its controller")
        # While the controller is away nobody gets another token to go on with; to begin takes one that is good.
        claims = self.verify(request.token, expired=not self.connected)
        (await self.expect(claims)).check(claims)
        return claims

    async def serve_link(self, link: Link, _: object = None, *, again: Again | None = None) -> None:
        """Serve one link of a client: its first one, or the next one of a visit that there is."""
        visit = Visit(self)
        await self._sessions.serve(link, visit.serve_link, visit.check_again, again)

    async def _visit_router(self, dial: Mapping[str, Any]) -> None:
        """Meet a client at a router."""
        try:
            link = await self._reach(dial)
        except JmpError as error:
            log.warning("router %s: %s", dial.get("url") or self._endpoint, error)
            return
        try:
            await self.serve_link(link, again=partial(self._reach_again, dial))
        finally:
            await link.aclose()

    async def _reach(self, dial: Mapping[str, Any]) -> Link:
        url = dial.get("url") or self._endpoint  # none is named: where the controller is
        if not isinstance(url, str):
            raise ProtocolViolation("the controller named no router")
        try:
            with trio.fail_after(ROUTER_SECONDS):
                return await websocket.connect(
                    url, token=dial.get("token"), fingerprint=dial.get("fingerprint"), ca=self._ca
                )
        except trio.TooSlowError:
            raise LabError(f"it does not answer within {ROUTER_SECONDS:g} s") from None

    async def _reach_again(self, dial: Mapping[str, Any]) -> Link:
        """Go back to where a link was lost, unasked: the client does that when it cannot reach the controller."""
        with trio.move_on_after(GIVE_WAY_SECONDS):
            while self.connected:
                await self._changes.park()
        return await self._reach(dial)
