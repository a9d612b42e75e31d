"""Keys, tokens and certificates of a lab; and how somebody who knows a fingerprint only joins it, over real sockets."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import ssl
import stat
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from jmp.controller.keys import CERTIFICATE_DAYS, RENEW_DAYS, SESSION_SECONDS, Keys
from jmp.errors import ConfigError, JmpError, LabError, ProtocolViolation, Refused, Timeout, UsageError
from jmp.link import Link, websocket
from jmp.link.tls import fetch_ca, fingerprint_of, self_signed, server_context
from jmp.wire.records import Role
from jmp.wire.tokens import Verifier

DAY = 86400.0
NOW = 1_800_000_000.0


class Clock:
    """One that is set."""

    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def verifier(keys: Keys, now: float = NOW) -> Verifier:
    return Verifier(keys.jwks(), frozenset(), clock=lambda: now)


def session(keys: Keys) -> str:
    return keys.session(
        end="client", client="bo", exporter="board", lease="l1", epoch=3, session="s1", allow=("power.*",), deny=("x",)
    )


# ---- tokens


def test_identity(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [], clock=Clock())
    token, record = keys.identity("bo", Role.CLIENT, 60.0)
    assert (record.subject, record.role, record.issued, record.expires) == ("bo", Role.CLIENT, NOW, NOW + 60)
    read = verifier(keys).identity(token)
    assert (read.name, read.role, read.id, read.expires) == ("bo", Role.CLIENT, record.id, NOW + 60)
    assert keys.identity("bo", Role.CLIENT, 60.0)[1].id != record.id


def test_session(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [], clock=Clock())
    read = verifier(keys).session(session(keys))
    assert (read.client, read.end, read.exporter, read.lease, read.epoch) == ("bo", "client", "board", "l1", 3)
    assert (read.session, read.allow, read.deny, read.expires) == ("s1", ("power.*",), ("x",), NOW + SESSION_SECONDS)


def test_neither_is_the_other(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [], clock=Clock())
    with pytest.raises(Refused, match="an identity token is needed here"):
        verifier(keys).identity(session(keys))
    with pytest.raises(Refused, match="a session token is needed here"):
        verifier(keys).session(keys.identity("bo", Role.CLIENT, 60.0)[0])


def test_another_lab(tmp_path: Path) -> None:
    one, other = (Keys.open(tmp_path / name, [], clock=Clock()) for name in ("one", "other"))
    with pytest.raises(Refused, match="a key that this lab does not have"):
        verifier(other).identity(one.identity("bo", Role.CLIENT, 60.0)[0])


async def test_rotation(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [], clock=Clock())
    before, _ = keys.identity("bo", Role.CLIENT, 60.0)
    old_keys = verifier(keys)
    kid = await keys.rotate()
    after, _ = keys.identity("cy", Role.CLIENT, 60.0)
    assert [key["kid"] for key in keys.jwks()["keys"]][-1] == kid
    for reopened in (keys, Keys.open(tmp_path, [], clock=Clock())):
        assert verifier(reopened).identity(before).name == "bo"
        assert verifier(reopened).identity(after).name == "cy"
        assert reopened.jwks() == keys.jwks()
    with pytest.raises(Refused, match="a key that this lab does not have"):
        old_keys.identity(after)


async def test_retired_key_cannot_sign_any_more(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [], clock=Clock())
    session(keys)
    await keys.rotate()
    retired, present = json.loads((tmp_path / "keys.json").read_text())["keys"]
    assert "private" not in retired
    assert retired["retired"] == NOW
    assert present["retired"] is None
    assert "private" not in json.dumps(keys.jwks())
    assert all(set(key) == {"kty", "crv", "use", "alg", "kid", "x"} for key in keys.jwks()["keys"])


async def test_retired_key_goes_with_its_last_token(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys.open(tmp_path, [], clock=clock)
    short, _ = keys.identity("bo", Role.CLIENT, 60.0)
    long, _ = keys.identity("cy", Role.CLIENT, 3 * DAY)
    await keys.rotate()
    clock.now += 3 * DAY
    keys = Keys.open(tmp_path, [], clock=clock)
    assert verifier(keys, clock.now).identity(long).name == "cy"
    with pytest.raises(Refused, match="expired"):
        verifier(keys, clock.now).identity(short)
    clock.now += DAY + 60
    kid = await keys.rotate()
    assert [key["kid"] for key in keys.jwks()["keys"]] == [kid]
    assert [key["kid"] for key in json.loads((tmp_path / "keys.json").read_text())["keys"]] == [kid]


def test_file_of_keys_is_seldom_written(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys.open(tmp_path, [], clock=clock)
    for _ in range(3):
        written = (tmp_path / "keys.json").stat().st_ino
        session(keys)
        clock.now += 60
    assert (tmp_path / "keys.json").stat().st_ino == written


# ---- files


async def test_only_the_owner_can_read_them(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path / "lab", [], clock=Clock())
    await keys.rotate()
    assert stat.S_IMODE((tmp_path / "lab").stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "lab").iterdir()}
    assert modes == dict.fromkeys(["keys.json", "ca-with-key.pem", "server.pem"], 0o600)


def test_file_that_others_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Keys.open(tmp_path, [], clock=Clock())
    (tmp_path / "keys.json").chmod(0o644)
    Keys.open(tmp_path, [], clock=Clock())
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    assert f"{tmp_path / 'keys.json'} could be read by others" in caplog.text


@pytest.mark.parametrize("name", ["keys.json", "ca-with-key.pem"])
@pytest.mark.parametrize(
    "content", ["", "{}", '{"keys": []}', '{"keys": [{"kid": "x"}]}', "-----BEGIN CERTIFICATE-----"]
)
def test_damaged_file(tmp_path: Path, name: str, content: str) -> None:
    """It is never replaced: every token and everybody's trust would be gone."""
    Keys.open(tmp_path, [], clock=Clock())
    (tmp_path / name).write_text(content)
    with pytest.raises(LabError, match=rf"^{tmp_path / name} (is damaged|has no key to sign with): restore a backup$"):
        Keys.open(tmp_path, [], clock=Clock())
    assert (tmp_path / name).read_text() == content


def test_ca_of_one_lab_with_the_key_of_another(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    Keys.open(one, [], clock=Clock())
    certificate = Keys.open(other, [], clock=Clock()).ca_pem
    file = one / "ca-with-key.pem"
    file.write_text(certificate + file.read_text().partition("-----END CERTIFICATE-----\n")[2])
    with pytest.raises(LabError, match="do not belong together"):
        Keys.open(one, [], clock=Clock())


def test_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JmpError, match=r"file/lab/keys.json cannot be (read|written): Not a directory$"):
        Keys.open(tmp_path / "file" / "lab", [])


# ---- certificates


def served(directory: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / "server.pem").read_bytes())


def names_of(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def test_names(tmp_path: Path) -> None:
    Keys.open(tmp_path, ["Lab.example", "10.1.2.3", "[fe80::1]", "bücher.example", "localhost"], clock=Clock())
    assert names_of(served(tmp_path)) == [
        "lab.example",
        "10.1.2.3",
        "fe80::1",
        "xn--bcher-kva.example",
        "localhost",
        "127.0.0.1",
        "::1",
    ]


@pytest.mark.parametrize("name", ["", "two words", "host:8443", "https://lab", ".lab", "a" * 64])
def test_no_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match="is neither a host name nor an IP address: no certificate can be made for it"
    ):
        Keys.open(tmp_path, [name])


def test_new_certificate_only_when_needed(tmp_path: Path) -> None:
    clock = Clock()
    keys = Keys.open(tmp_path, ["lab"], clock=clock)
    first = served(tmp_path)
    clock.now += (CERTIFICATE_DAYS - RENEW_DAYS) * DAY - 60
    assert Keys.open(tmp_path, ["lab"], clock=clock).ca_fingerprint == keys.ca_fingerprint
    assert served(tmp_path) == first
    clock.now += 120
    Keys.open(tmp_path, ["lab"], clock=clock)
    second = served(tmp_path)
    assert second.not_valid_after_utc.timestamp() == pytest.approx(clock.now + CERTIFICATE_DAYS * DAY, abs=1)
    Keys.open(tmp_path, ["lab", "10.0.0.1"], clock=clock)
    third = served(tmp_path)
    assert len({first, second, third}) == 3
    for text in ("", "garbage"):
        (tmp_path / "server.pem").write_text(text)
        Keys.open(tmp_path, ["lab"], clock=clock)
        assert names_of(served(tmp_path))[0] == "lab"


def test_certificate_of_another_ca_is_replaced(tmp_path: Path) -> None:
    Keys.open(tmp_path, [], clock=Clock())
    (tmp_path / "ca-with-key.pem").unlink()
    keys = Keys.open(tmp_path, [], clock=Clock())
    served(tmp_path).verify_directly_issued_by(x509.load_pem_x509_certificate(keys.ca_pem.encode()))


@pytest.mark.real
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_finds_nothing_to_blame(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, ["lab.example"])
    (tmp_path / "ca.pem").write_text(keys.ca_pem)
    for check in (["-verify_hostname", "lab.example"], ["-verify_ip", "127.0.0.1"], ["-verify_ip", "::1"]):
        subprocess.run(
            ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "ca.pem", *check, "server.pem"],
            check=True,
            cwd=tmp_path,
            capture_output=True,
        )


async def test_renewal_that_fails_is_tried_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Keys.open(tmp_path, [])
    (tmp_path / "server.pem").unlink()
    (tmp_path / "server.pem").mkdir()
    async with trio.open_nursery() as nursery:
        await nursery.start(keys.keep_fresh)
        await trio.sleep(1)
        assert "the server's certificate cannot be renewed, which is tried again: " in caplog.text
        (tmp_path / "server.pem").rmdir()
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    assert names_of(served(tmp_path)) == ["localhost", "127.0.0.1", "::1"]


def test_self_signed(tmp_path: Path) -> None:
    file = tmp_path / "new" / "tls.pem"
    fingerprint = self_signed(file, "exporter board")
    assert self_signed(file, "exporter board") == fingerprint
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=jmp exporter board"
    server_context(file)
    file.write_text("nothing")
    with pytest.raises(ConfigError, match=r"tls\.pem holds no certificate: remove it, and a new one is made"):
        self_signed(file, "exporter board")


# ---- joining


@asynccontextmanager
async def lab(keys: Keys, pages: dict[str, tuple[str, bytes]] | None = None) -> AsyncIterator[int]:
    """A listener of a controller, which greets and closes; at a port of 127.0.0.1."""
    if pages is None:
        pages = {"/ca.pem": ("application/x-pem-file", keys.ca_pem.encode())}

    async def greet(link: Link, token: str | None) -> None:
        await link.send([f"hello {token}".encode()])

    async def let_in(request: websocket.UpgradeRequest) -> str | None:
        return request.token

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(websocket.serve, listeners, let_in, greet, tls=keys.tls(), pages=pages))
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()


async def fetched(url: str, fingerprint: str, **options: float) -> str:
    return await trio.to_thread.run_sync(partial(fetch_ca, url, fingerprint, **options))


async def greeting(url: str, ca: Path) -> bytes:
    link = await websocket.connect(url, token="secret", ca=ca)
    try:
        return await link.receive()
    finally:
        await link.aclose()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_join(tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    keys = Keys.open(tmp_path / "lab", [])
    fingerprint = ":".join(keys.ca_fingerprint[place : place + 2].upper() for place in range(0, 64, 2))
    async with lab(keys) as port:
        url = f"wss://{host}:{port}"
        pem = await fetched(url, fingerprint)
        assert pem == keys.ca_pem
        assert fingerprint_of(ssl.PEM_cert_to_DER_cert(pem)) == keys.ca_fingerprint
        (tmp_path / "ca.pem").write_text(pem)
        assert await greeting(url, tmp_path / "ca.pem") == b"hello secret"
    assert "was shown /ca.pem" in caplog.text


async def test_certificate_for_other_names_is_not_trusted(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path / "lab", [])
    (tmp_path / "ca.pem").write_text(keys.ca_pem)
    async with lab(keys) as port:
        link = await websocket.connect(f"wss://localhost:{port}", ca=tmp_path / "ca.pem")
        await link.aclose()
        other = f"wss://127.0.0.2:{port}"
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.2")
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(websocket.serve, listeners, _nobody, _nothing, tls=keys.tls()))
            with pytest.raises(Refused, match=r"certificate is not trusted: IP address mismatch"):
                await websocket.connect(other, ca=tmp_path / "ca.pem")
            nursery.cancel_scope.cancel()


async def _nobody(request: websocket.UpgradeRequest) -> None:
    raise Refused("nobody is let in")


async def _nothing(link: Link, who: None) -> None:
    pass


async def test_another_lab_is_not_trusted(tmp_path: Path) -> None:
    keys, other = (Keys.open(tmp_path / name, []) for name in ("lab", "other"))
    (tmp_path / "ca.pem").write_text(other.ca_pem)
    async with lab(keys) as port:
        with pytest.raises(Refused, match="certificate is not trusted"):
            await greeting(f"wss://localhost:{port}", tmp_path / "ca.pem")
        with pytest.raises(Refused) as caught:
            await fetched(f"wss://localhost:{port}", other.ca_fingerprint)
        assert caught.value.message == (
            f"the CA of wss://localhost:{port}/ is not the expected one: its fingerprint is {keys.ca_fingerprint};"
            " ask the lab's admin which is right"
        )


async def test_renewed_certificate_is_used_at_once(tmp_path: Path) -> None:
    clock = Clock(NOW - CERTIFICATE_DAYS * DAY)
    keys = Keys.open(tmp_path / "lab", [], clock=clock)
    (tmp_path / "ca.pem").write_text(keys.ca_pem)

    def shown(port: int) -> bytes:
        return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port), timeout=60))

    async with lab(keys) as port:
        before = await trio.to_thread.run_sync(shown, port)
        clock.now = NOW
        assert keys.renew() == CERTIFICATE_DAYS * DAY
        after = await trio.to_thread.run_sync(shown, port)
    assert before != after
    assert x509.load_der_x509_certificate(after) == served(tmp_path / "lab")


async def test_nothing_to_join(tmp_path: Path) -> None:
    keys = Keys.open(tmp_path, [])
    url = "wss://localhost"
    with pytest.raises(UsageError, match=r"^a CA fingerprint needs a wss:// address, not ws://localhost/$"):
        fetch_ca("ws://localhost", keys.ca_fingerprint)
    with pytest.raises(UsageError, match="is not a SHA-256 fingerprint: 64 hexadecimal digits are needed"):
        fetch_ca(url, "abc")
    async with lab(keys, {}) as port:
        with pytest.raises(LabError, match=r"has no CA to give \(it answered 400\): is this a jmp controller\?$"):
            await fetched(f"{url}:{port}", keys.ca_fingerprint)
    with pytest.raises(LabError, match=rf"^cannot reach wss://localhost:{port}/: Connection refused$"):
        await fetched(f"{url}:{port}", keys.ca_fingerprint)
    async with lab(keys, {"/ca.pem": ("text/plain", b"hello")}) as port:
        with pytest.raises(ProtocolViolation, match=r"gives as its CA is no certificate: is this a jmp controller\?$"):
            await fetched(f"{url}:{port}", keys.ca_fingerprint)


async def test_join_of_what_speaks_something_else() -> None:
    async def answer(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async for _ in stream:
                await stream.send_all(b"500 command not recognized\r\n")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"wss://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, answer, listeners)
        with pytest.raises(ProtocolViolation, match=r"the TLS handshake failed"):
            await fetched(url, "0" * 64)
        nursery.cancel_scope.cancel()


async def test_join_of_what_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(Timeout, match=rf"^wss://127.0.0.1:{port}/ did not answer in time$"):
            await fetched(f"wss://127.0.0.1:{port}", "0" * 64, timeout=0.05)
