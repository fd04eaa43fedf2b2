"""The latents of images in a frozen autoencoder, once, in place of anew for each training sample (IRControlNet)."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import torch
from annotated_types import Ge
from safetensors.torch import save
from torch import Tensor, nn

from data.codes import checksum
from data.faces import center_crop, read_image
from data.images import to_tensor
from data.latents import INDEX
from data.names import paths_of
from data.opening import open_images
from data.prepare.arguments import Command
from data.prepare.codes import GPU_WORKERS, chosen, store
from data.prepare.files import Unusable, output_stems, write_bytes, write_text
from data.prepare.records import Record, Shard
from data.prepare.work import cores, run
from data.sources import Files, Source


class Autoencoder(Protocol):
    """models.stable_diffusion.StableDiffusion, of which the autoencoder is enough."""

    vae: nn.Module

    def moments(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to mean and log variance (b, 8, h/8, w/8)."""

    def to(self, device: str) -> Any:
        """Moves it there."""


Load = Callable[[Path], Autoencoder]


class Networks(NamedTuple):
    """What knows networks.

    load: an autoencoder in eval mode on the CPU; workers import it by its name.    digest_of: its weights.
    """

    load: Load
    digest_of: Callable[[nn.Module], str]


def command(networks: Callable[[], Networks]) -> Command:
    """The command, given who knows networks: this folder doesn't."""

    def latents(
        *,
        root: Path,
        out: Path,
        stable_diffusion: Path,
        size: Annotated[int, Ge(1)] = 512,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        workers: Annotated[int, Ge(0)] = 0,
        shard: str = "",
    ) -> int:
        """Encode images with Stable Diffusion's autoencoder, so that IRControlNet's training need not do it for every sample.

        OUT holds a file for each image, cut as training does with data.crop=center, 128 KB at 512 px; train on them with
        data.latents=OUT. An image that can't be read, or is smaller than `size`, is named and has none.

        Args:
            root: the images: whatever data.root may be (folder, list, zip, tar, LMDB, shards, parquet)
            out: folder for the latents
            stable_diffusion: what init.stable_diffusion will be: a diffusers folder or a single file
            size: side in pixels that images are scaled and cut to: data.size of the training
            device: auto takes a GPU where there is one
            workers: processes; 0 means one for each core, and on a GPU four
            shard: part i of n of the work as i/n; by default the task's place in a SLURM job array
        """
        place, on = Shard.parse(shard), chosen(device)
        if size % 64:
            raise ValueError(f"size={size}: the training takes multiples of 64")
        load, digest_of = networks()
        digest = digest_of(load(stable_diffusion).vae)
        source = open_images(root=str(root))
        names = paths_of(source)
        paths = names or [source.name(index) for index in range(len(source))]
        stems = output_stems(names) if names else {path: f"{n:08d}" for n, path in enumerate(paths)}
        files = {path: f"{stem}.safetensors" for path, stem in stems.items()}
        work = run(
            name="latents",
            root=source.root if isinstance(source, Files) else root,
            out=out,
            paths=paths,
            measure=Encoded(source, {path: n for n, path in enumerate(paths)}, files, out, load, stable_diffusion, size, on),
            settings={"autoencoder": digest, "size": size, "store": store(source, root)},
            workers=workers or min(cores(), GPU_WORKERS if on == "cuda" else cores()),
            shard=place,
            preload=("torch", "cv2", "diffusers", "transformers"),
        )
        unusable = work.unusable()
        print(f"{len(work.own) - unusable} of {len(work.own)} images have latents, {unusable} not usable")
        if work.complete(INDEX):
            index = {"size": size, "autoencoder": digest, "names": names, "files": [files[path] for path in paths]}
            write_text(out / INDEX, json.dumps(index))
            print(f"train on them with data.latents={out}")
        return 1 if unusable else 0

    return latents


@dataclass(frozen=True)
class Encoded:
    """One image to the file of its latent. numbers: path -> number in the source. files: path -> file below out."""

    source: Source
    numbers: dict[str, int]
    files: dict[str, str]
    out: Path
    load: Load
    stable_diffusion: Path
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
            moments = autoencoder_of(self.load, self.stable_diffusion, self.device).moments(image)[0].cpu()
        if not moments.isfinite().all():
            raise Unusable(f"{self.source.name(number)} has a latent that is not finite: is stable_diffusion= whole?")
        write_bytes(self.out / self.files[path], save({"moments": moments.contiguous()}, {"checksum": str(checksum(photo))}))
        return {"outputs": [self.files[path]]}


@lru_cache(maxsize=1)
def autoencoder_of(load: Load, path: Path, device: str) -> Autoencoder:
    """One network a process."""
    network = load(path)
    network.to(device)
    return network
