"""The term that diffusion models are trained on."""

import torch.nn.functional as F
from torch import Tensor

from losses.weighted import Loss


class Denoising(Loss):
    """Mean squared error of the predicted noise in a latent (Ho et al. 2020, arXiv:2006.11239, eq. 14), or of v."""

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """predicted: (b, c, h, w), noise or v. target: (b, c, h, w). Returns a scalar."""
        return F.mse_loss(predicted.float(), target.float())
