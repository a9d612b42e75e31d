"""Cameras of the exporter's machine (V4L2), read by ffmpeg."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from subprocess import PIPE

import trio

from jmp.driver import ConfigError, DeviceError, Machine, Suggestion
from jmp_drivers import _jpeg
from jmp_drivers._process import leashed
from jmp_drivers.camera import Camera
from jmp_drivers.qemu.program import require

_PIECE = 64 * 1024
_LINGER = 5.0  # seconds that ffmpeg runs on: the next one who looks gets a picture at once, with the exposure settled


class V4l2Camera(Camera):
    """A camera of the exporter's machine (V4L2), by the program ``ffmpeg``: one, for all who look at the same time.

    It runs while somebody looks, and some seconds longer; between, others can have the camera.
    """

    device: Path = field(default=Path("/dev/video0"), metadata={"doc": "best one below /dev/v4l/by-id"})
    resolution: str = field(
        default="", metadata={"doc": "WIDTHxHEIGHT, or the nearest that it has; default: the camera's"}
    )
    fps: float = field(default=0, metadata={"doc": "pictures per second; 0: as many as the camera gives"})
    format: str = field(
        default="", metadata={"doc": "what the camera is to give: mjpeg, yuyv422, h264 …; default: what ffmpeg takes"}
    )
    filters: str = field(
        default="", metadata={"doc": "ffmpeg's -vf: hflip,vflip or crop=640:360:0:100 or transpose=1 …"}
    )
    quality: int = field(default=80, metadata={"doc": "of JPEG, 1 to 100"})
    args: list[str] = field(default_factory=list, metadata={"doc": "more arguments for ffmpeg, before -i"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resolution and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.resolution):
            raise ConfigError(f"resolution: write WIDTHxHEIGHT, as in 1280x720, not {self.resolution!r}")
        if not 0 <= self.fps < math.inf:
            raise ConfigError(f"fps must be 0 or more, not {self.fps:g}")
        if not 1 <= self.quality <= 100:
            raise ConfigError(f"quality must be 1 to 100, not {self.quality}")
        self._feed: _Feed | None = None

    @classmethod
    def suggest(cls, machine: Machine) -> Iterator[Suggestion]:
        for place in machine.glob("/sys/class/video4linux/video*"):
            device = f"/dev/{place.rpartition('/')[2]}"
            # A camera has several nodes, of which the first gives pictures; udev knows better, where it runs.
            known = machine.text(f"/run/udev/data/c{machine.text(f'{place}/dev')}")
            match = re.search(r"^E:ID_V4L_CAPABILITIES=(.*)$", known, re.MULTILINE)
            if machine.text(f"{place}/index") != "0" or not machine.exists(device):
                continue
            if match is None or ":capture:" in match[1]:
                about = machine.usb(place) or machine.text(f"{place}/name") or "camera"
                stable = machine.link_to(device, "/dev/v4l/by-id/*")
                yield Suggestion("camera", {"device": stable}, str(about), device)

    async def open(self) -> None:
        self._program = require("ffmpeg", "ffmpeg")
        if not self.device.exists():
            raise DeviceError(f"there is no camera {self.device}{_present()}")

    async def _pictures(self, interval: float) -> AsyncGenerator[bytes, None]:
        while self._feed is not None and self._feed.scope.cancel_called:  # the camera is being let go
            await self._feed.ended.wait()
        if self._feed is None:
            self._feed = _Feed()
            self.nursery.start_soon(self._run, self._feed)
        feed = self._feed
        with feed.watched():
            had = feed.count
            while True:
                had, picture = await feed.after(had)
                yield picture

    async def _run(self, feed: _Feed) -> None:
        """ffmpeg, for as long as somebody looks."""
        feed.problem = "its driver has been closed"
        try:
            with feed.scope:
                feed.problem = await self._ffmpeg(feed)
        except (DeviceError, ValueError) as error:
            feed.problem = str(error)
        finally:
            feed.problem = f"{self._name()}: {feed.problem}"
            self._feed = None
            feed.end()
        if not feed.scope.cancelled_caught and not self.device.exists():
            self.lost(f"{self._name()} is gone")

    async def _ffmpeg(self, feed: _Feed) -> str:
        """Runs it to its end; returns why it ended."""
        argv = [self._program, "-hide_banner", "-nostdin", "-loglevel", "error", "-f", "v4l2"]
        argv += ["-video_size", self.resolution] if self.resolution else []
        argv += ["-framerate", f"{self.fps:g}"] if self.fps else []
        argv += ["-input_format", self.format] if self.format else []
        argv += [*self.args, "-i", str(self.device), "-an"]
        argv += ["-vf", self.filters] if self.filters else []
        scale = 31 - round((self.quality - 1) * 29 / 99)  # ffmpeg's: 2 is the best, 31 the worst
        argv += ["-c:v", "mjpeg", "-q:v", str(scale), "-f", "image2pipe", "-flush_packets", "1", "pipe:1"]
        pictures = _jpeg.Pictures()
        with tempfile.TemporaryFile() as complaints:
            async with leashed(argv, stdout=PIPE, stderr=complaints) as process:
                assert process.stdout is not None
                while data := await process.stdout.receive_some(_PIECE):
                    for picture in pictures.feed(bytes(data)):
                        feed.put(picture)
                status = await process.wait()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines()
        last = said[-1].removeprefix(f"{self.device}: ") if said else ""
        return last or f"ffmpeg ended with status {status}"

    def _name(self) -> str:
        return f"the camera {self.device}"


class _Feed:
    """Pictures of one ffmpeg, for any number who look: each gets the newest that it has not had."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()  # of what puts them
        self.ended = trio.Event()
        self.problem = ""
        self.count = 0
        self._newest = b""
        self._watchers = 0
        self._news = trio.lowlevel.ParkingLot()

    def put(self, picture: bytes) -> None:
        self._newest, self.count = picture, self.count + 1
        self._news.unpark_all()

    def end(self) -> None:
        """There will be no more; `problem` says why."""
        self.ended.set()
        self._news.unpark_all()

    async def after(self, had: int) -> tuple[int, bytes]:
        """The newest picture and its number, once there is one with a higher number than that. Raises `DeviceError`."""
        while self.count <= had:
            if self.ended.is_set():
                raise DeviceError(self.problem)
            await self._news.park()
        return self.count, self._newest

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While somebody looks, and a moment longer, it goes on."""
        self._watchers += 1
        self.scope.deadline = math.inf
        try:
            yield
        finally:
            self._watchers -= 1
            if not self._watchers:
                self.scope.deadline = trio.current_time() + _LINGER


def _present() -> str:
    there = ", ".join(Machine().glob("/dev/video*"))
    return f"; present: {there}" if there else ""
