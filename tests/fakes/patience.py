"""For devices that come and go: what their driver says becomes so within the test's own time limit."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from jmp.errors import DeviceError

T = TypeVar("T")


async def fails(call: Callable[[], Awaitable[object]], message: str) -> DeviceError:
    """Call until it fails as a device does; that error, which has to match."""
    while True:
        try:
            await call()
        except DeviceError as error:
            if re.search(message, error.message):
                return error
            raise
        await trio.sleep(0.01)


async def works(call: Callable[[], Awaitable[T]]) -> T:
    """Call until the device is back; what the call says then."""
    while True:
        try:
            return await call()
        except DeviceError:
            await trio.sleep(0.05)
