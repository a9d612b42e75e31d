"""``jmp admin export`` and ``import``: bring a lab from one store to another. No controller is asked: the stores are used."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol

import trio

import jmp
from jmp.cli import output
from jmp.cli.places import Where, data_directory
from jmp.controller import move
from jmp.controller.keys import LASTING, Keys
from jmp.controller.move import Moved
from jmp.controller.sqlite import FILE, SqliteStore, backup, is_used
from jmp.controller.store import Store
from jmp.errors import ConfigError, Conflict, LabError, UsageError
from jmp.private import read_private, write_private

if TYPE_CHECKING:
    from jmp.controller.kubernetes_api import Api


class Place(Protocol):
    """Where a lab is, or shall be."""

    async def take(self, with_keys: bool) -> Moved:
        """The lab, as it is now."""

    async def bring(self, moved: Moved) -> int:
        """Have a lab there from now on; how many records are new there."""


def export_lab(file: str, with_keys: bool, place: Place) -> None:
    """Write a lab to a file, or to standard output."""
    if file == "-" and with_keys and sys.stdout.isatty():
        raise UsageError("the keys are not for a terminal to show: name a file")
    moved = trio.run(place.take, with_keys)
    text = move.write(moved, jmp.__version__, datetime.now(UTC).isoformat(timespec="seconds"))
    if file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_private(Path(file), text.encode())
    output.note(f"exported {moved.counts() or 'a lab without anything'}{', and its keys' if with_keys else ''}")
    if with_keys:
        output.note(
            "Whoever has the keys can be anybody in this lab: keep them safe, and remove the file when it was imported."
        )


def import_lab(file: str, place: Place) -> None:
    """Have a lab where none is."""
    try:
        moved = move.read(sys.stdin.read() if file == "-" else Path(file).read_text(), file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not moved.keys:
        known, moved = moved, move.without_tokens(moved)
        tokens = len(known.records) - len(moved.records)
        if tokens:
            output.note(f"{file} has no keys: its {tokens} tokens are left out, and everybody joins anew")
    else:
        _check(moved.keys, file)
    new = trio.run(place.bring, moved)
    there = len(moved.records) - new
    output.note(
        f"imported {moved.counts() or 'a lab without anything'}{', and its keys' if moved.keys else ''}"
        + (f"; {there} of these were there already" if there else "")
    )


def place_of(store: Where, data: Path | None, kubeconfig: Path | None, namespace: str | None) -> Place:
    """The place that options name."""
    if store is Where.kubernetes:
        return Cluster(kubeconfig, namespace)
    return Directory(data_directory(data))


class Directory:
    """A controller's data directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def take(self, with_keys: bool) -> Moved:
        """As in :class:`Place`."""
        with TemporaryDirectory(prefix="jmp-") as folder:
            backup(self._path, Path(folder, FILE))
            async with _opened(Path(folder)) as store:
                records = await move.take(store)
        keys = {}
        for name in LASTING if with_keys else ():
            content = read_private(self._path / name)
            if content is None:
                raise LabError(f"{self._path / name} is missing: without it the keys cannot go along")
            keys[name] = content
        if is_used(self._path):
            output.note(f"a controller uses {self._path}: what it does from now on is not in the file")
        return Moved(records, keys)

    async def bring(self, moved: Moved) -> int:
        """As in :class:`Place`."""
        async with _opened(self._path) as store:
            changes = await move.missing(moved, store)
            files = {name: read_private(self._path / name) for name in moved.keys}
            if any(content not in (None, moved.keys[name]) for name, content in files.items()):
                raise Conflict(f"{self._path} has keys of another lab: a lab is brought to where none is")
            for name, content in moved.keys.items():
                write_private(self._path / name, content)
            await move.keep(changes, store)
        return len(changes)


class Cluster:
    """A namespace of a Kubernetes cluster."""

    def __init__(self, kubeconfig: Path | None, namespace: str | None) -> None:
        self._kubeconfig, self._namespace = kubeconfig, namespace

    async def take(self, with_keys: bool) -> Moved:
        """As in :class:`Place`."""
        async with self._connected() as (api, store):
            records = await move.take(store)
            keys = await _secret(api) if with_keys else {}
        if with_keys and set(keys) != set(LASTING):
            raise LabError(f"namespace {api.namespace} has no lab's keys: no controller has been there")
        return Moved(records, keys)

    async def bring(self, moved: Moved) -> int:
        """As in :class:`Place`."""
        from jmp.controller.kubernetes_keys import SECRET, create

        async with self._connected() as (api, store):
            changes = await move.missing(moved, store)
            if moved.keys and not await create(api, SECRET, dict(moved.keys)) and await _secret(api) != moved.keys:
                raise Conflict(f"secret/{SECRET} has keys of another lab: a lab is brought to where none is")
            await move.keep(changes, store)
        return len(changes)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Api, Store]]:
        from jmp.controller.kubernetes import KubernetesStore
        from jmp.controller.kubernetes_api import connect, find_access

        async with connect(find_access(self._kubeconfig, self._namespace)) as api:
            yield api, KubernetesStore(api)


@asynccontextmanager
async def _opened(directory: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore.open(directory)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def _secret(api: Api) -> dict[str, bytes]:
    from jmp.controller.kubernetes_keys import SECRET, files_of

    answer = await api.request("GET", f"/api/v1/namespaces/{api.namespace}/secrets/{SECRET}")
    return {name: content for name, content in files_of(answer.body).items() if name in LASTING}


def _check(keys: dict[str, bytes], file: str) -> None:
    """Raises ``ConfigError`` if they are not what a controller can work with."""
    if set(keys) != set(LASTING):
        raise ConfigError(f"{file} has {', '.join(sorted(keys))} for keys, and should have {', '.join(LASTING)}")
    with TemporaryDirectory(prefix="jmp-") as folder:
        for name, content in keys.items():
            write_private(Path(folder, name), content)
        try:
            Keys.open(Path(folder), [])
        except LabError as error:
            raise ConfigError(f"{file}: {error.message.replace(folder + '/', '')}") from None
