"""Photographs at their own depth: what was there is there again."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from data.images import UnreadableImage
from data.photographs import read_photograph, write_photograph

RNG = np.random.default_rng(0)
SMALL = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 4), dtype=np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encoded(image: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def deep(suffix: str, channels: int) -> bytes:
    order = cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(suffix, cv2.cvtColor(np.ascontiguousarray(DEEP[..., :channels]), order))[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits(suffix: str, channels: int, tmp_path: Path) -> None:
    photo = read_photograph(deep(suffix, channels), "x")
    assert photo.pixels.dtype == np.uint16
    assert (photo.pixels == DEEP[..., :3]).all()
    assert (photo.alpha is None) == (channels == 3)
    assert (photo.srgb() == np.rint(DEEP[..., :3] / 257)).all()
    write_photograph(tmp_path / "out.png", photo, "png")
    again = read_photograph((tmp_path / "out.png").read_bytes(), "x")
    assert (again.pixels == DEEP[..., :3]).all()
    assert channels == 3 or (again.alpha == DEEP[..., 3]).all()
    write_photograph(tmp_path / "out.webp", photo, "webp")
    assert Image.open(tmp_path / "out.webp").mode == ("RGB" if channels == 3 else "RGBA")


@pytest.mark.parametrize("form", ["png", "webp", "jpg"])
def test_profile_and_exif(form: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a camera", 6
    photo = read_photograph(encoded(SMALL, exif=exif, icc_profile=SRGB), "x")
    assert (photo.pixels == SMALL[::-1].transpose(1, 0, 2)).all(), "upright"
    write_photograph(tmp_path / f"out.{form}", photo, form)  # type: ignore[arg-type]
    with Image.open(tmp_path / f"out.{form}") as made:
        assert made.info["icc_profile"] == SRGB
        assert made.getexif()[0x010F] == "a camera"
        assert 0x0112 not in made.getexif()
        assert made.size == (6, 9)


def test_profile_and_exif_of_sixteen_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    photo = read_photograph(deep(".png", 4), "x")
    write_photograph(tmp_path / "out.png", type(photo)(photo.pixels, photo.alpha, SRGB, exif.tobytes()), "png")
    with Image.open(tmp_path / "out.png") as made:
        made.load()
        assert (made.info["icc_profile"], made.getexif()[0x010F]) == (SRGB, "a camera")
    assert (read_photograph((tmp_path / "out.png").read_bytes(), "x").pixels == DEEP[..., :3]).all()


def test_transparency_keeps_the_colours_under_it(tmp_path: Path) -> None:
    colours = np.dstack([SMALL, np.full((6, 9), 77, dtype=np.uint8)])
    photo = read_photograph(encoded(colours), "x")
    assert (photo.pixels == SMALL).all()
    assert (photo.alpha == 77).all()
    with pytest.raises(ValueError, match=r"out.jpg has transparency, which JPEG can't hold: give format=png or format=webp"):
        write_photograph(tmp_path / "out.jpg", photo, "jpg")
    palette = Image.fromarray(SMALL).quantize(8)
    stream = io.BytesIO()
    palette.save(stream, "PNG", transparency=0)
    assert read_photograph(stream.getvalue(), "x").alpha is not None


def test_colours_of_a_profile_go_there_and_back() -> None:
    """A profile with red and green swapped would be seen; here a wide one, made of sRGB's with another gamma."""
    wide = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert read_photograph(encoded(SMALL, icc_profile=wide), "x").icc is None, "not of RGB"
    broken = SRGB[:200]
    photo = read_photograph(encoded(SMALL, icc_profile=broken), "x")
    assert (photo.srgb() == SMALL).all()
    photo = read_photograph(encoded(SMALL, icc_profile=SRGB), "x")
    assert np.abs(photo.from_srgb(photo.srgb().astype(np.float32)) - SMALL).max() <= 1


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_modes_become_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(SMALL).convert(mode).save(stream, "TIFF")
    photo = read_photograph(stream.getvalue(), "x")
    assert (photo.pixels.shape, photo.pixels.dtype) == ((6, 9, 3), np.uint8)


def test_grey_of_sixteen_bits() -> None:
    photo = read_photograph(cv2.imencode(".png", DEEP[..., 0])[1].tobytes(), "x")
    assert (photo.pixels == DEEP[..., :1]).all()


def test_enlarged() -> None:
    photo = read_photograph(deep(".png", 4), "x").resized(2)
    assert (photo.pixels.shape, photo.pixels.dtype) == ((12, 18, 3), np.uint16)
    assert photo.alpha is not None
    assert photo.alpha.shape == (12, 18)


def test_what_is_no_image_is_named() -> None:
    for content in (b"", b"%!PS-Adobe", encoded(SMALL)[:50]):
        with pytest.raises(UnreadableImage, match=r"a\.png can't be read"):
            read_photograph(content, "a.png")
