"""The contract between data and training: what a sample and a batch hold."""

from collections.abc import Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from torch import Tensor

Parameters = dict[str, Any]  # operator -> {name: number or word}, the same names for every sample, so that they collate


class Sample(TypedDict, total=False):
    """What a data set gives for one position. The comments of Batch say what each is.

    Where the degradation works on batches, `lq` is missing: it is made later of `hq` and `parameters`, and `target`, if given,
    then takes the place of `hq`.
    """

    lq: Tensor  # (3, h, w) float32 RGB in [0, 1]
    hq: Tensor  # (3, h, w) float32 RGB in [0, 1]
    target: Tensor  # (3, h, w) float32 RGB in [0, 1]
    real: Tensor  # (3, h, w) float32 RGB in [0, 1]
    negative: Tensor  # (3, h, w) float32 RGB in [0, 1]
    has_negative: Tensor  # () float32, 0 or 1
    target_codes: Tensor  # (h, w) int64
    components: Tensor  # (3, 3) float32
    hq_moments: Tensor  # (8, h / 8, w / 8) float32
    condition_moments: Tensor  # (8, h / 8, w / 8) float32
    parameters: Parameters
    position: int
    unreadable: int


class Batch(TypedDict):
    """Samples stacked by torch's default_collate."""

    lq: Tensor  # (b, 3, h, w) float32 RGB in [0, 1]
    hq: Tensor  # (b, 3, h, w) float32 RGB in [0, 1]
    real: NotRequired[Tensor]  # (b, 3, h, w) clean faces for discriminators, where they are not hq (data.real_root)
    negative: NotRequired[Tensor]  # (b, 3, h, w) what hq shows, badly enhanced (data.source.negatives of data=hggt)
    has_negative: NotRequired[Tensor]  # (b,) float32: 0 where negative is only the photo that the LQ was made of, else 1
    target_codes: NotRequired[Tensor]  # (b, h, w) int64: codes of hq, where they were made before training (data.codes)
    components: NotRequired[Tensor]  # (b, 3, 3) float32: where hq's eyes and mouth are (data/columns/components.py)
    hq_moments: NotRequired[Tensor]  # (b, 8, h / 8, w / 8) float32: mean and log variance of hq's latent (data.latents)
    condition_moments: NotRequired[Tensor]  # (b, 8, h / 8, w / 8) float32: of lq restored by stage 1 (data.condition_latents)
    position: Tensor  # (b,) int64: place in the run's endless order (training) or in the fixed set (validation)
    unreadable: Tensor  # (b,) int64: files passed over to fill this place; above 0 only with data.on_error=skip


@runtime_checkable
class Degradation(Protocol):
    """What makes an LQ of an HQ; drawing and applying are separate (degradations.pipeline.Pipeline is one).

    hq_too: names of what it does that changes the HQ as well; empty: an image is its own HQ.
    batched: False: the dataset calls apply on each sample. True: samples carry hq and parameters instead, and apply_batch makes
        the rest on the training device, once the batch is there.
    """

    batched: bool
    hq_too: Sequence[str]

    def sample(self, seed: int, position: int, size: tuple[int, int]) -> Parameters:
        """Parameters for an HQ of size (h, w): a pure function."""

    def apply(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """(3, h, w) in [0, 1] to what the sample gains: lq (3, h, w); further LQs, or another hq, where the recipe has them."""

    def apply_batch(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """The same for (b, 3, h, w) on any device; every number in parameters is a (b,) numpy array, every word a list."""


def finished(made: dict[str, Any]) -> dict[str, Any]:
    """A sample or batch after its degradation: a given target takes the place of the HQ that the LQ was made of.

    Raises:  ValueError: the degradation changed the HQ's size, so that it can't have a target.
    """
    if "target" not in made:
        return made
    target = made.pop("target")
    if target.shape != made["hq"].shape:
        raise ValueError(
            f"the degradation made an HQ of {tuple(made['hq'].shape)}, but the target is {tuple(target.shape)}: "
            "choose a degradation that keeps the size, or data without targets"
        )
    return {**made, "hq": target}
