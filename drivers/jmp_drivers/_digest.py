"""Digest access authentication (RFC 7616, ``qop=auth``): the answer to a server's challenge."""

from __future__ import annotations

import hashlib
from urllib.request import parse_http_list, parse_keqv_list

_HASHES = {"SHA-256": "sha256", "MD5": "md5"}


def authorization(challenge: str, *, method: str, uri: str, username: str, password: str, cnonce: str) -> str:
    """The ``Authorization`` header for one request; ``cnonce`` must be fresh and random.

    Raises ``ValueError`` for a challenge that is none, or asks for what is not known here.
    """
    scheme, _, rest = challenge.partition(" ")
    if scheme.lower() != "digest":
        raise ValueError(f"it asks for {scheme or 'no'} authentication, not for digest")
    asked = parse_keqv_list(parse_http_list(rest))
    algorithm = asked.get("algorithm", "MD5")
    if algorithm not in _HASHES or "auth" not in asked.get("qop", "").replace(",", " ").split():
        raise ValueError(f"it asks for digest authentication of an unknown kind ({algorithm})")
    if "realm" not in asked or "nonce" not in asked:
        raise ValueError("its challenge lacks a realm or nonce")

    def digest(*parts: str) -> str:
        return hashlib.new(_HASHES[algorithm], ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    count = "00000001"  # each answer is to a challenge of its own
    who = digest(username, asked["realm"], password)
    response = digest(who, asked["nonce"], count, cnonce, "auth", digest(method, uri))
    quoted = {"username": username, "realm": asked["realm"], "nonce": asked["nonce"], "uri": uri, "cnonce": cnonce}
    quoted |= {"response": response} | ({"opaque": asked["opaque"]} if "opaque" in asked else {})
    fields = [f'{key}="{value}"' for key, value in quoted.items()]
    return f"Digest {', '.join([*fields, 'qop=auth', f'nc={count}', f'algorithm={algorithm}'])}"
