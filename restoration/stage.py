"""What a stage of a pipeline is, and what every stage says when an image can't be restored."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from train.errors import ran_out

# Images of one size as the stage before left them and as they were at the very beginning, each (b, 3, h, w) float32 in [0, 1]
# on the CPU, and what they are called; to the restored ones, (b, 3, h', w') about [0, 1] on the CPU. ValueError: these images
# can't be restored, and why.
Restore = Callable[[Tensor, Tensor, Sequence[str]], Tensor]


class Stage(Protocol):
    """One step of a pipeline: a node of conf/pipeline. Making one reads no file.

    An image's result follows from the image, its LQ, its name and the stage's settings alone, but for rounding, which may
    follow from the images that it shares a batch with.
    """

    def files(self) -> Mapping[str, Sequence[str]]:
        """Arguments that name weights, and what each opens: files, runs or folders. Their hashes go into restore.json."""
        ...

    def idle(self) -> Iterator[tuple[str, str]]:
        """Arguments that do nothing beside the others, and why: "by itself: add g_scale above 0"."""
        ...

    def load(self, device: torch.device) -> Restore:
        """Opens its networks. Raises ValueError, OSError: files that are missing, or settings that don't fit them."""
        ...


@contextmanager
def memory_explained(images: Tensor, ways_out: list[str], device: torch.device) -> Iterator[None]:
    """Raises ValueError with the images' size and the ways out where memory ran out within it; other errors pass."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        count, _, height, width = images.shape
        ways_out = [*(["a smaller batch_size"] if count > 1 else []), *ways_out]
        ways_out += ["device=cpu"] if device.type != "cpu" else []
        advice = ", or ".join(ways_out) or "take a machine with more"
        raise ValueError(f"memory ran out on its {width}x{height} pixels: {advice}") from error


def is_terminal() -> bool:
    """Whether a person watches the progress."""
    return sys.stderr.isatty()
