"""The latents of images in a frozen autoencoder, once, in place of anew for each training sample (IRControlNet)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from annotated_types import Ge
from safetensors.torch import save
from torch import Tensor, nn

from data.columns.codes import checksum
from data.columns.latents import INDEX
from data.columns.names import paths_of
from data.cutting import center_crop
from data.images import to_tensor
from data.prepare.codes import GPU_WORKERS, chosen, store
from data.prepare.jobs.arguments import Command
from data.prepare.jobs.files import Unusable, output_stems, write_bytes, write_text
from data.prepare.jobs.names import check_files, leads_out
from data.prepare.jobs.records import Record, Shard
from data.prepare.jobs.work import cores, run
from data.reading import read_image
from data.sources.files import Files
from data.sources.opening import open_images
from data.sources.source import Source


class Autoencoder(Protocol):
    """models.diffusion.stable_diffusion.StableDiffusion, of which the autoencoder is enough."""

    vae: nn.Module

    def moments(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to mean and log variance (b, 8, h/8, w/8)."""

    def to(self, device: str) -> Any:
        """Moves it there."""


class FirstStage(Protocol):
    """models.files.first_stage.FirstStage. options: those that it has a use for."""

    fingerprint: str
    options: dict[str, Any]

    def check(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to its restoration, of the same shape. Raises ValueError: it is none."""

    def to(self, device: str) -> Any:
        """Moves it there."""


class Networks(NamedTuple):
    """What knows networks: they come in eval mode on the CPU; workers import these by their names.

    load: an autoencoder.    digest_of: its weights.    first_stage: what restores LQs.
    """

    load: Callable[[Path], Autoencoder]
    digest_of: Callable[[nn.Module], str]
    first_stage: Callable[..., FirstStage]


def command(networks: Callable[[], Networks]) -> Command:
    """The command, given who knows networks: this folder doesn't."""

    def latents(
        *,
        root: Path,
        out: Path,
        stable_diffusion: Path,
        stage1: str = "",
        w: Annotated[float, Ge(0)] | None = None,
        adain: bool | None = None,
        size: Annotated[int, Ge(1)] = 512,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        workers: Annotated[int, Ge(0)] = 0,
        shard: str = "",
    ) -> int:
        """Encode images with Stable Diffusion's autoencoder, so that IRControlNet's training need not do it for every sample.

        OUT holds a file for each image, cut as training does with data.crop=center, 128 KB at 512 px; train on them with
        data.latents=OUT. With stage1 they are latents of the LQs' restorations, the conditions: data.condition_latents=OUT. An
        image that can't be read, or is smaller than `size`, is named and has none.

        Args:
            root: the images: whatever data.root may be (folder, list, zip, tar, LMDB, shards, parquet)
            out: folder for the latents
            stable_diffusion: what init.stable_diffusion will be: a diffusers folder or a single file
            stage1: restores the images first; what init.stage1 will be: a run or official file of a restorer
            w: of a CodeFormer as stage1, where none means 0.5: diffusion.stage1.w
            adain: of a CodeFormer as stage1, where none means true: diffusion.stage1.adain
            size: side in pixels that images are scaled and cut to: data.size of the training
            device: auto takes a GPU where there is one
            workers: processes; 0 means one for each core, and on a GPU four
            shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
        """
        place, on = Shard.parse(shard), chosen(device)
        make, made_by = encoder(networks, stable_diffusion, stage1, {"w": w, "adain": adain}, size)
        source = open_images(root=str(root))
        names = paths_of(source)
        paths = names or [source.name(index) for index in range(len(source))]
        files = files_of(names, paths)
        check_files(files, out)
        work = run(
            name="latents",
            root=source.root if isinstance(source, Files) else root,
            out=out,
            paths=paths,
            measure=Encoded(source, {path: n for n, path in enumerate(paths)}, files, out, make, size, on),
            settings={**made_by, "size": size, "store": store(source, root)},
            workers=workers or min(cores(), GPU_WORKERS if on == "cuda" else cores()),
            shard=place,
            preload=("torch", "cv2", "diffusers", "transformers"),
        )
        unusable = work.unusable()
        print(f"{len(work.own) - unusable} of {len(work.own)} images have latents, {unusable} not usable")
        if work.complete(INDEX):
            index = {"size": size, **made_by, "names": names, "files": [files[path] for path in paths]}
            write_text(out / INDEX, json.dumps(index))
            print(f"train on them with data.{'condition_' if stage1 else ''}latents={out}")
        return 1 if unusable else 0

    return latents


def files_of(names: list[str] | None, paths: list[str]) -> dict[str, str]:
    """Path -> the file of its latent in OUT: a number where images have no names (None), or names that lead elsewhere."""
    named = not any(map(leads_out, names or ()))
    stems = output_stems(names) if names and named else {path: f"{n:08d}" for n, path in enumerate(paths)}
    return {path: f"{stem}.safetensors" for path, stem in stems.items()}


def encoder(
    networks: Callable[[], Networks], stable_diffusion: Path, stage1: str, asked: dict[str, Any], size: int
) -> tuple["Encoder", dict[str, str]]:
    """What encodes images, and the fingerprints of the networks in it.

    Args:    asked: w and adain as the user set them, or None.
    Raises:  ValueError: these are given for nothing, or images of that size can't be encoded or restored.
    """
    if size % 64:
        raise ValueError(f"size={size}: the training takes multiples of 64")
    load, digest_of, first_stage = networks()
    given = {key: value for key, value in asked.items() if value is not None}
    options: dict[str, Any] = {"w": 0.5, "adain": True} | given
    restores = partial(first_stage, path=stage1, **options) if stage1 else None
    first = restores() if restores else None
    if given and not (first and first.options):
        raise ValueError(f"{min(given)} does nothing: it is of a CodeFormer as stage1; leave it out")
    made_by = {"autoencoder": digest_of(load(stable_diffusion).vae)}
    if first:
        first.check(torch.full((1, 3, size, size), 0.5))
        made_by["stage1"] = first.fingerprint
    return Encoder(load, stable_diffusion, restores), made_by


@dataclass(frozen=True)
class Encoder:
    """Makes what encodes images. first: what restores them before, if something does."""

    load: Callable[[Path], Autoencoder]
    stable_diffusion: Path
    first: Callable[[], FirstStage] | None

    def on(self, device: str) -> Callable[[Tensor], Tensor]:
        """(b, 3, h, w) in [0, 1] to moments (b, 8, h/8, w/8)."""
        autoencoder = self.load(self.stable_diffusion)
        autoencoder.to(device)
        if self.first is None:
            return autoencoder.moments
        first = self.first()
        first.to(device)
        return lambda image: autoencoder.moments(first.check(image))


@dataclass(frozen=True)
class Encoded:
    """One image to the file of its latent. numbers: path -> number in the source. files: path -> file below out."""

    source: Source
    numbers: dict[str, int]
    files: dict[str, str]
    out: Path
    make: Encoder
    size: int
    device: str

    def __call__(self, path: str) -> Record:
        number = self.numbers[path]
        photo = read_image(self.source, number)
        if min(photo.shape[:2]) < self.size:
            name = self.source.name(number)
            raise Unusable(f"{name} is {photo.shape[1]}x{photo.shape[0]}, smaller than size={self.size}")
        photo = center_crop(photo, self.size)
        image = to_tensor(photo)[None].to(self.device)
        with torch.no_grad():
            moments = encoder_of(self.make, self.device)(image)[0].cpu()
        if not moments.isfinite().all():
            raise Unusable(f"{self.source.name(number)} has a latent that is not finite: is stable_diffusion= whole?")
        write_bytes(self.out / self.files[path], save({"moments": moments.contiguous()}, {"checksum": str(checksum(photo))}))
        return {"outputs": [self.files[path]]}


@lru_cache(maxsize=1)
def encoder_of(make: Encoder, device: str) -> Callable[[Tensor], Tensor]:
    """One a process."""
    return make.on(device)
