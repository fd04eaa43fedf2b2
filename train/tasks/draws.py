"""What training draws: it follows from (seed, sample position), the same after any restart, in any batch, on any rank."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


@runtime_checkable
class DropsBranches(Protocol):
    """Keeps or drops a branch for each sample: models.swinir.StochasticDepth. uniform: (b,) in [0, 1), one draw a sample."""

    uniform: Tensor | None


@runtime_checkable
class AddsNoise(Protocol):
    """Draws noise for each sample from a seed of its own: models.stylegan2.Generator, losses.adversarial.PathLength."""

    sample_seeds: list[int] | None


class ModuleDraws:
    """Gives modules of a network and its losses what they draw at random for the samples of a micro-batch."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        modules = list(modules)
        self.depths: list[DropsBranches] = [module for module in modules if isinstance(module, DropsBranches)]
        self.noisy: list[AddsNoise] = [module for module in modules if isinstance(module, AddsNoise)]

    def begin(self, seed: int, positions: Sequence[int], device: torch.device) -> None:
        """Called before each micro-batch. positions: of its samples."""
        batch_seed = int(np.random.SeedSequence([seed, positions[0]]).generate_state(1)[0])
        torch.default_generator.manual_seed(batch_seed)  # torch.manual_seed would prepare each kind of device: 0.1 ms and more
        if device.type != "cpu":
            torch.get_device_module(device).manual_seed(batch_seed)
        if self.depths:
            draws = np.stack([np.random.default_rng([seed, p]).random(len(self.depths), np.float32) for p in positions])
            for depth, uniform in zip(self.depths, torch.from_numpy(draws).to(device).T, strict=True):
                depth.uniform = uniform
        for each in self.noisy:
            each.sample_seeds = [int(np.random.SeedSequence([seed, p, 1]).generate_state(1)[0]) for p in positions]


class SampleDraws:
    """Random numbers of each sample by itself, for a task that draws them on its own.

    Args: positions: of the samples of a batch.
    """

    def __init__(self, seed: int, positions: Sequence[int]) -> None:
        self.generators = [np.random.default_rng([seed, position]) for position in positions]

    def timesteps(self, count: int) -> Tensor:
        """(b,) int64, each of 0 .. count - 1 as likely as any other."""
        return torch.tensor([generator.integers(count) for generator in self.generators])

    def __call__(self, like: Tensor) -> Tensor:
        """Unit noise in the shape of a batch, (b, c, h, w)."""
        noise = [generator.standard_normal(like.shape[1:], np.float32) for generator in self.generators]
        return torch.from_numpy(np.stack(noise)).to(like)
