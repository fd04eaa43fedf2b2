"""Terms on codes (CodeFormer, Zhou et al. 2022, arXiv:2206.11253). b batch, n codes in the codebook, t = h * w tokens."""

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from losses.weighted import Loss, Weight


class Codebook(Loss):
    """Pulls codes e and latents z together: codebook_weight * |sg(z) - e|² + commitment_weight * |z - sg(e)|², both means.

    sg stops gradients. The paper weighs the second summand by 0.25 (van den Oord et al. 2017, eq. 3; CodeFormer, eq. 2), where
    CodeFormer's code weighs the first by it.
    """

    def __init__(
        self, *, weight: Weight, codebook_weight: Annotated[float, Ge(0)], commitment_weight: Annotated[float, Ge(0)]
    ) -> None:
        super().__init__(weight=weight)
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight

    def forward(self, latent: Tensor, quantized: Tensor) -> Tensor:
        """latent: (b, c, h, w) of the encoder. quantized: (b, c, h, w), its nearest codes, whose gradient reaches
            the codebook alone.

        Returns: a scalar.
        """
        latent, quantized = latent.float(), quantized.float()
        codebook = F.mse_loss(quantized, latent.detach())
        return self.codebook_weight * codebook + self.commitment_weight * F.mse_loss(latent, quantized.detach())


class CodeFeature(Loss):
    """Squared error between the LQ's latent and the codes of its HQ, mean over everything (CodeFormer, eq. 5)."""

    def forward(self, latent: Tensor, target_latent: Tensor) -> Tensor:
        """latent: (b, c, h, w) of the LQ. target_latent: (b, c, h, w), codes of the HQ. Returns a scalar."""
        return F.mse_loss(latent.float(), target_latent.float())


class CodeCrossEntropy(Loss):
    """Cross-entropy of the predicted codes, mean over batch and tokens (CodeFormer, eq. 6)."""

    def forward(self, logits: Tensor, target_codes: Tensor) -> Tensor:
        """logits: (b, t, n), tokens in row order. target_codes: (b, h, w) of the HQ, integers below n. Returns a scalar."""
        return F.cross_entropy(logits.float().transpose(1, 2), target_codes.flatten(1))
