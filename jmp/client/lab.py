"""A lab as its users see it: leases, and the way to the devices they hold.

:class:`Lab` is written once, asynchronously over a backend, as clients of drivers are: :func:`open_lab` gives it with plain
methods, :func:`open_lab_trio` as it is. Its methods are those of ``@lab``, see ``docs/protocol.md``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from jmp.client.config import ClientConfig, clients
from jmp.driver.proxy import Backend, Blocking
from jmp.errors import JmpError, LabError, Timeout
from jmp.private import read_secret
from jmp.wire import tokens
from jmp.wire.records import Lease, State, Want, from_wire, to_wire

if TYPE_CHECKING:
    from jmp.client.connect import Dial
    from jmp.link.blocking import BlockingLink

TARGET: Final = "@lab"
Way = Literal["direct", "router"]
RESUME_SECONDS: Final = 10.0
"""How long calls of a controller wait for another link to it when one breaks; one that was restarted has forgotten them."""
RENEW_SECONDS: Final = 600.0
"""How long before its end a token that a service account has got is replaced by another one."""
DIRECT_SECONDS: Final = 3.0
"""How long to try an exporter's own address before going through a router: it may be behind a firewall that drops packets."""


@dataclass(frozen=True)
class Standing:
    """A lease as it stands."""

    lease: Lease
    position: int = 0
    """In the queue, from 1; 0 when it is not queued."""
    expected: float | None = None
    """When it will probably start, seconds since the epoch; None if nobody can tell."""


class Lab:
    """A connection to a controller. Methods raise what the controller says (:mod:`jmp.errors`)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Any method of ``@lab``."""
        return await self._backend.call(TARGET, method, args, kwargs)

    async def acquire(self, wants: Sequence[Want], duration: float, **options: Any) -> Lease:
        """Ask for a lease: it is queued when this returns, or granted already. Options are those of ``@lab.acquire``."""
        return from_wire(Lease, await self.call("acquire", [to_wire(want) for want in wants], duration, **options))

    async def watch(self, lease: str) -> AsyncGenerator[Standing, None]:
        """The lease as it stands, and again whenever that changes, until it has ended.

        A tied lease's holder is there meanwhile.
        """
        async with aclosing(self._backend.items(TARGET, "watch", (lease,), {})) as items:
            async for item in items:
                yield Standing(from_wire(Lease, item), item.get("position", 0), item.get("expected"))

    async def wait_granted(self, lease: str, told: Callable[[Standing], None] = lambda standing: None) -> Lease:
        """Wait until a lease has got its devices; ``told`` hears of its way there.

        Raises :class:`~jmp.errors.Timeout` if it ends before, :class:`~jmp.errors.LabError` if the controller goes away.
        """
        async with aclosing(self.watch(lease)) as watching:
            async for standing in watching:
                told(standing)
                if standing.lease.state in (State.PREPARING, State.READY):
                    return standing.lease
                if standing.lease.state in (State.ENDING, State.ENDED):
                    raise Timeout(f"lease {lease} ended before it was granted: {standing.lease.reason}")
        raise LabError(f"lease {lease} is gone")

    async def release(self, lease: str, reason: str = "") -> Lease:
        """End a lease now."""
        return from_wire(Lease, await self.call("release", lease, reason))

    async def meet(self, lease: str, exporter: str | None = None, via: str = "direct") -> Mapping[str, Any]:
        """A session token for a device of the lease and where to go with it."""
        answer: Mapping[str, Any] = await self.call("meet", lease, exporter, via)
        return answer


def log_in(config: ClientConfig) -> Mapping[str, Any]:
    """What the lab says to a service account, whose token ``config`` has: a token of the lab's, and who that is of.

    Raises ``LabError``, ``Refused``.
    """
    with open_lab(replace(config, account_token=None)) as lab:
        answer: Mapping[str, Any] = lab.call("login")
        return answer


def up_to_date(config: ClientConfig) -> ClientConfig:
    """``config`` with a token that is good for a while yet, if a service account's is there to get one with.

    Raises ``LabError``, ``Refused``; ``ConfigError`` if that is not there any more.
    """
    if config.account_token is None or _is_good(config):
        return config
    store = clients()
    with suppress(JmpError):
        kept = store.load(config.name)  # another command may have been here already
        if kept.account_token == config.account_token and kept.endpoint == config.endpoint and _is_good(kept):
            return replace(config, token=kept.token)
    own = read_secret(config.account_token, "token")
    config = replace(config, token=log_in(replace(config, token=own))["token"])
    with suppress(JmpError, OSError):  # where nothing can be kept the next command does this again
        ca = config.tls.ca.read_text() if config.tls.ca is not None else None
        store.save(config.name, config.endpoint, config.token, ca, config.account_token)
    return config


def _is_good(config: ClientConfig) -> bool:
    expires = tokens.peek(config.token)["expires"]
    return expires is not None and expires > time.time() + RENEW_SECONDS


async def up_to_date_trio(config: ClientConfig) -> ClientConfig:
    """As :func:`up_to_date`, under Trio."""
    import trio

    if config.account_token is None or _is_good(config):
        return config
    return await trio.to_thread.run_sync(up_to_date, config, abandon_on_cancel=True)


@contextmanager
def open_lab(config: ClientConfig) -> Iterator[Any]:
    """The lab of ``config``, for threads: :class:`Lab` with plain methods. Raises ``LabError``, ``Refused``."""
    from jmp.link.blocking import connect as dial_link
    from jmp.link.blocking_resumable import ResumableBlockingLink
    from jmp.mux.blocking import BlockingConnection
    from jmp.rpc.blocking import BlockingCaller

    config = up_to_date(config)

    def dial(seconds: float | None = None) -> BlockingLink:
        return dial_link(config.endpoint, token=config.token, ca=config.tls.ca, timeout=seconds)

    link = ResumableBlockingLink(dial(), dial, token=config.token, patience=RESUME_SECONDS)
    connection = BlockingConnection(link, keep=True)
    try:
        yield Blocking(Lab(BlockingCaller(connection)))
    finally:
        connection.close()


@asynccontextmanager
async def open_lab_trio(config: ClientConfig) -> AsyncIterator[Lab]:
    """The lab of ``config``, under Trio. Raises ``LabError``, ``Refused``."""
    from jmp.link.websocket import connect as dial_link
    from jmp.mux.connection import multiplex
    from jmp.mux.protocol import Role
    from jmp.rpc.call import Caller

    config = await up_to_date_trio(config)
    link = await dial_link(config.endpoint, token=config.token, ca=config.tls.ca)
    async with multiplex(link, Role.DIALLER, watch=True) as connection:
        yield Lab(Caller(connection))


@asynccontextmanager
async def leased(
    lab: Lab, wants: Sequence[Want], duration: float, told: Callable[[Standing], None], **options: Any
) -> AsyncIterator[Lease]:
    """A lease for the length of a block: acquired, waited for, released whatever happens."""
    import trio

    lease = await lab.acquire(wants, duration, tied=True, **options)
    try:
        yield await lab.wait_granted(lease.id, told)
    finally:
        with trio.move_on_after(RELEASE_SECONDS, shield=True):
            with suppress(JmpError):  # it is tied: with its holder gone it ends by itself
                await lab.release(lease.id)


RELEASE_SECONDS: Final = 10.0
"""How long to try to release a lease at the end; after that it ends because its holder is gone."""


async def find_way(
    lab: Lab,
    config: ClientConfig,
    lease: str,
    exporter: str | None,
    attempt: Callable[[Dial], Any],
    *,
    first: Way = "direct",
) -> Any:
    """What ``attempt`` returns for the first place at which the exporter answers: its own addresses, then a router.

    ``first``: begin with this, because it was the way before. ``attempt`` connects; it raises ``LabError`` where nothing answers.
    Raises the last place's error if none does.
    """
    from jmp.client.connect import Dial

    def dial(way: Way, answer: Mapping[str, Any], endpoint: Mapping[str, Any], seconds: float | None) -> Dial:
        fingerprint = endpoint.get("fingerprint")
        url = endpoint.get("url") or config.endpoint  # none is named: where the controller is
        return Dial(url, answer["token"], fingerprint, None if fingerprint else config.tls.ca, True, seconds, way)

    async def routed() -> Any:
        answer = await lab.meet(lease, exporter, "router")
        return await attempt(
            dial("router", answer, answer["endpoints"][0], DIRECT_SECONDS if first == "router" else None)
        )

    if first == "router":
        try:
            return await routed()
        except (LabError, Timeout) as error:
            problem = error
    answer = await lab.meet(lease, exporter, "direct")
    for endpoint in answer.get("endpoints", []):
        try:
            return await attempt(dial("direct", answer, endpoint, DIRECT_SECONDS))
        except (LabError, Timeout) as error:
            problem = error
    if first == "router":
        raise problem
    return await routed()


def ended(lease: Lease) -> JmpError:
    """What to raise when a lease ended under its holder."""
    return ended_as(f"lease {lease.id} has ended: {lease.reason}")


def ended_as(message: str) -> JmpError:
    """The same, from what an exporter says: its user's fault if the time was over."""
    return (Timeout if message.endswith(": its time was over") else LabError)(message)
