"""FaceData: the loaders of a run. The only file here that knows Lightning."""

import os
import signal
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import cv2
import torch
from annotated_types import Ge
from lightning import LightningDataModule
from threadpoolctl import threadpool_limits
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from data.augmentation import Augmentation
from data.batch import Batch, Degradation, Parameters, Sample, finished
from data.columns.column import Column, Setting
from data.cutting import Cut
from data.faces import TrainingFaces, ValidationFaces
from data.landmarks import TEMPLATE_SIDE
from data.looks import first_look
from data.order import PositionSampler
from data.parent import end_with_parent
from data.roots import Roots


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


def at_most_cores(workers: int) -> int:
    """data.num_workers, or with a warning as many as this process has cores: a task of SLURM may own fewer than it sees."""
    cores = min(len(os.sched_getaffinity(0)), int(os.environ.get("SLURM_CPUS_PER_TASK") or workers or 1))
    if workers > cores:
        warnings.warn(f"data.num_workers={workers}: {cores} run, as this process has {cores} cores", stacklevel=2)
    return min(workers, cores)


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

    Args:    roots: where the images lie.
             columns: name -> what was made of the images before training; those without a path are left out.
             degradation: makes LQs; None: root holds LQs, and is paired.
             augmentation, cut, seed, on_error, keep_decoded: see TrainingFaces.
             batch_size: samples of a micro-batch on each device.
             num_workers: processes a loader, never more than there are cores; 0 reads in the training process.
             val_size: side of the validation images in pixels; None leaves them as they are (then val_batch_size is 1, unless
                 all are of one size).
             val_degradations: LQs of each validation image.
             val_seed: draws of the validation set, apart from seed so that runs can be compared.
    Raises:  ValueError: images are without HQs, or a column does not fit the images or how they are shown.
    """

    def __init__(
        self,
        *,
        roots: Roots,
        columns: Mapping[str, Column],
        degradation: Degradation | None,
        augmentation: Augmentation,
        cut: Cut,
        batch_size: Annotated[int, Ge(1)],
        num_workers: Annotated[int, Ge(0)],
        on_error: Literal["raise", "skip"],
        keep_decoded: bool,
        val_size: Annotated[int, Ge(1)] | None,
        val_degradations: Annotated[int, Ge(1)],
        val_batch_size: Annotated[int, Ge(1)],
        seed: Annotated[int, Ge(0)],
        val_seed: Annotated[int, Ge(0)],
    ) -> None:
        super().__init__()
        if degradation is None and not roots.paired:
            raise ValueError("data.degradation=null leaves LQs without HQs: choose data=pairs, or a degradation")
        self.batch_size, self.val_batch_size, self.num_workers = batch_size, val_batch_size, at_most_cores(num_workers)
        self.degradation = degradation
        self.columns = {name: column for name, column in columns.items() if column.path is not None}
        whole, training, validation = roots.images()
        setting = Setting(  # of the whole root: training images come first in it, so that their numbers are the same there
            source=whole.source,
            targets=whole.targets,
            degradation=degradation,
            augmentation=augmentation,
            cut=cut,
            on_error=on_error,
            open=roots.open,
        )
        for column in self.columns.values():
            column.bind(setting)
        self.faces = TrainingFaces(
            images=training,
            columns=list(self.columns.values()),
            degradation=degradation,
            augmentation=augmentation,
            cut=cut,
            seed=seed,
            on_error=on_error,
            keep_decoded=keep_decoded,
        )
        self.fixed = ValidationFaces(
            images=validation,
            degradation=degradation,
            degradations_per_image=val_degradations,
            size=val_size,
            seed=val_seed,
        )
        self._start_samples = 0
        self._start_step: int | None = None

    @property
    def samples_seen(self) -> int:
        """Samples that all ranks together have consumed, as of the last optimizer step."""
        if self._start_step is None or self.trainer is None:
            return self._start_samples
        steps = self.trainer.global_step - self._start_step
        return self._start_samples + steps * self.batch_size * self._world() * self.trainer.accumulate_grad_batches

    def first_look(self) -> list[str]:
        """What a few training images seem to be instead of what training takes them for, a sentence each."""
        cut = self.faces.cut
        aligned = cut.crop == "center" and cut.size >= TEMPLATE_SIDE  # random crops are of any photographs
        return list(first_look(self.faces.images, self.degradation is not None, aligned))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Goes on at samples_seen, without end."""
        precision = getattr(self.trainer, "precision", None)
        if self.degradation is not None and self.degradation.batched and precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"degradation.device=gpu with trainer.precision={precision} would degrade images of half precision: set "
                "degradation.device=cpu, or a mixed precision"
            )
        for column in self.columns.values():
            column.check_precision(precision)
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

    def val_name(self, number: int) -> str:
        """What to call the file of this rank's validation sample of that number."""
        return self.fixed.name(self._rank() + number * self._world())

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
