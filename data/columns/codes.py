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

from data.columns.names import places_of
from data.columns.pickles import load
from data.sources.files import Source, existing

NO_CODES = -1  # in place of the checksum of an image that could not be used


def checksum(photo: np.ndarray) -> int:
    """Of the pixels, 0 to 2 ** 32 - 1."""
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


class Codes:
    """The codes of a source's images, and of their mirror images.

    Args:    file: see read. size: side of the training images.
    Raises:  ValueError: the file can't be read, is for another size, or lacks images of the source.
    """

    def __init__(self, *, file: str, source: Source, size: int) -> None:
        self.file, self.contents = file, read(file)
        if self.contents.size not in (None, size):
            raise ValueError(
                f"data.codes={file} is of images at {self.contents.size} px, and data.size={size}: make another one with "
                f"python -m data.prepare codes size={size}, or set data.size={self.contents.size}"
            )
        names, count = self.contents.names, len(self.contents.orig)
        self.rows = places_of(source, names, count=count, given=f"data.codes={file}", command="codes")

    @property
    def teacher(self) -> str | None:
        """Fingerprint of the network that made them; None: the file doesn't say."""
        return self.contents.teacher

    def of(self, index: int, mirrored: bool, hq: np.ndarray, name: str) -> Tensor:
        """(h, w) int64 of an image.

        Args:    index: of the source. hq: (size, size, 3) uint8, the image as training sees it. name: for the message.
        Raises:  ValueError: the codes are of other pixels.
        """
        row, contents = self.rows[index], self.contents
        if contents.checksums is not None and contents.checksums[row, int(mirrored)] != checksum(hq):
            raise ValueError(
                f"{name} has other pixels than the image of that name whose codes are in data.codes={self.file}: give the "
                "images it was made of, make another one with python -m data.prepare codes, or set data.codes=null"
            )
        return torch.from_numpy((contents.hflip if mirrored else contents.orig)[row].astype(np.int64))
