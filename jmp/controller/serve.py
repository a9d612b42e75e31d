"""The controller's listener: who comes in shows an identity token and gets the desk of its role."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import trio

from jmp.controller.desks import AdminDesk, ClientDesk, Desk, ExporterDesk, LoginDesk, RouterDesk
from jmp.controller.lab import Lab
from jmp.driver.service import exports, method_of
from jmp.errors import NotFound, Refused
from jmp.link import Link, websocket
from jmp.link.sessions import Sessions
from jmp.mux.connection import multiplex
from jmp.mux.protocol import Role as Side
from jmp.rpc.messages import Request
from jmp.rpc.serve import Method, serve
from jmp.wire.records import Role
from jmp.wire.tokens import Identity, Verifier, account_of

log = logging.getLogger("jmp.controller")

TARGET: Final = "@lab"
DESKS: Final[dict[Role, type[Desk]]] = {
    Role.ADMIN: AdminDesk,
    Role.CLIENT: ClientDesk,
    Role.EXPORTER: ExporterDesk,
    Role.ROUTER: RouterDesk,
}
CLIENT_SECONDS: Final = 10.0
"""How long a client whose link has broken may take to come back to its calls; then it is gone, as far as its leases go."""
LOGIN_SECONDS: Final = 15.0
"""How long one may take to fetch the token that was come for."""
STOPPING: Final = (1001, "the controller is stopping")

Other = Callable[[websocket.UpgradeRequest], Awaitable[Callable[[Link], Awaitable[None]]]]
"""Lets in those who come with a token that is no identity: the router's business, when one runs in this process."""
Review = Callable[[str], Awaitable[str]]
"""Whose a service account's token is, NAMESPACE/NAME, as the cluster says. Raises ``Refused``, ``LabError``."""


class Door:
    """Authenticates, and keeps every connection at the desk of its role for as long as its token is good."""

    def __init__(self, lab: Lab, other: Other | None = None, review: Review | None = None) -> None:
        self.lab = lab
        self.connections = 0
        """Open ones; for the metrics."""
        self._other = other
        self._review = review
        self._sessions = Sessions(CLIENT_SECONDS)

    async def authenticate(self, request: websocket.UpgradeRequest) -> Identity | Callable[[Link], Awaitable[None]]:
        """Who that is. Raises ``Refused``, which the log gets with the peer."""
        if request.token is None:
            raise Refused("an identity token is needed: an admin makes one with jmp admin create")
        try:
            return self._known(request.token)
        except Refused:
            if account_of(request.token) is not None:
                return await self._account(request.token)
            if self._other is None:
                raise
            try:
                return await self._other(request)
            except Refused:
                pass  # it is neither; the identity's reason is the one to tell
            raise

    async def _account(self, token: str) -> Callable[[Link], Awaitable[None]]:
        """What serves a pod that has come for a token of the client that its service account may log in as."""
        if self._review is None:
            raise Refused(
                "this is the token of a service account, and this controller has no cluster to ask about it:"
                " one with --store kubernetes does"
            )
        account = await self._review(token)
        found = [client for client in self.lab.view.client.values() if account in client.service_accounts]
        if not found:
            hint = f"jmp admin update client NAME --service-account {account}"
            raise Refused(f"service account {account} logs in as no client here; {hint} lets it")
        if len(found) > 1:
            names = ", ".join(sorted(client.name for client in found))
            raise Refused(f"service account {account} is to log in as one client, and here that is {names}")
        [client] = found
        if client.disabled is not None:
            raise Refused(f"client {client.name} is disabled: {client.disabled}")
        return partial(self._serve_login, client.name, account)

    async def _serve_login(self, client: str, account: str, link: Link) -> None:
        desk = LoginDesk(self.lab, client, account, link.peer)
        log.info("%s: service account %s logs in as client %s", link.peer, account, client)
        async with multiplex(link, Side.LISTENER, serve=serve(partial(_resolve, desk), tracebacks=False)) as connection:
            connection.farewell = STOPPING
            with trio.move_on_after(LOGIN_SECONDS):
                await connection.wait_over()

    def _known(self, token: str) -> Identity:
        who = self._verifier().identity(token)
        view = self.lab.view
        record = view.token.get(who.id)
        if record is None:
            raise Refused("this token is not one of this lab's, or was deleted")
        if who.role is Role.CLIENT:
            client = view.client.get(who.name)
            if client is None:
                raise Refused(f"there is no client {who.name} any more")
            if client.disabled is not None:
                raise Refused(f"client {who.name} is disabled: {client.disabled}")
            if record.service_account and record.service_account not in client.service_accounts:
                raise Refused(f"service account {record.service_account} does not log in as client {who.name} any more")
        elif who.role is Role.EXPORTER and who.name not in view.exporter:
            raise Refused(f"there is no exporter {who.name} any more")
        return who

    def _verifier(self) -> Verifier:
        news = self.lab.key_news()
        return Verifier(news["jwks"], frozenset(news["revoked"]), clock=self.lab.clock)

    async def serve_link(self, link: Link, who: Identity | Callable[[Link], Awaitable[None]]) -> None:
        """Serve one connection until it ends, or its token is good no longer."""
        if not isinstance(who, Identity):
            await who(link)
        elif who.role in (
            Role.EXPORTER,
            Role.ROUTER,
        ):  # what they say is levels: they say it again, also to another controller
            await self._serve(who, link)
        else:
            await self._sessions.serve(link, partial(self._serve, who), partial(self._check_again, who))

    def _check_again(self, who: Identity, token: str | None) -> None:
        """Whether who shows this token may go on with the calls of ``who``. Raises ``Refused``."""
        again = self._known(token or "")
        if (again.name, again.role) != (who.name, who.role):
            raise Refused(f"this session is not one of {again.name}")

    async def _serve(self, who: Identity, link: Link) -> None:
        desk = DESKS[who.role](self.lab, who, link.peer)
        self.connections += 1
        log.info("%s: %s %s is connected", link.peer, who.role, who.name)
        try:
            answer = serve(partial(_resolve, desk), tracebacks=False)
            async with multiplex(link, Side.LISTENER, serve=answer, watch=True) as connection:
                connection.farewell = STOPPING
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._until_revoked, who, connection, nursery.cancel_scope)
                    error = await connection.wait_over()
                    log.info("%s: %s %s is gone: %s", link.peer, who.role, who.name, error)
                    nursery.cancel_scope.cancel()
        finally:
            self.connections -= 1

    async def _until_revoked(self, who: Identity, connection: Any, scope: trio.CancelScope) -> None:
        with self.lab.news.listen("keys", ("client", who.name)) as listener:
            while (reason := self._refusal(who)) is None:
                with trio.move_on_after(max(who.expires - self.lab.clock(), 0.0)):
                    await listener.wait()
        log.info("%s: %s %s is sent away: %s", connection.link.peer, who.role, who.name, reason)
        connection.farewell = (1008, reason)
        scope.cancel()

    def _refusal(self, who: Identity) -> str | None:
        """Why somebody who is connected may be so no longer."""
        view = self.lab.view
        record = view.token.get(who.id)
        if record is None or record.revoked is not None:
            return "its token was revoked"
        if who.expires <= self.lab.clock():
            return "its token has expired"
        if who.role is Role.CLIENT:
            client = view.client.get(who.name)
            if client is None or client.disabled is not None:
                return f"client {who.name} is disabled" if client is not None else f"client {who.name} was deleted"
            if record.service_account and record.service_account not in client.service_accounts:
                return f"service account {record.service_account} does not log in as client {who.name} any more"
        return None


def _resolve(desk: Desk | LoginDesk, request: Request) -> Method:
    if isinstance(desk, LoginDesk) and (request.target, request.method) != (TARGET, "login"):
        raise Refused("a service account's own token gets one of the lab, no more: jmp login --token-file FILE")
    if request.target != TARGET:
        raise NotFound(f"a controller has {TARGET} only, not {request.target!r}: devices are used at their exporters")
    if isinstance(desk, Desk) and not exports(type(desk), request.method):
        for role in (Role.CLIENT, Role.ADMIN, Role.EXPORTER, Role.ROUTER):  # what clients may, admins may, too
            if exports(DESKS[role], request.method):
                raise Refused(
                    f"{request.method!r} is for the {role}s of a lab, and this token is that of {desk.who.role} {desk.who.name}"
                )
    return method_of(desk, request)


async def serve_controller(
    lab: Lab,
    listeners: Sequence[trio.SocketListener],
    tls: Any,
    *,
    other: Other | None = None,
    review: Review | None = None,
    pages: Any = None,
    beside: Sequence[Callable[..., Awaitable[None]]] = (),
    task_status: trio.TaskStatus[Door] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Be a controller until cancelled. ``beside`` are tasks of the same process, such as the HTTP listener."""
    door = Door(lab, other, review)
    async with trio.open_nursery() as nursery:
        await nursery.start(lab.run)
        for task in beside:
            await nursery.start(task)
        await nursery.start(
            partial(websocket.serve, listeners, door.authenticate, door.serve_link, tls=tls, pages=pages or {})
        )
        task_status.started(door)
