"""Flash and dump against the virtual board's card, by threads and by tasks."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import trio
from moto.core import set_initial_no_auth_action_count
from moto.server import ThreadedMotoServer

from jmp.client.bmap import BlockMap, Part, joined, parse_bmap
from jmp.client.interfaces import client_class
from jmp.driver import Stream
from jmp.driver.images import PIECE, STRETCH, s3_request, s3_signature
from jmp.driver.interfaces import Storage
from jmp.driver.testing import serve
from jmp.errors import BadValue, DeviceError, JmpError, LabError, UsageError
from jmp_drivers.virtual_board.card import Card
from tests.fakes.sessions import shell_session

SIZE = 8 * PIECE
IMAGE = os.urandom(3 * PIECE + 12345)

Use = Callable[[Any], Any]


def by_threads(driver: Storage, use: Callable[[Any], Any]) -> Any:
    """What ``use`` makes of the driver's client."""
    with serve(driver, class_of=client_class) as client:
        return use(client)


class _Plain:
    """A Trio client for a thread: plain methods."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            return trio.from_thread.run(partial(getattr(self._client, name), *args, **kwargs))

        return call


def by_tasks(driver: Storage, use: Callable[[Any], Any]) -> Any:
    async def main() -> tuple[Any, BaseException | None]:
        with trio.fail_after(60):
            async with serve(driver, class_of=client_class) as client:
                try:
                    return await trio.to_thread.run_sync(use, _Plain(client)), None
                except (JmpError, AssertionError) as error:
                    return None, error

    result, error = trio.run(main)
    if error is not None:
        raise error  # on its own, not in a nursery's group
    return result


Side = Callable[[Storage, Use], Any]


@pytest.fixture(params=[by_threads, by_tasks])
def using(request: pytest.FixtureRequest) -> Side:
    side: Side = request.param
    return side


@pytest.fixture
def card(tmp_path: Path) -> Card:
    return Card(capacity=SIZE, image=tmp_path / "card")


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No thread of a transfer outlives it, and no file that is not complete."""
    yield
    assert "jmp-image" not in {thread.name for thread in threading.enumerate()}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


def unzstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-dqc"], input=data, stdout=subprocess.PIPE, check=True).stdout


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "img": bytes,
    "img.gz": gzip.compress,
    "img.xz": lzma.compress,
    "img.bz2": bz2.compress,
    "img.zst": zstd,
}


@cache
def packed_image(suffix: str) -> bytes:
    return PACKERS[suffix](IMAGE)


@pytest.mark.parametrize("suffix", PACKERS)
def test_flash(using: Side, card: Card, tmp_path: Path, suffix: str) -> None:
    image = tmp_path / f"an.{suffix}"
    image.write_bytes(packed_image(suffix))
    shown: list[tuple[int, int | None]] = []
    result = using(card, lambda client: client.flash(image, progress=lambda *at: shown.append(at)))
    assert result == {"bytes": len(IMAGE), "sha256": sha256(IMAGE), "seconds": result["seconds"]}
    assert (tmp_path / "card").read_bytes() == IMAGE.ljust(SIZE, b"\0")
    size = image.stat().st_size
    assert shown[-1] == (size, size)
    assert shown == sorted(shown)


def test_flash_what_is_packed_as_it_is_or_under_another_name(using: Side, card: Card, tmp_path: Path) -> None:
    packed = gzip.compress(IMAGE) + gzip.compress(b"a second member")
    (tmp_path / "image").write_bytes(packed)
    assert using(card, lambda client: client.flash(str(tmp_path / "image")))["bytes"] == len(IMAGE) + 15
    assert using(card, lambda client: client.flash(tmp_path / "image", decompress=False))["sha256"] == sha256(packed)
    assert (tmp_path / "card").read_bytes().startswith(packed)


def test_flash_at_an_offset_replaces_nothing_else(using: Side, card: Card, tmp_path: Path) -> None:
    (tmp_path / "card").write_bytes(b"\xff" * SIZE)
    (tmp_path / "zeros").write_bytes(bytes(2 * PIECE))
    using(card, lambda client: client.flash(tmp_path / "zeros", offset=512))
    assert (tmp_path / "card").read_bytes() == b"\xff" * 512 + bytes(2 * PIECE) + b"\xff" * (SIZE - 512 - 2 * PIECE)


def test_an_empty_image_and_one_that_fills_the_medium(using: Side, card: Card, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "full").write_bytes(os.urandom(SIZE))
    assert using(card, lambda client: client.flash(tmp_path / "empty"))["sha256"] == sha256(b"")
    assert using(card, lambda client: client.flash(tmp_path / "full"))["bytes"] == SIZE


def test_an_image_that_does_not_fit_is_refused_before_anything_is_written(
    using: Side, card: Card, tmp_path: Path
) -> None:
    (tmp_path / "image").write_bytes(b"x" * (SIZE - 511))

    def use(client: Any) -> None:
        with pytest.raises(
            BadValue, match=rf"image does not fit: it has {SIZE - 511} bytes and .* {SIZE} bytes, of which"
        ):
            client.flash(tmp_path / "image", offset=512)
        with pytest.raises(BadValue, match=f"offset {SIZE + 1} is not on the medium"):
            client.flash(tmp_path / "image", offset=SIZE + 1)
        with pytest.raises(BadValue, match="offset -1 is not on the medium"):
            client.flash(tmp_path / "image", offset=-1)

    using(card, use)
    assert (tmp_path / "card").read_bytes() == bytes(SIZE)


def test_a_packed_image_that_does_not_fit_ends_the_write(using: Side, card: Card, tmp_path: Path) -> None:
    (tmp_path / "image.gz").write_bytes(gzip.compress(b"x" * (SIZE + 1)))

    def use(client: Any) -> None:
        with pytest.raises(BadValue, match="they hold the beginning of it now"):
            client.flash(tmp_path / "image.gz")
        (tmp_path / "small").write_bytes(b"small")
        client.flash(tmp_path / "small")  # nobody is writing any more

    using(card, use)


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2", "zst"])
def test_what_cannot_be_unpacked(using: Side, card: Card, tmp_path: Path, suffix: str) -> None:
    packed = packed_image(f"img.{suffix}")
    (tmp_path / f"short.{suffix}").write_bytes(packed[: len(packed) // 2])
    (tmp_path / f"broken.{suffix}").write_bytes(packed[:100] + bytes(1000) + packed[1100:])
    (tmp_path / f"other.{suffix}").write_bytes(IMAGE)

    def use(client: Any) -> None:
        for name in ("short", "broken"):
            with pytest.raises(UsageError, match=rf"{name}.{suffix} cannot be unpacked: \w"):
                client.flash(tmp_path / f"{name}.{suffix}")
        with pytest.raises(UsageError, match=rf"other.{suffix} is no {suffix} file; --no-decompress"):
            client.flash(tmp_path / f"other.{suffix}")

    using(card, use)


def test_files_that_cannot_be_read(using: Side, card: Card, tmp_path: Path) -> None:
    def use(client: Any) -> None:
        with pytest.raises(UsageError, match="none cannot be read: No such file or directory"):
            client.flash(tmp_path / "none")
        with pytest.raises(UsageError, match="cannot be read: Is a directory"):
            client.flash(tmp_path)

    using(card, use)


@contextmanager
def web(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server, and the headers of the requests that came."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({name.lower(): value for name, value in self.headers.items()})
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def serving(content: bytes, *, breaks: int = 0) -> Callable[[BaseHTTPRequestHandler], None]:
    """Answers with content, with ranges; breaks off after so many bytes each time."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/locked") and request.headers["Authorization"] != "Bearer hush":
            request.send_error(401)
            return
        if request.path == "/none":
            request.send_error(404)
            return
        begin = int((request.headers["Range"] or "bytes=0-")[6:].rstrip("-"))
        request.send_response(206 if begin else 200)
        request.send_header("Content-Length", str(len(content) - begin))
        request.send_header("ETag", '"one"')
        request.end_headers()
        request.wfile.write(content[begin : begin + breaks] if breaks else content[begin:])

    return answer


@pytest.mark.parametrize("fetch", [False, True])
def test_an_image_from_a_server(using: Side, card: Card, tmp_path: Path, fetch: bool) -> None:
    """By this machine and by the exporter: packed, with a token that no message shows, at an offset."""
    (tmp_path / "token").write_text("hush\n")
    packed = zstd(IMAGE)
    with web(serving(packed)) as (url, asked):

        def use(client: Any) -> None:
            shown: list[tuple[int, int | None]] = []
            result = client.flash(
                f"{url}/locked?secret=1",
                offset=512,
                fetch=fetch,
                bearer=f"@{tmp_path / 'token'}",
                header={"X-Who": "me"},
                progress=lambda *at: shown.append(at),
            )
            assert (result["bytes"], result["sha256"]) == (len(IMAGE), sha256(IMAGE))
            assert shown[-1] == (len(packed), len(packed))
            with pytest.raises(UsageError, match=r"http://127\S+/locked cannot be fetched: 401 Unauthorized; --bearer"):
                client.flash(f"{url}/locked?secret=1", fetch=fetch)
            with pytest.raises(UsageError, match="/none cannot be fetched: 404 Not Found"):
                client.flash(f"{url}/none", fetch=fetch)

        using(card, use)
    assert asked[0]["authorization"] == "Bearer hush"
    assert asked[0]["x-who"] == "me"
    assert (tmp_path / "card").read_bytes()[512 : 512 + len(IMAGE)] == IMAGE
    with pytest.raises(LabError, match=r"cannot be fetched: Connection refused"):
        using(Card(capacity=SIZE), lambda client: client.flash(f"{url}/image", fetch=fetch))


@pytest.mark.parametrize("fetch", [False, True])
@pytest.mark.parametrize("suffix", PACKERS)
def test_an_image_that_is_not_what_was_published(
    using: Side, card: Card, tmp_path: Path, suffix: str, fetch: bool
) -> None:
    """Its publisher tells the sha256 of the file, or of what is in it."""
    packed = packed_image(suffix)
    (tmp_path / "image").write_bytes(packed)

    def use(client: Any) -> None:
        image = f"{url}/image?secret=1" if fetch else str(tmp_path / "image")
        for good in (sha256(packed), f"sha256:{sha256(IMAGE).upper()}"):
            assert client.flash(image, sha256=good, fetch=fetch)["sha256"] == sha256(IMAGE)
        with pytest.raises(UsageError) as error:
            client.flash(image, sha256="0" * 64, fetch=fetch)
        there = sha256(IMAGE) if packed == IMAGE else f"{sha256(IMAGE)}, unpacked from a file with {sha256(packed)}"
        said = f"{image.partition('?')[0]} is another image than it should be: its sha256 is {there}, not {'0' * 64}"
        assert error.value.message == said
        with pytest.raises(UsageError, match="sha256 'abc' is no checksum: 64 hexadecimal digits are needed"):
            client.flash(tmp_path / "none", sha256="abc")

    with web(serving(packed)) as (url, _):
        using(card, use)


@pytest.mark.parametrize("fetch", [False, True])
def test_a_download_that_breaks_off_is_taken_up_again(using: Side, card: Card, tmp_path: Path, fetch: bool) -> None:
    with web(serving(IMAGE, breaks=2 * PIECE)) as (url, asked):
        result = using(card, lambda client: client.flash(f"{url}/image", fetch=fetch))
    assert result["sha256"] == sha256(IMAGE)
    assert [each.get("range") for each in asked] == [None, f"bytes={2 * PIECE}-"]
    assert asked[1]["if-range"] == '"one"'


@pytest.mark.parametrize("fetch", [False, True])
def test_a_server_that_breaks_off_for_good(using: Side, card: Card, fetch: bool) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if "Range" in request.headers:
            request.send_error(503)
        else:
            serving(IMAGE, breaks=PIECE)(request)

    def use(client: Any) -> None:
        with pytest.raises(LabError, match=f"/image broke off at byte {PIECE}: "):
            client.flash(f"{url}/image", fetch=fetch)

    with web(answer) as (url, _):
        using(card, use)


@pytest.mark.parametrize("fetch", [False, True])
def test_a_server_that_breaks_off_and_had_not_said_how_much_there_is(using: Side, card: Card, fetch: bool) -> None:
    """The half that came is not taken for the image."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "Range" in request.headers:
            request.send_error(503)
            return
        request.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % PIECE)
        request.wfile.write(IMAGE[:PIECE] + b"\r\n")
        request.close_connection = True

    def use(client: Any) -> None:
        with pytest.raises(LabError, match=f"/image broke off at byte {PIECE}: .*503 Service Unavailable"):
            client.flash(f"{url}/image", fetch=fetch)

    with web(answer) as (url, _):
        using(card, use)


def test_what_does_not_go_with_fetch(using: Side, card: Card, tmp_path: Path) -> None:
    with web(serving(bytes(SIZE + 1))) as (url, _):

        def use(client: Any) -> None:
            with pytest.raises(UsageError, match="the exporter fetches URLs, and image is none"):
                client.flash("image", fetch=True)
            with pytest.raises(UsageError, match="bmap does not go with fetch"):
                client.flash(f"{url}/image", fetch=True, bmap=tmp_path / "image.bmap")
            with pytest.raises(UsageError, match="nothing that an exporter fetches"):
                list(client.fetch("file:///etc/passwd")) if using is by_threads else client.flash(
                    "s3://a/b", fetch=True
                )
            with pytest.raises(BadValue, match=f"does not fit: it has {SIZE + 1} bytes"):
                client.flash(f"{url}/image", fetch=True)
            with pytest.raises(UsageError, match="a header is NAME and VALUE"):
                client.flash(f"{url}/image", header={"X": "secret\nY: z"})

        using(card, use)
    assert (tmp_path / "card").read_bytes() == bytes(SIZE)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """moto's S3, with an object that only a role may read; the environment in which one is that role."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = partial(
            boto3.client,
            endpoint_url=url,
            region_name="eu-north-1",
            aws_access_key_id="anybody",
            aws_secret_access_key="anything",
        )
        allow = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::lab/*"}
        client("iam").create_role(RoleName="bench", AssumeRolePolicyDocument="{}")
        client("iam").put_role_policy(
            RoleName="bench",
            PolicyName="images",
            PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]}),
        )
        client("s3").create_bucket(Bucket="lab", CreateBucketConfiguration={"LocationConstraint": "eu-north-1"})
        client("s3").put_object(Bucket="lab", Key="images/a b.img", Body=IMAGE)
        role = client("sts").assume_role(RoleArn="arn:aws:iam::123456789012:role/bench", RoleSessionName="test")
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_REGION": "eu-north-1",
            "AWS_ACCESS_KEY_ID": role["Credentials"]["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": role["Credentials"]["SecretAccessKey"],
            "AWS_SESSION_TOKEN": role["Credentials"]["SessionToken"],
        }
    finally:
        server.stop()


@pytest.mark.real
@set_initial_no_auth_action_count(0)
def test_an_object_of_an_s3(using: Side, card: Card, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)

    def use(client: Any) -> None:
        assert client.flash("s3://lab/images/a b.img")["sha256"] == sha256(IMAGE)
        with pytest.raises(UsageError, match=r"s3://lab/no\.img cannot be fetched: NoSuchKey: The specified key"):
            client.flash("s3://lab/no.img")
        with pytest.raises(UsageError, match="AccessDenied: Access Denied; AWS_ACCESS_KEY_ID and AWS_SECRET"):
            client.flash("s3://vault/images/a b.img")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        with pytest.raises(UsageError, match=r"cannot be fetched: SignatureDoesNotMatch: .* signing method"):
            client.flash("s3://lab/images/a b.img")

    using(card, use)


def test_signature_of_amazon_s_own_example() -> None:
    """From "Authenticating Requests: Signature Version 4", example GET Object."""
    headers = {
        "host": "examplebucket.s3.amazonaws.com",
        "range": "bytes=0-9",
        "x-amz-content-sha256": sha256(b""),
        "x-amz-date": "20130524T000000Z",
    }
    secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    signed = s3_signature("/test.txt", headers, "AKIAIOSFODNN7EXAMPLE", secret, "us-east-1")
    assert signed.endswith("=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")
    assert s3_request("s3://b/k", {}) == ("https://b.s3.amazonaws.com/k", {})
    assert s3_request("s3://b/k/l", {"AWS_REGION": "eu-west-3"})[0] == "https://b.s3.eu-west-3.amazonaws.com/k/l"
    with pytest.raises(UsageError, match="s3://b names no object"):
        s3_request("s3://b", {})


class Watched(Card):
    """Notes where it was written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.writes: list[int] = []

    async def write(self, stream: Stream, offset: int = 0) -> None:
        self.writes.append(offset)
        await super().write(stream, offset)


def sparse_image(tmp_path: Path) -> tuple[Path, bytes]:
    """An image with a hole, and its map by bmaptool."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.write(os.urandom(PIECE))
        file.seek(6 * PIECE)
        file.write(os.urandom(PIECE + 1234))
    subprocess.run(["bmaptool", "create", "-o", tmp_path / "image.bmap", path], check=True)
    return path, path.read_bytes()


def test_only_what_a_block_map_lists_is_written(using: Side, tmp_path: Path) -> None:
    path, content = sparse_image(tmp_path)
    (tmp_path / "image.zst").write_bytes(zstd(content))
    (tmp_path / "card").write_bytes(b"\xff" * SIZE)
    card = Watched(capacity=SIZE, image=tmp_path / "card")

    def use(client: Any) -> None:
        result = client.flash(tmp_path / "image.zst", bmap=tmp_path / "image.bmap")
        assert (result["bytes"], result["sha256"]) == (len(content), sha256(content))
        assert 2 * PIECE + 1234 <= result["written"] < 3 * PIECE
        again = client.flash(path, bmap=tmp_path / "image.bmap", resume=True)
        assert again["written"] == 0

    using(card, use)
    assert card.writes == [0, 6 * PIECE]
    held = (tmp_path / "card").read_bytes()
    assert held[:PIECE] == content[:PIECE]
    assert held[PIECE : 5 * PIECE] == b"\xff" * 4 * PIECE, "the hole is left as it was"
    assert held[6 * PIECE : len(content)] == content[6 * PIECE :]


def test_an_image_and_a_map_that_do_not_belong_together(using: Side, card: Card, tmp_path: Path) -> None:
    path, content = sparse_image(tmp_path)
    other = bytearray(content)
    other[5] ^= 1
    (tmp_path / "other").write_bytes(other)
    (tmp_path / "short").write_bytes(content[: 6 * PIECE])
    (tmp_path / "no.bmap").write_text("<html/>")

    def use(client: Any) -> None:
        with pytest.raises(UsageError, match="other is not the image that its block map is for: bytes 0 to"):
            client.flash(tmp_path / "other", bmap=tmp_path / "image.bmap")
        with pytest.raises(UsageError, match=f"short has {6 * PIECE} bytes, and its block map is for {len(content)}"):
            client.flash(tmp_path / "short", bmap=tmp_path / "image.bmap")
        with pytest.raises(UsageError, match=r"no.bmap is no block map: it begins with <html>"):
            client.flash(path, bmap=tmp_path / "no.bmap")
        with pytest.raises(UsageError, match=r"none.bmap cannot be read"):
            client.flash(path, bmap=tmp_path / "none.bmap")

    using(card, use)


def test_block_maps() -> None:
    text = (
        b"<bmap version='2.0'><ImageSize> 10000 </ImageSize><BlockSize>4096</BlockSize><BlockMap>%b</BlockMap></bmap>"
    )
    ranges = b"<Range sha1='AB'> 0 </Range><Range> 2-2 </Range>"
    blocks = parse_bmap(text % ranges)
    assert blocks == BlockMap(10000, "sha1", [Part(0, 4096, "ab"), Part(8192, 10000)])
    assert joined(blocks.parts, 4095) == [Part(0, 4096), Part(8192, 10000)]
    assert joined(blocks.parts, 4096) == [Part(0, 10000)]
    for bad, why in {
        b"<Range>1</Range><Range>0</Range>": "out of order",
        b"<Range>x</Range>": "not known",
        b"<Range>3</Range>": "out of order",
    }.items():
        with pytest.raises(ValueError, match=why):
            parse_bmap(text % bad)


@contextmanager
def fed(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A standard input with this content."""
    with tempfile.TemporaryFile() as file, monkeypatch.context() as patch:
        file.write(content)
        file.seek(0)
        patch.setattr(sys, "stdin", file)
        yield


def test_an_interrupted_flash_goes_on_where_it_was(
    using: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(PIECE) * (2 * STRETCH // PIECE) + b"the end"
    (tmp_path / "image.zst").write_bytes(zstd(content))
    (tmp_path / "card").write_bytes(content[: STRETCH + 3 * PIECE])
    card = Watched(capacity=3 * STRETCH, image=tmp_path / "card")

    def use(client: Any) -> None:
        result = client.flash(tmp_path / "image.zst", resume=True)
        assert (result["sha256"], result["written"]) == (sha256(content), STRETCH + 7)
        assert client.flash(tmp_path / "image.zst", resume=True)["written"] == 0
        with (tmp_path / "card").open("r+b") as medium:
            medium.seek(STRETCH + 3 * PIECE)
            medium.write(bytes(PIECE))
        with fed(content, monkeypatch):
            result = client.flash("-", resume=True)
        assert (result["sha256"], result["written"]) == (sha256(content), STRETCH + 7)

    using(card, use)
    assert card.writes[0] == STRETCH
    assert (tmp_path / "card").read_bytes()[: len(content)] == content


def test_a_fetch_that_was_interrupted_goes_on_where_it_was(using: Side, tmp_path: Path) -> None:
    content = os.urandom(PIECE) * (2 * STRETCH // PIECE) + b"the end"
    (tmp_path / "card").write_bytes(content[: STRETCH + 3 * PIECE])
    card = Watched(capacity=3 * STRETCH, image=tmp_path / "card")

    def use(client: Any) -> None:
        with web(serving(zstd(content))) as (url, _):
            result = client.flash(f"{url}/image", fetch=True, resume=True)
            assert (result["sha256"], result["written"]) == (sha256(content), STRETCH + 7)
            assert client.flash(f"{url}/image", fetch=True, resume=True)["written"] == 0

    using(card, use)
    assert card.writes[0] == STRETCH
    assert (tmp_path / "card").read_bytes()[: len(content)] == content


class Liar(Card):
    """Its checksums are wrong."""

    async def digest(self, size: int | None = None, offset: int = 0, algorithm: str = "sha256") -> str:
        return "0" * 64


class Short(Card):
    """Ends early."""

    async def read(self, stream: Stream, offset: int = 0, size: int | None = None) -> None:
        await stream.send_all(b"too little")


def test_a_medium_that_holds_something_else(using: Side, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(IMAGE)

    def use(client: Any) -> None:
        with pytest.raises(
            DeviceError, match=f"does not hold what was written to it: sha256 0000+ there, {sha256(IMAGE)}"
        ):
            client.flash(tmp_path / "image")
        assert client.flash(tmp_path / "image", verify=False)["sha256"] == sha256(IMAGE)
        with pytest.raises(DeviceError, match="gave other bytes than it holds"):
            client.dump(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()

    using(Liar(capacity=SIZE), use)


UNPACKERS: dict[str, Callable[[bytes], bytes]] = {
    "img": bytes,
    "img.gz": gzip.decompress,
    "img.xz": lzma.decompress,
    "img.bz2": bz2.decompress,
    "img.zst": unzstd,
}


@pytest.mark.parametrize("suffix", UNPACKERS)
def test_dump(using: Side, card: Card, tmp_path: Path, suffix: str) -> None:
    (tmp_path / "card").write_bytes(IMAGE)
    copy = tmp_path / f"copy.{suffix}"
    copy.write_bytes(b"an older one")
    shown: list[tuple[int, int | None]] = []
    result = using(card, lambda client: client.dump(copy, progress=lambda *at: shown.append(at)))
    held = IMAGE.ljust(SIZE, b"\0")
    assert UNPACKERS[suffix](copy.read_bytes()) == held
    assert result == {"bytes": SIZE, "sha256": sha256(held), "seconds": result["seconds"]}
    assert shown[-1] == (SIZE, SIZE)


def test_dump_a_part(using: Side, card: Card, tmp_path: Path) -> None:
    (tmp_path / "card").write_bytes(IMAGE)
    using(card, lambda client: client.dump(str(tmp_path / "part"), offset=1000, size=PIECE + 1))
    assert (tmp_path / "part").read_bytes() == IMAGE[1000 : 1000 + PIECE + 1]


def test_a_dump_that_fails_leaves_what_was_there(using: Side, tmp_path: Path) -> None:
    (tmp_path / "copy").write_bytes(b"an older one")

    def use(client: Any) -> None:
        with pytest.raises(DeviceError, match=f"gave 10 bytes instead of {SIZE}"):
            client.dump(tmp_path / "copy")
        with pytest.raises(UsageError, match=r"none/copy cannot be written: No such file or directory"):
            client.dump(tmp_path / "none" / "copy")
        with pytest.raises(UsageError, match="is no file that can be replaced"):
            client.dump("/dev/null")

    using(Short(capacity=SIZE), use)
    assert (tmp_path / "copy").read_bytes() == b"an older one"


async def test_a_cancelled_flash_ends_the_write_and_leaves_what_was_written(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(IMAGE)
    with trio.fail_after(60):
        async with serve(Card(capacity=SIZE, image=tmp_path / "card"), class_of=client_class) as client:
            with trio.CancelScope() as scope:
                await client.flash(image, progress=lambda done, total: scope.cancel())
            assert scope.cancelled_caught
    assert IMAGE.startswith((tmp_path / "card").read_bytes().rstrip(b"\0"))


CONFIG = """\
apiVersion: jmp/v1
kind: Exporter
metadata: {name: bench}
export:
  board: {type: virtual-board, config: {boot_time: 0, size: 4194304}}
"""


def test_on_the_command_line(tmp_path: Path) -> None:
    """A file, standard input, what it prints, and exit codes."""

    def j(*words: str, data: bytes = b"") -> tuple[int, str, str]:
        argv = ["j", "board", *words]
        done = subprocess.run(argv, input=data, capture_output=True, cwd=tmp_path, env=environ, timeout=60, check=False)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    image = b"#!jmp-image name=demo version=2.0\n" + os.urandom(PIECE)
    (tmp_path / "demo.img.xz").write_bytes(lzma.compress(image))
    with shell_session(tmp_path, CONFIG) as environ:
        for words, data in ((("demo.img.xz",), b""), (("-",), image), (("-",), gzip.compress(image))):
            code, out, err = j("storage", "flash", *words, "-o", "json", data=data)
            result = json.loads(out)
            assert (code, err, result["bytes"], result["sha256"]) == (0, "", len(image), sha256(image))
        code, out, err = j("storage", "dump", "copy.img", "--size", str(len(image)))
        assert (code, err, (tmp_path / "copy.img").read_bytes() == image) == (0, "", True)
        assert out.startswith(f"bytes: {len(image)}\nsha256: {sha256(image)}\nseconds: ")
        assert j("power", "on")[0] == 0
        for then in ("off", "on"):
            assert j("storage", "flash", "demo.img.xz", "--power", "board.power", "--then", then)[0] == 0
            assert j("power", "state")[1] == f"{then}\n"
        assert j("storage", "flash", "none.img") == (
            64,
            "",
            "jmp: none.img cannot be read: No such file or directory\n",
        )
        code, out, err = j("storage", "flash", "-", data=bytes(5 * PIECE))
        assert (code, out) == (64, "")
        assert err == (
            "jmp: standard input does not fit: board.storage has 4194304 bytes; they hold the beginning of it now\n"
        )
