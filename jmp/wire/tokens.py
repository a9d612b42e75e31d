"""Tokens: who somebody is (identity), or what they may use for some minutes (session); and whether to believe that.

A token is a JWT that the controller signed (EdDSA with Ed25519). Whoever checks one needs public keys only, and is always the
last to decide: nothing that a token says counts before its signature is known to be good. What is wrong with a token is said by
the rule that it breaks; no message holds any part of it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeGuard

from jmp.errors import Refused
from jmp.wire.records import Role

ISSUER: Final = "jmp"
ALGORITHM: Final = "EdDSA"
MAX_TOKEN: Final = 8 << 10
"""Characters. A session token with a hundred patterns has some 4 KiB; a longer one is not even looked at."""
LEEWAY: Final = 30.0
"""Seconds by which clocks may differ."""
SERVICE_ACCOUNT: Final = "system:serviceaccount:"
"""How Kubernetes begins the name of a service account, before NAMESPACE:NAME."""

_IDENTITY_AUDIENCE: Final = frozenset({"controller"})
_SESSION_AUDIENCE: Final = frozenset({"router", "exporter"})
_LATEST: Final = 253_402_300_800.0  # the end of 9999, and of what dates can tell
_BROKEN: Final = "this is no token, or a part of it is missing"


@dataclass(frozen=True)
class Identity:
    """Who somebody is. ``id`` is that of the token, ``expires`` and ``issued`` are in seconds since the epoch."""

    name: str
    role: Role
    id: str
    expires: float
    issued: float = 0.0


@dataclass(frozen=True)
class SessionClaims:
    """What a session token lets its bearer do: meet the other end of ``session``, for one epoch of one lease."""

    client: str
    end: Literal["client", "exporter"]
    """Whose token it is."""
    exporter: str
    lease: str
    epoch: int
    session: str
    allow: tuple[str, ...]
    """Patterns of driver methods, as in :class:`~jmp.wire.records.Policy`."""
    deny: tuple[str, ...]
    id: str
    expires: float


class Verifier:
    """Reads tokens that one of the keys of ``jwks`` (a JWK set) signed and whose ids are not ``revoked``.

    ``clock`` tells the seconds since the epoch. Every method raises :class:`~jmp.errors.Refused` with the rule that is broken.
    """

    def __init__(
        self,
        jwks: Mapping[str, Any],
        revoked: frozenset[str],
        *,
        clock: Callable[[], float] = time.time,
        leeway: float = LEEWAY,
    ) -> None:
        self._keys = {
            key["kid"]: key
            for key in jwks.get("keys", ())
            if key.get("kty") == "OKP" and key.get("crv") == "Ed25519" and "kid" in key
        }
        self._revoked = revoked
        self._clock = clock
        self._leeway = leeway

    def identity(self, token: str) -> Identity:
        """What an identity token says. It is good from the start: the issuer's clock may have been set back since."""
        claims = self._verified(token, _IDENTITY_AUDIENCE, "an identity token")
        try:
            role = Role(_text(claims, "role"))
        except ValueError:
            raise Refused("the token is for a role that this version does not know") from None
        issued = claims.get("iat")
        return Identity(
            _text(claims, "sub"),
            role,
            _text(claims, "jti"),
            _time(claims, "exp"),
            float(issued) if _is_time(issued) else 0.0,
        )

    def session(self, token: str, *, expired: bool = False) -> SessionClaims:
        """What a session token says; with ``expired`` also one that has: for who goes on with what has begun in its time."""
        claims = self._verified(token, _SESSION_AUDIENCE, "a session token", expired=expired)
        if _time(claims, "nbf") - self._leeway > self._clock():
            raise Refused("the token is not valid yet: is a clock wrong?")
        end = _text(claims, "role")
        epoch = claims.get("epoch")
        if end not in ("client", "exporter"):
            raise Refused("the token is for no end of a session that this version knows")
        if type(epoch) is not int:
            raise Refused("the token does not say its epoch")
        return SessionClaims(
            client=_text(claims, "sub"),
            end="client" if end == "client" else "exporter",
            exporter=_text(claims, "exporter"),
            lease=_text(claims, "lease"),
            epoch=epoch,
            session=_text(claims, "session"),
            allow=_patterns(claims, "allow"),
            deny=_patterns(claims, "deny"),
            id=_text(claims, "jti"),
            expires=_time(claims, "exp"),
        )

    def _verified(self, token: str, audience: frozenset[str], kind: str, *, expired: bool = False) -> dict[str, Any]:
        """All claims, with those checked that every token has."""
        if len(token) > MAX_TOKEN:
            raise Refused(f"the token is longer than {MAX_TOKEN} characters: this is none of ours")
        header = _part(token, 0)
        if header.get("alg") != ALGORITHM:
            raise Refused(f"the token is signed in another way than {ALGORITHM}, or not at all")
        kid = header.get("kid")
        key = self._keys.get(kid) if isinstance(kid, str) else None
        if key is None:
            raise Refused("the token is signed with a key that this lab does not have")
        claims = _signed(token, key)
        if _time(claims, "exp") + self._leeway <= self._clock() and not expired:
            raise Refused("the token has expired")
        if claims.get("iss") != ISSUER:
            raise Refused("the token was not issued by a jmp controller")
        if _audience(claims) != audience:
            raise Refused(f"the token is for something else: {kind} is needed here")
        if _text(claims, "jti") in self._revoked:
            raise Refused("the token was revoked")
        return claims


def peek(token: str) -> dict[str, Any]:
    """What an identity token says of itself (``name``, ``role``, ``expires``), for listings. Verifies nothing.

    What it does not say, or not as a token does, is None. Raises :class:`~jmp.errors.Refused` if this is no token.
    """
    if len(token) > MAX_TOKEN:
        raise Refused(_BROKEN)
    claims = _part(token, 1)
    name, role, expires = (claims.get(claim) for claim in ("sub", "role", "exp"))
    return {
        "name": name if isinstance(name, str) else None,
        "role": role if isinstance(role, str) else None,
        "expires": float(expires) if _is_time(expires) else None,
    }


@dataclass(frozen=True)
class Account:
    """What a token of a Kubernetes service account says of itself."""

    audiences: frozenset[str]
    expires: float | None


def account_of(token: str) -> Account | None:
    """What it says if it is a service account's, else None. Verifies nothing: that is the cluster's to do."""
    try:
        if len(token) > MAX_TOKEN:
            return None
        claims = _part(token, 1)
    except Refused:
        return None
    if claims.get("iss") == ISSUER or not str(claims.get("sub")).startswith(SERVICE_ACCOUNT):
        return None
    expires = claims.get("exp")
    return Account(_audience(claims), float(expires) if _is_time(expires) else None)


def _signed(token: str, key: Mapping[str, Any]) -> dict[str, Any]:
    """The claims, if ``key`` signed them. Only the signature is the library's to check: for times it has its own clock alone."""
    import jwt

    try:
        public = jwt.PyJWK(dict(key), algorithm=ALGORITHM).key
        payload = jwt.PyJWS(algorithms=[ALGORITHM]).decode(token, public, algorithms=[ALGORITHM])
    except jwt.InvalidSignatureError:
        raise Refused("the token's signature is wrong: it was changed, or another lab made it") from None
    except (jwt.PyJWTError, ValueError):
        raise Refused(_BROKEN) from None
    return _object(payload)


def _part(token: str, number: int) -> dict[str, Any]:
    """The header (0) or the claims (1), unverified."""
    parts = token.split(".")
    if len(parts) != 3:
        raise Refused(_BROKEN)
    try:
        return _object(base64.b64decode(parts[number] + "=" * (-len(parts[number]) % 4), altchars="-_", validate=True))
    except ValueError:
        raise Refused(_BROKEN) from None


def _object(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Refused(_BROKEN) from None
    if not isinstance(value, dict):
        raise Refused(_BROKEN)
    return value


def _audience(claims: Mapping[str, Any]) -> frozenset[str]:
    audience = claims.get("aud")
    names = audience if isinstance(audience, list) else [audience]
    return frozenset(name for name in names if isinstance(name, str))


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(f"the token does not say its {name}")
    return value


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _LATEST


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    if not _is_time(value):
        raise Refused(f"the token does not say its {name}")
    return float(value)


def _patterns(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = claims.get(name)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused(f"the token does not say its {name}")
    return tuple(value)
