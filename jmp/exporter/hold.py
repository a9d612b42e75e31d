"""One lease's time with the device, at its exporter: who may use it, from the grant until everything is cleaned up.

Theory of operation. A :class:`Hold` runs the session (drivers and hooks) and outlives it by as much as its output is being read.
Its holder comes over any number of links, each one a :class:`Visit` that has shown a session token for this lease and this epoch.
What ends a hold, whoever says so (the controller, its own clock, a hook, the exporter's end), calls :meth:`Hold.end`: in
that moment every call and every stream of a driver is cut and no new one begins; then afterLease runs and the drivers close. The
output of hooks goes on to those who listen to it until that is done.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Protocol

import trio

from jmp import logs
from jmp.audit import Audit
from jmp.driver import export
from jmp.driver.service import method_of
from jmp.errors import Cancelled, JmpError, Refused
from jmp.exporter.config import ExporterConfig
from jmp.exporter.session import TARGET, Session, open_session
from jmp.exporter.term import Term
from jmp.link import Link
from jmp.mux.connection import Connection, multiplex
from jmp.mux.protocol import Role
from jmp.mux.stream import MuxStream
from jmp.rpc import messages
from jmp.rpc.messages import Request
from jmp.rpc.serve import Method, serve
from jmp.wire.actions import allowed
from jmp.wire.frames import Reset
from jmp.wire.records import Grant, Phase
from jmp.wire.tokens import SessionClaims

log = logging.getLogger("jmp.exporter")

INTRODUCE_SECONDS: Final = 15.0
"""How long a link may be there without having shown a token for the lease."""
FAREWELL_SECONDS: Final = 5.0
"""How long a holder may take to read the last of that output."""
MAX_OUTPUT: Final = 256 * 1024
"""Bytes of what hooks print that are kept for a holder who listens late: the newest."""


class Hold:
    """One lease, here. Made with the grant; :meth:`run` is its life."""

    def __init__(self, grant: Grant, epoch: int, changed: Callable[[], None], exporter: str) -> None:
        self.grant = grant
        self.subject: dict[str, str] = {}
        """What the log says of it."""
        self._exporter = exporter
        self._tell_subject()
        self.epoch = epoch
        self.phase = Phase.PREPARING
        self.reason = ""
        """Why it ends; empty as long as nothing says so."""
        self.failure: JmpError | None = None
        """What went wrong, if that ended it."""
        self.session: Session | None = None
        self.visits: set[Visit] = set()
        self.output = Output()
        self.ready = trio.Event()
        """Set when it is ready to be used, and when it never will be."""
        self.over = trio.Event()
        self._changed = changed
        self._term = Term(grant, trio.current_time())
        self._used = -math.inf
        self._scope = trio.CancelScope()
        self._news = trio.lowlevel.ParkingLot()

    async def run(self, config: ExporterConfig) -> None:
        """Get ready, be used, clean up. Never raises what went wrong: :attr:`failure` has it. Cancelled, it ends in order."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                try:
                    await self._use(config)
                finally:
                    nursery.cancel_scope.cancel()
        except* JmpError as errors:
            self.failure = _first(errors)
            self.end(self.failure.message)
        finally:
            self.end("the exporter is stopping")
            self._finish()

    async def _use(self, config: ExporterConfig) -> None:
        grant = self.grant
        with self._scope:
            async with open_session(
                config, grant.client, output=self.output.add, environ=self._environ(), packages=grant.packages
            ) as session:
                self.session = session
                self.phase = Phase.READY
                self._term.ready(trio.current_time())
                self.ready.set()
                self._changed()
                self._news.unpark_all()
                try:
                    await trio.sleep_forever()
                finally:
                    self.end("the exporter is stopping")

    async def settle(self, config: ExporterConfig, reason: str) -> None:
        """Only clean up: for a lease that ended with the process that had it."""
        self.reason, self.phase = reason, Phase.ENDING
        self._changed()
        try:
            async with open_session(config, self.grant.client, environ=self._environ(), before=False):
                pass
        except* JmpError as errors:  # a group if cancelled meanwhile
            self.failure = _first(errors)
        finally:
            self._finish()

    def _environ(self) -> dict[str, str]:
        return {"JMP_LEASE": self.grant.lease, "JMP_TAGS": ",".join(self.grant.tags)}

    def _finish(self) -> None:
        self.phase = Phase.IDLE
        self.session = None
        self.output.close()
        self.ready.set()
        self.over.set()
        self._changed()

    # ---- how it ends

    def end(self, reason: str) -> None:
        """End it now: nobody can use the device from this moment on. Only the first reason counts."""
        if self.reason:
            return
        self.reason = reason
        log.info("lease %s of %s ends: %s", self.grant.lease, self.grant.client, reason)
        if self.phase is not Phase.IDLE:
            self.phase = Phase.ENDING
        for visit in self.visits:
            visit.cut_calls(f"lease {self.grant.lease} has ended: {reason}")
        self._scope.cancel()
        self._changed()

    def renew(self, grant: Grant, epoch: int) -> None:
        """What the controller says of the same lease now: that its time runs, another end, or another holder."""
        handed_over = epoch > self.epoch
        self.grant, self.epoch = grant, epoch
        self._tell_subject()
        self._term.renew(grant, trio.current_time())
        self._news.unpark_all()
        if handed_over:
            log.info("lease %s was handed over to %s", grant.lease, grant.client)
            if self.session is not None:
                self.session.who = grant.client
            for visit in self.visits:
                visit.cut(f"lease {grant.lease} was handed over to {grant.client}")
            self._changed()

    def _tell_subject(self) -> None:
        grant = self.grant
        self.subject.update(logs.subject_of(grant.lease, grant.client, self._exporter, grant.tags, grant.context))

    async def _keep_time(self) -> None:
        """End it when its time is over, by this machine's own monotonic clock."""
        while not self.reason:
            due, reason = self._term.due(max([self._used, *(visit.used for visit in self.visits)]))
            if due <= trio.current_time():
                self.end(reason)
                return
            with trio.move_on_at(due):
                await self._news.park()

    # ---- who uses it

    def check(self, claims: SessionClaims) -> None:
        """Raises ``Refused`` unless a token is for this lease and this epoch."""
        if claims.lease != self.grant.lease:
            raise Refused(f"lease {claims.lease} is not this exporter's present one")
        if claims.epoch != self.epoch:
            raise Refused(f"lease {claims.lease} was handed over or granted anew since this token was made")
        if self.reason:
            raise Refused(f"lease {claims.lease} has ended: {self.reason}")

    def admit(self, visit: Visit, claims: SessionClaims) -> None:
        """Let a link in whose token is for this lease and this epoch; raises ``Refused`` otherwise."""
        self.check(claims)
        self.visits.add(visit)
        self._changed()

    def leave(self, visit: Visit) -> None:
        """A link of its holder is gone."""
        if visit in self.visits:
            self._used = max(self._used, visit.used)
            self.visits.discard(visit)
            self._changed()


class Output:
    """What hooks print: the newest of it, and all that comes to those who listen."""

    def __init__(self) -> None:
        self._items: list[tuple[str, bytes]] = []
        self._dropped = 0
        self._bytes = 0
        self._closed = False
        self._news = trio.lowlevel.ParkingLot()

    def add(self, source: str, data: bytes) -> None:
        """Take what ``source`` printed."""
        self._items.append((source, data))
        self._bytes += len(data)
        while self._bytes > MAX_OUTPUT and len(self._items) > 1:
            self._bytes -= len(self._items.pop(0)[1])
            self._dropped += 1
        self._news.unpark_all()

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._news.unpark_all()

    async def follow(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """All that is kept, then what comes, until it is closed."""
        position = 0
        while True:
            while position < self._dropped + len(self._items):
                position = max(position, self._dropped)
                item = self._items[position - self._dropped]
                position += 1
                yield item
            if self._closed:
                return
            await self._news.park()


class Host(Protocol):
    """Who a visit comes to: the exporter's part in a lab."""

    audit: Audit

    def verify(self, token: str, *, expired: bool = False) -> SessionClaims:
        """The claims of a session token for this exporter, with ``expired`` also of one that has; raises ``Refused``."""

    def hold_for(self, claims: SessionClaims) -> Hold:
        """The hold that the claims are about; raises ``Refused``."""

    async def expect(self, claims: SessionClaims) -> Hold:
        """The hold that the claims are about, also if the controller is just about to tell of it; raises ``Refused``."""


class Visit:
    """One link of somebody who holds the lease, or says so."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._hold: Hold | None = None
        self._claims: SessionClaims | None = None
        self._connection: Connection | None = None
        self._calls: dict[trio.lowlevel.Task, tuple[trio.CancelScope, MuxStream]] = {}
        self._introduced = trio.Event()
        self._listeners = 0
        self._listeners_left = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()

    @property
    def used(self) -> float:
        """When anything was last asked for or sent, on Trio's clock."""
        return -math.inf if self._connection is None else self._connection.used

    async def serve_link(self, link: Link, _: object = None) -> None:
        """Serve the link until it ends, or until the lease is over here."""
        try:
            with self._scope:
                async with multiplex(
                    link,
                    Role.LISTENER,
                    serve=serve(self._resolve, note=self._note, around=self._around, about=self._about),
                    watch=True,
                ) as connection:
                    self._connection = connection
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._until_over)
                        await connection.wait_over()
                        nursery.cancel_scope.cancel()
        finally:
            if self._hold is not None:
                self._hold.leave(self)

    def check_again(self, token: str | None) -> None:
        """Whether who shows this token may go on with the visit over another link. Raises ``Refused``."""
        claims = self._host.verify(token or "", expired=True)  # it began in its time; what ends it is the hold's end
        hold = self._host.hold_for(claims)
        hold.check(claims)
        if self._claims is not None and (hold is not self._hold or claims.client != self._claims.client):
            raise Refused(f"this session is not one of {claims.client} under lease {claims.lease}")

    @property
    def _peer(self) -> str:
        """Where it comes from at present."""
        return "" if self._connection is None else self._connection.link.peer

    async def _until_over(self) -> None:
        with trio.move_on_after(INTRODUCE_SECONDS):
            await self._introduced.wait()
        if self._hold is None:
            self.cut("no token for the lease was shown")
        else:
            await self._hold.over.wait()
            with trio.move_on_after(FAREWELL_SECONDS):
                while self._listeners:
                    await self._listeners_left.park()
            self.cut(f"lease {self._hold.grant.lease} is over")

    def cut(self, reason: str) -> None:
        """End the link now."""
        self.cut_calls(reason)
        if self._connection is not None:
            self._connection.farewell = (1001, reason[:100])
        self._scope.cancel()

    def cut_calls(self, reason: str) -> None:
        """End what it does with the device now; it may still listen to the output of hooks."""
        detail = messages.describe(Cancelled(reason))
        for scope, stream in list(self._calls.values()):
            scope.cancel()  # first: the driver is cancelled, and does not fail for a stream that was closed under it
            stream.reset(Reset.FAILED, detail)

    def _about(self) -> AbstractContextManager[None]:
        return logs.about(self._hold.subject if self._hold is not None else {})

    @contextmanager
    def _around(self, stream: MuxStream) -> Iterator[None]:
        task = trio.lowlevel.current_task()
        with trio.CancelScope() as scope, self._about():
            self._calls[task] = scope, stream
            try:
                yield
            finally:
                self._calls.pop(task, None)

    def _resolve(self, request: Request) -> Method:
        if request.target == TARGET and request.method in ("begin", "output"):
            return method_of(self, request)
        hold, claims = self._hold, self._claims
        if hold is None or claims is None:
            raise Refused("no session was begun on this link: call @session.begin first")
        if hold.reason:
            raise Refused(f"lease {hold.grant.lease} has ended: {hold.reason}")
        if hold.session is None or hold.phase is not Phase.READY:
            raise Refused(f"lease {hold.grant.lease} is not ready yet")
        action = f"{request.target}.{request.method}"
        if request.target != TARGET and not allowed(claims.allow, claims.deny, action):
            why = "no policy allows it" if allowed(("*",), claims.deny, action) else "a policy forbids it"
            raise Refused(f"{claims.client} may not use {action} here: {why}")
        return hold.session.resolve(request)

    def _note(self, request: Request, result: str, seconds: float) -> None:
        """Leave a line of what the holder did with the device; without arguments, which may be secrets."""
        if request.target == TARGET or self._hold is None or self._claims is None:
            return
        self._host.audit.record(
            actor=self._claims.client,
            role="client",
            peer=self._peer,
            action=f"{request.target}.{request.method}",
            object=f"exporter/{self._claims.exporter}",
            result=result,
            seconds=round(seconds, 3),
            lease=self._claims.lease,
            tags=self._hold.grant.tags,
            context=self._hold.grant.context,
        )

    @export
    async def begin(self, token: str = "", who: str = "", wait: float | None = None) -> dict[str, Any]:
        """Join the lease that ``token`` is for; when that is ready, the report. Raises ``Refused``, ``Cancelled``."""
        hold = self._hold
        if hold is None:  # else it is a program on the holder's machine, come over the link of its shell
            try:
                claims = self._host.verify(token)
                hold = await self._host.expect(claims)
                hold.admit(self, claims)
            except Refused as error:
                log.warning("%s: %s", self._peer, error.message)
                raise
            self._hold, self._claims = hold, claims
            self._introduced.set()
        await hold.ready.wait()
        if hold.failure is not None:
            raise hold.failure
        if hold.session is None or hold.reason:
            raise Cancelled(f"lease {hold.grant.lease} has ended: {hold.reason}")
        return await hold.session.report()

    @export
    async def output(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """What the lease's hooks print, as ``[source, bytes]``: so far, and until all is over, afterLease included."""
        self._calls.pop(trio.lowlevel.current_task(), None)  # this outlives the lease's end
        await self._introduced.wait()
        assert self._hold is not None
        self._listeners += 1
        try:
            async for item in self._hold.output.follow():
                yield item
        finally:
            self._listeners -= 1
            self._listeners_left.unpark_all()


def _first(group: BaseExceptionGroup[JmpError]) -> JmpError:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    assert isinstance(leaf, JmpError)
    return leaf
