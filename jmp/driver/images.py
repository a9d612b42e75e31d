"""Images as they are read: from a file, standard input or a URL, unpacked and hashed on the way, piece by piece.

Blocking code, for threads: clients use it to stream an image to a medium, exporters to fetch one themselves.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import hmac
import io
import lzma
import os
import re
import stat
import sys
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from queue import SimpleQueue
from typing import IO, Any, Final
from urllib.parse import quote, urlsplit

from jmp.errors import LabError, UsageError

PIECE: Final = 1024 * 1024
"""Bytes read or written at once."""
STRETCH: Final = 16 * PIECE
"""Bytes whose checksum is asked for at once, to find out how far an interrupted flash came."""
PATIENCE: Final = 60.0
"""Seconds that a server may say nothing."""
RETRIES: Final = 5
"""How often a download that breaks off is taken up again before anything more has come."""

_ERROR: Final = 4096
"""Bytes of an answer in which an S3 says what is the matter."""

MAGIC: Final = {b"\x1f\x8b": "gz", b"\xfd7zXZ\0": "xz", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zst"}
_LONGEST: Final = max(map(len, MAGIC))


def is_url(image: str) -> bool:
    """Whether an image is to be downloaded."""
    return image.startswith(("http://", "https://", "s3://"))


class Source:
    """An image, unpacked if need be.

    Raises UsageError for one that cannot be read or unpacked, LabError if the server that has it fails.
    """

    def __init__(self, image: str, decompress: bool = True, headers: Mapping[str, str] | None = None) -> None:
        self.name = "standard input" if image == "-" else bare(image) if is_url(image) else image
        self.checksum = hashlib.sha256()
        self._packed: Any = None
        self.total: int | None = None
        """Bytes of the file, if known."""
        self.size: int | None = None
        """Bytes of the image, if known."""
        self.ended = False
        self.bounded = True
        """Reading takes no longer than it takes the disk."""
        self._stack = ExitStack()
        with ExitStack() as stack, _reading(self.name):
            if is_url(image):
                download = stack.enter_context(Download(image, headers or {}))
                self._input: Any = download
                self.total = download.size
                self.bounded = False
            elif image == "-":
                self._input = io.FileIO(sys.stdin.fileno(), closefd=False)
            else:
                self._input = stack.enter_context(open(image, "rb", buffering=0))
            if isinstance(self._input, io.FileIO):
                self.bounded = stat.S_ISREG(os.fstat(self._input.fileno()).st_mode)
                if self.bounded:
                    self.total = os.fstat(self._input.fileno()).st_size - self._input.tell()
            self._head = b""
            while len(self._head) < _LONGEST and (more := self._input.read(_LONGEST - len(self._head))):
                self._head += more
            self.taken = 0
            """Bytes of the file that have been used."""
            packed = next((name for magic, name in MAGIC.items() if self._head.startswith(magic)), "")
            named = self.name.rpartition(".")[2]
            if decompress and not packed and named in MAGIC.values():
                raise UsageError(f"{self.name} is no {named} file; --no-decompress writes it as it is")
            self._content: Any = self
            if decompress and packed:
                self._packed = hashlib.sha256()
                self._content = stack.enter_context(opened(packed, self, "rb", self.name))
            else:
                self.size = self.total
            self._stack = stack.pop_all()

    def read(self, size: int = -1) -> bytes:
        """Packed bytes."""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._input.read(size)
        self.taken += len(data)
        if self._packed is not None:
            self._packed.update(data)
        return data

    def piece(self) -> bytes:
        """The next bytes of the image, a piece or what there is; ``b""`` at its end."""
        pieces: list[bytes] = []
        left = PIECE
        with _reading(self.name):
            while left and (data := self._content.read(left)):
                pieces.append(data)
                left -= len(data)
            while not pieces and self._packed is not None and self.read(PIECE):
                pass  # what stands behind the packed image counts for the file's checksum
        piece = b"".join(pieces)
        self.checksum.update(piece)
        self.ended = not piece
        return piece

    @property
    def checksums(self) -> list[str]:
        """The sha256 of the image, and that of the file if it was unpacked; once the end has been reached."""
        return [checksum.hexdigest() for checksum in (self.checksum, self._packed) if checksum is not None]

    def close(self) -> None:
        self._stack.close()


class Ahead:
    """Reads the next piece of a source in a thread while the last one is being used."""

    def __init__(self, image: str, decompress: bool = True, headers: Mapping[str, str] | None = None) -> None:
        self.source = Source(image, decompress, headers)
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._pieces: SimpleQueue[bytes | BaseException] = SimpleQueue()
        # A daemon, since nothing can end a read from standard input.
        self._thread = threading.Thread(target=self._run, name="jmp-image", daemon=True)
        self._thread.start()
        self._wanted.put(True)

    def next(self) -> bytes:
        """The next piece, ``b""`` at the end of the image."""
        piece = self._pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        self._wanted.put(True)
        return piece

    def close(self) -> None:
        """Read no more."""
        self._wanted.put(False)
        if self.source.bounded or self.source.ended:
            self._thread.join()

    def _run(self) -> None:
        while self._wanted.get():
            try:
                self._pieces.put(self.source.piece())
            except BaseException as error:  # noqa: BLE001  # the thread's root: who asked for the piece gets it
                self._pieces.put(error)
        self.source.close()


async def held(
    take: Callable[[int], Awaitable[bytes]],
    digest: Callable[[int, int], Awaitable[str]],
    room: int,
    run: Callable[..., Awaitable[Any]],
) -> tuple[int, list[bytes]]:
    """How many bytes of an image's beginning a medium holds already, in whole stretches; and what was taken beyond them.

    ``take`` gives at most so many bytes of the image; ``digest`` is the sha256 of so many bytes of the medium from a place on.
    The image is read once, so it may be one that cannot be read twice: a stretch of it is kept.
    """
    position = 0
    while position < room:
        taken: list[bytes] = []
        size, checksum = 0, hashlib.sha256()
        while piece := await take(min(STRETCH, room - position) - size):
            taken.append(piece)
            size += len(piece)
            await run(checksum.update, piece)
        if not size or await digest(size, position) != checksum.hexdigest():
            return position, taken
        position += size
    return position, []


class Download:
    """A file that a server has, read from its beginning on. One that breaks off is taken up again where it was."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        import httpx2

        self._http = httpx2
        self._url = url
        self._headers = dict(headers)
        self._place = 0
        self.size: int | None = None
        self._version: str | None = None
        self._rest = b""
        self._broken = False
        self._stack = ExitStack()
        self._client = self._stack.enter_context(httpx2.Client(follow_redirects=True, timeout=PATIENCE))
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._stack.close()

    def read(self, size: int) -> bytes:
        """At least one byte, unless it is at its end."""
        tries = 0
        while not self._rest:
            try:
                if self._broken:
                    self._begin()
                self._rest = next(self._pieces, b"")
                if not self._rest:
                    if self.size is not None and self._place < self.size:
                        raise self._http.ReadError("it ended early")
                    return b""
            except (self._http.TransportError, LabError) as error:
                tries += 1
                if tries > RETRIES:
                    raise LabError(f"{bare(self._url)} broke off at byte {self._place}: {_why(error)}") from error
                self._response.close()
                self._broken = True
        data, self._rest = self._rest[:size], self._rest[size:]
        self._place += len(data)
        return data

    def _begin(self) -> None:
        """Ask for the file, from where we are on."""
        url, signed = s3_request(self._url, os.environ) if self._url.startswith("s3://") else (self._url, {})
        headers = {"Accept-Encoding": "identity", **self._headers, **signed}
        if self._place:
            headers["Range"] = f"bytes={self._place}-"
            if self._version is not None:
                headers["If-Range"] = self._version
        name = bare(self._url)
        try:
            response = self._client.send(self._client.build_request("GET", url, headers=headers), stream=True)
        except self._http.TransportError as error:
            raise LabError(f"{name} cannot be fetched: {_why(error)}") from error
        except (self._http.InvalidURL, self._http.HTTPError, ValueError) as error:
            raise UsageError(f"{name} cannot be fetched: {_why(error)}") from error
        if response.status_code != (206 if self._place else 200):
            told = _s3_error(response) if self._url.startswith("s3://") else ""
            response.close()
            if self._place and response.status_code == 200:
                raise UsageError(f"{name} has changed, or its server cannot continue at byte {self._place}")
            said = f"{name} cannot be fetched: {told or f'{response.status_code} {response.reason_phrase}'}".rstrip()
            if response.status_code in (401, 403):
                how = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" if told else "--bearer and --header"
                said += f"; {how} say who asks"
            raise (LabError if response.status_code >= 500 else UsageError)(said)
        self._response = response
        self._broken = False
        self._pieces: Iterator[bytes] = response.iter_raw(PIECE)
        if not self._place:
            length = response.headers.get("Content-Length", "")
            self.size = int(length) if length.isdigit() else None
            version = response.headers.get("ETag", "")
            self._version = version if version and not version.startswith("W/") else None


def s3_request(url: str, environ: Mapping[str, str], now: datetime | None = None) -> tuple[str, dict[str, str]]:
    """``s3://BUCKET/KEY`` → an HTTP URL and the headers of a signed request (AWS's Signature Version 4).

    Keys, region and the endpoint of another S3 than Amazon's come from the usual variables (``AWS_…``). Without keys the
    request is not signed. Raises UsageError.
    """
    parts = urlsplit(url)
    if not parts.netloc or not parts.path.strip("/"):
        raise UsageError(f"{url} names no object: s3://BUCKET/KEY")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    key = quote(parts.path, safe="/-_.~")
    if endpoint := environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL"):
        base, path = endpoint.rstrip("/"), f"/{parts.netloc}{key}"
    elif region == "us-east-1":
        base, path = f"https://{parts.netloc}.s3.amazonaws.com", key
    else:
        base, path = f"https://{parts.netloc}.s3.{region}.amazonaws.com", key
    identity, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not identity or not secret:
        return base + path, {}
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": urlsplit(base).netloc, "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": stamp}
    if token := environ.get("AWS_SESSION_TOKEN"):
        headers["x-amz-security-token"] = token
    return base + path, headers | {"Authorization": s3_signature(path, headers, identity, secret, region)}


def s3_signature(path: str, headers: Mapping[str, str], identity: str, secret: str, region: str) -> str:
    """The value of ``Authorization`` for a GET with these headers, which are all signed. Their names are in lower case."""
    stamp, content = headers["x-amz-date"], headers["x-amz-content-sha256"]
    names = sorted(headers)
    canonical = "\n".join(
        ["GET", path, "", *(f"{name}:{headers[name]}" for name in names), "", ";".join(names), content]
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return f"AWS4-HMAC-SHA256 Credential={identity}/{scope},SignedHeaders={';'.join(names)},Signature={signature}"


def opened(packed: str, file: Any, mode: Any, name: str) -> Any:
    """A file object that packs to, or unpacks from, ``file``."""
    if packed == "gz":
        return gzip.GzipFile(filename="", fileobj=file, mode=mode, mtime=0, compresslevel=6)
    if packed == "xz":
        return lzma.LZMAFile(file, mode)
    if packed == "bz2":
        return bz2.BZ2File(file, mode)
    module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        zstd: Any = import_module(module)
    except ImportError:
        raise UsageError(
            f"{name}: the package {module} is missing; install it, or use the program: zstd -dc IMAGE | j … flash -"
        ) from None
    return zstd.ZstdFile(file, mode)


def store(sink: IO[bytes], checksum: Any, pieces: list[bytes]) -> None:
    """Write and hash what has come."""
    for piece in pieces:
        checksum.update(piece)
        sink.write(piece)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{name} cannot be unpacked: {error}") from error
    except OSError as error:
        if error.errno is None:  # bz2 says so
            raise UsageError(f"{name} cannot be unpacked: {error}") from error
        raise UsageError(f"{name} cannot be read: {error.strerror}") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise UsageError(f"{name} cannot be unpacked: {error}") from error


def bare(url: str) -> str:
    """A URL as messages show it: without what may be a secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _s3_error(response: Any) -> str:
    """What an S3 says is the matter: NoSuchKey, AccessDenied … with its sentence; empty if it says nothing of the kind."""
    with suppress(OSError, import_module("httpx2").HTTPError):
        text = next(response.iter_bytes(_ERROR), b"").decode(errors="replace")
        code, message = (re.search(rf"<{name}>([^<]+)</{name}>", text) for name in ("Code", "Message"))
        return ": ".join(" ".join(found[1].split()) for found in (code, message) if found)
    return ""


def _why(error: Exception) -> str:
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
