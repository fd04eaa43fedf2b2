"""Every kind of file becomes what a person sees; what can't be read is named."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data.images import PNG_START, UnreadableImage, _plain_bmp, _plain_png, decode, to_tensor, write_png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def cv2_png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def test_rgb_png_and_jpeg():
    np.testing.assert_array_equal(decode(as_bytes(Image.fromarray(RGB)), "a.png"), RGB)
    smooth = cv2.resize(RGB, (64, 64))
    assert np.abs(decode(as_bytes(Image.fromarray(smooth), "JPEG", quality=95), "a.jpg").astype(int) - smooth).mean() < 6


def test_grey():
    np.testing.assert_array_equal(decode(as_bytes(Image.fromarray(RGB[..., 0])), "a.png"), RGB[..., [0, 0, 0]])


def test_black_and_white():
    found = decode(as_bytes(Image.fromarray(RGB[..., 0] > 127)), "a.png")
    np.testing.assert_array_equal(found, np.where(RGB[..., [0, 0, 0]] > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(kind):
    deep = np.array([[0, 256, 32768, 65535, 128, 129, 257 * 200]], dtype=np.uint16)
    found = decode(as_bytes(Image.fromarray(deep), kind), "a.png")
    np.testing.assert_array_equal(found[0, :, 0], [0, 1, 128, 255, 0, 1, 200])  # round(v / 257)
    assert found.shape == (1, 7, 3)


def test_16_bit_colour_is_scaled():
    deep = RNG.integers(0, 65536, (12, 10, 3), dtype=np.uint16)
    found = decode(cv2_png(deep[..., ::-1]), "a.png")
    np.testing.assert_allclose(found, deep / 257, rtol=0, atol=1)


def test_transparency_lies_on_white():
    rgba = np.dstack([np.full((1, 3), value, dtype=np.uint8) for value in (200, 100, 0, 0)])
    rgba[0, :, 3] = [0, 255, 128]
    found = decode(as_bytes(Image.fromarray(rgba)), "a.png")
    np.testing.assert_array_equal(found[0, :2], [[255, 255, 255], [200, 100, 0]])
    np.testing.assert_allclose(found[0, 2], [227, 177, 127], atol=1)


def test_grey_with_transparency():
    la = np.dstack([np.full((1, 2), 40, dtype=np.uint8), np.array([[0, 255]], dtype=np.uint8)])
    np.testing.assert_array_equal(decode(as_bytes(Image.fromarray(la, "LA")), "a.png")[0, :, 0], [255, 40])


def test_palette():
    palette = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 250])
    expected = [[10, 20, 30], [200, 0, 0], [0, 0, 250]]
    np.testing.assert_array_equal(decode(as_bytes(palette), "a.png")[0], expected)
    expected[1] = [255, 255, 255]
    np.testing.assert_array_equal(decode(as_bytes(palette, transparency=1), "a.png")[0], expected)


def test_cmyk_jpeg():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    np.testing.assert_allclose(decode(as_bytes(red, "JPEG"), "a.jpg")[8, 8], [255, 0, 0], atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_orientation(orientation, kind):
    upright = np.zeros((16, 24, 3), dtype=np.uint8)
    upright[:8, :8] = 255  # white patch at the top left
    turns = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    across = upright.transpose(1, 0, 2)
    turns |= {5: across, 6: across[::-1], 7: across[::-1, ::-1], 8: across[:, ::-1]}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turns[orientation]))
    found = decode(as_bytes(stored, kind, exif=exif), "a")
    np.testing.assert_allclose(found, upright, atol=6)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_named(kind, part):
    noisy = Image.fromarray(RNG.integers(0, 256, (80, 80, 3), dtype=np.uint8))
    whole = as_bytes(noisy, kind)
    with pytest.raises(UnreadableImage, match=rf"dir/face\.x can't be read as an image \({int(len(whole) * part)} bytes\)"):
        decode(whole[: int(len(whole) * part)], "dir/face.x")


def test_damage_inside_a_png_is_noticed():
    whole = bytearray(as_bytes(Image.fromarray(RNG.integers(0, 256, (80, 80, 3), dtype=np.uint8))))
    whole[len(whole) // 2] ^= 255
    with pytest.raises(UnreadableImage, match=r"face\.png"):
        decode(bytes(whole), "face.png")


@pytest.mark.parametrize("contents", [b"", b"no image at all"])
def test_what_is_no_image(contents):
    with pytest.raises(UnreadableImage, match=r"notes\.png can't be read"):
        decode(contents, "notes.png")


def test_32_bit_pixels():
    deep = Image.fromarray(np.ones((4, 4), dtype=np.float32))
    with pytest.raises(UnreadableImage, match=r"32-bit \(mode F\)"):
        decode(as_bytes(deep, "TIFF"), "a.tif")


def test_to_tensor():
    image = to_tensor(RGB[:, ::-1])
    assert image.shape == (3, 12, 10)
    assert image.dtype == torch.float32
    assert image[2, 3, 4] == np.float32(RGB[3, 5, 2]) / np.float32(255)
    assert to_tensor(np.uint8([[[0, 51, 255]]])).flatten().tolist() == pytest.approx([0, 0.2, 1])


def test_written_png_reads_back(tmp_path):
    write_png(tmp_path / "a.png", to_tensor(RGB))
    np.testing.assert_array_equal(decode((tmp_path / "a.png").read_bytes(), "a.png"), RGB)
    write_png(tmp_path / "a.png", torch.tensor([-0.5, 0.25, 2.0]).expand(3, 1, 3))
    np.testing.assert_array_equal(decode((tmp_path / "a.png").read_bytes(), "a.png")[0, :, 1], [0, 64, 255])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write_png(tmp_path / "a.png", to_tensor(RGB))
    with pytest.raises((ValueError, SystemError), match=r"image|tile|size"):
        write_png(tmp_path / "a.png", torch.zeros(3, 0, 5))
    np.testing.assert_array_equal(decode((tmp_path / "a.png").read_bytes(), "a.png"), RGB)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


# the short way


def pillow(contents):
    return np.asarray(Image.open(io.BytesIO(contents)).convert("RGB"))


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows, height, width, colour, extra=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("width", [1, 2, 3, 61])
def test_plain_files_take_the_short_way_to_the_same_pixels(kind, width):
    contents = as_bytes(Image.fromarray(RNG.integers(0, 256, (47, width, 3), dtype=np.uint8)), kind)
    quick = _plain_png(contents) if kind == "PNG" else _plain_bmp(contents)
    np.testing.assert_array_equal(quick, pillow(contents))
    np.testing.assert_array_equal(decode(contents, "a"), pillow(contents))


def test_smooth_pictures_use_all_filters_of_png():
    contents = as_bytes(Image.fromarray(cv2.resize(RGB, (200, 200), interpolation=cv2.INTER_CUBIC)))
    np.testing.assert_array_equal(_plain_png(contents), pillow(contents))


def test_grey_and_colour_profile_take_the_short_way():
    grey = as_bytes(Image.fromarray(RGB[..., 0]))
    np.testing.assert_array_equal(_plain_png(grey), pillow(grey))
    rows = np.concatenate([np.zeros((12, 1), np.uint8), RGB.reshape(12, 30)], axis=1).tobytes()
    np.testing.assert_array_equal(_plain_png(png(rows, 12, 10, 2, chunk(b"gAMA", struct.pack(">I", 100000)))), RGB)


def test_everything_else_is_left_to_pillow():
    exif = Image.Exif()
    exif[0x0112] = 6
    info = PngInfo()
    info.add_text("Raw profile type exif", "x")
    rgba = Image.fromarray(RNG.integers(0, 256, (8, 8, 4), dtype=np.uint8))
    for contents in (
        as_bytes(Image.fromarray(RGB[..., 0].astype(np.uint16))),
        as_bytes(Image.fromarray(RGB).convert("P")),
        as_bytes(rgba),
        as_bytes(Image.fromarray(RGB), transparency=(1, 2, 3)),
        as_bytes(Image.fromarray(RGB), exif=exif),
        as_bytes(Image.fromarray(RGB), pnginfo=info),
        cv2_png(RNG.integers(0, 65536, (12, 10, 3), dtype=np.uint16)),
    ):
        assert _plain_png(contents) is None
    np.testing.assert_array_equal(decode(as_bytes(Image.fromarray(RGB), pnginfo=info), "a.png"), RGB)
    for image in (Image.fromarray(RGB[..., 0]), rgba, Image.fromarray(RGB).convert("P")):
        assert _plain_bmp(as_bytes(image, "BMP")) is None


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_bmp_is_named(part):
    whole = as_bytes(Image.fromarray(RGB), "BMP")
    with pytest.raises(UnreadableImage, match=r"a\.bmp can't be read as an image"):
        decode(whole[: int(len(whole) * part)], "a.bmp")


def test_a_png_whose_rows_end_early_is_named():
    """All checksums are right, and Pillow and OpenCV return half an image."""
    rows = np.concatenate([np.zeros((12, 1), np.uint8), RGB.reshape(12, 30)], axis=1).tobytes()
    np.testing.assert_array_equal(decode(png(rows, 12, 10, 2), "a.png"), RGB)
    with pytest.raises(UnreadableImage, match=r"a\.png can't be read as an image .*: its rows end after 186 of 372 bytes"):
        decode(png(rows[: len(rows) // 2], 12, 10, 2), "a.png")


def test_a_wrong_filter_or_checksum_is_named():
    rows = np.concatenate([np.full((12, 1), 9, np.uint8), RGB.reshape(12, 30)], axis=1).tobytes()
    assert _plain_png(png(rows, 12, 10, 2)) is None
    broken = bytearray(as_bytes(Image.fromarray(RGB)))
    broken[-20] ^= 1
    with pytest.raises(UnreadableImage, match=r"a\.png can't be read as an image"):
        decode(bytes(broken), "a.png")
