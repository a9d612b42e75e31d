"""Whoever is connected with a token that a service account has got, when that ends. Everything but the cluster is real."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jwt
import pytest
import trio

from jmp.audit import Audit
from jmp.cli.leased import Request, Tenancy
from jmp.client import lab as client_lab
from jmp.client.config import ClientConfig, clients
from jmp.client.lab import Standing, log_in, up_to_date
from jmp.controller import desks
from jmp.controller.keys import Keys
from jmp.controller.lab import Lab
from jmp.controller.leases import Engine
from jmp.controller.serve import serve_controller
from jmp.exporter.serve import address_of, listen
from jmp.wire.records import Client, Exporter, Want
from tests.fakes.memory_store import MemoryStore

SECONDS = 1.5
"""How long the lab's tokens are good here."""


async def review(token: str) -> str:
    await trio.lowlevel.checkpoint()
    return "ci/builder"


async def test_one_that_waits_longer_than_its_token_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent away, comes with the next one, and has its place in the queue still."""
    monkeypatch.setattr(desks, "LOGIN_DAYS", SECONDS / 86400)
    monkeypatch.setattr(client_lab, "RENEW_SECONDS", SECONDS / 3)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    keys = Keys.open(tmp_path, ["localhost"])
    lab = Lab(Engine(), MemoryStore(), keys, Audit(tmp_path / "audit"))
    await lab.load()
    own = tmp_path / "token"
    own.write_text(jwt.encode({"sub": "system:serviceaccount:ci:builder", "aud": ["lab"]}, "of a cluster" * 3))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await listen("127.0.0.1:0")
            await nursery.start(partial(serve_controller, lab, [listener], keys.tls(), review=review))
            await lab.do(lambda: lab.engine.put(Client(name="ci", service_accounts=("ci/builder",)), lab.clock()))
            await lab.do(lambda: lab.engine.put(Exporter(name="one"), lab.clock()))
            url = f"wss://localhost:{address_of(listener).rpartition(':')[2]}"

            def config() -> ClientConfig:
                clients().save("ci", url, own.read_text(), keys.ca_pem, own)
                token = log_in(clients().load("ci"))["token"]
                clients().save("ci", url, token, keys.ca_pem, own)
                return up_to_date(clients().load("ci"))

            first = await trio.to_thread.run_sync(config)
            came = trio.Event()

            def told(standing: Standing) -> None:
                if tenancy.config.token != first.token:
                    came.set()

            tenancy = Tenancy(first, Request([Want(exporter="one")], 60.0, {}), told)
            nursery.start_soon(tenancy.run)
            await came.wait()
            [lease] = lab.view.active
            assert tenancy.id == lease
            nursery.cancel_scope.cancel()
