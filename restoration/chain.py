"""A folder of images through the stages of a pipeline: each stage is opened once, restores every image, and is let go."""

import errno
import gc
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.images import to_tensor, write_png
from data.reading import read_image
from data.sources.files import Files
from data.writing import replacing
from restoration.stage import Restore, Stage, is_terminal

SAID_EVERY_S = 30.0  # a line of progress where nobody watches a bar
Batch = Sequence[int]  # numbers of images of one size


@dataclass(kw_only=True)
class Chain:
    """The stages of a pipeline, and where their work lies.

    What a stage made of an image is kept in float32 in `work`/STAGE until the next stage has used it, or for good. So a
    command that was interrupted goes on with the image and the stage where it was. Batches are as given, whatever is there
    already: an image goes through a stage beside the same others each time.

    Args:    source: the images, (h, w, 3) uint8 each.
             put: takes an image's number and what the last stage made of it, (3, h, w) about [0, 1]. has: whether it did.
             begin: called before anything is written.
             anew: whatever lies there is as if it were not.
             kept: stages whose work stays, as PNGs to look at too.
             rounded: each stage gets what an 8-bit file holds of the work of the one before.
    """

    stages: Mapping[str, Stage]
    source: Files
    work: Path
    device: torch.device
    put: Callable[[int, Tensor], None]
    has: Callable[[int], bool]
    begin: Callable[[], None]
    anew: bool = False
    kept: Collection[str] = ()
    rounded: bool = False
    failed: dict[int, str] = field(default_factory=dict)  # number of an image -> why it could not be restored
    has_opened: bool = False  # all stages could be
    has_begun: bool = False  # to write
    done: int = 0
    seconds: float = 0.0  # that stages took

    def left(self, batches: Sequence[Batch]) -> dict[str, list[Batch]]:
        """Stage -> batches that must go through it: those that lack a final image, as far back as work is missing."""
        left = {}
        names = list(self.stages)
        needed = [batch for batch in batches if self.anew or not all(map(self.has, batch))]
        for stage, before in zip(reversed(names), [*reversed(names[:-1]), None], strict=True):
            left[stage] = needed
            if before is not None and not self.anew:
                needed = [batch for batch in needed if not all(self.path(before, i).exists() for i in batch)]
        return dict(reversed(left.items()))

    def run(self, left: Mapping[str, Sequence[Batch]]) -> None:
        """Takes batches through the stages.

        Raises: ValueError, OSError: a stage can't be opened, which is told before any image is restored; or the disk is full.
        """
        names = list(self.stages)
        waiting = [name for name in names if left[name]]
        for name in reversed(waiting[1:]):  # what is wrong with the last is told before the first has worked for hours
            self.stages[name].load(self.device)
            free(self.device)
        self.has_opened = not waiting
        for name in waiting:
            before = names[names.index(name) - 1] if name != names[0] else None
            restore = self.stages[name].load(self.device)
            self.has_opened = True
            with Progress(name, sum(map(len, left[name]))) as progress:
                for batch in left[name]:
                    if members := [i for i in batch if i not in self.failed]:
                        self._through(restore, members, name, before)
                    progress.add(len(batch))
            del restore
            free(self.device)

    def path(self, stage: str, i: int) -> Path:
        """Where the work of a stage on an image lies."""
        return (self.work / stage / self.source.paths[i]).with_suffix(".npy")

    def _through(self, restore: Restore, batch: Batch, stage: str, before: str | None) -> None:
        """A batch through a stage. An image that can't be restored is noted, and the others of its batch go one by one."""
        start = time.perf_counter()
        try:
            made = self._restored(restore, batch, before)
        except ValueError as error:
            if len(batch) == 1:
                name = self.source.name(batch[0])
                self.failed[batch[0]] = str(error) if name in str(error) else f"{name}: {error}"
                return
            for i in batch:
                self._through(restore, [i], stage, before)
            return
        finally:
            self.seconds += time.perf_counter() - start
        for i, image in zip(batch, made, strict=True):
            if not image.isfinite().all():
                self.failed[i] = f"{self.source.name(i)}: the output of {stage} is not finite"
                continue
            if not self.has_begun:
                self.begin()
                self.has_begun = True
            try:
                self._keep(stage, i, image)
            except ValueError as error:
                self.failed[i] = str(error)
        if before is not None and before not in self.kept:
            for i in set(batch) - self.failed.keys():
                self.path(before, i).unlink(missing_ok=True)

    def _restored(self, restore: Restore, batch: Batch, before: str | None) -> Tensor:
        lq = torch.stack([to_tensor(read_image(self.source, i)) for i in batch])
        images = lq if before is None else torch.stack([torch.from_numpy(np.load(self.path(before, i))) for i in batch])
        with torch.no_grad():  # not inference_mode, which restoration guidance can't take gradients in
            return restore(images, lq, [self.source.paths[i] for i in batch])

    def _keep(self, stage: str, i: int, image: Tensor) -> None:
        """What the last stage made is put where it belongs, that of the others waits for the next."""
        if stage == list(self.stages)[-1]:
            self.put(i, image)
            self.done += 1
            return
        path = self.path(stage, i)
        save(path, (image.clamp(0, 1) * 255).round() / 255 if self.rounded else image)
        if stage in self.kept:
            write_png(path.with_suffix(".png"), image)


def save(path: Path, image: Tensor) -> None:
    """(3, h, w) float32 as .npy, whole or not at all. Raises as `writing`."""
    with writing(path), replacing(path) as file:
        np.save(file, image.numpy())


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """For writing a file, whose folder is there then. Raises ValueError: nothing can have this name; OSError: a full disk."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        message = f"{target} can't be written: {error.strerror or error}"
        if error.errno in (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise ValueError(message) from error
        raise OSError(f"{message}; what was written is whole: mend this and give the same command again to go on") from error


def free(device: torch.device) -> None:
    """Gives back the memory of networks that were let go."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Progress:
    """How far a stage is: a bar on a terminal, elsewhere a line now and then."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.count = stage, total, 0
        self.start = self.said = time.perf_counter()
        self.bar = tqdm(total=total, desc=stage, unit="image", disable=total < 2 or not is_terminal())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        """So many more images are through."""
        self.count += count
        self.bar.update(count)
        now = time.perf_counter()
        if not is_terminal() and now - self.said >= SAID_EVERY_S and self.count < self.total:
            self.said = now
            pace = self.count / (now - self.start)
            left = tqdm.format_interval((self.total - self.count) / pace)
            print(f"{self.stage}: {self.count} of {self.total} images, {pace:.2g} images/s, {left} left", file=sys.stderr)
