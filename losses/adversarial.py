"""Terms of a generator against discriminators, and of discriminators. Logits have any shape and range."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from annotated_types import Ge, Interval
from torch import Tensor

from losses.weighted import Loss, OfDiscriminator, Weight

Kind = Literal["vanilla", "hinge", "lsgan", "softplus"]


def judged_real(logits: Tensor, kind: Kind) -> Tensor:
    """What a discriminator minimises on real images; a scalar.

    vanilla: binary cross-entropy (Goodfellow et al. 2014). hinge: Lim and Ye 2017. lsgan: squares (Mao et al. 2017).
    softplus: StyleGAN's form, the same number as vanilla.
    """
    logits = logits.float()  # under autocast they come in half precision
    if kind == "hinge":
        return F.relu(1 - logits).mean()
    if kind == "lsgan":
        return (logits - 1).square().mean()
    return F.softplus(-logits).mean()


def judged_fake(logits: Tensor, kind: Kind) -> Tensor:
    """What a discriminator minimises on restored images; a scalar."""
    logits = logits.float()
    if kind == "hinge":
        return F.relu(1 + logits).mean()
    if kind == "lsgan":
        return logits.square().mean()
    return F.softplus(logits).mean()


def fooled(logits: Tensor, kind: Kind) -> Tensor:
    """What a generator minimises on its own images; a scalar. Under hinge the negative mean, without a margin."""
    return -logits.float().mean() if kind == "hinge" else judged_real(logits, kind)


class Adversarial(OfDiscriminator):
    """The generator's term against one discriminator.

    Args: of: see OfDiscriminator.
          adaptive_at: name of a parameter of the generator, usually the last layer's weight. There the gradient of this term is
              scaled to the length of the other terms' gradient, but to no more than `weight` times its own length (VQGAN).
              null: weight alone counts.
    """

    def __init__(self, *, weight: Weight, kind: Kind, of: str, adaptive_at: str | None) -> None:
        super().__init__(weight=weight, of=of)
        self.kind, self.adaptive_at = kind, adaptive_at

    def forward(self, fake_logits: Mapping[str, Tensor]) -> Tensor:
        """fake_logits: discriminator's name -> its logits of restored images, such as (b, 1, h, w) or (b, 1). A scalar out."""
        return fooled(fake_logits[self.of], self.kind)


class Discriminate(Loss):
    """The discriminator's term: what it minimises on real and on restored images, added and not halved."""

    def __init__(self, *, weight: Weight, kind: Kind) -> None:
        super().__init__(weight=weight)
        self.kind = kind

    def forward(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Logits of real and of restored images, such as (b, 1, h, w) or (b, 1), to a scalar."""
        return judged_real(real_logits, self.kind) + judged_fake(fake_logits, self.kind)


class R1(Loss):
    """Squared norm of the discriminator's gradient at real images, mean over the batch (Mescheder et al. 2018, eq. 9).

    On average it counts weight / 2 in each update. Only updates whose number every_n_steps divides compute it, and there it
    counts weight / 2 * every_n_steps (Karras et al. 2020, section 4.1).
    """

    def __init__(self, *, weight: Weight, every_n_steps: Annotated[int, Ge(1)]) -> None:
        super().__init__(weight=weight)
        self.every_n_steps = every_n_steps

    def weight_at(self, update: int) -> float | None:
        weight = super().weight_at(update)
        return None if weight is None or update % self.every_n_steps else weight / 2 * self.every_n_steps

    def forward(self, real: Tensor, real_logits: Tensor) -> Tensor:
        """real: (b, 3, h, w), which requires a gradient. real_logits: of it, such as (b, 1, h, w) or (b, 1). A scalar out."""
        (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=torch.is_grad_enabled())
        return slope.square().flatten(1).sum(1).mean()


class PathLength(Loss):
    """How much the change of an image by a step in the latent differs from image to image (Karras et al. 2020, eq. 4).

    It is computed as rarely as R1, with weight * every_n_steps in updates whose number every_n_steps divides. The target is the
    running mean of the lengths in earlier updates, which checkpoints keep. For images in [-1, 1], as published, lengths are
    twice as large as for ours in [0, 1]: the published weight of 2 is 8 here.

    Args: decay: share of an update's mean in the running mean, 0.01 as published.
    """

    def __init__(
        self, *, weight: Weight, every_n_steps: Annotated[int, Ge(1)], decay: Annotated[float, Interval(gt=0, le=1)]
    ) -> None:
        super().__init__(weight=weight)
        self.every_n_steps, self.decay = every_n_steps, decay
        self.sample_seeds: list[int] = []  # of the current batch, one a sample, from which the sample's noise follows
        self.mean_length: Tensor
        self.register_buffer("mean_length", torch.zeros(()))
        self._lengths: list[Tensor] = []  # (b,) for each micro-batch of the update under way

    def weight_at(self, update: int) -> float | None:
        weight = super().weight_at(update)
        return None if weight is None or update % self.every_n_steps else weight * self.every_n_steps

    def forward(self, restored: Tensor, latent: Tensor) -> Tensor:
        """restored: (b, 3, h, w), made of latent (b, layers, n), whose graph is needed. A scalar out."""
        _, *shape = restored.shape
        rngs = [torch.Generator(restored.device).manual_seed(seed ^ 1) for seed in self.sample_seeds]
        noise = torch.stack([torch.randn(shape, generator=rng, device=restored.device) for rng in rngs])
        learns = torch.is_grad_enabled()
        with torch.enable_grad(), torch.autocast(restored.device.type, enabled=False):
            noisy = (restored.float() * noise).sum() / (shape[1] * shape[2]) ** 0.5
            (slope,) = torch.autograd.grad(noisy, latent, create_graph=learns, retain_graph=True)
            lengths = slope.float().square().sum(2).mean(1).sqrt()
            self._lengths.append(lengths.detach())
            return (lengths - self.mean_length).square().mean()

    def after_update(self, skipped: bool) -> None:
        """Updates the running mean, which is the same on all ranks and covers all micro-batches of an update."""
        if self._lengths and not skipped:
            mean = torch.cat(self._lengths).mean()
            if dist.is_initialized():
                dist.all_reduce(mean, dist.ReduceOp.SUM)
                mean /= dist.get_world_size()
            self.mean_length.lerp_(mean, self.decay)
        self._lengths = []


class FeatureMatching(OfDiscriminator):
    """L1 between a discriminator's features of restored and of real images, mean over its layers (Wang et al. 2018, eq. 4)."""

    def forward(self, fake_features: Mapping[str, Sequence[Tensor]], real_features: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """Both: discriminator's name -> its layers' features (b, c, h, w), of restored and of real images. A scalar out."""
        pairs = zip(fake_features[self.of], real_features[self.of], strict=True)
        return torch.stack([F.l1_loss(fake.float(), real.float().detach()) for fake, real in pairs]).mean()
