"""Pictures: read, compared, waited for."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import trio

from jmp.cli.verbs import execute
from jmp.client.images import Picture, Region, compare, read
from jmp.client.interfaces import client_class
from jmp.client.video import ImageDiffers
from jmp.driver.interfaces import Video
from jmp.driver.testing import serve
from jmp.errors import UsageError

BLACK, WHITE = b"\0\0\0", b"\xff\xff\xff"


def picture(*rows: str) -> Picture:
    """``#`` is white."""
    return Picture(len(rows[0]), len(rows), b"".join(WHITE if each == "#" else BLACK for each in "".join(rows)))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (13, 7)])
def test_png_files_are_read_as_pillow_reads_them(mode: str, size: tuple[int, int]) -> None:
    dice = random.Random(mode)
    noise = PIL.Image.frombytes("RGB", size, dice.randbytes(3 * size[0] * size[1]))
    file = BytesIO()
    image = noise.convert(mode)
    image.save(file, "png", optimize=True)  # chooses a filter for each row
    assert read(file.getvalue(), "it") == Picture(*size, image.convert("RGB").tobytes())


def test_every_filter_of_png() -> None:
    """Smooth pictures make an encoder use them all."""
    smooth = PIL.Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    for angle in (0, 30, 90, 200):
        turned, file = smooth.rotate(angle), BytesIO()
        turned.save(file, "png")
        assert read(file.getvalue(), "it").rgb == turned.tobytes()


def test_what_is_written_is_read_by_others_and_jpeg_by_pillow() -> None:
    made = picture("##.", ".#.")
    with PIL.Image.open(BytesIO(made.png())) as image:
        assert (image.size, image.tobytes()) == ((3, 2), made.rgb)
        file = BytesIO()
        image.resize((30, 20)).save(file, "jpeg")
    seen = read(file.getvalue(), "it")
    assert (seen.width, seen.height) == (30, 20)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n", picture("#").png()[:-20], b"\xff\xd8\xff"])
def test_what_is_no_picture_is_told(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"^x\.png is "):
        read(data, "x.png")


def test_what_differs_is_found_and_shown() -> None:
    difference = compare(picture("....", "....", "...."), picture("....", ".#.#", "...."), 16)
    assert (difference.pixels, difference.region) == (2, Region(1, 1, 3, 1))
    assert str(difference) == "2 of 12 pixels differ (16.67%), all within 1,1,3,1"
    assert difference.shown.cut(Region(1, 1, 1, 1)).rgb == b"\xff\0\0"
    assert difference.shown.cut(Region(0, 0, 1, 1)).rgb == b"\x40\x40\x40"
    near = Picture(1, 1, b"\x10\0\0")
    assert compare(near, picture("."), 16).pixels == 0
    assert compare(near, picture("."), 15).pixels == 1


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "0,0,0,1", "-1,0,1,1", ""])
def test_regions_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="is no part of a picture"):
        Region.parse(text)


class Slides(Video):
    """Shows pictures, one after the other, and then the last one."""

    slides: list[Any]

    async def screenshot(self) -> bytes:
        return bytes(self.slides[-1].png())

    async def frames(self, interval: float = 0.2) -> AsyncIterator[bytes]:
        for slide in self.slides:
            yield slide.png()
        await trio.sleep_forever()

    async def size(self) -> list[int]:
        return [self.slides[-1].width, self.slides[-1].height]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "end.png").write_bytes(picture(".#", "##").png())
    return tmp_path


BOOT = [picture("..."), picture("..", ".."), picture(".#", "##")]


def test_it_is_waited_for(folder: Path) -> None:
    with serve(Slides(slides=BOOT), class_of=client_class) as screen:
        screen.expect_image("end.png")
        screen.expect_image("end.png", region="1,0,1,2")
        (folder / "cut.png").write_bytes(picture("#", "#").png())
        assert execute(screen._wrapped, ["expect-image", "cut.png", "--region", "1,0,1,2"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["cut.png", "end.png"]


async def test_it_is_waited_for_under_trio(folder: Path) -> None:
    with trio.fail_after(60):
        async with serve(Slides(slides=BOOT), class_of=client_class) as screen:
            await screen.expect_image("end.png")
            (folder / "other.png").write_bytes(picture("##", "##").png())
        async with serve(Slides(slides=BOOT[-1:]), class_of=client_class) as screen:
            with pytest.raises(ImageDiffers, match="1 of 4 pixels differ"):
                await screen.expect_image("other.png", timeout=1)


def test_what_does_not_come_is_told_and_saved(folder: Path) -> None:
    (folder / "other.png").write_bytes(picture("..", "##").png())
    with serve(Slides(slides=BOOT[-1:]), class_of=client_class) as screen:
        said = (
            r"^device did not look like other.png within 1 s: 1 of 4 pixels differ \(25.00%\), all within 1,0,1,1; see "
        )
        with pytest.raises(ImageDiffers, match=said + r"other\.actual\.png and other\.diff\.png$"):
            screen.expect_image("other.png", timeout=1)
        assert read((folder / "other.actual.png").read_bytes(), "") == BOOT[-1]
        assert read((folder / "other.diff.png").read_bytes(), "").cut(Region(1, 0, 1, 1)).rgb == b"\xff\0\0"
        screen.expect_image("other.png", timeout=60, different=0.25)
        (folder / "large.png").write_bytes(picture("....").png())
        with pytest.raises(ImageDiffers, match="it has 2 x 2 pixels, and the picture 4 x 1"):
            screen.expect_image("large.png", timeout=1)
        with pytest.raises(ImageDiffers, match="it has 2 x 2 pixels, and the picture 2 x 2"):
            screen.expect_image("end.png", region="8,8,2,2", timeout=1)


def test_a_reference_that_is_not_there_is_made(folder: Path) -> None:
    with serve(Slides(slides=BOOT), class_of=client_class) as screen:
        with pytest.raises(UsageError, match=r"no picture new\.png; what is .* saved as new\.actual\.png"):
            screen.expect_image("new.png")
        (folder / "new.actual.png").rename(folder / "new.png")
        screen.expect_image("new.png")


def test_what_differs_is_told_though_the_pictures_of_it_cannot_be_saved(folder: Path) -> None:
    (folder / "other.png").write_bytes(picture("..", "##").png())
    (folder / "file").touch()
    with serve(Slides(slides=BOOT), class_of=client_class) as screen:
        said = r"1 of 4 pixels differ .*; the folder file/out cannot be made: Not a directory$"
        with pytest.raises(ImageDiffers, match=said):
            screen.expect_image("other.png", timeout=0.2, save="file/out")
        with pytest.raises(ImageDiffers, match=r"see made/out/other\.actual\.png and made/out/other\.diff\.png$"):
            screen.expect_image("other.png", timeout=0.2, save="made/out")


def test_what_cannot_be_written_is_told(folder: Path) -> None:
    said = r"no/shot\.png cannot be written: No such file or directory"
    with serve(Slides(slides=BOOT), class_of=client_class) as screen, pytest.raises(UsageError, match=said):
        screen.screenshot("no/shot.png")
