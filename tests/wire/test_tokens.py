"""Tokens: what they say, and every way to forge one."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hmac import HMAC

from jmp.errors import Refused
from jmp.wire.records import Role
from jmp.wire.tokens import LEEWAY, MAX_TOKEN, Identity, SessionClaims, Verifier, peek

NOW = 1_800_000_000.0
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
IDENTITY = {
    "iss": "jmp",
    "sub": "bo",
    "role": "client",
    "aud": "controller",
    "jti": "t1",
    "iat": NOW,
    "nbf": NOW,
    "exp": NOW + 60,
}
SESSION = {
    **IDENTITY,
    "aud": ["router", "exporter"],
    "exporter": "board",
    "lease": "l1",
    "epoch": 3,
    "session": "s1",
    "allow": ["power.*"],
    "deny": [],
}


def part(value: bytes | dict[str, Any]) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwk(key: Ed25519PrivateKey, kid: str) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": part(key.public_key().public_bytes_raw())}


JWKS = {"keys": [jwk(KEY, "k1"), jwk(OTHER, "k2")]}


def token(claims: dict[str, Any] = IDENTITY, key: Any = KEY, kid: str | None = "k1", **changes: Any) -> str:
    """A token with ``changes``; a claim that is changed to ``...`` is left out."""
    said = {name: value for name, value in {**claims, **changes}.items() if value is not ...}
    signed = f"{part({'alg': 'EdDSA', 'typ': 'JWT', **({'kid': kid} if kid else {})})}.{part(said)}"
    return f"{signed}.{part(key.sign(signed.encode()))}"


def verifier(*revoked: str, now: float = NOW) -> Verifier:
    return Verifier(JWKS, frozenset(revoked), clock=lambda: now)


def refusal(text: str, *, session: bool = False, using: Verifier | None = None) -> str:
    """Why ``text`` is refused: one line that holds nothing of it."""
    used = using or verifier()
    with pytest.raises(Refused) as caught:
        used.session(text) if session else used.identity(text)
    message = caught.value.message
    assert "\n" not in message
    assert not any(piece and len(piece) > 8 and piece in message for piece in text.split("."))
    return message


def test_identity() -> None:
    assert verifier().identity(token()) == Identity("bo", Role.CLIENT, "t1", NOW + 60, NOW)


def test_session() -> None:
    assert verifier().session(token(SESSION, role="exporter")) == SessionClaims(
        client="bo",
        end="exporter",
        exporter="board",
        lease="l1",
        epoch=3,
        session="s1",
        allow=("power.*",),
        deny=(),
        id="t1",
        expires=NOW + 60,
    )


def test_the_library_for_tokens_agrees() -> None:
    made = jwt.encode(IDENTITY, KEY, algorithm="EdDSA", headers={"kid": "k1"})
    assert verifier().identity(made).name == "bo"


def test_each_key_by_its_id() -> None:
    assert verifier().identity(token(key=OTHER, kid="k2")).name == "bo"
    for wrong in ("k2", "k3", None):
        assert refusal(token(kid=wrong)) in (
            "the token's signature is wrong: it was changed, or another lab made it",
            "the token is signed with a key that this lab does not have",
        )


# ---- time, on the verifier's clock


def test_expired() -> None:
    made = token()
    assert verifier(now=NOW + 60 + LEEWAY - 1).identity(made)
    assert refusal(made, using=verifier(now=NOW + 60 + LEEWAY)) == "the token has expired"


def test_not_valid_yet() -> None:
    made = token(SESSION)
    assert verifier(now=NOW - LEEWAY).session(made)
    refused = refusal(made, session=True, using=verifier(now=NOW - LEEWAY - 1))
    assert refused == "the token is not valid yet: is a clock wrong?"


def test_whose_clock_is_set_back_still_knows_whom_it_knew() -> None:
    assert verifier(now=NOW - 3600).identity(token())


@pytest.mark.parametrize("value", [..., None, "soon", True, [], float("inf"), float("nan"), -1, 10**400])
@pytest.mark.parametrize("claim", ["exp", "nbf"])
def test_times_are_numbers(claim: str, value: Any) -> None:
    assert refusal(token(SESSION, **{claim: value}), session=True) == f"the token does not say its {claim}"


# ---- what it is for


def test_revoked() -> None:
    assert verifier("t2").identity(token())
    assert refusal(token(), using=verifier("t1")) == "the token was revoked"
    assert refusal(token(SESSION), session=True, using=verifier("t1")) == "the token was revoked"


@pytest.mark.parametrize(
    "audience", [..., None, "exporter", [], ["controller", "router"], ["router", "exporter"], {"controller": 1}, 7]
)
def test_identity_for_something_else(audience: object) -> None:
    assert refusal(token(aud=audience)) == "the token is for something else: an identity token is needed here"


@pytest.mark.parametrize("audience", [..., "controller", "router", ["router"], ["controller", "router", "exporter"]])
def test_session_for_something_else(audience: object) -> None:
    assert refusal(token(SESSION, aud=audience), session=True) == (
        "the token is for something else: a session token is needed here"
    )


@pytest.mark.parametrize("issuer", [..., "", "other", ["jmp"]])
def test_another_issuer(issuer: object) -> None:
    assert refusal(token(iss=issuer)) == "the token was not issued by a jmp controller"


@pytest.mark.parametrize("value", [..., None, "", 7, ["x"]])
def test_claims_of_an_identity_have_their_types(value: Any) -> None:
    for claim in ("sub", "role", "jti"):
        assert refusal(token(**{claim: value})) == f"the token does not say its {claim}"


@pytest.mark.parametrize("value", [..., None, 7, {"x": 1}])
def test_claims_of_a_session_have_their_types(value: Any) -> None:
    for claim in ("sub", "role", "jti", "exporter", "lease", "session", "allow", "deny"):
        assert refusal(token(SESSION, **{claim: value}), session=True) == f"the token does not say its {claim}"


@pytest.mark.parametrize("epoch", [..., None, "3", 3.0, True])
def test_epoch_is_an_integer(epoch: object) -> None:
    assert refusal(token(SESSION, epoch=epoch), session=True) == "the token does not say its epoch"


def test_patterns_are_text() -> None:
    assert refusal(token(SESSION, allow=["*", 7]), session=True) == "the token does not say its allow"


def test_roles_of_later_versions() -> None:
    assert refusal(token(role="emperor")) == "the token is for a role that this version does not know"
    assert refusal(token(SESSION, role="admin"), session=True) == (
        "the token is for no end of a session that this version knows"
    )


# ---- forgeries

ALGORITHM = "the token is signed in another way than EdDSA, or not at all"
SIGNATURE = "the token's signature is wrong: it was changed, or another lab made it"
BROKEN = "this is no token, or a part of it is missing"


@pytest.mark.parametrize("name", ["none", "None", "NONE", "", None, ["EdDSA"]])
def test_not_signed(name: object) -> None:
    assert refusal(f"{part({'alg': name, 'kid': 'k1'})}.{part(IDENTITY)}.") == ALGORITHM


@pytest.mark.parametrize("secret", ["raw", "pem", "jwk"])
def test_signed_with_the_public_key_as_a_secret(secret: str) -> None:
    public = KEY.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = {"raw": public.public_bytes_raw(), "pem": pem, "jwk": json.dumps(JWKS["keys"][0]).encode()}[secret]
    for algorithm, expected in (("HS256", ALGORITHM), ("EdDSA", SIGNATURE)):
        signed = f"{part({'alg': algorithm, 'kid': 'k1'})}.{part(IDENTITY)}"
        hmac = HMAC(key, hashes.SHA256())
        hmac.update(signed.encode())
        assert refusal(f"{signed}.{part(hmac.finalize())}") == expected


def test_other_kinds_of_keys() -> None:
    key = rsa.generate_private_key(65537, 2048)
    assert refusal(jwt.encode(IDENTITY, key, algorithm="RS256", headers={"kid": "k1"})) == ALGORITHM
    assert refusal(token(key=Ed448PrivateKey.generate())) == SIGNATURE


def test_key_that_the_token_brings_along() -> None:
    forger = Ed25519PrivateKey.generate()
    header = {"alg": "EdDSA", "jwk": jwk(forger, "mine"), "jku": "https://forger.example/jwks.json", "x5u": "https://x"}
    for kid in ("mine", "k1"):
        signed = f"{part({**header, 'kid': kid})}.{part(IDENTITY)}"
        assert refusal(f"{signed}.{part(forger.sign(signed.encode()))}") in (
            "the token is signed with a key that this lab does not have",
            SIGNATURE,
        )


@pytest.mark.parametrize("kid", [7, ["k1"], {"k1": 1}, None, ""])
def test_odd_key_ids(kid: object) -> None:
    header = part({"alg": "EdDSA", "kid": kid})
    assert refusal(f"{header}.{part(IDENTITY)}.AAAA") == "the token is signed with a key that this lab does not have"


def test_changed() -> None:
    header, claims, signature = token().split(".")
    _, others, _ = token(role="admin").split(".")
    assert refusal(f"{header}.{others}.{signature}") == SIGNATURE
    assert refusal(f"{header}.{claims}.") == SIGNATURE
    assert refusal(f"{header}.{claims}.{part(bytes(64))}") == SIGNATURE
    assert refusal(f"{part({'alg': 'EdDSA', 'kid': 'k1', 'x': 1})}.{claims}.{signature}") == SIGNATURE


def test_extensions_that_must_be_understood() -> None:
    signed = f"{part({'alg': 'EdDSA', 'kid': 'k1', 'crit': ['new'], 'new': 1})}.{part(IDENTITY)}"
    assert refusal(f"{signed}.{part(KEY.sign(signed.encode()))}") == BROKEN


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "...", "a.b", "secret", "é.é.é", "\0.\0.\0", "e30.e30", f"{part(b'[]')}.{part(b'[]')}.", " . . "],
)
def test_no_token(text: str) -> None:
    assert refusal(text) == BROKEN
    assert refusal(text, session=True) == BROKEN


def test_claims_that_are_no_object() -> None:
    for claims in (b"[]", b"7", b"\xff", b"{", b"[" * 5000):
        signed = f"{part({'alg': 'EdDSA', 'kid': 'k1'})}.{part(claims)}"
        assert refusal(f"{signed}.{part(KEY.sign(signed.encode()))}") == BROKEN


def test_huge() -> None:
    assert refusal("a" * (MAX_TOKEN + 1)) == "the token is longer than 8192 characters: this is none of ours"
    assert "longer than 8192" in refusal(token(padding="x" * MAX_TOKEN))
    assert verifier().identity(token(padding="x" * 5000))


def test_no_keys_and_keys_of_later_versions() -> None:
    sets: list[dict[str, Any]] = [
        {},
        {"keys": []},
        {"keys": [{"kty": "XYZ", "kid": "k1"}, {**jwk(KEY, "k1"), "crv": "Ed448"}]},
    ]
    for jwks in sets:
        assert refusal(token(), using=Verifier(jwks, frozenset())) == (
            "the token is signed with a key that this lab does not have"
        )


# ---- without verification


def test_peek() -> None:
    assert peek(token(key=OTHER)) == {"name": "bo", "role": "client", "expires": NOW + 60}
    assert peek(f"e30.{part(b'{}')}.") == {"name": None, "role": None, "expires": None}
    odd = {"sub": ["bo"], "role": 7, "exp": 10**400}
    assert peek(f"e30.{part(odd)}.") == {"name": None, "role": None, "expires": None}
    for text in ("", "secret", "a.b.c", "a" * 9000):
        with pytest.raises(Refused, match=BROKEN):
            peek(text)
