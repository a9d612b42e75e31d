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
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from jmp.client.interfaces import client_class
from jmp.client.storage import PIECE
from jmp.driver import Stream
from jmp.driver.interfaces import Storage
from jmp.driver.testing import serve
from jmp.errors import BadValue, DeviceError, JmpError, UsageError
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


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "img": bytes,
    "img.gz": gzip.compress,
    "img.xz": lzma.compress,
    "img.bz2": bz2.compress,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_flash(using: Side, card: Card, tmp_path: Path, suffix: str) -> None:
    image = tmp_path / f"an.{suffix}"
    image.write_bytes(PACKERS[suffix](IMAGE))
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


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2"])
def test_what_cannot_be_unpacked(using: Side, card: Card, tmp_path: Path, suffix: str) -> None:
    packed = PACKERS[f"img.{suffix}"](IMAGE)
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


def test_zstd_is_unpacked_or_said_to_need_a_newer_python(using: Side, card: Card, tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd\x20\x05\x29\x00\x00hello"  # one raw block
    (tmp_path / "image.zst").write_bytes(frame)
    if sys.version_info >= (3, 14):
        assert using(card, lambda client: client.flash(tmp_path / "image.zst"))["sha256"] == sha256(b"hello")
    else:
        with pytest.raises(UsageError, match=r"zstd takes Python 3.14, and this is 3.1\d; use the program: zstd -dc"):
            using(card, lambda client: client.flash(tmp_path / "image.zst"))


def test_files_that_cannot_be_read(using: Side, card: Card, tmp_path: Path) -> None:
    def use(client: Any) -> None:
        with pytest.raises(UsageError, match="none cannot be read: No such file or directory"):
            client.flash(tmp_path / "none")
        with pytest.raises(UsageError, match="cannot be read: Is a directory"):
            client.flash(tmp_path)

    using(card, use)


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
    with trio.fail_after(30):
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
