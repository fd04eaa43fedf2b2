"""Bytes to RGB and back. Grey, 16-bit, transparency, palettes, CMYK and EXIF orientation end here."""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
from isal import isal_zlib
from PIL import Image, ImageCms, ImageOps
from torch import Tensor

from data.sources.listing import FORMATS
from data.writing import replacing

READ_ERRORS = (  # what Pillow's readers raise on damaged files
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3}  # colour type -> values a pixel: grey and RGB
# Chunks that change no pixel of ours: transparency, palettes, EXIF and text that may hold it are not among them.
PNG_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"sBIT"}


PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt"}
MOST_OF_PROFILE = 1 << 20  # bytes; those of cameras and printers have a few thousand to half a million
MOST_PIXELS = "FACEWRIGHT_MAX_PIXELS"
Image.MAX_IMAGE_PIXELS = None  # `opened` judges in its place, with a way out


class UnreadableImage(ValueError):
    """A file that is truncated, damaged, or no image; the message names it."""


def most_pixels() -> int:
    """How many an image may have: FACEWRIGHT_MAX_PIXELS of the environment, which every process of a command inherits."""
    given = os.environ.get(MOST_PIXELS, "178956970")
    if not given.isdigit() or not int(given):
        raise ValueError(f"{MOST_PIXELS}={given} is no number of pixels: give one, such as {MOST_PIXELS}=400000000")
    return int(given)


def check_size(width: int, height: int) -> None:
    """Of a header, before anything is allocated. Raises ValueError: more pixels than an image may have."""
    if width * height > (most := most_pixels()):
        raise ValueError(
            f"its {width}x{height} pixels are more than the {most} that an image may have: if you trust it, set "
            f"{MOST_PIXELS}={width * height} in the environment, or leave it out"
        )


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The one door to Pillow: known formats alone, judged by the header. Raises READ_ERRORS; ValueError: too many pixels."""
    with Image.open(io.BytesIO(data), formats=tuple(FORMATS.values())) as photo:
        check_size(*photo.size)
        yield photo


def upright_size(data: bytes) -> tuple[int, int]:
    """(w, h) as `decode` would give them, from the header. Raises READ_ERRORS: no such image."""
    with opened(data) as photo:
        turned = False
        with suppress(*READ_ERRORS):  # broken EXIF turns nothing
            turned = photo.getexif().get(0x0112, 1) >= 5  # its rows are columns
        return photo.size[::-1] if turned else photo.size


def decode(data: bytes, name: str, *, own_colours: bool = False) -> np.ndarray:
    """The picture as a person sees it: (h, w, 3) uint8 RGB.

    EXIF orientation is applied. Transparent pixels lie on white. 16-bit grey is divided by 257 and rounded; 16-bit colour keeps
    its high byte (Pillow), at most one grey level beside that. Colours are those of sRGB: an embedded profile is applied, and
    one that is broken, or of another kind of pixels, is ignored. No text, EXIF or profile refuses an image. Plain 8-bit PNG
    and BMP files take a shorter way to the same pixels.

    Args:    name: the file's name, for the message. own_colours: pixels stay in the colours of the file's profile.
    Raises:  UnreadableImage: truncated, damaged, no image, 32-bit pixels, or more pixels than `most_pixels`.
    """
    try:
        quick = (
            _plain_png(data, own_colours)
            if data.startswith(PNG_START)
            else _plain_bmp(data)
            if data.startswith(b"BM")
            else None
        )
        return _by_pillow(data, own_colours) if quick is None else quick
    except READ_ERRORS as error:
        why = re.sub(r" <_io.BytesIO object at \w+>", "", str(error))  # Pillow names our stream, which says nothing
        raise UnreadableImage(f"{name} can't be read as an image ({len(data)} bytes): {why}") from error


def _by_pillow(data: bytes, own_colours: bool) -> np.ndarray:
    """Any image. A PNG whose text or profile Pillow refuses, as it bounds both, is read without it."""
    try:
        return _loaded(data, own_colours)
    except READ_ERRORS as error:
        if not data.startswith(PNG_START):
            raise
        for kinds in (PNG_TEXT, PNG_TEXT | {b"iCCP"}):
            with suppress(*READ_ERRORS):
                if len(bare := _png_without(data, kinds)) < len(data):
                    return _loaded(bare, own_colours)
        raise error from None


def _loaded(data: bytes, own_colours: bool) -> np.ndarray:
    with opened(data) as photo:
        photo.load()
        with suppress(*READ_ERRORS):  # broken EXIF turns nothing
            ImageOps.exif_transpose(photo, in_place=True)
        return _rgb(photo, own_colours)


def _plain_png(data: bytes, own_colours: bool = False) -> np.ndarray | None:
    """An 8-bit grey or RGB PNG that is whole and has nothing to apply but its filters; None leaves a file to Pillow.

    Inflating takes isal half the time of the zlib in OpenCV and Pillow, so OpenCV gets the inflated rows as a PNG without
    compression. OpenCV and Pillow would also return half an image where the rows end early.

    Raises:  ValueError: the rows end early.
    """
    chunks = _png_chunks(data)
    if chunks is None:
        return None
    header = chunks[0][1]
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    size = height * (1 + width * PNG_CHANNELS.get(colour, 0))  # each row has a byte for its filter
    if depth != 8 or colour not in PNG_CHANNELS or interlaced:
        return None
    check_size(width, height)
    profiles = [content for kind, content in chunks if kind == b"iCCP" and not own_colours]
    if any(to_srgb(_inflated(profile), "RGB" if colour == 2 else "L") for profile in profiles):
        return None
    stream = isal_zlib.decompressobj()
    try:
        rows = stream.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"), size + 1)
    except isal_zlib.error:  # type: ignore[misc]  # its stub calls the class an instance
        return None
    if len(rows) < size:
        raise ValueError(f"its rows end after {len(rows)} of {size} bytes")
    if len(rows) > size:
        return None
    plain = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    parts = [
        part for kind, content in plain for part in (struct.pack(">I", len(content)), kind, content, _png_sum(kind, content))
    ]
    return _opencv(b"".join([PNG_START, *parts]))


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """Kind and content of each chunk up to IEND; None: one is damaged, cut off, or of a kind that may change the picture."""
    chunks: list[tuple[bytes, bytes]] = []
    start = len(PNG_START)
    while not chunks or chunks[-1][0] != b"IEND":
        kind, begin = data[start + 4 : start + 8], start + 8
        end = begin + int.from_bytes(data[start : start + 4], "big")
        content = data[begin:end]
        if kind not in PNG_PLAIN or data[end : end + 4] != _png_sum(kind, content):
            return None
        chunks.append((kind, content))
        start = end + 4
    return chunks if chunks[0][0] == b"IHDR" and len(chunks[0][1]) == 13 else None


def _png_without(data: bytes, kinds: Set[bytes]) -> bytes:
    """The file without its chunks of some kinds; what follows a chunk that is cut off stays as it is."""
    kept, start = [PNG_START], len(PNG_START)
    while start + 8 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if data[start + 4 : start + 8] not in kinds:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _inflated(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk; empty: it is broken, or larger than any."""
    stream = zlib.decompressobj()
    try:
        profile = stream.decompress(chunk.partition(b"\0")[2][1:], MOST_OF_PROFILE)
    except zlib.error:
        return b""
    return profile if stream.eof else b""


@lru_cache(maxsize=64)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings 8-bit pixels of a mode to RGB of sRGB; None: nothing would change by more than a grey level, or the profile
    is broken or of another kind of pixels."""
    if not 0 < len(profile) <= MOST_OF_PROFILE:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return transform
        colours = np.mgrid[0:256:15, 0:256:15, 0:256:15].reshape(3, -1).T.astype(np.uint8)[None]
        some = Image.fromarray(np.ascontiguousarray(colours)).convert(mode)
        made = transform.apply(some)
    except (ImageCms.PyCMSError, *READ_ERRORS):
        return None
    off = np.asarray(made, dtype=np.int16) - np.asarray(some.convert("RGB"), dtype=np.int16)
    return transform if np.abs(off).max() > 1 else None


def _png_sum(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def _plain_bmp(data: bytes) -> np.ndarray | None:
    """An uncompressed 24-bit BMP with all its rows; None leaves a file to Pillow."""
    if len(data) < 54:
        return None
    start, header, width, height, planes, depth, compression = struct.unpack_from("<IIiiHHI", data, 10)
    row = (3 * width + 3) // 4 * 4
    if header < 40 or (planes, depth, compression) != (1, 24, 0) or min(width, height) < 1 or len(data) < start + row * height:
        return None
    check_size(width, height)
    return _opencv(data)


def _opencv(data: bytes) -> np.ndarray | None:
    photo: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return photo


def _rgb(photo: Image.Image, own_colours: bool) -> np.ndarray:
    profile = b"" if own_colours else photo.info.get("icc_profile") or b""
    if photo.mode.startswith("I;16"):
        photo = Image.fromarray(((np.asarray(photo).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if photo.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit (mode {photo.mode}), whose range is unknown; save it as 8 or 16 bit")
    alpha = photo.convert("RGBA").getchannel("A") if photo.has_transparency_data else None
    if photo.mode not in ("RGB", "L", "CMYK"):
        photo = photo.convert("L" if photo.mode in ("1", "LA") else "RGB")
    transform = to_srgb(profile, photo.mode)
    photo = photo.convert("RGB") if transform is None else transform.apply(photo)
    if alpha is not None:
        photo.putalpha(alpha)
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
    return np.asarray(photo)


def to_tensor(photo_u8_hwc: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 to (3, h, w) float32 in [0, 1]; nothing is shared with the input."""
    height, width, _ = photo_u8_hwc.shape
    planes = np.empty((3, height, width), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(photo_u8_hwc), list(planes))  # half the time of a transposed copy
    return torch.from_numpy(planes).float().div_(255)


def to_photo(image: Tensor) -> np.ndarray:
    """(3, h, w) in about [0, 1] to (h, w, 3) uint8, clamped and rounded."""
    photo_u8_hwc: np.ndarray = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return np.ascontiguousarray(photo_u8_hwc)


def write_png(path: str | Path, image: Tensor) -> None:
    """Write (3, h, w) in about [0, 1] as 8-bit PNG, clamped and rounded; a reader never sees half a file."""
    with replacing(Path(path)) as file:
        Image.fromarray(to_photo(image)).save(file, format="PNG")
