"""The noise that a diffusion model is trained on: schedules, noised latents, targets, and clean latents from outputs.

Letters of the formulas: x0 the clean latent, e unit noise, a(t) the cumulative alpha: x_t = sqrt(a) x0 + sqrt(1 - a) e.
"""

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["eps", "v"]
TIMESTEPS = 1000
BETA_RANGE = (0.00085, 0.012)  # of Stable Diffusion 1 and 2; their square roots are spaced evenly


class NoiseSchedule:
    """How much noise a latent has at each of 1000 timesteps (Ho et al. 2020), and what the network predicts.

    Args:    prediction: what the UNet predicts: the noise ("eps": Stable Diffusion 2.1-base, DiffBIR v1 and v2), or v
                 (Salimans and Ho 2022; "v": DiffBIR v2.1).
             zero_snr: rescale the betas so that the last timestep is pure noise (Lin et al. 2024, algorithm 1; DiffBIR v2.1).
    Raises:  ValueError: eps with zero_snr, as noise predicted from pure noise says nothing about the clean latent.
    """

    def __init__(self, *, prediction: Prediction, zero_snr: bool) -> None:
        if prediction == "eps" and zero_snr:
            raise ValueError("prediction=eps with zero_snr=true: in pure noise, its noise says nothing; take prediction=v")
        low, high = (beta**0.5 for beta in BETA_RANGE)
        betas = torch.linspace(low, high, TIMESTEPS, dtype=torch.float64).square()
        self.prediction = prediction
        self.betas = zero_terminal_snr(betas) if zero_snr else betas  # (1000,) float64

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(1000,) float64, falling."""
        return (1 - self.betas).cumprod(0)

    def noised(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """x_t (b, c, h, w) of clean latents x0 (b, c, h, w) at timesteps (b,), with unit noise (b, c, h, w)."""
        signal, sigma = self._factors(clean, timesteps)
        return signal * clean + sigma * noise

    def target(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict from `noised`: the noise, or v = sqrt(a) e - sqrt(1 - a) x0; (b, c, h, w)."""
        if self.prediction == "eps":
            return noise
        signal, sigma = self._factors(clean, timesteps)
        return signal * noise - sigma * clean

    def _factors(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alphas_cumprod.to(like.device)[timesteps][:, None, None, None]
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """betas (n,), changed so that the last cumulative alpha is 0 and the first stays (Lin et al. 2024, algorithm 1).

    It shifts and scales the square roots of the cumulative alphas.
    """
    roots = (1 - betas).cumprod(0).sqrt()
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    alphas_cumprod = roots.square()
    return 1 - torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


def clean_of(output: Tensor, latent: Tensor, a: float, prediction: Prediction) -> Tensor:
    """x0 from the network's output on `latent`, whose cumulative alpha is a; all (b, c, h, w)."""
    if prediction == "v":
        return a**0.5 * latent - (1 - a) ** 0.5 * output
    return (latent - (1 - a) ** 0.5 * output) / a**0.5
