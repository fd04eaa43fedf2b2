"""FaceData: the loaders of a run. The only file here that knows Lightning."""

import signal
from collections.abc import Callable
from typing import Annotated, Any, Literal

import cv2
import torch
from annotated_types import Ge, Le
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Subset

from data.batch import Batch, Degradation
from data.faces import FaceDataset, FixedFaces
from data.order import PositionSampler
from data.sources import Part, Source


def one_thread(worker: int) -> None:
    """Workers are the parallelism: OpenCV and torch stay on one thread. Signals are for the training process to answer."""
    for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN)  # SLURM and a terminal send them to every process
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


class FaceData(LightningDataModule):
    """Endless training batches, the same for any number of ranks, workers and restarts, and a fixed validation set.

    The Trainer must leave the order alone: use_distributed_sampler=False. Positions count samples over all ranks.

    Args:    root: folder (or what source takes) of the training images; None asks the user for it.
             val_root: of the validation images; None holds out the last val_images of root.
             source: makes a Source of a root.
             expects: one sentence for the message when a root is missing: which folder it should be, and where it comes from.
             size, crop, hflip_prob, seed, on_error, keep_decoded: see FaceDataset.
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
        source: Callable[..., Source],
        expects: str,
        degradation: Degradation,
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
        self.make_source, self.expects = source, expects
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, num_workers
        train, val = self._sources(root, val_root, val_images)
        self.faces = FaceDataset(
            source=train,
            degradation=degradation,
            size=size,
            crop=crop,
            hflip_prob=hflip_prob,
            seed=seed,
            on_error=on_error,
            keep_decoded=keep_decoded,
        )
        self.fixed = FixedFaces(
            source=val, degradation=degradation, degradations_per_image=val_degradations, size=val_size, seed=val_seed
        )
        self._start_samples = 0
        self._start_step: int | None = None

    def _sources(self, root: str, val_root: str | None, val_images: int) -> tuple[Source, Source]:
        """Training and validation images, which share none unless the user names overlapping roots."""
        images = self._open("root", root)
        if val_root is not None:
            return images, self._open("val_root", val_root)
        kept = len(images) - val_images
        if kept < 1:
            raise ValueError(
                f"data.val_images={val_images} leaves nothing to train on: data.root={root} holds {len(images)} images; "
                f"hold out {len(images) - 1} at most, or give data.val_root=DIR"
            )
        return Part(whole=images, start=0, stop=kept), Part(whole=images, start=kept, stop=len(images))

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

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps of the data: how far the order has been read."""
        return {"samples": self.samples_seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lightning calls this before it asks for the loaders."""
        self._start_samples, self._start_step = state_dict["samples"], None

    def _loader(self, dataset: Dataset, **options: Any) -> DataLoader[Batch]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(dataset, num_workers=self.num_workers, worker_init_fn=one_thread, pin_memory=on_cuda, **options)

    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def _world(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size
