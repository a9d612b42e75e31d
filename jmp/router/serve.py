"""The router: lets both ends of a session in, joins them, and carries messages from one to the other as they are.

Theory of operation. The task of each link carries what comes from it to the other one: a message, with those that were read
along with it, which leave together. It waits until the other side takes them, so a slow reader slows its own sender and costs
this process what it read at once. The end of either link ends both:
what an end says at its end is passed on, and else the other one is told with a code (1012 to 1014) that is not an end's, on which
it may go on with its session elsewhere, or here: who comes with the token of an end that is here takes its place, and both begin
anew. While the controller is away that is how ends meet again. So what tokens are verified with is kept in a file, and one that
has expired still counts, as nobody gets another: it opens nothing, since exporters let no session begin with it.
Ends watch each other through the router (pings are messages like others): a pair that carries nothing for long has lost both.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

import jmp
from jmp.errors import JmpError, LabError, LinkLost, ProtocolViolation, Refused
from jmp.link import Link, websocket
from jmp.link.resume import PASSING_CODES, is_resume
from jmp.link.rfc6455 import Closed
from jmp.private import read_private, write_private
from jmp.router.pairing import Pairing
from jmp.rpc.call import Caller
from jmp.rpc.keys import verifier_of
from jmp.rpc.reconnect import keep_connected
from jmp.wire.frames import TARGET_MESSAGE
from jmp.wire.tokens import SessionClaims, Verifier

log = logging.getLogger("jmp.router")

MEET_SECONDS: Final = 12.0
"""How long the first of two ends waits for the other: less than the silence after which an end gives a link up by itself
(:data:`jmp.mux.connection.SILENCE`), so that it hears why."""
SILENCE: Final = 60.0
"""A link that carries nothing for so long is given up: both ends would have pinged each other several times."""
_SLACK: Final = 1.0
"""How much later that may be."""
TELL_SECONDS: Final = 2.0
"""How long a router that stops tries to tell that to its controller, before it sends anybody away."""
MAX_PAIRS: Final = 2000
STOPPING: Final = "the router is stopping"
REPLACED: Final = "an end of this session has come again"
TARGET: Final = "@lab"


@dataclass(eq=False)
class _Party:
    """One link and, once they have met, the other one."""

    link: Link
    met: trio.Event
    other: _Party | None = None
    lasts: bool = False
    """Whether this end can go on with its session over another link."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    dismissed: str = ""
    """Why this router has ended it."""

    def dismiss(self, reason: str) -> None:
        """Let it go: both ends may go on with their session."""
        self.dismissed = self.dismissed or reason
        self.scope.cancel()


class Router:
    """Joins links. ``verifier`` is what tokens are verified with: from the controller, or from ``keep``, a file, where that was
    kept by the process before."""

    def __init__(self, *, most: int = MAX_PAIRS, keep: Path | None = None) -> None:
        self.verifier = _kept(keep) if keep is not None else None
        self.most = most
        self._keep = keep
        self.connected = False
        """To a controller."""
        self.draining = False
        self.told_draining = trio.Event()
        """Set when the controller knows, and sends nobody here any more."""
        self.messages = 0
        """Carried so far; for the metrics, like :attr:`bytes`."""
        self.bytes = 0
        self.changed = trio.lowlevel.ParkingLot()
        self._pairing: Pairing[_Party] = Pairing(most)
        self._parties: set[_Party] = set()

    @property
    def pairs(self) -> int:
        """How many sessions are joined now."""
        return self._pairing.pairs

    @property
    def waiting(self) -> int:
        """How many links wait for their other end."""
        return self._pairing.waiting

    @property
    def load(self) -> int:
        """What a controller chooses routers by."""
        return self.pairs + self.waiting

    async def authenticate(self, request: websocket.UpgradeRequest) -> SessionClaims:
        """Lets in who shows a session token."""
        if request.token is None:
            raise Refused("a session token is needed: the controller gives it")
        if self.verifier is None:
            raise LabError("this router has not reached its controller yet")
        if self.draining:
            raise LabError("this router is stopping: ask the controller for another")
        return self.verifier.session(request.token, expired=not self.connected)

    def learn(self, keys: Any) -> None:
        """Take what the controller says of its keys. Raises ``ProtocolViolation``."""
        self.verifier = verifier_of(keys)
        if self._keep is not None:
            try:
                write_private(self._keep, json.dumps({"keys": keys, "clock": time.time()}).encode())
            except OSError as error:
                log.warning("%s cannot be written: %s", self._keep, error.strerror)

    async def serve_link(self, link: Link, claims: SessionClaims) -> None:
        """Join a link with its other end, and carry what comes from it, until either ends."""
        party = _Party(link, trio.Event())
        other, gone = self._pairing.arrive(claims.session, claims.end, party)
        for former in gone:
            former.dismiss(REPLACED)
        self._parties.add(party)
        try:
            if other is not None:
                party.other, other.other = other, party
                party.met.set()
                other.met.set()
                log.info("session %s: %s and exporter %s have met", claims.session, claims.client, claims.exporter)
                self.changed.unpark_all()
            with party.scope:
                with trio.move_on_after(MEET_SECONDS):
                    await party.met.wait()
                if party.other is not None:
                    await self._carry(party, party.other.link)
                    return
            if party.scope.cancelled_caught:
                await link.aclose(1012, party.dismissed)
            else:
                missing = "exporter" if claims.end == "client" else "client"
                await link.aclose(1013, f"the {missing} did not come within {MEET_SECONDS:g} s")
        finally:
            self._parties.discard(party)
            self._pairing.leave(claims.session, party)
            self.changed.unpark_all()

    def send_away(self) -> None:
        """Let those go who can meet elsewhere: whoever waits here, and pairs both of whose ends know how to go on."""
        for party in self._parties:
            if party.other is None or (party.lasts and party.other.lasts):
                party.dismiss(STOPPING)

    async def _carry(self, party: _Party, sink: Link) -> None:
        source = party.link
        code, reason = 1014, "the other end is gone"
        with trio.CancelScope() as silent:
            try:
                while True:
                    due = trio.current_time() + SILENCE
                    if not due <= silent.deadline < math.inf:
                        silent.deadline = due + _SLACK  # to set it for each message would take a part of its time
                    message = await source.receive()
                    if not party.lasts and is_resume(message):
                        party.lasts = True
                        self.changed.unpark_all()
                    messages = [message]
                    size = len(message)
                    with suppress(LinkLost, ProtocolViolation):  # `receive` raises it again, when these have gone
                        while size < TARGET_MESSAGE and (more := source.receive_nowait()) is not None:
                            messages.append(more)
                            size += len(more)
                    self.messages += len(messages)
                    self.bytes += size
                    if len(messages) > 1 or not sink.send_nowait(messages):
                        silent.deadline = math.inf  # it is the sink that is slow
                        await sink.send_each(messages)
            except Closed as error:
                log.debug("%s: %s", source.peer, error)
                if error.close_code not in PASSING_CODES:  # it is that end's own word, and the end of the session
                    code, reason = error.close_code, error.reason
            except (LinkLost, ProtocolViolation) as error:
                log.debug("%s: %s", source.peer, error)
            except trio.Cancelled:
                if not silent.cancel_called:
                    code, reason = 1012, party.dismissed or STOPPING
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await sink.aclose(code, reason)


async def attend(
    router: Router, dial: Callable[[], Awaitable[Link]], url: str, fingerprint: str | None, *, name: str = ""
) -> None:
    """Take part in a lab as a router, reached at ``url``, until cancelled: get the keys, tell the load.

    ``name`` tells routers apart that share a token.
    """

    async def use(caller: Caller) -> None:
        registration = {"url": url, "fingerprint": fingerprint, "capacity": router.most, "version": jmp.__version__}
        registration["name"] = name
        try:
            async with trio.open_nursery() as nursery:
                async with aclosing(caller.items(TARGET, "route", (registration,), {})) as items:
                    router.learn(_keys(await anext(items)))
                    router.connected = True
                    router.changed.unpark_all()
                    nursery.start_soon(_tell_load, router, caller)
                    async for item in items:
                        router.learn(_keys(item))
                raise LabError("the controller has ended the connection")
        finally:
            router.connected = False
            router.changed.unpark_all()

    def say(problem: JmpError | None) -> None:
        if problem is None:
            log.info("connected to the controller")
        else:
            log.warning("no controller: %s; trying again, %d sessions go on", problem, router.pairs)

    await keep_connected(dial, use, told=say)


def _keys(item: Any) -> Any:
    return item.get("keys") if isinstance(item, dict) else None


def _kept(file: Path) -> Verifier | None:
    """What :meth:`Router.learn` kept; the time since is by this machine's clock, until the controller tells it."""
    try:
        text = read_private(file)
        kept = json.loads(text) if text is not None else None
        if not isinstance(kept, dict):
            return None
        return verifier_of({**kept["keys"], "now": kept["keys"]["now"] + time.time() - kept["clock"]})
    except (JmpError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is not used: %s", file, error)
        return None


async def _tell_load(router: Router, caller: Caller) -> None:
    told: tuple[int, bool] | None = None
    while True:
        now = router.load, router.draining
        if now != told:
            await caller.call(TARGET, "load", now, {})
            told = now
            if router.draining:
                router.told_draining.set()
        else:
            await router.changed.park()


async def drain(router: Router, seconds: float) -> None:
    """Take no more sessions; send those away that can go on elsewhere, and wait for the others to end, ``seconds`` at most."""
    router.draining = True
    router.changed.unpark_all()
    with trio.move_on_after(seconds):
        with trio.move_on_after(TELL_SECONDS):
            await router.told_draining.wait()
        while router.load:
            router.send_away()
            await router.changed.park()
