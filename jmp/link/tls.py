"""TLS, sans-I/O: ciphertext ↔ plaintext, so that both kinds of WebSocket link do their own reading and writing.

Because OpenSSL never touches the socket, what is encrypted can be written without waiting, like plain bytes, and a
cancelled or partial write loses nothing. Import this only for ``wss``: :mod:`ssl` is heavy.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import ssl
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from jmp.errors import ConfigError, LabError, ProtocolViolation, Refused, Timeout, UsageError
from jmp.link.address import Address, parse
from jmp.private import read_private, write_private

log = logging.getLogger(__name__)

_MOST_PEM: Final = 64 << 10
_RECORD: Final = 16 << 10  # most plaintext bytes in one TLS record (RFC 8446, section 5.1)


def client_context(*, ca: str | os.PathLike[str] | None = None, pinned: bool = False) -> ssl.SSLContext:
    """Make a context that verifies as usual, against ``ca`` (PEM) if given.

    ``pinned``: verify nothing here, because :meth:`Tls.check_fingerprint` will.
    """
    if pinned:  # without reading the system's certificates, which takes longer than all the rest
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise ConfigError(f"cannot read the CA certificates in {ca}: {_reason(error)}") from error


def server_context(certificate: str | os.PathLike[str], key: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Make a context for a listener from a certificate chain and its key (PEM; one file may hold both)."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(f"cannot use the certificate {certificate}: {_reason(error)}") from error
    return context


def _reason(error: OSError) -> str:
    """What is wrong with a file, in words: OpenSSL has names for that, and the rest numbers."""
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "it is no PEM file"
    return error.strerror or str(error)


def fetch_ca(url: str, fingerprint: str, *, timeout: float = 15.0) -> str:
    """Get the CA certificate (PEM) of the lab at ``url``, which nothing vouches for yet but ``fingerprint`` (SHA-256). Blocks.

    Nothing secret is sent. Raises :class:`~jmp.errors.Refused` if it is another one, and :class:`~jmp.errors.LabError` or
    :class:`~jmp.errors.Timeout` if there is none to get.
    """
    address = parse(url)
    if address.scheme != "wss":
        raise UsageError(f"a CA fingerprint needs a wss:// address, not {address}")
    expected = normal_fingerprint(fingerprint)
    content = _get(address, "/ca.pem", timeout)
    try:
        pem = first_certificate(content.decode("ascii"))
        actual = fingerprint_of(ssl.PEM_cert_to_DER_cert(pem))
    except ValueError:
        raise ProtocolViolation(
            f"what {address} gives as its CA is no certificate: is this a jmp controller?"
        ) from None
    if not hmac.compare_digest(actual, expected):
        raise Refused(
            f"the CA of {address} is not the expected one: its fingerprint is {actual}; ask the lab's admin which is right"
        )
    return pem


def keep_ca(file: Path, url: str, fingerprint: str) -> None:
    """Have in ``file`` what :func:`fetch_ca` gets; fetched only if it is not there yet. Blocks, and raises as that does."""
    kept = read_private(file)
    if kept is not None:
        with suppress(ValueError):
            pem = first_certificate(kept.decode("ascii"))
            if fingerprint_of(ssl.PEM_cert_to_DER_cert(pem)) == normal_fingerprint(fingerprint):
                return
    write_private(file, fetch_ca(url, fingerprint).encode())


def _get(address: Address, path: str, timeout: float) -> bytes:
    import http.client

    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=timeout, context=client_context(pinned=True)
    )
    try:
        connection.request("GET", path)
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise LabError(f"{address} has no CA to give (it answered {answer.status}): is this a jmp controller?")
            return answer.read(_MOST_PEM)
    except TimeoutError as error:
        raise Timeout(f"{address} did not answer in time") from error
    except ssl.SSLError as error:
        raise ProtocolViolation(f"{address}: the TLS handshake failed: {error.reason or error}") from error
    except http.client.HTTPException as error:
        raise ProtocolViolation(f"{address} does not speak HTTP: is this a jmp controller?") from error
    except OSError as error:
        raise LabError(f"cannot reach {address}: {error.strerror or error}") from error
    finally:
        connection.close()


def self_signed(file: Path, name: str) -> str:
    """Make a key and a certificate of its own, if ``file`` is missing; return the fingerprint by which clients pin it.

    It is good for ten years; nothing but its fingerprint is ever checked. Raises :class:`~jmp.errors.ConfigError`.
    """
    pem = read_private(file)
    if pem is None:
        pem = _self_signed(name)
        write_private(file, pem)
    try:
        return fingerprint_of(ssl.PEM_cert_to_DER_cert(first_certificate(pem.decode("ascii"))))
    except ValueError as error:
        raise ConfigError(f"{file} holds no certificate: remove it, and a new one is made") from error


def first_certificate(pem: str) -> str:
    """The first certificate of a PEM text, without what else is in it. Raises ``ValueError`` if there is none."""
    _, begin, rest = pem.partition("-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    if not end:
        raise ValueError("there is no certificate in it")
    return f"{begin}{body}{end}\n"


def _self_signed(name: str) -> bytes:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"jmp {name}"[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + private


def fingerprint_of(certificate: bytes) -> str:
    """Return the fingerprint of a certificate (DER), as :func:`normal_fingerprint` writes it."""
    return hashlib.sha256(certificate).hexdigest()


def normal_fingerprint(text: str) -> str:
    """Read a SHA-256 fingerprint as people and tools write it: hex in any case, with or without colons."""
    digits = text.strip().lower().removeprefix("sha256:").replace(":", "")
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise UsageError(f"{text!r} is not a SHA-256 fingerprint: 64 hexadecimal digits are needed")
    return digits


class Tls:
    """One side of a TLS connection. All methods raise :class:`~jmp.errors.ProtocolViolation` if the peer breaks TLS.

    After each :meth:`handshake` step, and with each :meth:`encrypt`, what is returned has to be sent. What
    :meth:`decrypt` makes necessary to answer (a key update) leaves with the next :meth:`encrypt`.
    """

    def __init__(self, context: ssl.SSLContext, *, server_side: bool, hostname: str | None = None) -> None:
        # So that encrypting never has to wait for the peer. TLS 1.3 has no renegotiation in the first place.
        context.options |= ssl.OP_NO_RENEGOTIATION
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=None if server_side else hostname
        )

    def feed(self, data: bytes) -> None:
        """Take ciphertext that arrived, ``b""`` for the end of input."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def handshake(self) -> tuple[bool, bytes]:
        """Go on with the handshake; return whether it is complete, and what to send.

        Raises :class:`~jmp.errors.Refused` if the peer's certificate is not to be trusted.
        """
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False, self._outgoing.read()
        except ssl.SSLCertVerificationError as error:
            raise Refused(
                f"the server's certificate is not trusted: {error.verify_message}; give its CA or its fingerprint"
            ) from error
        except ssl.SSLError as error:
            raise ProtocolViolation(f"the TLS handshake failed: {error.reason or error}") from error
        return True, self._outgoing.read()

    def check_fingerprint(self, fingerprint: str) -> None:
        """Compare the peer's certificate with a pinned one; before anything secret is sent."""
        certificate = self._object.getpeercert(binary_form=True)
        actual = fingerprint_of(certificate or b"")
        if not hmac.compare_digest(actual, normal_fingerprint(fingerprint)):
            raise Refused(f"the server's certificate is another one than expected; its fingerprint is {actual}")

    def encrypt(self, parts: Sequence[bytes | memoryview]) -> bytes:
        """Return the ciphertext of the parts, and what else is due to be sent."""
        plain = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            if plain:
                self._object.write(plain)
        except ssl.SSLError as error:
            raise ProtocolViolation(f"TLS failed: {error.reason or error}") from error
        return self._outgoing.read()

    def decrypt(self) -> bytes | None:
        """Return all plaintext that is complete, ``b""`` for none yet, None for the end of input."""
        pieces = []
        try:
            while piece := self._object.read(_RECORD):
                pieces.append(piece)
                if not self._incoming.pending and not self._object.pending():
                    return piece if len(pieces) == 1 else b"".join(pieces)  # without asking in vain, which takes longer
        except ssl.SSLWantReadError:
            return b"".join(pieces)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            # An end without close_notify is fine: WebSocket has its own good-bye.
            pass
        except ssl.SSLError as error:
            raise ProtocolViolation(f"TLS failed: {error.reason or error}") from error
        return b"".join(pieces) or None
