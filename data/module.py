"""FaceData: the loaders of a run. The only file here that knows Lightning."""

import signal
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import cv2
import torch
from annotated_types import Ge, Le
from lightning import LightningDataModule
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from data.augmentation import Augmentation
from data.batch import Batch, Degradation, Parameters, Sample, finished
from data.columns.codes import Codes
from data.columns.components import Components
from data.columns.latents import Latents
from data.faces import FaceDataset, FixedFaces
from data.order import PositionSampler
from data.pairs import targets_of
from data.parent import end_with_parent
from data.sources.files import Choices, Graded, Part, Source


def ignore_once(signum: int, frame: Any) -> None:
    """A second SIGTERM ends a worker: the training process sends it at its own end to workers that don't hear it otherwise."""
    signal.signal(signum, signal.SIG_DFL)


def one_thread(worker: int) -> None:
    """Workers are the parallelism: OpenCV, torch and numpy's BLAS stay on one thread. The training process answers signals."""
    end_with_parent()  # torch looks out for it later, and waits for ever where it has ended by then
    for signum in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # SLURM and a terminal send them to every process
    signal.signal(signal.SIGTERM, ignore_once)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    threadpool_limits(1)


class Photos(NamedTuple):
    """Images, and their targets and negatives where they have some."""

    source: Source
    targets: Source | Choices | None
    negatives: Choices | None

    def part(self, start: int, stop: int) -> "Photos":
        """The images start .. stop - 1."""
        targets = self.targets.part(start, stop) if isinstance(self.targets, Choices) else self.targets
        if targets is not None and not isinstance(targets, Choices):
            targets = Part(whole=targets, start=start, stop=stop)
        negatives = None if self.negatives is None else self.negatives.part(start, stop)
        return Photos(Part(whole=self.source, start=start, stop=stop), targets, negatives)


def collated(samples: list[Sample]) -> dict[str, Any]:
    """Samples stacked; drawn parameters become numpy arrays, which neither a device nor a precision of Lightning's touches."""
    batch = default_collate(samples)
    return {name: _arrays(value) if name == "parameters" else value for name, value in batch.items()}


def _arrays(parameters: Parameters) -> Parameters:
    return {
        name: _arrays(value) if isinstance(value, dict) else value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in parameters.items()
    }


class FaceData(LightningDataModule):
    """Endless training batches, the same for any number of ranks, workers and restarts, and a fixed validation set.

    The Trainer must leave the order alone: use_distributed_sampler=False. Positions count samples over all ranks.

    Args:    root: folder (or what source takes) of the training images; None asks the user for it.
             val_root: of the validation images; None holds out the last val_images of root.
             paired: the HQ of each image is given, as the target of the same name (data/pairs.py); False: an image is its own.
             target_root, val_target_root: of the targets.
             codes: file with the codes of the HQs (data/columns), for tasks that predict them; None: they compute them.
             components: file that tells where the eyes and mouths of the training images are (data/columns), for tasks
                 that judge these by themselves; None: samples don't hold it.
             latents: folder with the latents of the HQs (data/columns), for tasks on latents; None: they compute them.
             condition_latents: of the restorations of given LQs, likewise.
             real_root: clean faces for discriminators, in an order of their own; None: they see the HQs (training alone).
             degradation: makes LQs; None: root holds LQs, and is paired.
             source: makes a Source of a root; one that brings targets (data.sources.files.Graded) needs no target_root.
             expects: one sentence for the message when a root is missing: which folder it should be, and where it comes from.
             augmentation, size, crop, hflip_prob, seed, on_error, keep_decoded: see FaceDataset.
             batch_size: samples a step and device.
             num_workers: processes a loader, 0 reads in the training process.
             val_size: side of the validation images in pixels; None leaves them as they are (then val_batch_size is 1, unless
                 all are of one size).
             val_images: images held out where there is no val_root.
             val_degradations: LQs of each validation image.
             val_seed: draws of the validation set, apart from seed so that runs can be compared.
    Raises:  ValueError: a root is missing, wrong or empty, or nothing is left to train on.
    """

    def __init__(
        self,
        *,
        root: str | None,
        val_root: str | None,
        paired: bool,
        target_root: str | None,
        val_target_root: str | None,
        codes: str | None,
        components: str | None,
        latents: str | None,
        condition_latents: str | None,
        real_root: str | None,
        source: Callable[..., Source],
        expects: str,
        degradation: Degradation | None,
        augmentation: Augmentation,
        size: Annotated[int, Ge(1)],
        crop: Literal["center", "random"],
        hflip_prob: Annotated[float, Ge(0), Le(1)],
        batch_size: Annotated[int, Ge(1)],
        num_workers: Annotated[int, Ge(0)],
        on_error: Literal["raise", "skip"],
        keep_decoded: bool,
        val_size: Annotated[int, Ge(1)] | None,
        val_images: Annotated[int, Ge(1)],
        val_degradations: Annotated[int, Ge(1)],
        val_batch_size: Annotated[int, Ge(1)],
        seed: Annotated[int, Ge(0)],
        val_seed: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__()
        if root is None:
            raise ValueError(f"data.root is not set: {expects} Give it as data.root=DIR")
        if degradation is None and not paired:
            raise ValueError("data.degradation=null leaves LQs without HQs: choose data=pairs, or a degradation")
        self.make_source, self.expects = source, expects
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        self.degradation = degradation
        self.paired = paired
        photos = self._photos("root", root, "target_root", target_root)
        if val_root is None:
            train, val = self._held_out(root, photos, val_images)
        else:
            train, val = photos, self._photos("val_root", val_root, "val_target_root", val_target_root)
        self.codes = None if codes is None else Codes(file=codes, source=photos.source, size=size)
        self.latents, self.condition_latents = (
            None if folder is None else Latents(key=key, folder=folder, source=photos.source, size=size)
            for key, folder in (("data.latents", latents), ("data.condition_latents", condition_latents))
        )
        self.faces = FaceDataset(
            source=train.source,
            targets=train.targets,
            negatives=train.negatives,
            codes=self.codes,  # training images come first in photos, so that their numbers are the same there
            components=None if components is None else Components(file=components, source=photos.source, size=size),
            latents=self.latents,
            condition_latents=self.condition_latents,
            real=None if real_root is None else self._open("real_root", real_root),
            degradation=degradation,
            augmentation=augmentation,
            size=size,
            crop=crop,
            hflip_prob=hflip_prob,
            seed=seed,
            on_error=on_error,
            keep_decoded=keep_decoded,
        )
        self.fixed = FixedFaces(
            source=val.source,
            targets=val.targets.first() if isinstance(val.targets, Choices) else val.targets,
            degradation=degradation,
            degradations_per_image=val_degradations,
            size=val_size,
            seed=val_seed,
        )
        self._start_samples = 0
        self._start_step: int | None = None

    def _photos(self, key: str, root: str, target_key: str, target_root: str | None) -> Photos:
        if self.paired and target_root is None:
            raise ValueError(f"data.{target_key} is not set: {self.expects} Give it as data.{target_key}=DIR")
        if target_root is not None and not self.paired:
            raise ValueError(f"data.{target_key}={target_root} is for paired images: choose data=pairs or data=ffhqr")
        photos = self._open(key, root)
        if target_root is None:
            return Photos(photos, *((photos.targets, photos.negatives) if isinstance(photos, Graded) else (None, None)))
        if isinstance(photos, Graded):
            raise ValueError(f"data.{target_key}={target_root}: data.{key}={root} brings targets of its own: leave one out")
        targets = targets_of(photos, self._open(target_key, target_root), f"data.{target_key}={target_root}")
        return Photos(photos, targets, None)

    def _held_out(self, root: str, photos: Photos, val_images: int) -> tuple[Photos, Photos]:
        """All but the last val_images, and these."""
        count = len(photos.source)
        kept = count - val_images
        if kept < 1:
            raise ValueError(
                f"data.val_images={val_images} leaves nothing to train on: data.root={root} holds {count} images; "
                f"hold out {count - 1} at most, or give data.val_root=DIR"
            )
        return photos.part(0, kept), photos.part(kept, count)

    def _open(self, key: str, root: str) -> Source:
        try:
            return self.make_source(root=root)
        except ValueError as error:
            raise ValueError(f"data.{key}: {error}. {self.expects}") from error

    @property
    def samples_seen(self) -> int:
        """Samples that all ranks together have consumed, as of the last optimizer step."""
        if self._start_step is None or self.trainer is None:
            return self._start_samples
        steps = self.trainer.global_step - self._start_step
        return self._start_samples + steps * self.batch_size * self._world() * self.trainer.accumulate_grad_batches

    def train_dataloader(self) -> DataLoader[Batch]:
        """Goes on at samples_seen, without end."""
        precision = getattr(self.trainer, "precision", None)
        if self.degradation is not None and self.degradation.batched and precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"degradation.device=gpu with trainer.precision={precision} would degrade images of half precision: set "
                "degradation.device=cpu, or a mixed precision"
            )
        for latents in (self.latents, self.condition_latents):
            if latents is not None and precision in ("bf16-true", "16-true"):
                raise ValueError(
                    f"trainer.precision={precision} would round {latents.key}: set a mixed precision, or {latents.key}=null"
                )
        if self.faces.components is not None and precision == "bf16-true":
            raise ValueError(
                "trainer.precision=bf16-true would round data.components to 2 px: set bf16-mixed, or data.components=null"
            )
        self._start_samples = self.samples_seen
        self._start_step = self.trainer.global_step if self.trainer is not None else None
        order = PositionSampler(start=self._start_samples, batch_size=self.batch_size, rank=self._rank(), world=self._world())
        return self._loader(self.faces, batch_sampler=order, persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Every world-th sample of the fixed set from this rank's on. Raises ValueError when a rank would have none."""
        if len(self.fixed) < self._world():
            raise ValueError(
                f"{len(self.fixed)} validation samples are too few for {self._world()} devices: "
                "raise data.val_images or data.val_degradations, or give data.val_root=DIR with more images"
            )
        share = Subset(self.fixed, range(self._rank(), len(self.fixed), self._world()))
        return self._loader(share, batch_size=self.val_batch_size)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Makes the LQs of a batch on the device, where the degradation does that (data.batch.Degradation.batched)."""
        if "parameters" not in batch:
            return batch
        assert self.degradation is not None
        parameters = batch.pop("parameters")
        return finished({**batch, **self.degradation.apply_batch(batch["hq"], parameters)})

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps of the data: how far the order has been read."""
        return {"samples": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning calls this before it asks for the loaders."""
        self._start_samples, self._start_step = state_dict["samples"], None

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader[Batch]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        options |= {"num_workers": self.num_workers, "worker_init_fn": one_thread, "collate_fn": collated}
        return DataLoader(dataset, pin_memory=on_cuda, **options)

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size
