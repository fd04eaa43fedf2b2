"""Whole photographs at their own depth: 8 or 16 bits, with transparency, colour profile and EXIF, read and written again."""

import io
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image, ImageCms

from data.images import PNG_START, READ_ERRORS, UnreadableImage, decode, opened
from data.writing import replacing

Format = Literal["png", "jpg", "webp"]
ORIENTATION = 0x0112  # of EXIF
QUALITY = 95  # of JPEG and WebP


@dataclass(frozen=True)
class Photograph:
    """A photograph, upright. Its pixels are those of the file, in the colours of its profile."""

    pixels: np.ndarray  # (h, w, 3) uint8 or uint16
    alpha: np.ndarray | None  # (h, w) of the same type
    icc: bytes | None
    exif: bytes | None  # without an orientation

    def srgb(self) -> np.ndarray:
        """(h, w, 3) uint8 in sRGB: what networks see."""
        eight = (
            self.pixels if self.pixels.dtype == np.uint8 else ((self.pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        )
        return _transformed(eight, self.icc, to_srgb=True)

    def from_srgb(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) sRGB in 0 to 255, float32, to the photograph's own colours and range, float32."""
        if self.icc is not None:
            image = _transformed(np.rint(image).clip(0, 255).astype(np.uint8), self.icc, to_srgb=False).astype(np.float32)
        return image * 257 if self.pixels.dtype == np.uint16 else image

    def resized(self, upscale: int) -> "Photograph":
        """Enlarged by Lanczos; 1 is the photograph itself."""
        if upscale == 1:
            return self
        height, width = self.pixels.shape[:2]
        size = (upscale * width, upscale * height)
        alpha = None if self.alpha is None else cv2.resize(self.alpha, size, interpolation=cv2.INTER_LINEAR)
        return replace(self, pixels=cv2.resize(self.pixels, size, interpolation=cv2.INTER_LANCZOS4), alpha=alpha)


def read_photograph(data: bytes, name: str) -> Photograph:
    """Raises UnreadableImage, which names the file."""
    try:
        with opened(data) as photo:
            exif = photo.getexif()
            orientation = exif.pop(ORIENTATION, 1)
            icc = photo.info.get("icc_profile")
            icc = icc if icc and _is_rgb(icc) else None
            channels = _deep(data, photo) if _is_deep(data, photo) else None
            if channels is None and ("A" in photo.getbands() or "transparency" in photo.info):
                channels = np.asarray(photo.convert("RGBA"))
    except READ_ERRORS as error:
        raise UnreadableImage(f"{name} can't be read as an image ({len(data)} bytes): {error}") from error
    if channels is None:
        pixels, alpha = decode(data, name, own_colours=icc is not None), None  # upright already
    else:
        channels = _upright(channels, orientation)
        pixels, alpha = np.ascontiguousarray(channels[..., :3]), channels[..., 3].copy() if channels.shape[2] > 3 else None
    return Photograph(pixels, alpha, icc, exif.tobytes() if len(exif) else None)


def write_photograph(path: Path, photo: Photograph, form: Format) -> None:
    """A file of that format; a reader never sees half of it. PNG keeps 16 bits, JPEG and WebP take 8.

    Raises: ValueError: a JPEG of a photograph with transparency; OSError: it can't be written.
    """
    if form == "jpg" and photo.alpha is not None:
        raise ValueError(f"{path.name} has transparency, which JPEG can't hold: give format=png or format=webp")
    with replacing(path) as file:
        if form == "png" and photo.pixels.dtype == np.uint16:
            file.write(_deep_png(photo))
        else:
            pixels = _eight_bits(photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha]))
            kind = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[form]
            more: dict[str, Any] = {} if form == "png" else {"quality": QUALITY}
            more |= {} if photo.exif is None else {"exif": photo.exif}
            Image.fromarray(pixels).save(file, format=kind, icc_profile=photo.icc, **more)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """uint16 rounded to uint8; uint8 as it is."""
    return pixels if pixels.dtype == np.uint8 else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _is_deep(data: bytes, photo: Image.Image) -> bool:
    """Whether a channel has 16 bits."""
    if data.startswith(PNG_START):
        return data[24] == 16
    return photo.format == "TIFF" and max(photo.tag_v2.get(258, (8,))) == 16  # type: ignore[attr-defined]  # BitsPerSample


def _deep(data: bytes, photo: Image.Image) -> np.ndarray | None:
    """(h, w, 3 or 4) uint16 RGB or RGBA as in the file; None where OpenCV finds no 16 bits."""
    found = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)  # as it lies there, not turned
    if found is None or found.dtype != np.uint16:
        return None
    if found.ndim == 2 or found.shape[2] == 1:
        return np.repeat(found.reshape(*found.shape[:2], 1), 3, axis=2)
    return cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(h, w, c) as it lies in the file, by EXIF's orientation (1 to 8) to how it was taken."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = orientation in (3, 4, 7, 8)
    left = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if down else 1, :: -1 if left else 1]


def _is_rgb(icc: bytes) -> bool:
    return icc[16:20] == b"RGB " and icc[36:40] == b"acsp"


def _transformed(image: np.ndarray, icc: bytes | None, *, to_srgb: bool) -> np.ndarray:
    """(h, w, 3) uint8 between a profile and sRGB; as it is where there is no profile, or one that can't be used."""
    if icc is None:
        return image
    try:
        own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        made = ImageCms.profileToProfile(Image.fromarray(image), *((own, srgb) if to_srgb else (srgb, own)))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image
    return image if made is None else np.asarray(made)


def _deep_png(photo: Photograph) -> bytes:
    """A PNG of 16 bits a channel, which Pillow can't write: OpenCV's, with the profile and EXIF as further chunks."""
    pixels = photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])
    code = cv2.COLOR_RGB2BGR if photo.alpha is None else cv2.COLOR_RGBA2BGRA
    _, encoded = cv2.imencode(".png", cv2.cvtColor(pixels, code))
    plain = encoded.tobytes()
    header = len(PNG_START) + 25  # the signature and IHDR
    more = b"" if photo.icc is None else _chunk(b"iCCP", b"icc\0\0" + zlib.compress(photo.icc))
    more += b"" if photo.exif is None else _chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0"))
    return plain[:header] + more + plain[header:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
