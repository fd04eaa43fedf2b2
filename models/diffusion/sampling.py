"""Samplers of DiffBIR's second stage: from noise to a latent, with a network that predicts noise or v.

Each sampler is a Python generator that yields the latent after every step, so that a caller can show progress; the last latent
is the result. Coefficients are Python floats (float64), so that a step needs no transfer between devices. All unit noise comes
from a `Draw`.
"""

import math
from collections.abc import Callable, Iterator
from itertools import accumulate, repeat
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.diffusion.schedule import TIMESTEPS, NoiseSchedule, clean_of

Predict = Callable[[Tensor, int], Tensor]  # a latent (b, c, h, w) and its timestep to the network's output, with guidance
Draw = Callable[[Tensor], Tensor]  # unit noise in the shape of a latent
Correct = Callable[[Tensor, int, float], Tensor]  # clean latent, timestep and the latent's weight in the step to a better one


class Sampler(Protocol):
    """From x_T (b, c, h, w) to x_0 in so many steps; yields the latent after each."""

    def __call__(
        self, predict: Predict, schedule: NoiseSchedule, latent: Tensor, steps: int, draw: Draw
    ) -> Iterator[Tensor]: ...


def drawn_from(generator: torch.Generator) -> Draw:
    """Unit noise from a generator, drawn on the generator's device: a seed gives the same noise for latents on any device."""

    def draw(like: Tensor) -> Tensor:
        noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=torch.float32)
        return noise.to(like)

    return draw


class SpacedSchedule(NamedTuple):
    """A chain of fewer steps within the long one (Nichol and Dhariwal 2021, section 4). By step, the cleanest first."""

    timesteps: list[int]
    alphas_cumprod: Tensor  # (steps,) float64, as the tensors below
    posterior_variance: Tensor  # of x_{t-1} given x_t and x0; 0 in the first entry
    posterior_mean_coef1: Tensor  # factor of x0
    posterior_mean_coef2: Tensor  # factor of x_t


def spaced_schedule(schedule: NoiseSchedule, steps: int) -> SpacedSchedule:
    """Raises ValueError for fewer than 2 steps or more than there are timesteps."""
    if not 2 <= steps <= TIMESTEPS:
        raise ValueError(f"steps={steps}: the spaced sampler takes 2 to {TIMESTEPS}")
    # Sums, not products: at exact halves the two round to different timesteps, and the reference adds up.
    places = accumulate(repeat((TIMESTEPS - 1) / (steps - 1), steps - 1), initial=0.0)
    timesteps = [round(place) for place in places]
    a = schedule.alphas_cumprod[timesteps]
    before = torch.cat([a.new_ones(1), a[:-1]])
    beta = 1 - a / before
    return SpacedSchedule(
        timesteps=timesteps,
        alphas_cumprod=a,
        posterior_variance=beta * (1 - before) / (1 - a),
        posterior_mean_coef1=beta * before.sqrt() / (1 - a),
        posterior_mean_coef2=(1 - before) * (1 - beta).sqrt() / (1 - a),
    )


def sample_spaced(
    predict: Predict,
    schedule: NoiseSchedule,
    latent: Tensor,
    steps: int,
    draw: Draw,
    correct: Correct | None = None,
) -> Iterator[Tensor]:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) on a spaced schedule: "spaced", the default of DiffBIR v1 and v2.

    Args:    latent: x_T, (b, c, h, w). correct: changes the clean latent in each step, such as restoration guidance.
    """
    spaced = spaced_schedule(schedule, steps)
    rows = list(zip(spaced.timesteps, *(each.tolist() for each in spaced[1:]), strict=True))
    for timestep, a, variance, of_clean, of_noisy in reversed(rows):
        clean = clean_of(predict(latent, timestep), latent, a, schedule.prediction)
        if correct is not None:
            clean = correct(clean, timestep, of_clean)
        latent = of_clean * clean + of_noisy * latent
        if timestep > 0:
            latent = latent + variance**0.5 * draw(latent)
        yield latent


class DDIMSchedule(NamedTuple):
    """One entry a step, the cleanest first."""

    timesteps: list[int]
    alphas_cumprod: Tensor  # float64
    alphas_cumprod_before: Tensor  # float64, of the next cleaner step


def ddim_schedule(schedule: NoiseSchedule, steps: int) -> DDIMSchedule:
    """Every k-th timestep from 1 on, with k = 1000 // steps. If steps does not divide 1000, there are a few steps more.

    Raises:  ValueError: fewer than 1 step or more than 500.
    """
    if not 1 <= steps <= TIMESTEPS // 2:
        raise ValueError(f"steps={steps}: DDIM takes 1 to {TIMESTEPS // 2}")
    timesteps = list(range(1, TIMESTEPS, TIMESTEPS // steps))
    a = schedule.alphas_cumprod[timesteps]
    return DDIMSchedule(timesteps, a, torch.cat([schedule.alphas_cumprod[:1], a[:-1]]))


def sample_ddim(predict: Predict, schedule: NoiseSchedule, latent: Tensor, steps: int, draw: Draw) -> Iterator[Tensor]:
    """Deterministic sampling (Song et al. 2021, eq. 12 with eta 0): "ddim". It draws no noise."""
    rows = list(zip(*(list(each) for each in ddim_schedule(schedule, steps)), strict=True))
    for timestep, a, before in reversed([(int(t), float(a), float(b)) for t, a, b in rows]):
        clean = clean_of(predict(latent, timestep), latent, a, schedule.prediction)
        noise = (latent - a**0.5 * clean) / (1 - a) ** 0.5
        latent = before**0.5 * clean + (1 - before) ** 0.5 * noise
        yield latent


class SigmaSchedule(NamedTuple):
    """One entry a step, the noisiest first, and at last one for the clean end."""

    timesteps: list[int]
    sigmas: list[float]  # deviation of the noise if the signal has factor 1


def sigma_schedule(schedule: NoiseSchedule, steps: int) -> SigmaSchedule:
    """The published schedule: evenly spaced timesteps, and about 1e4 as first sigma, which zero_snr would make infinite.

    Raises:  ValueError: fewer than 1 step or more than there are timesteps.
    """
    if not 1 <= steps <= TIMESTEPS:
        raise ValueError(f"steps={steps}: the DPM++ samplers take 1 to {TIMESTEPS}")
    timesteps = [math.floor(TIMESTEPS - 1 - i * ((TIMESTEPS - 1) / steps)) for i in range(steps)]
    a = [1e-8, *schedule.alphas_cumprod[timesteps[1:]].tolist()]
    return SigmaSchedule([*timesteps, 0], [*(((1 - each) / each) ** 0.5 for each in a), 0.0])


class SigmaStep(NamedTuple):
    """One step of a sampler that works on x = x0 + sigma e (Karras et al. 2022), which is x_t / sqrt(a) of the latent x_t."""

    timestep: int
    sigma: float
    sigma_after: float

    def clean(self, predict: Predict, schedule: NoiseSchedule, x: Tensor) -> Tensor:
        a = 1 / (1 + self.sigma**2)
        latent = a**0.5 * x
        return clean_of(predict(latent, self.timestep), latent, a, schedule.prediction)

    @property
    def length(self) -> float:
        """The step's length in log sigma. That of the last step is infinite; nothing asks for it."""
        return math.log(self.sigma / self.sigma_after)


def sigma_steps(schedule: NoiseSchedule, steps: int) -> list[SigmaStep]:
    timesteps, sigmas = sigma_schedule(schedule, steps)
    return [SigmaStep(*each) for each in zip(timesteps[:-1], sigmas[:-1], sigmas[1:], strict=True)]


def sample_dpmpp_2m(predict: Predict, schedule: NoiseSchedule, latent: Tensor, steps: int, draw: Draw) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): "edm_dpm++_2m". It draws no noise."""
    way = sigma_steps(schedule, steps)
    x = (1 + way[0].sigma ** 2) ** 0.5 * latent
    before: tuple[Tensor, float] | None = None
    for step in way:
        clean = step.clean(predict, schedule, x)
        if step.sigma_after == 0:
            x = clean
        else:
            h, towards = step.length, clean
            if before is not None:
                towards = clean + h / (2 * before[1]) * (clean - before[0])
            x = math.exp(-h) * x - math.expm1(-h) * towards
            before = clean, h
        yield x


def sample_dpmpp_3m_sde(predict: Predict, schedule: NoiseSchedule, latent: Tensor, steps: int, draw: Draw) -> Iterator[Tensor]:
    """The stochastic DPM-Solver++ of third order with full noise: "edm_dpm++_3m_sde", the default of DiffBIR v2.1.

    It takes the clean latent as a polynomial in log sigma through its last three values (one and two at the start), and solves
    the linear part of the equation exactly. diffusers' DPMSolverMultistepScheduler can't replace it: in 0.42.1 its third order
    has a wrong sign.
    """
    way = sigma_steps(schedule, steps)
    x = (1 + way[0].sigma ** 2) ** 0.5 * latent
    past: list[tuple[Tensor, float]] = []  # clean latents and the lengths of their steps, the latest first
    for step in way:
        clean = step.clean(predict, schedule, x)
        if step.sigma_after == 0:
            x = clean
        else:
            h = step.length
            decay = 2 * h
            x = math.exp(-decay) * x - math.expm1(-decay) * clean
            phi_2 = math.expm1(-decay) / decay + 1
            if past:
                r = past[0][1] / h
                slope = (clean - past[0][0]) / r
                if len(past) > 1:
                    r_before = past[1][1] / h
                    bend = (slope - (past[0][0] - past[1][0]) / r_before) / (r + r_before)
                    slope = slope + r * bend
                    x = x - (phi_2 / decay - 0.5) * bend
                x = x + phi_2 * slope
            x = x + step.sigma_after * (-math.expm1(-decay)) ** 0.5 * draw(x)
            past = [(clean, h), *past[:1]]
        yield x


SAMPLERS: dict[str, Sampler] = {  # by their published names
    "spaced": sample_spaced,
    "ddim": sample_ddim,
    "edm_dpm++_2m": sample_dpmpp_2m,
    "edm_dpm++_3m_sde": sample_dpmpp_3m_sde,
}


def check_steps(sampler: str, schedule: NoiseSchedule, steps: int) -> None:
    """Raises ValueError for a number of steps that a sampler can't take."""
    {"spaced": spaced_schedule, "ddim": ddim_schedule}.get(sampler, sigma_schedule)(schedule, steps)
