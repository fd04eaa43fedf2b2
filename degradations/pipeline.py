"""Operators in a row: HQ in, LQ out."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from degradations import batched
from degradations.draws import Parameters, generator
from degradations.filters import filtered, filtered_and_shrunk
from degradations.operators.blur import Blur
from degradations.operators.operator import Operator
from degradations.operators.resize import Downsample


class Pipeline:
    """Operators applied in the order of the mapping; each draws from its own stream, named as it is in the mapping.

    So changing, adding or leaving out one operator leaves the draws of all others as they are.

    Args:    operators: name -> operator.
             quantize: round the result half to even to the grid of k / 255 (CodeFormer, GFPGAN: yes; DiffBIR: no).
             hq_too: names of operators that change the target as well, with the same parameters.
             device: cpu: each sample by itself, in the data workers. gpu: whole batches on the training device
                 (degradations.batched), the same images to 0.001 / 255 on average.
    Raises:  ValueError: hq_too names no operator.
    """

    def __init__(
        self, *, operators: dict[str, Operator], quantize: bool, hq_too: list[str], device: Literal["cpu", "gpu"]
    ) -> None:
        if unknown := [name for name in hq_too if name not in operators]:
            raise ValueError(f"hq_too={unknown} names no operator: the operators are {', '.join(operators)}")
        self.operators = dict(operators)
        self.quantize = quantize
        self.hq_too = list(hq_too)
        self.batched = device == "gpu"

    def sample(self, seed: int, position: int, size: tuple[int, int], prefix: str = "") -> Parameters:
        """The parameters of every operator for the HQ of size (h, w) at a position: JSON-able, a pure function."""
        return {name: each.sample(generator(seed, position, prefix + name), size) for name, each in self.operators.items()}

    def apply(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """hq: (3, h, w) in [0, 1]; returns lq, float32 in [0, 1], and hq where hq_too has changed it.

        Raises:  ValueError: the parameters aren't those of these operators.
        """
        self._check(parameters)
        target = photo = np.ascontiguousarray(hq.numpy(), dtype=np.float32)
        kernel = None  # of a blur that is still to be done: a Downsample after it wants few of its pixels
        for name, operator in self.operators.items():
            drawn, alike = parameters[name], photo is target and kernel is None
            if name in self.hq_too:
                target = operator.apply(target, drawn)
            if name in self.hq_too and alike:
                photo = target
            elif kernel is None and isinstance(operator, Blur):
                kernel = operator.kernel(drawn)
            elif kernel is not None and isinstance(operator, Downsample) and operator.filter == "bilinear":
                photo, kernel = filtered_and_shrunk(photo, kernel, drawn["height"], drawn["width"]), None
            else:
                photo, kernel = operator.apply(photo if kernel is None else filtered(photo, kernel), drawn), None
        photo = photo if kernel is None else filtered(photo, kernel)
        degraded = {"lq": torch.from_numpy(self._finished(photo, np.may_share_memory(photo, target)))}
        return {**degraded, "hq": torch.from_numpy(target)} if self.hq_too else degraded

    def apply_batch(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """The same for (b, 3, h, w) on any device; parameters as torch's default_collate gives them."""
        self._check(parameters)
        return batched.degraded(self.operators, hq, parameters, hq_too=self.hq_too, quantize=self.quantize)

    def _check(self, parameters: Parameters) -> None:
        if parameters.keys() != self.operators.keys():
            raise ValueError(f"parameters of {sorted(parameters)} were given to a pipeline of {sorted(self.operators)}")

    def _finished(self, photo: np.ndarray, shared: bool) -> np.ndarray:
        photo = np.clip(photo, 0, 1, out=None if shared else photo)
        if self.quantize:
            photo *= np.float32(255)
            np.rint(photo, out=photo)
            photo /= np.float32(255)
        return photo


class Branches:
    """Several LQs of one HQ, each by its own pipeline (CodeFormer stage III trains on a mild and a strong one).

    Args:    branches: key in the batch -> pipeline, all for the same device; one is lq.
    Raises:  ValueError: no lq, pipelines for different devices, or one that changes the HQ.
    """

    def __init__(self, *, branches: dict[str, Pipeline]) -> None:
        if "lq" not in branches:
            raise ValueError(f"branches={sorted(branches)} has no lq, which tasks restore: name one of them so")
        if len({pipeline.batched for pipeline in branches.values()}) > 1:
            raise ValueError("branches have different devices: set degradation.branches.NAME.device alike for all")
        if changed := [name for name, pipeline in branches.items() if pipeline.hq_too]:
            raise ValueError(
                f"branches.{changed[0]}.hq_too={branches[changed[0]].hq_too}: all branches share one HQ, leave it empty"
            )
        self.branches = dict(branches)
        self.batched = branches["lq"].batched

    def sample(self, seed: int, position: int, size: tuple[int, int]) -> Parameters:
        """As Pipeline.sample, for each branch; their draws are independent."""
        return {name: each.sample(seed, position, size, prefix=f"{name}.") for name, each in self.branches.items()}

    def apply(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """hq: (3, h, w) in [0, 1]; returns an LQ under each branch's name."""
        return {name: each.apply(hq, parameters[name])["lq"] for name, each in self.branches.items()}

    def apply_batch(self, hq: Tensor, parameters: Parameters) -> dict[str, Tensor]:
        """The same for (b, 3, h, w)."""
        return {name: each.apply_batch(hq, parameters[name])["lq"] for name, each in self.branches.items()}
