"""Terms on parts of a face that have a discriminator of their own."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.features import gram
from losses.weighted import OfDiscriminator

WEIGHTS = (0.5, 1.0)  # of the two layers


class ComponentStyle(OfDiscriminator):
    """L1 between the Gram matrices of a part's two features in the part's own discriminator (Wang et al. 2021, eq. 5).

    The discriminator's features are those of models.components.FacialComponentDiscriminator.
    """

    def forward(self, fake_features: Mapping[str, Sequence[Tensor]], real_features: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Both: discriminator's name -> its two features (b, c, h, w), of restored and of real parts. A scalar out."""
        with torch.autocast(fake_features[self.of][0].device.type, enabled=False):  # a Gram matrix sums over all pixels
            pairs = zip(WEIGHTS, fake_features[self.of], real_features[self.of], strict=True)
            distances = [w * F.l1_loss(gram(fake.float()), gram(real.float().detach())) for w, fake, real in pairs]
            return torch.stack(distances).sum()
