"""What steers sampling: classifier-free guidance by text, and DiffBIR's restoration guidance towards the first restoration."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.diffusion.sampling import Correct, Predict
from models.diffusion.schedule import TIMESTEPS

# The latent (b, 4, h, w), timesteps (b,), text (b, m, c) and condition latent (b, 4, h, w) to the output (b, 4, h, w).
Model = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

STEP = 3000  # the published code multiplies the given scale by it
LUMA = (0.2989, 0.5870, 0.1140)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


def guidance_scale(scale: float, timestep: int, rescale: bool) -> float:
    """The scale of classifier-free guidance at a timestep: `scale`, or, with rescale, from 1 (all noise) to 1 + scale (clean).

    This is the published rule. A scale of 1 or less is not rescaled.
    """
    if not rescale or scale <= 1:
        return scale
    return 1 + scale * (1 - math.cos(math.pi * ((TIMESTEPS - timestep) / TIMESTEPS) ** 5)) / 2


def guided(model: Model, *, condition: Tensor, positive: Tensor, negative: Tensor, scale: float, rescale: bool) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022) with a negative prompt. Both branches see the condition.

    Args:    condition: (b, 4, h, w). positive, negative: text features (b, m, c).
             scale: 1 means the positive prompt alone, at the cost of one branch.
    Returns: a function of latent and timestep that gives negative + scale * (positive - negative). It raises ValueError if
             that is not finite.
    """
    both = torch.cat([negative, positive])

    def predict(latent: Tensor, timestep: int) -> Tensor:
        timesteps = torch.full((len(latent),), timestep, device=latent.device)
        s = guidance_scale(scale, timestep, rescale)
        if s == 1:
            output = model(latent, timesteps, positive, condition)
        else:
            output = model(torch.cat([latent, latent]), timesteps.repeat(2), both, torch.cat([condition, condition]))
            without, towards = output.chunk(2)
            output = without + s * (towards - without)
        if not output.isfinite().all():
            raise ValueError(
                f"the diffusion model's output at timestep {timestep} is not finite: {_culprit(latent, condition)}"
            )
        return output

    return predict


def _culprit(latent: Tensor, condition: Tensor) -> str:
    for name, values in (("condition latent", condition), ("latent it was given", latent)):
        if not values.isfinite().all():
            return f"nor is the {name}"
    return "take a wider precision (float32 or bfloat16), or check the weights"


Loss = Callable[[Tensor], Tensor]  # a clean latent (b, 4, h, w) to a scalar


def restoration_guidance(loss: Loss, *, scale: float, start: int, stop: int, repeats: int) -> Correct:
    """Pulls the clean latent of each step towards the first restoration (Lin et al. 2023, section 3.3).

    It follows commit 9fb2107 of the official code, the last one in which guidance reaches the sampler. The published values
    are start=1001, stop=-1 (all steps), repeats=1.

    Args:    loss: the distance of a clean latent from the first restoration: `image_loss` or `latent_loss`.
             scale: of the gradient. start, stop: it works while stop < timestep + 1 < start.
             repeats: gradient steps in each sampling step.
    """

    def correct(clean: Tensor, timestep: int, weight: float) -> Tensor:
        if stop < timestep + 1 < start:
            for _ in range(repeats):
                with torch.enable_grad():
                    leaf = clean.detach().requires_grad_()
                    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
                clean = clean - STEP * scale / weight * gradient  # weight: of the clean latent in the sampling step
        return clean

    return correct


def image_loss(decode: Callable[[Tensor], Tensor], target: Tensor, *, weighted: bool) -> Loss:
    """Compares images. decode: a latent to images (b, 3, h, w), about [0, 1]. target: such images. weighted: by `flatness`."""
    weight = flatness(target) if weighted else None
    return lambda clean: squared_error(2 * decode(clean) - 1, 2 * target - 1, weight)


def latent_loss(draw_target: Callable[[], Tensor]) -> Loss:
    """Compares latents. draw_target gives the target's, each time another draw from its posterior."""
    return lambda clean: squared_error(clean, draw_target())


def squared_error(made: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """The mean squared error of each image, summed over the batch. weight (b, 1, h, w) multiplies the squares."""
    squares = (made - target).square()
    return (squares if weight is None else weight * squares).mean((1, 2, 3)).sum()


def flatness(image: Tensor) -> Tensor:
    """(b, 1, h, w), from 1 where an image (b, 3, h, w) in [0, 1] is flat to 0 where its luma has edges.

    It is one number for each block of 2x2: 1 - tanh of the sum of the lengths of the block's four gradients (Sobel).
    """
    luma = (image * image.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    sobel = image.new_tensor(SOBEL)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    lengths = F.conv2d(F.pad(luma, (1, 1, 1, 1), mode="replicate"), kernels).square().sum(1, keepdim=True).sqrt()
    return F.interpolate(1 - torch.tanh(4 * F.avg_pool2d(lengths, 2)), scale_factor=2)
