"""What the lab proves itself with: keys that sign tokens, its CA, and the certificate of its listeners.

Everything is in files of its directory that only their owner can read, each one written whole or not at all. Of a signing key
that has been retired only the public half is kept, until the last token that it signed is over: what it signed stays good, and
nobody can sign with it any more.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import logging
import math
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

import jwt
import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from jmp.errors import ConfigError, LabError
from jmp.link.tls import fingerprint_of, server_context
from jmp.private import read_private, write_private
from jmp.wire.records import Role, Token
from jmp.wire.tokens import ALGORITHM, ISSUER, LEEWAY, Verifier

log = logging.getLogger("jmp.controller")

SESSION_SECONDS: Final = 600.0
"""A session token is used at once; this is for slow ways and clocks."""
CA_DAYS: Final = 7300
CERTIFICATE_DAYS: Final = 365
RENEW_DAYS: Final = 90
"""A server certificate that is good for less than this is renewed."""
ALWAYS: Final = ("localhost", "127.0.0.1", "::1")

_DAY: Final = 86400.0
_RETRY_SECONDS: Final = 3600.0
_KEYS: Final = "keys.json"
_CA: Final = "ca-with-key.pem"
_SERVER: Final = "server.pem"
LASTING: Final = (_KEYS, _CA)
"""The files by which others know a lab; the rest is made of them."""
_SHARED: Final = "what the controllers of this lab share as their keys"


@dataclass(frozen=True)
class _Key:
    """A signing key; ``private`` until it is retired. Times are seconds since the epoch."""

    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None
    created: float
    until: float = 0.0
    """No token that it signed is good for longer; a whole day, so that it seldom has to be written."""
    retired: float | None = None

    @property
    def kid(self) -> str:
        return hashlib.sha256(self.public.public_bytes_raw()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        halves = {"private": self.private.private_bytes_raw().hex()} if self.private is not None else {}
        return {
            "kid": self.kid,
            "created": self.created,
            "until": self.until,
            "retired": self.retired,
            "public": self.public.public_bytes_raw().hex(),
            **halves,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> _Key:
        private = value.get("private")
        return cls(
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(value["public"])),
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private)) if private is not None else None,
            float(value["created"]),
            float(value["until"]),
            value["retired"],
        )


class Keys:
    """Made by :meth:`open`. What it writes is on the disk when a method returns; that takes milliseconds, and blocks."""

    def __init__(self, directory: Path, names: Sequence[str], clock: Callable[[], float]) -> None:
        self._directory = directory
        self._names = _sans(names)
        self._clock = clock
        self._keys = self._load_keys()
        self._ca_key, self._ca = self._load_ca()
        self._context: ssl.SSLContext | None = None
        self.share: Callable[[Mapping[str, bytes]], Awaitable[None]] = _with_nobody
        """Lets the other controllers of this lab have what is in the files, and its argument; they can when this returns."""
        self.renew()

    changed: Callable[[], None] = staticmethod(lambda: None)
    """Called whenever there is something new in the files that are shared."""

    @classmethod
    def open(cls, directory: Path, names: Sequence[str], *, clock: Callable[[], float] = time.time) -> Keys:
        """The keys in ``directory``; what is missing is made. ``names`` are the host names and addresses that others use.

        Raises :class:`~jmp.errors.LabError` if a file is damaged, :class:`~jmp.errors.ConfigError` for a name that is none.
        """
        return cls(directory, names, clock)

    # ---- shared with other controllers

    def files(self) -> dict[str, bytes]:
        """What all controllers of this lab have, by name: secrets. The server's certificate is each one's own."""
        found = {name: read_private(self._directory / name) for name in (_KEYS, _CA)}
        return {name: content for name, content in found.items() if content is not None}

    def union(self, *others: Mapping[str, bytes]) -> dict[str, bytes]:
        """My files with the signing keys of ``others``, too. A key that one of them has retired is.

        What are no keys count for nothing. Raises :class:`~jmp.errors.LabError` if they are another lab's.
        """
        keys: Sequence[_Key] = self._keys
        for files in others:
            if files.get(_CA, mine := self.files()[_CA]) != mine:
                raise LabError("the keys that the controllers of this lab share are another lab's now: start again")
            if _KEYS in files:
                try:
                    keys = _merged(keys, self._parse(files[_KEYS], _SHARED))
                except LabError as error:
                    log.error("%s", error)
        return {**self.files(), _KEYS: _text(self._needed(keys))}

    def adopt(self, files: Mapping[str, bytes]) -> None:
        """Take over the signing keys that another controller of this lab has made. Raises as :meth:`union` does."""
        text = self.union(files)[_KEYS]
        if text != self.files().get(_KEYS):
            self._save(self._parse(text, _SHARED))

    # ---- tokens

    async def rotate(self) -> str:
        """Sign with a new key from now on; returns its id. What others have signed stays good.

        Other controllers of this lab have it when this returns. If they cannot (``LabError``), nothing has changed.
        """
        now = self._clock()
        private = Ed25519PrivateKey.generate()
        key = _Key(private.public_key(), private, now)
        retired = [replace(old, private=None, retired=old.retired or now) for old in self._keys]
        files = {**self.files(), _KEYS: _text([*retired, key])}
        await self.share(files)
        self.adopt(files)
        return key.kid

    def jwks(self) -> dict[str, Any]:
        """What tokens are verified with: a JWK set (RFC 7517, RFC 8037)."""
        return {
            "keys": [
                {
                    "kty": "OKP",
                    "crv": "Ed25519",
                    "use": "sig",
                    "alg": ALGORITHM,
                    "kid": key.kid,
                    "x": base64.urlsafe_b64encode(key.public.public_bytes_raw()).rstrip(b"=").decode(),
                }
                for key in self._needed(self._keys)
            ]
        }

    def _needed(self, keys: Sequence[_Key]) -> list[_Key]:
        now = self._clock()
        return [key for key in keys if key.retired is None or key.until + LEEWAY > now]

    def identity(self, name: str, role: Role, seconds: float) -> tuple[str, Token]:
        """A new identity token, and the record of it."""
        now = self._clock()
        record = Token(id=secrets.token_hex(8), subject=name, role=role, issued=now, expires=now + seconds)
        token = self._sign(name, record.id, now, record.expires, role=str(role), aud="controller")
        return token, record

    def record_of(self, token: str) -> Token:
        """The record of an identity token that was made here. Raises :class:`~jmp.errors.Refused` if this is none."""
        who = Verifier(self.jwks(), frozenset(), clock=self._clock).identity(token)
        return Token(id=who.id, subject=who.name, role=who.role, issued=who.issued, expires=who.expires)

    def session(
        self,
        *,
        end: Literal["client", "exporter"],
        client: str,
        exporter: str,
        lease: str,
        epoch: int,
        session: str,
        allow: Sequence[str],
        deny: Sequence[str],
    ) -> str:
        """A token for one end of a session, good for :data:`SESSION_SECONDS`."""
        now = self._clock()
        return self._sign(
            client,
            secrets.token_hex(8),
            now,
            now + SESSION_SECONDS,
            role=end,
            aud=["router", "exporter"],
            exporter=exporter,
            lease=lease,
            epoch=epoch,
            session=session,
            allow=list(allow),
            deny=list(deny),
        )

    def _sign(self, subject: str, id: str, now: float, expires: float, **claims: Any) -> str:
        key = self._keys[-1]
        if key.until < expires:
            key = replace(key, until=math.ceil(expires / _DAY) * _DAY)
            self._save([*self._keys[:-1], key])
        assert key.private is not None
        general = {"iss": ISSUER, "sub": subject, "jti": id, "iat": now, "nbf": now, "exp": expires}
        return jwt.encode({**general, **claims}, key.private, algorithm=ALGORITHM, headers={"kid": key.kid})

    def _load_keys(self) -> list[_Key]:
        file = self._directory / _KEYS
        text = read_private(file)
        if text is None:
            private = Ed25519PrivateKey.generate()
            return self._save([_Key(private.public_key(), private, self._clock())])
        keys = self._parse(text, str(file))
        if not keys or keys[-1].private is None:
            raise LabError(f"{file} has no key to sign with: restore a backup")
        return keys

    @staticmethod
    def _parse(text: bytes | str, what: str) -> list[_Key]:
        try:
            return [_Key.from_json(value) for value in json.loads(text)["keys"]]
        except (ValueError, KeyError, TypeError) as error:
            raise LabError(f"{what} is damaged: restore a backup") from error

    def _save(self, keys: list[_Key]) -> list[_Key]:
        write_private(self._directory / _KEYS, _text(keys))
        self._keys = keys
        self.changed()
        return keys

    # ---- TLS

    @property
    def ca_pem(self) -> str:
        """The CA's certificate, for all to see."""
        return self._ca.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the CA's certificate (DER): what a joining command is given to know the lab by."""
        return fingerprint_of(self._ca.public_bytes(serialization.Encoding.DER))

    def tls(self) -> ssl.SSLContext:
        """The context for the lab's listeners: always the same one, and always with the present certificate."""
        if self._context is None:
            self._context = server_context(self._directory / _SERVER)
        return self._context

    def renew(self) -> float:
        """Make a new server certificate if the present one ends soon, or is for other names.

        Connections that begin from then on get the new one. Returns for how many seconds that is good.
        """
        file = self._directory / _SERVER
        left = self._time_left(read_private(file))
        if left < RENEW_DAYS * _DAY:
            key = ec.generate_private_key(ec.SECP256R1())
            write_private(file, _pem(self._issue(key.public_key()), key))
            left = CERTIFICATE_DAYS * _DAY
            log.info("the certificate for %s was made", ", ".join(str(name.value) for name in self._names))
            if self._context is not None:
                self._context.load_cert_chain(file)
        return left

    async def keep_fresh(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew the server certificate whenever that is due, until cancelled. The log tells if that fails."""
        task_status.started()
        while True:
            try:
                left = self.renew()
            except ConfigError as error:
                log.error("the server's certificate cannot be renewed, which is tried again: %s", error)
                left = 0.0
            await trio.sleep(max(left - RENEW_DAYS * _DAY, _RETRY_SECONDS))

    def _time_left(self, pem: bytes | None) -> float:
        """Seconds for which the server certificate is good; 0 if it is good for nothing."""
        if pem is None:
            return 0.0
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            key = serialization.load_pem_private_key(pem, None)
            certificate.verify_directly_issued_by(self._ca)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return 0.0
        if key.public_key() != certificate.public_key() or set(names) != set(self._names):
            return 0.0
        return certificate.not_valid_after_utc.timestamp() - self._clock()

    def _load_ca(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        file = self._directory / _CA
        pem = read_private(file)
        if pem is None:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._self_signed_ca(key)
            write_private(file, _pem(certificate, key))
            return key, certificate
        try:
            loaded = serialization.load_pem_private_key(pem, None)
            certificate = x509.load_pem_x509_certificate(pem)
        except (ValueError, TypeError) as error:
            raise LabError(f"{file} is damaged: restore a backup") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey) or loaded.public_key() != certificate.public_key():
            raise LabError(f"{file} holds a certificate and a key that do not belong together: restore a backup")
        return loaded, certificate

    def _self_signed_ca(self, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"jmp lab CA {secrets.token_hex(4)}")])
        public = key.public_key()
        return (
            self._builder(name, name, public, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .sign(key, hashes.SHA256())
        )

    def _issue(self, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "jmp controller")])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._ca_key.public_key())
        return (
            self._builder(name, self._ca.subject, public, CERTIFICATE_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(x509.SubjectAlternativeName(self._names), critical=False)
            .sign(self._ca_key, hashes.SHA256())
        )

    def _builder(
        self, subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))  # clocks of others may be slow
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )


async def _with_nobody(files: Mapping[str, bytes]) -> None:
    await trio.lowlevel.checkpoint()


def _text(keys: Sequence[_Key]) -> bytes:
    return json.dumps({"keys": [key.to_json() for key in keys]}, indent=1).encode()


def _merged(mine: Sequence[_Key], others: Sequence[_Key]) -> list[_Key]:
    """The keys of both; the one to sign with is the last one, and since it was made no other is."""
    merged = {key.kid: key for key in mine}
    for other in others:
        known = merged.get(other.kid, other)
        retired = known.retired if known.retired is not None else other.retired
        private = None if retired is not None else known.private
        merged[other.kid] = replace(known, until=max(known.until, other.until), retired=retired, private=private)
    *earlier, last = sorted(merged.values(), key=lambda key: (key.private is not None, key.created, key.kid))
    return [*(replace(key, private=None, retired=key.retired or last.created) for key in earlier), last]


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    """Both in one file, so that they always belong together."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + private


def _sans(names: Sequence[str]) -> list[x509.GeneralName]:
    return [_san(name) for name in dict.fromkeys([*(name.strip("[]").lower() for name in names), *ALWAYS])]


def _san(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        encoded = name.encode("idna").decode("ascii")
    except UnicodeError:
        encoded = ""
    if not encoded or not set(encoded) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_*"):
        raise ConfigError(f"{name!r} is neither a host name nor an IP address: no certificate can be made for it")
    return x509.DNSName(encoded)
