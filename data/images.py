"""Bytes to RGB and back. Grey, 16-bit, transparency, palettes, CMYK and EXIF orientation end here."""

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import torch
from isal import isal_zlib
from PIL import Image, ImageOps
from torch import Tensor

from data.sources.listing import FORMATS

READ_ERRORS = (  # what Pillow's readers raise on damaged files
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3}  # colour type -> values a pixel: grey and RGB
# Chunks that change no pixel of ours: transparency, palettes, EXIF and text that may hold it are not among them.
PNG_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"pHYs", b"tIME", b"sBIT"}


class UnreadableImage(ValueError):
    """A file that is truncated, damaged, or no image; the message names it."""


def decode(data: bytes, name: str) -> np.ndarray:
    """The picture as a person sees it: (h, w, 3) uint8 RGB.

    EXIF orientation is applied. Transparent pixels lie on white. 16-bit grey is divided by 257 and rounded; 16-bit colour keeps
    its high byte (Pillow), at most one grey level beside that. Colour profiles are ignored. Plain 8-bit PNG and BMP files take
    a shorter way to the same pixels.

    Args:    name: the file's name, for the message.
    Raises:  UnreadableImage: truncated, damaged, no image, or 32-bit pixels.
    """
    stream = io.BytesIO(data)
    try:
        quick = _plain_png(data) if data.startswith(PNG_START) else _plain_bmp(data) if data.startswith(b"BM") else None
        if quick is not None:
            return quick
        with Image.open(stream, formats=tuple(FORMATS.values())) as photo:
            photo.load()
            ImageOps.exif_transpose(photo, in_place=True)
            return _rgb(photo)
    except READ_ERRORS as error:
        why = str(error).replace(f" {stream!r}", "")  # Pillow names our stream, which says nothing
        raise UnreadableImage(f"{name} can't be read as an image ({len(data)} bytes): {why}") from error


def _plain_png(data: bytes) -> np.ndarray | None:
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
    if depth != 8 or colour not in PNG_CHANNELS or interlaced or width * height > (Image.MAX_IMAGE_PIXELS or size):
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
    return _opencv(data)


def _opencv(data: bytes) -> np.ndarray | None:
    photo: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return photo


def _rgb(photo: Image.Image) -> np.ndarray:
    if photo.mode.startswith("I;16"):
        grey = ((np.asarray(photo).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if photo.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit (mode {photo.mode}), whose range is unknown; save it as 8 or 16 bit")
    if photo.has_transparency_data:
        white = Image.new("RGBA", photo.size, "white")
        photo = Image.alpha_composite(white, photo.convert("RGBA"))
    return np.asarray(photo.convert("RGB"))


def to_tensor(photo_u8_hwc: np.ndarray) -> Tensor:
    """(h, w, 3) uint8 to (3, h, w) float32 in [0, 1]; nothing is shared with the input."""
    height, width, _ = photo_u8_hwc.shape
    planes = np.empty((3, height, width), dtype=np.uint8)
    cv2.split(np.ascontiguousarray(photo_u8_hwc), list(planes))  # half the time of a transposed copy
    return torch.from_numpy(planes).float().div_(255)


def write_png(path: str | Path, image: Tensor) -> None:
    """Write (3, h, w) in about [0, 1] as 8-bit PNG, clamped and rounded; a reader never sees half a file."""
    photo_u8_hwc = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.partial")  # shorter than a name may be, whatever path's own
    try:
        Image.fromarray(np.ascontiguousarray(photo_u8_hwc)).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
