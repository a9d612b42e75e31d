"""The lease engine's own test, with its records in a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from jmp.controller.kubernetes import open_store
from jmp.controller.kubernetes_api import Access
from jmp.controller.store import Store
from jmp.wire.records import Lease
from tests.controller.test_leases_stateful import MANY, StoredLaboratory
from tests.fakes.kube import Cluster

pytestmark = pytest.mark.real


def test_the_cluster_has_whatever_happened(cluster: Cluster) -> None:
    class Laboratory(StoredLaboratory):
        """Each example has a namespace of its own."""

        def __init__(self) -> None:
            super().__init__()
            self.access: Access = cluster.namespace()

        def opened(self) -> AbstractAsyncContextManager[Store]:
            return _opened(self.access)

        def reload(self) -> list[Any]:
            found = trio.run(self.reopened)
            assert found.keys() == self.kept.keys()
            order = sorted(
                (record for record in found.values() if isinstance(record, Lease)), key=lambda one: one.number
            )
            assert [lease.id for lease in order] == [
                lease.id
                for lease in sorted(
                    (one for one in self.kept.values() if isinstance(one, Lease)), key=lambda one: one.number
                )
            ]
            for key, record in self.kept.items():
                own = {"number": found[key].number} if isinstance(record, Lease) else {}
                assert found[key] == replace(record, version=found[key].version, **own)
            return list(self.kept.values())

    run_state_machine_as_test(Laboratory, settings=settings(MANY, max_examples=6))
    assert Laboratory.steps >= 100


@asynccontextmanager
async def _opened(access: Access) -> AsyncIterator[Store]:
    async with open_store(access) as store:
        await store.load()
        yield store
