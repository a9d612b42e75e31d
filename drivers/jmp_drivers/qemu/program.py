"""Finding QEMU's programs, and waiting for them."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from jmp.errors import DeviceError
from jmp_drivers._tasks import open_nursery


def require(program: str, package: str) -> str:
    """The program's path. Raises `DeviceError` that names the Debian package it is in."""
    if path := shutil.which(program):
        return path
    raise DeviceError(f"{program} is not installed on the exporter's machine: on Debian it is in the package {package}")


@asynccontextmanager
async def while_alive(process: trio.Process) -> AsyncIterator[None]:
    """Run the body, but no longer than the process lives: its return code tells afterwards whether the body was cut short."""

    async def watch() -> None:
        await process.wait()
        nursery.cancel_scope.cancel()

    async with open_nursery() as nursery:
        nursery.start_soon(watch)
        yield
        nursery.cancel_scope.cancel()
