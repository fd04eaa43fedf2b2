"""The contract between data and training: what a sample and a batch hold."""

from typing import Protocol, TypedDict, runtime_checkable

from torch import Tensor


class Sample(TypedDict):
    """One place of a batch."""

    lq: Tensor  # (3, h, w) float32 RGB in [0, 1]
    hq: Tensor  # (3, h, w) float32 RGB in [0, 1]
    position: int
    unreadable: int


class Batch(TypedDict):
    """Samples stacked by torch's default_collate."""

    lq: Tensor  # (b, 3, h, w) float32 RGB in [0, 1]
    hq: Tensor  # (b, 3, h, w) float32 RGB in [0, 1]
    position: Tensor  # (b,) int64: place in the run's endless order (training) or in the fixed set (validation)
    unreadable: Tensor  # (b,) int64: files passed over to fill this place; above 0 only with data.on_error=skip


Parameters = dict[str, dict[str, float | int]]


@runtime_checkable
class Degradation(Protocol):
    """What makes an LQ of an HQ; drawing and applying are separate (degradations.pipeline.Pipeline is one)."""

    def sample(self, seed: int, position: int, size: tuple[int, int]) -> Parameters:
        """Parameters for an HQ of size (h, w): a pure function."""

    def apply(self, hq: Tensor, parameters: Parameters) -> Tensor:
        """(3, h, w) in [0, 1] to (3, h, w) in [0, 1]: a pure function."""
