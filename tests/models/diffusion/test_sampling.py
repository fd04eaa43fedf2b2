"""Noise schedules, samplers, guidance, tiles and colours: hand-worked numbers, and models whose answer is known."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from models.diffusion.colour import coarse, wavelet_colour_fix
from models.diffusion.guidance import (
    flatness,
    guidance_scale,
    guided,
    image_loss,
    latent_loss,
    restoration_guidance,
    squared_error,
)
from models.diffusion.sampling import SAMPLERS, drawn_from, sample_spaced, sigma_schedule, spaced_schedule
from models.diffusion.schedule import NoiseSchedule, Prediction, clean_of
from models.diffusion.tiles import gaussian_weights, starts, tiled

EPS, V = NoiseSchedule(prediction="eps", zero_snr=False), NoiseSchedule(prediction="v", zero_snr=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def of_gaussian(schedule: NoiseSchedule, mean: float, deviation: float) -> Callable[[Tensor, int], Tensor]:
    """The perfect network for clean latents that are independent and normal; with deviation 0 they are all `mean`."""

    def predict(latent: Tensor, timestep: int) -> Tensor:
        a = schedule.alphas_cumprod[timestep].item()
        if schedule.prediction == "eps" and a < 1e-8:
            return latent
        variance = a * deviation**2 + 1 - a
        clean = mean + a**0.5 * deviation**2 / variance * (latent - a**0.5 * mean)
        noise = (latent - a**0.5 * clean) / (1 - a) ** 0.5
        return noise if schedule.prediction == "eps" else a**0.5 * noise - (1 - a) ** 0.5 * clean

    return predict


def test_the_schedule_by_hand() -> None:
    assert EPS.betas[0].item() == pytest.approx(0.00085)
    assert EPS.betas[-1].item() == pytest.approx(0.012)
    middle = (0.00085**0.5 + 500 / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2
    assert EPS.betas[500].item() == pytest.approx(middle)
    assert EPS.alphas_cumprod[1].item() == pytest.approx((1 - 0.00085) * (1 - EPS.betas[1].item()))
    assert V.alphas_cumprod[-1] == 0
    assert V.alphas_cumprod[0].item() == pytest.approx(EPS.alphas_cumprod[0].item())
    assert (V.alphas_cumprod.diff() < 0).all()


def test_noise_is_not_predicted_of_pure_noise() -> None:
    with pytest.raises(ValueError, match="prediction=eps with zero_snr=true"):
        NoiseSchedule(prediction="eps", zero_snr=True)


@pytest.mark.parametrize("schedule", [EPS, NoiseSchedule(prediction="v", zero_snr=False)])
def test_a_target_gives_the_clean_latent_back(schedule: NoiseSchedule) -> None:
    clean, noise, timesteps = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1), torch.tensor([0, 500, 999])
    noisy = schedule.noised(clean, timesteps, noise)
    target = schedule.target(clean, timesteps, noise)
    for i, timestep in enumerate(timesteps.tolist()):
        a = schedule.alphas_cumprod[timestep].item()
        torch.testing.assert_close(clean_of(target[i], noisy[i], a, schedule.prediction), clean[i], atol=2e-4, rtol=0)
    a = schedule.alphas_cumprod[500].item()
    torch.testing.assert_close(noisy[1], a**0.5 * clean[1] + (1 - a) ** 0.5 * noise[1])
    if schedule.prediction == "v":
        torch.testing.assert_close(target[1], a**0.5 * noise[1] - (1 - a) ** 0.5 * clean[1])


def test_pure_noise_has_the_negative_of_the_clean_latent_as_v() -> None:
    clean, noise, last = randn(1, 4, 2, 2), randn(1, 4, 2, 2, seed=1), torch.tensor([999])
    assert torch.equal(V.noised(clean, last, noise), noise)
    assert torch.equal(V.target(clean, last, noise), -clean)


def test_spaced_timesteps() -> None:
    assert spaced_schedule(EPS, 4).timesteps == [0, 333, 666, 999]
    assert spaced_schedule(EPS, 8).timesteps == [0, 143, 285, 428, 571, 714, 856, 999]
    assert spaced_schedule(EPS, 1000).timesteps == list(range(1000))


def test_a_chain_of_all_steps_is_the_chain_of_training() -> None:
    whole = spaced_schedule(EPS, 1000)
    a = EPS.alphas_cumprod
    torch.testing.assert_close(whole.posterior_variance[1:], EPS.betas[1:] * (1 - a[:-1]) / (1 - a[1:]))
    assert whole.posterior_variance[0] == 0
    assert whole.posterior_mean_coef1[0] == 1
    assert whole.posterior_mean_coef2[0] == 0


def test_sigma_timesteps_are_numpys_for_every_number_of_steps() -> None:
    for steps in range(1, 1001):
        wanted = np.floor(np.linspace(999, 0, steps, endpoint=False)).astype(int).tolist()
        assert sigma_schedule(EPS, steps).timesteps == [*wanted, 0], steps
    sigmas = sigma_schedule(EPS, 4).sigmas
    a = EPS.alphas_cumprod[499].item()
    assert sigmas[0] == pytest.approx(1e4)
    assert sigmas[2] == pytest.approx(((1 - a) / a) ** 0.5)
    assert sigmas[-1] == 0


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_a_known_answer_is_reached(name: str, prediction: Prediction) -> None:
    schedule = NoiseSchedule(prediction=prediction, zero_snr=False)
    latent, draw = randn(1, 4, 3, 5), drawn_from(generator(1))
    states = list(SAMPLERS[name](of_gaussian(schedule, 0.7, 0), schedule, latent, 5, draw))
    assert len(states) == 5
    # DDIM stops at the noise of the first timestep
    within = 0.15 if name == "ddim" else 1e-3
    torch.testing.assert_close(states[-1], torch.full_like(latent, 0.7), atol=within, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_spread_of_the_data(name: str) -> None:
    schedule = EPS if name == "ddim" else V  # DDIM has no step from pure noise
    steps = 250 if name == "spaced" else 40  # of first order
    latent = randn(1, 4, 64, 64)
    *_, made = SAMPLERS[name](of_gaussian(schedule, 0, 0.5), schedule, latent, steps, drawn_from(generator(1)))
    assert made.std().item() == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_seed_decides_and_nothing_else(name: str) -> None:
    def once(seed: int) -> Tensor:
        *_, made = SAMPLERS[name](of_gaussian(V, 0, 0.5), V, randn(1, 4, 4, 4), 4, drawn_from(generator(seed)))
        return made

    before = torch.get_rng_state()
    assert torch.equal(once(1), once(1))
    assert torch.equal(once(1), once(2)) == (name in ("ddim", "edm_dpm++_2m"))  # these draw nothing
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("name", "steps"), [("spaced", 1), ("spaced", 1001), ("ddim", 501), ("edm_dpm++_2m", 0)])
def test_impossible_numbers_of_steps(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"steps={steps}: "):
        next(SAMPLERS[name](of_gaussian(V, 0, 1), V, randn(1, 4, 2, 2), steps, drawn_from(generator())))


@pytest.mark.parametrize("steps", [1, 3, 37, 111, 333, 500])
def test_ddim_with_any_number_of_steps(steps: int) -> None:
    """1000 // steps apart from 1 on: where that comes to 1000, there is no such timestep."""
    *_, last = SAMPLERS["ddim"](of_gaussian(EPS, 0, 1), EPS, randn(1, 4, 2, 2), steps, drawn_from(generator()))
    assert last.isfinite().all()
    # of data that are all 0.7 each step takes off the same noise: what the start has in it, as strong as at timestep 0
    *_, last = SAMPLERS["ddim"](of_gaussian(EPS, 0.7, 0), EPS, randn(1, 4, 2, 2), steps, drawn_from(generator()))
    begun, ended = (EPS.alphas_cumprod[timestep].item() for timestep in (range(1, 1000, 1000 // steps)[-1], 0))
    noise = (randn(1, 4, 2, 2) - begun**0.5 * 0.7) / (1 - begun) ** 0.5
    torch.testing.assert_close(last, ended**0.5 * 0.7 + (1 - ended) ** 0.5 * noise, atol=1e-3, rtol=0)


def test_guidance_scale() -> None:
    assert guidance_scale(4, 0, False) == guidance_scale(4, 999, False) == 4
    assert guidance_scale(6, 999, True) == 1
    assert guidance_scale(6, 0, True) == pytest.approx(7)
    assert guidance_scale(6, 333, True) == pytest.approx(1 + 3 * (1 - math.cos(math.pi * 0.667**5)))
    assert guidance_scale(1, 0, True) == 1


def mean_of_text(latent: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
    return latent * 0 + text.mean((1, 2))[:, None, None, None] + condition


def test_guidance_goes_past_the_positive_prompt() -> None:
    condition, positive, negative = torch.full((1, 4, 2, 2), 0.25), torch.full((1, 3, 2), 2.0), torch.full((1, 3, 2), 0.5)
    for scale, expected in ((1, 2.25), (4, 0.5 + 4 * 1.5 + 0.25), (0, 0.75)):
        predict = guided(mean_of_text, condition=condition, positive=positive, negative=negative, scale=scale, rescale=False)
        torch.testing.assert_close(predict(randn(1, 4, 2, 2), 5), torch.full((1, 4, 2, 2), expected))


@pytest.mark.parametrize(("bad", "says"), [("latent", "nor is the latent"), ("condition", "nor is the condition latent")])
def test_values_that_are_not_finite_are_named(bad: str, says: str) -> None:
    values = {"latent": randn(1, 4, 2, 2), "condition": randn(1, 4, 2, 2)}
    values[bad][0, 0, 0, 0] = math.nan
    text = torch.zeros(1, 3, 2)
    predict = guided(mean_of_text, condition=values["condition"], positive=text, negative=text, scale=2, rescale=False)
    with pytest.raises(ValueError, match=f"output at timestep 7 is not finite: {says}"):
        predict(values["latent"], 7)


def test_an_overflow_asks_for_a_wider_precision() -> None:
    text = torch.zeros(1, 3, 2)
    predict = guided(
        lambda *_: torch.full((1, 4, 2, 2), math.inf),
        condition=randn(1, 4, 2, 2),
        positive=text,
        negative=text,
        scale=1,
        rescale=False,
    )
    with pytest.raises(ValueError, match="timestep 7 is not finite: take a wider precision"):
        predict(randn(1, 4, 2, 2), 7)


def test_restoration_guidance_by_hand() -> None:
    # one value, target 1, clean 0: the gradient of (z - 1)^2 / 4 over four equal values is -1/2 each
    correct = restoration_guidance(lambda z: squared_error(z, torch.ones_like(z)), scale=1e-3, start=1001, stop=100, repeats=1)
    clean = torch.zeros(1, 1, 2, 2)
    torch.testing.assert_close(correct(clean, 500, 0.5), torch.full_like(clean, 3000 * 1e-3 / 0.5 * 0.5))
    assert torch.equal(correct(clean, 99, 0.5), clean)  # 99 + 1 is not above stop
    twice = restoration_guidance(lambda z: squared_error(z, torch.ones_like(z)), scale=1e-4, start=1001, stop=-1, repeats=2)
    step = 3000 * 1e-4 * 0.5
    torch.testing.assert_close(twice(clean, 500, 1.0), torch.full_like(clean, step + step * (1 - step)))


def test_restoration_guidance_leads_to_the_target() -> None:
    target = torch.full((1, 4, 4, 4), 2.0)
    correct = restoration_guidance(latent_loss(lambda: target), scale=0.01, start=1001, stop=-1, repeats=1)
    predict = of_gaussian(EPS, 0, 0.5)
    ends = []
    for each in (None, correct):
        *_, made = sample_spaced(predict, EPS, randn(1, 4, 4, 4), 10, drawn_from(generator()), each)
        ends.append((made - target).abs().mean().item())
    assert ends[1] < 0.8 * ends[0]


def test_image_loss_looks_at_flat_places() -> None:
    target = torch.zeros(1, 3, 8, 8)
    target[..., 4:] = 1  # an edge
    weight = flatness(target)
    assert weight.shape == (1, 1, 8, 8)
    torch.testing.assert_close(weight[..., :2], torch.ones(1, 1, 8, 2))
    assert weight[..., 3:5].max() < 0.01
    decoded = target.clone()
    decoded[..., 3] += 0.5
    clean = torch.zeros(1, 4, 1, 1)
    assert image_loss(lambda _: decoded, target, weighted=True)(clean) < 0.01 * image_loss(
        lambda _: decoded, target, weighted=False
    )(clean)


def test_tiles_cover_all_and_end_at_the_end() -> None:
    assert starts(16, 8, 4) == [0, 4, 8]
    assert starts(13, 8, 5) == [0, 5]
    assert starts(14, 8, 5) == [0, 5, 6]
    assert starts(8, 8, 4) == [0]


def test_tiles_of_a_local_model_make_no_difference() -> None:
    def model(latent: Tensor, timesteps: Tensor, text: Tensor, condition: Tensor) -> Tensor:
        assert latent.shape[-2] <= 8
        assert latent.shape[-1] <= 8
        return 2 * latent + condition

    latent, condition = randn(2, 4, 13, 9), randn(2, 4, 13, 9, seed=1)
    made = tiled(model, size=8, stride=5)(latent, torch.tensor([1, 1]), torch.zeros(2, 3, 2), condition)
    torch.testing.assert_close(made, 2 * latent + condition)


def test_the_middle_of_a_tile_counts_most() -> None:
    weights = gaussian_weights(8, 9)
    assert weights.shape == (8, 9)
    assert divmod(int(weights.argmax()), 9) == (4, 4)
    torch.testing.assert_close(weights, weights.flip(1))


@pytest.mark.parametrize("stride", [0, 9])
def test_tiles_without_gaps(stride: int) -> None:
    with pytest.raises(ValueError, match=f"tile stride {stride}: 1 to the tile's size, 8"):
        tiled(mean_of_text, size=8, stride=stride)


def test_colours_of_one_and_details_of_the_other() -> None:
    x = torch.rand(1, 3, 64, 64, generator=generator())
    torch.testing.assert_close(wavelet_colour_fix(x, x), x)
    torch.testing.assert_close(wavelet_colour_fix(x, x + 0.25), x + 0.25)
    torch.testing.assert_close(coarse(torch.full((1, 3, 8, 8), 0.3)), torch.full((1, 3, 8, 8), 0.3))
    stripes = torch.zeros(1, 1, 64, 64)
    stripes[..., ::2] = 1
    assert (coarse(stripes)[..., 24:40] - 0.5).abs().max() < 0.02
