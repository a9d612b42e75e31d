"""Pages for machines that watch a server: probes, metrics, public keys. Plain HTTP, nothing secret, nothing to change."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import h11
import trio

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("jmp.pages")

MAX_CONNECTIONS: Final = 64
"""More are closed at once: whoever watches needs one."""
SECONDS: Final = 15.0
"""How long one may take to ask, and to take the answer; and how long a connection may wait for the next question."""
MAX_REQUEST: Final = 16 << 10

TEXT: Final = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What is answered to a request."""

    status: int
    type: str
    body: bytes


Page = Callable[[], Awaitable[Answer]]


async def serve_pages(
    listeners: Sequence[trio.SocketListener],
    pages: Mapping[str, Page],
    *,
    task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer with ``pages``, by path, until cancelled. Started once it accepts; the listeners are closed at the end."""
    server = _Server(pages)
    await trio.serve_listeners(server.serve, list(listeners), task_status=task_status)


async def healthz() -> Answer:
    """The process answers."""
    return Answer(200, TEXT, b"ok\n")


def metrics(collect: Callable[[], Iterable[Metric]]) -> Page:
    """What ``collect`` finds whenever somebody asks, and figures of this process, in Prometheus' text format."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
    from prometheus_client.registry import Collector

    class Watch(Collector):
        def collect(self) -> Iterable[Metric]:
            return collect()

    registry = CollectorRegistry()
    registry.register(Watch())
    ProcessCollector(registry=registry)

    async def page() -> Answer:
        return Answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))

    return page


class _Server:
    def __init__(self, pages: Mapping[str, Page]) -> None:
        self._pages = pages
        self._open = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection: the root of its task."""
        self._open += 1
        try:
            if self._open > MAX_CONNECTIONS:
                log.warning("HTTP: a connection was closed: there are %d others", MAX_CONNECTIONS)
                return
            await self._converse(stream)
        except trio.BrokenResourceError:
            pass  # whoever asked is gone
        except Exception:
            log.exception("HTTP: internal error")
        finally:
            self._open -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await stream.aclose()

    async def _converse(self, stream: trio.SocketStream) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)
        while True:
            with trio.move_on_after(SECONDS) as patience:
                try:
                    request = await _next_request(connection, stream)
                    if request is None:
                        return
                    answer = await self._answer(request)
                    head, allow = request.method == b"HEAD", answer.status == 405
                except h11.RemoteProtocolError as error:
                    if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                        return
                    status = error.error_status_hint
                    answer, head, allow = Answer(status, TEXT, b"this is no HTTP request\n"), False, False
                await _send(connection, stream, answer, head=head, allow=allow)
            if patience.cancelled_caught:
                return
            if connection.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                await _discard(stream)
                return
            connection.start_next_cycle()

    async def _answer(self, request: h11.Request) -> Answer:
        if request.method not in (b"GET", b"HEAD"):
            return Answer(405, TEXT, b"this can only be read: GET or HEAD\n")
        page = self._pages.get(request.target.partition(b"?")[0].decode("ascii"))
        if page is None:
            return Answer(404, TEXT, f"there is only {', '.join(self._pages)}\n".encode())
        try:
            return await page()
        except Exception:
            log.exception("HTTP: %s failed", request.target.decode("ascii"))
            return Answer(500, TEXT, b"internal error: the controller's log has it\n")


async def _next_request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request | None:
    """The next one, its head only; None if none comes any more."""
    request: h11.Request | None = None
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError:
            if request is None:
                raise
            return request  # whose body is wrong; nobody wants it
        if event is h11.NEED_DATA:
            if request is not None:
                return request
            connection.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.EndOfMessage | h11.Data):
            return request
        else:
            return None


async def _send(
    connection: h11.Connection, stream: trio.SocketStream, answer: Answer, *, head: bool, allow: bool
) -> None:
    headers = [("Content-Type", answer.type), ("Content-Length", str(len(answer.body)))]
    headers.append(("Cache-Control", "no-store"))
    if allow:
        headers.append(("Allow", "GET, HEAD"))
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    parts = [connection.send(h11.Response(status_code=answer.status, headers=headers))]
    if not head:
        parts.append(connection.send(h11.Data(data=answer.body)))
    parts.append(connection.send(h11.EndOfMessage()))
    await stream.send_all(b"".join(part or b"" for part in parts))


async def _discard(stream: trio.SocketStream) -> None:
    """Say that nothing more comes, and read what still does: closing a socket with unread bytes would destroy the answer."""
    with trio.move_on_after(1.0):
        await stream.send_eof()
        while await stream.receive_some():
            pass
