"""Runs the simulated board on Trio: gives it the time, its card, a console and connections."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from jmp.driver import DeviceError
from jmp_drivers.console import Hub
from jmp_drivers.virtual_board.board import Board
from jmp_drivers.virtual_board.card import Card
from jmp_drivers.virtual_board.program import ReadCard, State


class Machine:
    """A board and what surrounds it; ``run`` has to be running. All methods belong to the Trio thread."""

    def __init__(self, board: Board, card: Card, hub: Hub) -> None:
        self.hub = hub
        self._board = board
        self._card = card
        self._news = trio.Event()
        self._stepped = trio.lowlevel.ParkingLot()
        self._connections: set[trio.CancelScope] = set()
        self._network: int | None = None

    async def run(self) -> None:
        """Run the board until cancelled. Other tasks have their turn after every step."""
        while True:
            step = self._board.step(trio.current_time())
            if step.output:
                self.hub.feed(step.output)
            self._changed()
            self._stepped.unpark_all()
            if step.card is not None:
                self._board.card_data(step.card, await self._read(step.card))
            else:
                with trio.move_on_at(step.wake):
                    await self._news.wait()
                self._news = trio.Event()

    async def _read(self, request: ReadCard) -> bytes:
        """Nothing means an error, which the board reports in its own way."""
        try:
            return await self._card.contents(request.offset, request.size)
        except DeviceError:
            return b""

    def _changed(self) -> None:
        if self._board.network != self._network:
            self._network = self._board.network
            for connection in self._connections:
                connection.cancel()

    @property
    def is_on(self) -> bool:
        return self._board.state is not State.OFF

    def power(self, on: bool) -> None:
        """Switch the board's supply."""
        if on:
            self._board.power_on(trio.current_time())
        else:
            self._board.power_off(trio.current_time())
        self._changed()
        self._news.set()

    async def type(self, data: bytes) -> None:
        """Send bytes to the serial line; waits while a busy board has too many unread ones. Cancelled, a part was sent."""
        await trio.lowlevel.checkpoint()
        while True:
            data = data[self._board.type(data) :]
            self._news.set()
            if not data:
                return
            await self._stepped.park()

    @contextmanager
    def connection(self) -> Iterator[None]:
        """Be connected to the board's network. Raises ``DeviceError`` if it does not answer, or goes away meanwhile."""
        if self._board.network is None:
            state = "off: switch it on" if not self.is_on else "not up: wait for its login prompt"
            raise DeviceError(f"the board is {state} first")
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                yield
            finally:
                self._connections.discard(scope)
        if scope.cancelled_caught:
            raise DeviceError("the board went down and the connection with it")
