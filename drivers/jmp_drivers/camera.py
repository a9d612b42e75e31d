"""Cameras that look at a device: over HTTP, through ustreamer, through any program that writes MJPEG."""

from __future__ import annotations

import json
import math
import tempfile
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import field
from pathlib import Path
from subprocess import PIPE
from typing import ClassVar, Literal
from urllib.parse import urlsplit

import trio

from jmp.driver import ConfigError, DeviceError, Service, Suggestion, check_seconds
from jmp.driver.interfaces import Video
from jmp_drivers import _http, _jpeg
from jmp_drivers._process import leashed
from jmp_drivers.qemu.program import require

_PIECE = 64 * 1024
_WORDS = 300  # bytes of what a program says that an error quotes
_START = 30.0  # seconds that ustreamer may take to listen


class Camera(Video):
    """What every camera shares: it says how pictures come, one after the other."""

    timeout: float = field(default=10.0, metadata={"doc": "seconds that a picture may take"})

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds, not {self.timeout:g}")

    @abstractmethod
    def _pictures(self, interval: float) -> AsyncGenerator[bytes, None]:
        """Pictures as they come, JPEG files. Raises `DeviceError`. One that is not wanted at once may be left out."""

    async def screenshot(self) -> bytes:
        """What is to be seen now, as a JPEG file."""
        async with aclosing(self._pictures(0)) as pictures:
            return await self._next(pictures)

    async def frames(self, interval: float = 0.2) -> AsyncIterator[bytes]:
        check_seconds("interval", interval)
        shown, due = b"", -math.inf
        async with aclosing(self._pictures(interval)) as pictures:
            while True:
                picture = await self._next(pictures)
                if picture != shown and trio.current_time() >= due:
                    shown, due = picture, trio.current_time() + interval
                    yield picture

    async def size(self) -> list[int]:
        try:
            return list(_jpeg.size(await self.screenshot()))
        except ValueError as error:
            raise DeviceError(f"{self._name()} gave a picture that cannot be understood: {error}") from error

    async def _next(self, pictures: AsyncGenerator[bytes, None]) -> bytes:
        with trio.move_on_after(self.timeout):
            try:
                return await anext(pictures)
            except StopAsyncIteration:
                raise DeviceError(f"{self._name()} gives no more pictures") from None
        raise DeviceError(f"{self._name()} gave no picture within {self.timeout:g} s")

    @abstractmethod
    def _name(self) -> str:
        """The camera, as a message names it."""


class HttpCamera(Camera):
    """A camera that is reached over HTTP, by a URL of a picture, of MJPEG, or of both: IP cameras, ustreamer, mjpg-streamer.

    ``snapshot`` answers with one JPEG picture, ``stream`` with one after the other (``multipart/x-mixed-replace``). What is not
    given is done by the other.
    """

    snapshot: str = field(default="", metadata={"secret": True, "doc": "URL of a picture"})
    stream: str = field(default="", metadata={"secret": True, "doc": "URL of MJPEG"})
    user: str = field(default="", metadata={"doc": "who logs in (Basic)"})
    password: str = field(default="", metadata={"secret": True})
    verify: bool = field(default=True, metadata={"doc": "ask for a valid certificate"})

    services: ClassVar[tuple[str, ...]] = ("_axis-video._tcp",)

    @classmethod
    def recognise(cls, service: Service) -> Iterator[Suggestion]:
        base = f"http://{service.at(80)}/axis-cgi"
        config: dict[str, object] = {"snapshot": f"{base}/jpg/image.cgi", "stream": f"{base}/mjpg/video.cgi"}
        yield Suggestion(
            "camera", config, service.about("Axis camera"), service.at(80), note="it wants user and password"
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.snapshot and not self.stream:
            raise ConfigError("needs 'snapshot' or 'stream': the URL of a picture, or of MJPEG")
        for name, url in (("snapshot", self.snapshot), ("stream", self.stream)):
            target = urlsplit(url)
            if url and (target.scheme not in ("http", "https") or not target.hostname):
                raise ConfigError(f"{name}: write a URL, http://HOST/PATH or https://HOST/PATH")

    async def screenshot(self) -> bytes:
        if not self.snapshot:
            return await super().screenshot()
        with trio.move_on_after(self.timeout):
            return await self._snapshot()
        raise DeviceError(f"{self._name()} gave no picture within {self.timeout:g} s")

    async def _pictures(self, interval: float) -> AsyncGenerator[bytes, None]:
        if self.stream:
            async with aclosing(_mjpeg(self._name(), self.stream, self._headers(), verify=self.verify)) as pictures:
                async for picture in pictures:
                    yield picture
        while True:
            yield await self._snapshot()
            await trio.sleep(interval)

    async def _snapshot(self) -> bytes:
        try:
            answer = await _http.request(
                "GET", self.snapshot, headers=self._headers(), verify=self.verify, longest=_jpeg.LONGEST
            )
        except _http.HttpError as error:
            raise DeviceError(f"{self._name()}: {error}") from error
        _check(self._name(), answer)
        return answer.body

    def _headers(self) -> dict[str, str]:
        if not self.user:
            return {}
        return {"Authorization": _http.basic(self.user, self.password)}

    def _name(self) -> str:
        target = urlsplit(self.snapshot or self.stream)
        return f"the camera at {target.netloc.rpartition('@')[2]}"


class Ustreamer(Camera):
    """A camera of the exporter's machine (V4L2), by the program ``ustreamer``, which runs during the session.

    Nobody else gets at it: the program listens at a Unix socket in a folder of its own.
    """

    device: Path = field(default=Path("/dev/video0"), metadata={"doc": "best one below /dev/v4l/by-id"})
    resolution: str = field(default="", metadata={"doc": "WIDTHxHEIGHT; default: what ustreamer takes"})
    fps: int = field(default=0, metadata={"doc": "pictures per second; 0: as many as there are"})
    quality: int = field(default=80, metadata={"doc": "of JPEG, 1 to 100"})
    no_signal: Literal["error", "picture"] = field(
        default="error", metadata={"doc": "what a camera that is not there gives: an error, or a picture that says so"}
    )
    args: list[str] = field(default_factory=list, metadata={"doc": "more arguments for ustreamer"})

    async def open(self) -> None:
        self._program = require("ustreamer", "ustreamer")
        self._socket: Path | None = None
        await self.nursery.start(self._run)

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        words = b""
        with tempfile.TemporaryDirectory(prefix="jmp-camera-") as folder:
            path = Path(folder) / "http"
            argv = [self._program, "--device", str(self.device), "--unix", str(path), "--unix-mode", "600"]
            argv += ["--quality", str(self.quality), "--slowdown", "--log-level", "0"]
            argv += ["--resolution", self.resolution] if self.resolution else []
            argv += ["--desired-fps", str(self.fps)] if self.fps else []
            async with leashed([*argv, *self.args], stderr=PIPE) as process:
                assert process.stderr is not None
                with trio.move_on_after(_START) as patience:
                    while not path.exists() and process.returncode is None:  # noqa: ASYNC110  # nothing tells of it
                        await trio.sleep(0.02)
                if process.returncode is None and not patience.cancelled_caught:
                    self._socket = path
                    task_status.started()
                async for data in process.stderr:
                    words = (words + bytes(data))[-_WORDS:]
                await process.wait()
        started, self._socket = self._socket is not None, None
        said = words.decode(errors="replace").strip().splitlines()
        problem = f"ustreamer ended with status {process.returncode}{f': {said[-1]}' if said else ''}"
        if not started:
            raise DeviceError(problem)
        self.lost(problem)

    async def _pictures(self, interval: float) -> AsyncGenerator[bytes, None]:
        if self._socket is None:
            raise DeviceError("ustreamer has ended")
        if self.no_signal == "error":
            await self._check_signal(self._socket)
        async with aclosing(_mjpeg(self._name(), "http://ustreamer/stream", {}, path=self._socket)) as pictures:
            async for picture in pictures:
                yield picture

    async def _check_signal(self, path: Path) -> None:
        try:
            async with _http.opened("GET", "http://ustreamer/state", headers={}, path=path) as (_, pieces):
                state = json.loads(b"".join([piece async for piece in pieces]))
            online = bool(state["result"]["source"]["online"])
        except (_http.HttpError, ValueError, KeyError, TypeError) as error:
            raise DeviceError(f"ustreamer does not say how it is: {error}") from error
        if not online:
            there = "it gives no picture" if self.device.exists() else "there is no such device"
            raise DeviceError(f"{self._name()} has no signal: {there}")

    def _name(self) -> str:
        return f"the camera {self.device}"


class CommandCamera(Camera):
    """A camera by a command that writes JPEG pictures one after the other to its standard output, as ``ffmpeg`` can.

    It runs while somebody looks, once for each who does.
    """

    command: str | list[str]
    cwd: Path | None = field(default=None, metadata={"doc": "folder in which it runs"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.command:
            raise ConfigError("command: it is empty")

    async def _pictures(self, interval: float) -> AsyncGenerator[bytes, None]:
        argv: Sequence[str] = ["/bin/sh", "-c", self.command] if isinstance(self.command, str) else self.command
        pictures = _jpeg.Pictures()
        with tempfile.TemporaryFile() as complaints:
            async with leashed(argv, cwd=self.cwd, stdout=PIPE, stderr=complaints) as process:
                assert process.stdout is not None
                try:
                    while data := await process.stdout.receive_some(_PIECE):
                        for picture in pictures.feed(bytes(data)):
                            yield picture
                except ValueError as error:
                    raise DeviceError(f"{self._name()} writes no JPEG pictures: {error}") from error
                status = await process.wait()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
        raise DeviceError(f"{self._name()} ended with status {status}{f': {said[-1]}' if said else ''}")

    def _name(self) -> str:
        return f"the command {self.command.split()[0] if isinstance(self.command, str) else self.command[0]}"


async def _mjpeg(
    name: str, url: str, headers: dict[str, str], *, verify: bool = True, path: Path | None = None
) -> AsyncGenerator[bytes, None]:
    """The pictures of a stream, until it ends. Raises `DeviceError`."""
    pictures = _jpeg.Pictures()
    try:
        async with _http.opened("GET", url, headers=headers, verify=verify, path=path) as (answer, pieces):
            _check(name, answer)
            async for piece in pieces:
                for picture in pictures.feed(piece):
                    yield picture
    except (_http.HttpError, ValueError) as error:
        raise DeviceError(f"{name}: {error}") from error
    raise DeviceError(f"{name} has ended its stream")


def _check(name: str, answer: _http.Response) -> None:
    if answer.status != 200:
        raise DeviceError(f"{name} answers {answer.status} {answer.reason}".rstrip())
