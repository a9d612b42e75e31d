"""What a controller says of its keys, for those who verify tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from jmp.errors import ProtocolViolation
from jmp.wire.tokens import Verifier


def verifier_of(keys: Any) -> Verifier:
    """A verifier by the keys and the time that a controller has just told. Raises ``ProtocolViolation`` if it told none.

    From then on this process's monotonic clock counts: a clock of this machine that is wrong, or is set, changes nothing.
    """
    match keys:
        case {"jwks": Mapping() as jwks, "revoked": list(revoked), "now": float(now)}:
            behind = now - trio.current_time()
            return Verifier(jwks, frozenset(revoked), clock=lambda: behind + trio.current_time())
    raise ProtocolViolation("the controller sent no keys")
