"""The clients of ``jmp.video/v1`` and ``jmp.vnc/v1``: what can be seen of a device, compared with what is expected."""
# ruff: noqa: ASYNC109  # under Trio `timeout` is one more way to say it, for threads the only one

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from jmp.client.network import NetworkClient
from jmp.driver.proxy import DriverClient, verb
from jmp.errors import Timeout, UsageError

if TYPE_CHECKING:
    from jmp.client.images import Difference, Picture, Region
    from jmp.client.web.page import Web


class ImageDiffers(Timeout):
    """A device did not look as expected in the time given."""


class VideoClient(DriverClient):
    """What can be seen of a device."""

    @verb
    async def screenshot(self, file: Path | str | None = None) -> bytes | None:
        """What is to be seen now, as a PNG or JPEG file: written to FILE, or as the result."""
        picture: bytes = await self._backend.call(self._node.path, "screenshot", (), {})
        if file is None:
            return picture
        await self._backend.run(_write, Path(file), picture)
        return None

    @verb
    async def expect_image(
        self,
        reference: Path | str,
        *,
        timeout: Annotated[float, "seconds to wait for it"] = 30.0,
        region: Annotated[str | None, "the part that counts: X,Y,WIDTH,HEIGHT"] = None,
        tolerance: Annotated[int, "by how much a channel of a pixel, 0 to 255, may differ"] = 16,
        different: Annotated[float, "which share of the pixels, 0 to 1, may differ by more"] = 0.0,
        save: Annotated[Path | str, "folder for the pictures that show what was not as expected; it is made"] = ".",
    ) -> None:
        """Wait until it looks like REFERENCE, a picture of all of it or of the region.

        If it does not in time, :class:`ImageDiffers` says what differs; NAME.actual.png and NAME.diff.png, with what differs in
        red, are written then. A reference that is not there is a UsageError, and what is to be seen is saved, to become one.
        """
        from jmp.client.images import Region

        look = _Look(Path(reference), Region.parse(region) if region else None, tolerance, different, Path(save))
        if not await self._backend.run(look.load):
            picture = await self._backend.call(self._node.path, "screenshot", (), {})
            saved = await self._backend.run(look.save_actual, picture)
            raise UsageError(f"there is no picture {reference}; what is to be seen now has been saved as {saved}")
        if not await self._until(look, timeout):
            raise ImageDiffers(
                f"{self._node.path or 'device'} did not look like {reference} within {timeout:g} s: "
                + await self._backend.run(look.verdict)
            )

    async def _until(self, look: _Look, timeout: float) -> bool:
        """Whether it looked like that in time."""
        from jmp.rpc.blocking import BlockingCaller, fail_after

        if isinstance(self._backend, BlockingCaller):
            try:
                with fail_after(timeout):
                    return await self._seen(look)
            except Timeout:
                return False
        import trio

        with trio.move_on_after(timeout):
            return await self._seen(look)
        return False

    async def _seen(self, look: _Look) -> bool:
        frames = self._backend.items(self._node.path, "frames", (), {})
        try:
            async for frame in frames:
                if await self._backend.run(partial(look.fits, frame)):
                    return True
        finally:
            await frames.aclose()
        return False


class VncClient(VideoClient, NetworkClient):
    """A screen with keyboard and pointer. ``connect()`` and ``forward()`` lead to its VNC server."""

    @verb
    def novnc(
        self,
        listen: str = "127.0.0.1:0",
        *,
        watch: Annotated[bool, "only look"] = False,
        browser: Annotated[bool, "open it there"] = False,
    ) -> Web:
        """The screen in a browser of this machine, at an address that is printed and that nobody can guess.

        LISTEN is PORT or HOST:PORT of this machine, 0 one that is free. In Python: with dut.vnc.novnc() as page (async with under
        Trio); page.url.
        """
        from jmp.client.web.page import Web
        from jmp.client.web.server import Page

        # An exporter of before has no way in without its password: the page asks for it.
        method = "view" if "view" in self._node.methods else "connect"
        opened = partial(self._backend.open, self._node.path, method, (), {})
        page = Page("screen", self._node.path or "screen", watch)
        return Web(self._backend, self._node.path, page, {"": opened}, listen, browser)


class _Look:
    """What something is to look like, and what it looked like last."""

    def __init__(self, path: Path, region: Region | None, tolerance: int, different: float, save: Path) -> None:
        self._path = path
        self._region = region
        self._tolerance = tolerance
        self._different = different
        self._save = save
        self._expected: Picture | None = None
        self._actual: Picture | None = None
        self._difference: Difference | None = None

    def load(self) -> bool:
        """Read the reference; False if there is none."""
        from jmp.client.images import read

        try:
            picture = read(self._path.read_bytes(), str(self._path))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}") from error
        region = self._region
        if region is not None and (picture.width, picture.height) != (region.width, region.height):
            picture = picture.cut(region)
        self._expected = picture
        return True

    def fits(self, frame: bytes) -> bool:
        """Whether a frame is as it is to be."""
        from jmp.client.images import compare, read

        assert self._expected is not None
        whole = read(frame, "what the device shows")
        region = self._region
        self._difference = None
        if region is not None and (region.x + region.width > whole.width or region.y + region.height > whole.height):
            self._actual = whole
            return False
        self._actual = actual = whole if region is None else whole.cut(region)
        if (actual.width, actual.height) != (self._expected.width, self._expected.height):
            return False
        self._difference = compare(self._expected, actual, self._tolerance)
        return self._difference.share <= self._different

    def verdict(self) -> str:
        """What was not as expected; writes the pictures of it."""
        if self._actual is None or self._expected is None:
            return "nothing was to be seen"
        actual, expected = self._actual, self._expected
        shown = {"actual": actual}
        if self._difference is None:
            what = (
                f"it has {actual.width} x {actual.height} pixels, and the picture {expected.width} x {expected.height}"
            )
        else:
            what = str(self._difference)
            shown["diff"] = self._difference.shown
        try:
            saved = [self._saved(name, picture) for name, picture in shown.items()]
        except UsageError as error:  # what differs is the news
            return f"{what}; {error.message}"
        return f"{what}; see {' and '.join(saved)}"

    def save_actual(self, frame: bytes) -> str:
        """Save what is to be seen, to become a reference."""
        from jmp.client.images import read

        picture = read(frame, "what the device shows")
        return self._saved("actual", picture.cut(self._region) if self._region else picture)

    def _saved(self, what: str, picture: Picture) -> str:
        try:
            self._save.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder {self._save} cannot be made: {error.strerror}") from error
        return _write(self._save / f"{self._path.stem}.{what}.png", picture.png())


def _write(path: Path, data: bytes) -> str:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    return str(path)
