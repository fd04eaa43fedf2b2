"""Codes of images, made once before training (python -m data.prepare codes) in place of anew for each sample."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from data.columns.column import Column, Setting
from data.columns.names import places_of
from data.columns.pickles import load
from data.order import Draws
from data.reading import Picture
from data.sources.files import existing

NO_CODES = -1  # in place of the checksum of an image that could not be used


def checksum(photo: np.ndarray) -> int:
    """CRC-32 of the pixels of a photo (h, w, 3) uint8: 0 to 2 ** 32 - 1."""
    return int(isal_zlib.crc32(np.ascontiguousarray(photo)))


@dataclass(frozen=True)
class CodeFile:
    """What a file of codes holds, of n images; None: it doesn't say."""

    names: list[str] | None
    orig: np.ndarray  # (n, h, w) integers: codes of each image
    hflip: np.ndarray  # (n, h, w) of its mirror image
    checksums: np.ndarray | None  # (n, 2) int64: of the image and its mirror image, as cut; or NO_CODES
    size: int | None  # side of the images in pixels
    teacher: str | None  # fingerprint of the encoder and codebook (train/tasks/code_prediction.py)

    def packed(self) -> bytes:
        """As safetensors. Only for files that say everything but names."""
        assert self.checksums is not None
        about = {"size": str(self.size), "teacher": str(self.teacher), "names": json.dumps(self.names)}
        arrays = {"orig": self.orig, "hflip": self.hflip, "checksums": self.checksums}
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, about)  # it writes strides wrongly


def read(file: str) -> CodeFile:
    """A file of `python -m data.prepare codes`, or CodeFormer's latent_gt_code1024.pth; no code of a file is ever run.

    Raises:  ValueError: there is no such file, or it holds something else.
    """
    path = existing(file, "a file of python -m data.prepare codes")
    try:
        return _official(path) if path.suffix == ".pth" else _ours(path)
    except Exception as error:  # damaged bytes raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"data.codes={file} is truncated or no file of codes ({reason:.120}): give codes.safetensors as python -m "
            "data.prepare codes writes it, or CodeFormer's latent_gt_code1024.pth"
        ) from error


def _ours(path: Path) -> CodeFile:
    with safe_open(path, framework="np") as opened:
        about = opened.metadata() or {}
        if not {"size", "teacher", "names"} <= about.keys():
            raise SafetensorError("its header says neither size nor teacher")
        orig, hflip, checksums = (opened.get_tensor(name) for name in ("orig", "hflip", "checksums"))
    return CodeFile(json.loads(about["names"]), orig, hflip, checksums, int(about["size"]), about["teacher"])


def _official(path: Path) -> CodeFile:
    """{orig, hflip}: name without suffix -> (16, 16) int64 (scripts/generate_latent_gt.py)."""
    content = load(path)
    names = list(content["orig"])
    orig, hflip = (np.stack([np.asarray(content[way][name], np.int32) for name in names]) for way in ("orig", "hflip"))
    return CodeFile(names, orig, hflip, None, None, None)


class Codes(Column):
    """The codes of the HQs, and of their mirror images.

    Args:    path: a file, see `read`.
    """

    tensor = "target_codes"

    def bind(self, setting: Setting) -> None:
        """Raises ValueError: the file is for another size, or HQs are not always cut of one image in one way."""
        assert self.path is not None
        self.contents, size = read(self.path), setting.cut.size
        if self.contents.size not in (None, size):
            raise ValueError(
                f"{self.given} is of images at {self.contents.size} px, and data.size={size}: make another one with "
                f"python -m data.prepare codes size={size}, or set data.size={self.contents.size}"
            )
        names, count = self.contents.names, len(self.contents.orig)
        self.rows = places_of(setting.source, names, count=count, given=self.given, command="codes")
        if wrong := [*setting.moved(), *setting.degraded()]:
            raise ValueError(
                f"{self.given} are of images cut in one way, which HQs are not with {'; '.join(wrong)}: change that, or set "
                f"{self.key}=null to compute codes anew for each sample"
            )

    @property
    def teacher(self) -> str | None:
        """Fingerprint of the network that made them; None: the file doesn't say."""
        return self.contents.teacher

    def of(self, picture: Picture, draws: Draws) -> Tensor:
        """(h, w) int64. Raises ValueError: the codes are of other pixels."""
        row, contents = self.rows[picture.index], self.contents
        if contents.checksums is not None and contents.checksums[row, int(picture.mirrored)] != checksum(picture.photos[-1]):
            raise ValueError(
                f"{picture.name} has other pixels than the image of that name whose codes are in {self.given}: give the "
                f"images it was made of, make another one with python -m data.prepare codes, or set {self.key}=null"
            )
        return torch.from_numpy((contents.hflip if picture.mirrored else contents.orig)[row].astype(np.int64))
