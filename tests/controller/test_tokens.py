"""Tokens that are not good, at every listener of a lab: refused, logged with the peer, and never printed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from jmp.controller.store import Change
from jmp.errors import Refused
from jmp.link import websocket
from jmp.router.serve import Router
from jmp.wire.records import Role, State, Token
from jmp.wire.tokens import Verifier
from tests.fakes.memory_lab import WANT, MemoryLab, memory_lab


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[MemoryLab]:
    async with memory_lab(tmp_path) as made:
        yield made


def part(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


def read(token: str, number: int = 1) -> dict[str, Any]:
    """The claims of a token (or its header)."""
    text = token.split(".")[number]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def signed(lab: MemoryLab, token: str, claims: dict[str, Any], algorithm: str = "EdDSA") -> str:
    """A token like another one with these claims, signed with the lab's own key or with what an attacker has."""
    key = lab.lab.keys._keys[-1]
    assert key.private is not None
    text = f"{part(json.dumps(read(token, 0) | {'alg': algorithm}).encode())}.{part(json.dumps(claims).encode())}"
    signature = {
        "EdDSA": key.private.sign(text.encode()),
        "HS256": hmac.digest(key.public.public_bytes_raw(), text.encode(), hashlib.sha256),
        "none": b"",
    }[algorithm]
    return f"{text}.{part(signature)}"


async def spoilt(lab: MemoryLab, token: str, how: str) -> str:
    """What becomes of a good token."""
    claims, now = read(token), lab.clock()
    match how:
        case "good":
            return token
        case "expired":
            return signed(lab, token, claims | {"iat": now - 200, "nbf": now - 200, "exp": now - 100})
        case "not yet valid":
            return signed(lab, token, claims | {"nbf": now + 1000, "exp": now + 2000})
        case "wrong audience":
            return signed(lab, token, claims | {"aud": "elsewhere"})
        case "the other kind's audience":
            other = ["router", "exporter"] if claims["aud"] == "controller" else "controller"
            return signed(lab, token, claims | {"aud": other})
        case "wrong lease":
            return signed(lab, token, claims | {"lease": "another"})
        case "wrong exporter":
            return signed(lab, token, claims | {"exporter": "another"})
        case "old epoch":
            return signed(lab, token, claims | {"epoch": claims["epoch"] - 1})
        case "revoked":
            known = lab.lab.view.token.get(claims["jti"])
            record = Token(
                id=claims["jti"], subject="alice", role=Role.CLIENT, issued=now, expires=now + 600, revoked=now
            )
            lab.lab.put(Change("token", record.id, known, record))
            await lab.lab.settle()
            lab.lab.keys_changed()
            await trio.testing.wait_all_tasks_blocked()
            return token
        case "unsigned":
            return signed(lab, token, claims, "none")
        case "HS256 with the public key":
            return signed(lab, token, claims, "HS256")
        case "tampered":
            header, _, signature = token.split(".")
            return f"{header}.{part(json.dumps(claims | {'sub': 'bob'}).encode())}.{signature}"
    raise AssertionError(how)


ANYWHERE = {
    "expired": "the token has expired",
    "wrong audience": "the token is for something else",
    "the other kind's audience": "the token is for something else",
    "revoked": "the token was revoked",
    "unsigned": "the token is signed in another way than EdDSA, or not at all",
    "HS256 with the public key": "the token is signed in another way than EdDSA, or not at all",
    "tampered": "the token's signature is wrong",
}
FOR_SESSIONS = {"not yet valid": "the token is not valid yet"}
AT_EXPORTERS = {
    "wrong lease": "lease another is not this exporter's present one",
    "wrong exporter": "this token is for exporter another, not for one",
    "old epoch": "was handed over or granted anew since this token was made",
}
TABLE = [
    *((listener, how, said) for listener in ("controller", "router", "exporter") for how, said in ANYWHERE.items()),
    *((listener, how, said) for listener in ("router", "exporter") for how, said in FOR_SESSIONS.items()),
    *(("exporter", how, said) for how, said in AT_EXPORTERS.items()),
    *((listener, "good", "") for listener in ("controller", "router", "exporter")),
]


@pytest.mark.parametrize(("listener", "how", "said"), TABLE)
async def test_at_a_listener(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture, listener: str, how: str, said: str
) -> None:
    caplog.set_level(logging.DEBUG)
    async with lab.exporter("one") as exporter, lab.client("alice") as alice, trio.open_nursery() as nursery:
        lease = await alice.acquire(WANT, 600.0)
        await lab.wait(lease.id, State.READY)
        if listener == "controller":
            token, record = lab.lab.keys.identity("alice", Role.CLIENT, 3600.0)
            lab.lab.put(Change("token", record.id, None, record))
            await lab.lab.settle()
        else:
            token = (await alice.meet(lease.id))["token"]
        token = await spoilt(lab, token, how)
        router = Router()
        news = lab.lab.key_news()
        router.verifier = Verifier(news["jwks"], frozenset(news["revoked"]), clock=lab.clock)
        router.connected = True
        assert lab.door is not None
        place: Any = {"controller": lab.door, "router": router, "exporter": exporter}[listener]
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await nursery.start(partial(websocket.serve, listeners, place.authenticate, place.serve_link))
        if how == "good":
            await (await websocket.connect(f"ws://127.0.0.1:{port}", token=token)).aclose()
        else:
            with pytest.raises(Refused, match=said) as raised:
                await websocket.connect(f"ws://127.0.0.1:{port}", token=token)
            assert "\n" not in raised.value.message
            [line] = [
                record.getMessage()
                for record in caplog.records
                if record.levelno >= logging.WARNING and said in record.getMessage()
            ]
            assert line.startswith("127.0.0.1:")
            hidden = [piece for piece in token.split(".")[1:] if piece]
            assert not [piece for piece in hidden if piece in caplog.text or piece in raised.value.message]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("how", "said"), [*ANYWHERE.items(), *FOR_SESSIONS.items(), *AT_EXPORTERS.items()])
async def test_at_an_exporter_behind_a_router(
    lab: MemoryLab, caplog: pytest.LogCaptureFixture, how: str, said: str
) -> None:
    """The router has let it through, as one that is not to be trusted would."""
    caplog.set_level(logging.DEBUG)
    async with lab.exporter("one") as exporter, lab.client("alice") as alice:
        lease = await alice.acquire(WANT, 600.0)
        await lab.wait(lease.id, State.READY)
        token = await spoilt(lab, (await alice.meet(lease.id))["token"], how)
        with pytest.RaisesGroup(pytest.RaisesExc(Refused, match=said), flatten_subgroups=True):
            async with lab.visit_with(exporter, token):
                pass
        [line] = [record.getMessage() for record in caplog.records if said in record.getMessage()]
        assert line.startswith("memory")
        assert not [piece for piece in token.split(".")[1:] if piece and piece in caplog.text]
