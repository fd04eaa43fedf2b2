"""What a codebook network makes of each image, once, in place of anew for each training sample (CodeFormer's stage II)."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from data.columns.codes import NO_CODES, CodeFile, checksum
from data.columns.names import paths_of
from data.cutting import center_crop
from data.images import to_tensor
from data.prepare.jobs.arguments import Command
from data.prepare.jobs.files import Unusable, write_bytes
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import cores, run, store
from data.reading import read_image
from data.sources.files import Files
from data.sources.opening import open_images
from data.sources.source import Source

FILE = "codes.safetensors"
GPU_WORKERS = 4  # processes that share a GPU unless workers= says otherwise: they read images while others encode


class Teacher(Protocol):
    """An encoder and a codebook (models.vqgan.CodebookNetwork)."""

    factor: int  # side of an image over that of its codes
    quantize: Any

    def encode(self, image: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] to the latent, which quantize.nearest takes to codes (b, h, w)."""

    def to(self, device: str) -> Any:
        """Moves it there."""


@runtime_checkable
class HasCodebook(Protocol):
    """What tells a network with a codebook from others."""

    def codes_to_latent(self, codes: Tensor) -> Tensor:
        """(b, h, w) codes to the latents (b, c, h, w) that they stand for."""


Build = Callable[[Path], Teacher]


class Networks(NamedTuple):
    """What knows networks.

    build: the network in a file or run folder, in eval mode on the CPU; workers import it by its name.
    fingerprint_of: of an encoder and codebook.
    """

    build: Build
    fingerprint_of: Callable[[Teacher], str]


def command(networks: Callable[[], Networks]) -> Command:
    """The command, given who knows networks: this folder doesn't."""

    def codes(
        *,
        root: Path,
        out: Path,
        ckpt: Path,
        size: Annotated[int, Ge(1)] = 512,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        workers: Annotated[int, Ge(0)] = 0,
        shard: str = "",
    ) -> int:
        """Encode images with a codebook, such as CodeFormer's stage I, so that stage II need not do it for every sample.

        OUT/codes.safetensors holds the codes of each image and of its mirror image, cut as training does with
        data.crop=center; train on them with data.codes=OUT/codes.safetensors. An image that can't be read, or is smaller than
        `size`, is named and has none.

        Args:
            root: the images: whatever data.root may be (folder, list, zip, tar, LMDB, shards, parquet)
            out: folder for the codes
            ckpt: a run of model=codeformer_stage1, or vqgan_code1024.pth: what codes.teacher will be
            size: side in pixels that images are scaled and cut to: data.size of the training
            device: auto takes a GPU where there is one
            workers: processes; 0 means one for each core, and on a GPU four
            shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
        """
        place, on = Shard.parse(shard), chosen(device)
        build, fingerprint_of = networks()
        network = build(ckpt)
        check_teacher(network, ckpt, size)
        book = len(network.quantize.embedding.weight)
        source = open_images(root=str(root))
        paths = paths_of(source) or [source.name(index) for index in range(len(source))]
        kind = "int16" if book <= 2**15 else "int32"
        encode = Encoded(source, {path: n for n, path in enumerate(paths)}, build, ckpt, size, on, kind)
        teacher = fingerprint_of(network)
        work = run(
            name="codes",
            root=source.root if isinstance(source, Files) else root,
            out=out,
            paths=paths,
            measure=encode,
            settings={"teacher": teacher, "size": size, "store": store(source, root)},
            workers=workers or min(cores(), GPU_WORKERS if on == "cuda" else cores()),
            shard=place,
        )
        unusable = work.unusable()
        print(f"{len(work.own) - unusable} of {len(work.own)} images have codes, {unusable} not usable")
        if work.complete(FILE):
            both, checksums = gathered([work.records[path] for path in paths], size // network.factor, kind)
            made = CodeFile(paths_of(source), both[:, 0], both[:, 1], checksums, size, teacher)
            write_bytes(out / FILE, made.packed())
            print(f"train on them with data.codes={out / FILE}")
        return 1 if unusable else 0

    return codes


def chosen(device: str) -> str:
    """cpu or cuda. Raises ValueError: cuda, and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: PyTorch finds no GPU here; give device=cpu")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def check_teacher(network: Teacher, ckpt: Path, size: int) -> None:
    """Raises ValueError: it has no codebook, or can't encode images of that size."""
    if not isinstance(network, HasCodebook):
        raise ValueError(
            f"ckpt={ckpt} holds {type(network).__name__}, which has no codebook: give a run of model=codeformer_stage1, or "
            "vqgan_code1024.pth"
        )
    if size % network.factor:
        raise ValueError(f"size={size} can't be encoded by ckpt={ckpt}: give a multiple of {network.factor}")


def gathered(records: list[Record], side: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, 2, side, side) and checksums (n, 2) of all images; 0 and NO_CODES of those that could not be used."""
    both, checksums = np.zeros((len(records), 2, side, side), kind), np.full((len(records), 2), NO_CODES)
    for number, record in enumerate(records):
        if "error" not in record:
            both[number], checksums[number] = of_record(record, both[number])
    return both, checksums


@dataclass(frozen=True)
class Encoded:
    """One image to its codes and those of its mirror image. numbers: path -> number in the source. kind: dtype of codes."""

    source: Source
    numbers: dict[str, int]
    build: Build
    ckpt: Path
    size: int
    device: str
    kind: str

    def __call__(self, path: str) -> Record:
        number = self.numbers[path]
        photo = read_image(self.source, number)
        if min(photo.shape[:2]) < self.size:
            name = self.source.name(number)
            raise Unusable(f"{name} is {photo.shape[1]}x{photo.shape[0]}, smaller than size={self.size}")
        photo = center_crop(photo, self.size)
        both = [photo, cv2.flip(photo, 1)]
        codes = encoded(both, network_of(self.build, self.ckpt, self.device), self.device).astype(self.kind)
        text = base64.b64encode(codes.tobytes()).decode()
        return {"codes": text, "checksums": [checksum(each) for each in both]}


def of_record(record: Record, like: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """The codes and checksums that Encoded put on record; like: an array of the shape and dtype that it encoded."""
    return np.frombuffer(base64.b64decode(record["codes"]), like.dtype).reshape(like.shape), record["checksums"]


@torch.no_grad()
def encoded(photos: list[np.ndarray], network: Teacher, device: str) -> np.ndarray:
    """(b, h, w) codes of photos of one size, (size, size, 3) uint8."""
    images = torch.stack([to_tensor(photo) for photo in photos]).to(device)
    return network.quantize.nearest(network.encode(images)).cpu().numpy()


@lru_cache(maxsize=1)
def network_of(build: Build, ckpt: Path, device: str) -> Teacher:
    """One network a process."""
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as in training, so that codes are those that it would compute
    network = build(ckpt)
    network.to(device)
    return network
