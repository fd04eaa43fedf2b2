"""The diffusion of images in pixels: respaced chains, posteriors with a learned variance, samplers and the training loss.

Tables are float64. An index counts the steps of the respaced chain, 0 being the cleanest; the network gets the timestep of the
long chain that it stands for. Images are in [-1, 1] here, (b, c, h, w).

Sources: Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672; Song et al. 2021, arXiv:2010.02502; Yue
and Loy 2022, arXiv:2212.06512 (DifFace).
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]  # noisy images and their timesteps to the network's output
Draw = Callable[[Tensor], Tensor]  # unit noise in the shape of an image
Correct = Callable[[Tensor], Tensor]  # a clean image to a better one


def betas_of(schedule: Literal["linear", "cosine"], steps: int) -> np.ndarray:
    """(steps,) of the long chain."""
    if schedule == "linear":
        return np.linspace(0.1 / steps, 20 / steps, steps)
    places = np.arange(steps + 1) / steps
    kept = np.cos((places + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - kept[1:] / kept[:-1], 0.999)


def kept_timesteps(respacing: str, steps: int) -> list[int]:
    """Timesteps of a long chain that a short one keeps.

    Args:    respacing: "" all of them; "ddim250" (PGDiff: "ddpm250") the smallest whole stride that gives so many, from 0 on;
                 "250" so many from the first to the last, rounded; "10,20" so many of each equal part.
    Raises:  ValueError: no such stride, or more steps than there are.
    """
    if not respacing:
        return list(range(steps))
    if respacing.startswith(("ddim", "ddpm")):
        wanted = int(respacing[4:])
        for stride in range(1, steps):
            if len(found := range(0, steps, stride)) == wanted:
                return list(found)
        raise ValueError(f"respacing={respacing}: no whole stride gives {wanted} of {steps} steps")
    counts = [int(part) for part in respacing.split(",")]
    kept: list[int] = []
    start = 0
    for number, count in enumerate(counts):
        size = steps // len(counts) + (number < steps % len(counts))
        if count > size:
            raise ValueError(f"respacing={respacing}: {count} of {size} steps can't be kept")
        apart = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):  # sums, as the reference has them: products round otherwise at halves
            kept.append(start + round(place))
            place += apart
        start += size
    return kept


class Posterior(NamedTuple):
    """The Gaussian that a step is drawn from, and the clean image that it leads to."""

    clean: Tensor
    mean: Tensor
    variance: Tensor
    log_variance: Tensor
    noise: Tensor  # what the network took for noise


class PixelDiffusion:
    """A chain, whole or respaced.

    Args:    predicts: what the network's first channels are: the noise, or the clean image.
             variance: learned (its further channels lie between the smallest and the largest possible), or one of these two.
             rescaled: the network gets timesteps as if the long chain had 1000 steps.
    """

    def __init__(
        self,
        *,
        steps: int = 1000,
        schedule: Literal["linear", "cosine"] = "linear",
        respacing: str = "",
        predicts: Literal["noise", "clean"] = "noise",
        variance: Literal["learned", "small", "large"] = "learned",
        rescaled: bool = False,
    ) -> None:
        self.timesteps = kept_timesteps(respacing, steps)
        whole = np.cumprod(1 - betas_of(schedule, steps))
        before = np.append(1.0, whole[self.timesteps][:-1])
        self.betas = 1 - whole[self.timesteps] / before
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        self.alphas_cumprod_prev = np.append(1.0, self.alphas_cumprod[:-1])
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        self.posterior_log_variance_clipped = np.log(self._first_as_second(self.posterior_variance))
        self.posterior_mean_coef1 = self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        self.sqrt_recip_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod)
        self.sqrt_recipm1_alphas_cumprod = np.sqrt(1 / self.alphas_cumprod - 1)
        self.predicts, self.variance = predicts, variance
        self.per_timestep = 1000 / steps if rescaled else 1

    def __len__(self) -> int:
        return len(self.timesteps)

    @staticmethod
    def _first_as_second(variances: np.ndarray) -> np.ndarray:
        return np.append(variances[1] if len(variances) > 1 else variances[0], variances[1:])

    def noised(self, clean: Tensor, index: Tensor, noise: Tensor) -> Tensor:
        """x_t of clean images at indices (b,)."""
        a = self.alphas_cumprod
        return at(np.sqrt(a), index, clean) * clean + at(np.sqrt(1 - a), index, clean) * noise

    def noise_of(self, x: Tensor, clean: Tensor, index: Tensor) -> Tensor:
        """The noise that leads from a clean image to a noisy one."""
        enlarged = at(self.sqrt_recip_alphas_cumprod, index, x) * x
        return (enlarged - clean) / at(self.sqrt_recipm1_alphas_cumprod, index, x)

    def true_posterior(self, clean: Tensor, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of x_{t-1} given x_t and the clean image."""
        mean = at(self.posterior_mean_coef1, index, x) * clean + at(self.posterior_mean_coef2, index, x) * x
        return mean, at(self.posterior_variance, index, x), at(self.posterior_log_variance_clipped, index, x)

    def posterior(self, network: Network, x: Tensor, index: Tensor, *, clamp: bool = True) -> Posterior:
        """What the network makes of noisy images at indices (b,). clamp: clean images are cut off to [-1, 1]."""
        long = torch.tensor(self.timesteps, device=x.device)[index]
        return self.posterior_of(network(x, self.per_timestep * long), x, index, clamp=clamp)

    def posterior_of(self, output: Tensor, x: Tensor, index: Tensor, *, clamp: bool = True) -> Posterior:
        """The same of an output."""
        channels = x.shape[1]
        first = output[:, :channels]
        if self.variance == "learned":
            low, high = (at(table, index, x) for table in (self.posterior_log_variance_clipped, np.log(self.betas)))
            share = (output[:, channels:] + 1) / 2
            log_variance = share * high + (1 - share) * low
            variance = log_variance.exp()
        else:
            large = self._first_as_second_of_large()
            table = large if self.variance == "large" else self.posterior_variance
            logs = np.log(large) if self.variance == "large" else self.posterior_log_variance_clipped
            variance, log_variance = at(table, index, x), at(logs, index, x)
        if self.predicts == "clean":
            clean, noise = first, self.noise_of(x, first, index)
        else:
            enlarged = at(self.sqrt_recip_alphas_cumprod, index, x) * x
            clean, noise = enlarged - at(self.sqrt_recipm1_alphas_cumprod, index, x) * first, first
        clean = clean.clamp(-1, 1) if clamp else clean
        return Posterior(clean, self.true_posterior(clean, x, index)[0], variance, log_variance, noise)

    def _first_as_second_of_large(self) -> np.ndarray:
        """The betas, but for the first, which is the true posterior's second: there is no other choice for the last step."""
        return np.append(self.posterior_variance[1], self.betas[1:])

    def ancestral(self, network: Network, x: Tensor, draw: Draw) -> Iterator[tuple[Tensor, Tensor]]:
        """DDPM's sampling from pure noise; yields the clean image and the noisy one after each step."""
        for i in reversed(range(len(self))):
            index = torch.full((len(x),), i, device=x.device)
            of = self.posterior(network, x, index)
            x = of.mean + (0.5 * of.log_variance).exp() * draw(x) if i else of.mean
            yield of.clean, x

    def ddim(
        self,
        network: Network,
        x: Tensor,
        draw: Draw,
        *,
        eta: float = 0.0,
        start: int | None = None,
        noise_again: bool = True,
        correct: Correct | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """DDIM's sampling, from index start - 1 on; yields as `ancestral`.

        Args:    noise_again: the noise is derived again from the cut-off clean image (DDIM, DT-BFR); False keeps the
                     network's own (DifFace).
                 correct: changes the clean image of each step, which is then cut off again.
        """
        for i in reversed(range(len(self) if start is None else start)):
            index = torch.full((len(x),), i, device=x.device)
            of = self.posterior(network, x, index)
            clean = of.clean if correct is None else correct(of.clean).clamp(-1, 1)
            noise = self.noise_of(x, clean, index) if noise_again else of.noise
            a, before = float(self.alphas_cumprod[i]), float(self.alphas_cumprod_prev[i])
            sigma = eta * math.sqrt((1 - before) / (1 - a)) * math.sqrt(1 - a / before)
            x = math.sqrt(before) * clean + math.sqrt(1 - before - sigma**2) * noise
            x = x + sigma * draw(x) if i else x
            yield clean, x

    def losses(self, network: Network, clean: Tensor, index: Tensor, noise: Tensor, *, rescaled: bool) -> dict[str, Tensor]:
        """Per sample (b,): mse of the noise, the variational term vb (bits), and their sum, loss (Nichol and Dhariwal 2021).

        Args:    rescaled: vb counts as for a chain of 1000 steps: times steps / 1000.
        """
        x = self.noised(clean, index, noise)
        long = torch.tensor(self.timesteps, device=x.device)[index]
        output = network(x, self.per_timestep * long)
        first, rest = output.split(clean.shape[1], dim=1)
        of = self.posterior_of(torch.cat([first.detach(), rest], dim=1), x, index, clamp=False)
        mean, _, log_variance = self.true_posterior(clean, x, index)
        divergence = flat_mean(gaussian_divergence(mean, log_variance, of.mean, of.log_variance)) / math.log(2)
        likelihood = flat_mean(-discretised_log_likelihood(clean, of.mean, 0.5 * of.log_variance)) / math.log(2)
        vb = torch.where(index == 0, likelihood, divergence)
        if rescaled:
            vb = vb * len(self) / 1000
        mse = flat_mean((noise - first) ** 2)
        return {"mse": mse, "vb": vb, "loss": mse + vb}


def at(table: np.ndarray, index: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at indices (b,), as (b, 1, 1, 1) in float32."""
    return torch.from_numpy(table).to(index.device)[index].float()[:, None, None, None].to(like.dtype)


def flat_mean(values: Tensor) -> Tensor:
    """(b, …) to (b,)."""
    return values.flatten(1).mean(dim=1)


def gaussian_divergence(mean1: Tensor, log1: Tensor, mean2: Tensor, log2: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the second Gaussian from the first, value by value, in nats."""
    return 0.5 * (-1 + log2 - log1 + (log1 - log2).exp() + (mean1 - mean2) ** 2 * (-log2).exp())


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of 8-bit values in [-1, 1] under a Gaussian, value by value, in nats."""
    centred, inverse = x - mean, (-log_scale).exp()
    above, below = (cumulative(inverse * (centred + half)) for half in (1 / 255, -1 / 255))
    least = 1e-12
    inner = (above - below).clamp(min=least).log()
    outer = torch.where(x > 0.999, (1 - below).clamp(min=least).log(), inner)
    return torch.where(x < -0.999, above.clamp(min=least).log(), outer)


def cumulative(x: Tensor) -> Tensor:
    """The standard normal's distribution function, by the reference's approximation with tanh."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
