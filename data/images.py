"""Bytes to RGB and back. Grey, 16-bit, transparency, palettes, CMYK and EXIF orientation end here."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

READ_ERRORS = (  # what Pillow's readers raise on damaged files
    *(OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


class UnreadableImage(ValueError):
    """A file that is truncated, damaged, or no image; the message names it."""


def decode(data: bytes, name: str) -> np.ndarray:
    """The picture as a person sees it: (h, w, 3) uint8 RGB.

    EXIF orientation is applied. Transparent pixels lie on white. 16-bit grey is divided by 257 and rounded; 16-bit colour keeps
    its high byte (Pillow), at most one grey level beside that. Colour profiles are ignored.

    Args:    name: the file's name, for the message.
    Raises:  UnreadableImage: truncated, damaged, no image, or 32-bit pixels.
    """
    try:
        with Image.open(io.BytesIO(data)) as photo:
            photo.load()
            ImageOps.exif_transpose(photo, in_place=True)
            return _rgb(photo)
    except READ_ERRORS as error:
        raise UnreadableImage(f"{name} can't be read as an image ({len(data)} bytes): {error}") from error


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
    return torch.from_numpy(np.array(photo_u8_hwc.transpose(2, 0, 1), dtype=np.float32, order="C") / np.float32(255))


def write_png(path: str | Path, image: Tensor) -> None:
    """Write (3, h, w) in about [0, 1] as 8-bit PNG, clamped and rounded; a reader never sees half a file."""
    photo_u8_hwc = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        Image.fromarray(np.ascontiguousarray(photo_u8_hwc)).save(partial, format="PNG")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
