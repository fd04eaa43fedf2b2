"""Images from strangers: known formats alone are opened, sizes are told by the header, and no metadata refuses a picture."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from data import images
from data.images import PNG_START, UnreadableImage, decode, upright_size
from data.photographs import read_photograph
from data.sources.listing import FORMATS


def photo(mode: str = "RGB") -> Image.Image:
    colours = np.mgrid[0:256:51, 0:256:51].reshape(2, -1).T.astype(np.uint8)
    return Image.fromarray(np.dstack([colours[None], colours[None, :, :1]])).resize((36, 4)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """With a chunk behind the header."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def header_of(width: int, height: int) -> bytes:
    """A PNG that ends behind its header."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return PNG_START + struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content)) + end


def profile(primaries: tuple[float, ...], gamma: float) -> bytes:
    """A small RGB profile. Args: primaries: XYZ under D50 of red, green and blue. gamma: of all three."""
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    tags |= {name: xyz(*primaries[at : at + 3]) for name, at in ((b"rXYZ", 0), (b"gXYZ", 3), (b"bXYZ", 6))}
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    text = b"a profile\0"
    tags[b"desc"] = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78 + (-len(text)) % 4)
    tags[b"cprt"] = b"text" + bytes(4) + b"none\0\0\0\0"
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + struct.pack(">III", 0xF6D6, 0x10000, 0xD32D)
    whole = head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))


P3 = profile((0.51512, 0.2412, -0.00105, 0.29198, 0.69225, 0.04189, 0.1571, 0.06657, 0.78407), 2.2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


# What is opened --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_postscript_under_another_name_starts_nothing(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    eps = encoded(photo(), "EPS")
    with pytest.raises(UnreadableImage, match=rf"face{suffix} can't be read as an image"):
        decode(eps, f"face{suffix}")
    with pytest.raises(OSError, match="cannot identify"):
        upright_size(eps)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "SGI", "ICO", "PDF", "JPEG2000"])
def test_no_other_format_is_tried(kind: str) -> None:
    with pytest.raises(UnreadableImage):
        decode(encoded(photo(), kind), "face.png")


def test_every_listed_format_opens() -> None:
    kinds = set(FORMATS.values()) - {"AVIF"}
    assert len(kinds) == 6
    for kind in kinds:
        assert decode(encoded(photo(), kind), "face").shape == (4, 36, 3)


def test_nothing_else_opens_images() -> None:
    root = Path(images.__file__).parents[1]
    found = {
        str(path.relative_to(root))
        for room in ("data", "restoration", "train", "models", "losses", "evaluation")
        for path in (root / room).rglob("*.py")
        if "Image.open(" in path.read_text() or "imread(" in path.read_text()
    }
    assert found == {"data/images.py", "data/sources/bundled.py"}  # the second opens a photograph of a package


# Bombs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [header_of(20000, 9500), encoded(photo(), "BMP")[:18] + struct.pack("<ii", 20000, 9500)])
def test_more_pixels_than_the_limit_are_refused_by_the_header(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    if data.startswith(b"BM"):  # its rows would have to be there
        monkeypatch.setenv("FACEWRIGHT_MAX_PIXELS", "100")
        data = encoded(photo(), "BMP")
        says = r"its 36x4 pixels are more than the 100 .* set FACEWRIGHT_MAX_PIXELS=144 in the environment"
    else:
        says = r"its 20000x9500 pixels are more than the 178956970 .* set FACEWRIGHT_MAX_PIXELS=190000000 in the environment"
    with pytest.raises(UnreadableImage, match=says):
        decode(data, "face")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_sentence_is_followed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), kind)
    monkeypatch.setenv("FACEWRIGHT_MAX_PIXELS", "143")
    with pytest.raises(UnreadableImage, match=r"^face can't be read .* set FACEWRIGHT_MAX_PIXELS=144 in the environment"):
        decode(data, "face")
    monkeypatch.setenv("FACEWRIGHT_MAX_PIXELS", "144")
    assert decode(data, "face").shape == (4, 36, 3)


@pytest.mark.parametrize("wrong", ["1e9", "0", "-1", "many"])
def test_a_limit_that_is_none(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEWRIGHT_MAX_PIXELS", wrong)
    with pytest.raises(UnreadableImage, match=rf"FACEWRIGHT_MAX_PIXELS={wrong} is no number of pixels"):
        decode(encoded(photo()), "face")


# Metadata --------------------------------------------------------------------------------------------------------------


def texts() -> dict[str, bytes]:
    long = PngImagePlugin.PngInfo()
    long.add_text("workflow", "node " * 400_000, zip=True)  # 2 MB, as programs of nodes write it
    international = PngImagePlugin.PngInfo()
    international.add_itxt("prompt", "a face " * 400_000, zip=True)
    big_profile = b"P3\0\0" + zlib.compress(bytes(3_000_000))
    plain = encoded(photo())
    return {
        "zTXt": encoded(photo(), pnginfo=long),
        "iTXt": encoded(photo(), pnginfo=international),
        "broken": with_chunk(plain, b"zTXt", b"a\0\0no zlib stream"),
        "a large profile": with_chunk(plain, b"iCCP", big_profile),
        "both": with_chunk(with_chunk(plain, b"iCCP", big_profile), b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))),
    }


@pytest.mark.parametrize("name", texts())
def test_no_text_refuses_a_png(name: str) -> None:
    assert np.array_equal(decode(texts()[name], "face"), np.asarray(photo()))


def test_a_damaged_png_is_refused_in_spite_of_its_text() -> None:
    with pytest.raises(UnreadableImage, match=r"face can't be read as an image"):
        decode(texts()["zTXt"][:-40], "face")


def test_text_costs_no_profile() -> None:
    with_profile = encoded(photo(), icc_profile=P3)
    text = with_chunk(with_profile, b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))
    assert np.array_equal(decode(text, "face"), decode(with_profile, "face"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_turns_and_refuses_nothing() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        plain = decode(encoded(photo(), kind), "face")
        for exif in (b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0nonsense", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"):
            data = encoded(photo(), kind, exif=exif)
            assert np.array_equal(decode(data, "face"), plain)
            assert upright_size(data) == (36, 4)


# Profiles --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_another_profile_becomes_srgb(kind: str) -> None:
    green = Image.new("RGB", (16, 16), (100, 200, 100))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    made = decode(encoded(green, kind, icc_profile=P3, **options), "face")
    red, blue = 1.2249 * 0.1275 - 0.2247 * 0.5860, -0.0197 * 0.1275 - 0.0786 * 0.5860 + 1.0979 * 0.1275  # of P3's primaries
    lit = np.array([red, -0.0420 * 0.1275 + 1.0419 * 0.5860, blue])  # the powers of 2.2 of 100 / 255 and 200 / 255
    wanted = 255 * (1.055 * lit ** (1 / 2.4) - 0.055)  # (43, 204, 85)
    assert np.abs(made - wanted).max() <= 3
    assert np.array_equal(decode(encoded(green, "PNG"), "face")[0, 0], (100, 200, 100))


def test_a_photograph_keeps_its_own_colours_until_a_network_sees_it() -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(photo(), kind, icc_profile=P3)
        whole = read_photograph(data, "face")
        assert np.array_equal(whole.pixels, decode(encoded(photo(), kind), "face"))
        assert np.abs(whole.srgb().astype(int) - decode(data, "face")).max() <= 2


def test_transparency_and_grey_keep_their_profile() -> None:
    clear = Image.new("RGBA", (4, 4), (100, 200, 100, 0))
    assert decode(encoded(clear, icc_profile=P3), "face").min() == 255
    solid = Image.new("RGBA", (4, 4), (100, 200, 100, 255))
    plain = decode(encoded(solid.convert("RGB"), icc_profile=P3), "face")
    assert np.array_equal(decode(encoded(solid, icc_profile=P3), "face"), plain)


def test_srgb_changes_nothing_and_takes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images.to_srgb(SRGB, "RGB") is None
    data = encoded(photo(), icc_profile=SRGB)
    monkeypatch.setattr(images, "_by_pillow", None)
    assert np.array_equal(decode(data, "face"), np.asarray(photo()))


@pytest.mark.parametrize(
    "broken", [b"nonsense", P3[:200], SRGB[:60], b"\0" * 500], ids=["nonsense", "half", "head", "zeros"]
)  # its bytes hold the time of day, and processes would name it differently
def test_a_broken_profile_is_ignored(broken: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        plain = decode(encoded(photo(), kind), "face")
        assert np.array_equal(decode(encoded(photo(), kind, icc_profile=broken), "face"), plain)


def test_a_profile_of_other_pixels_is_ignored() -> None:
    grey = photo("L")
    assert np.array_equal(decode(encoded(grey, icc_profile=P3), "face"), np.repeat(np.asarray(grey)[..., None], 3, 2))
