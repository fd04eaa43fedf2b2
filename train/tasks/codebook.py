"""How much of a codebook is in use, and new life for codes that are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from annotated_types import Gt
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.optim import Optimizer

from data.writing import replacing
from train import ranks


class CodebookUse(nn.Module):
    """Counts codes over all ranks; the counts are buffers, the same on each rank, so that a run that goes on counts on.

    Args: dead_after_steps: updates without a single use after which a code counts as dead.
          restart: dead codes become latents of the update at hand, and count as used (Dhariwal et al. 2020, arXiv:2005.00341,
              appendix); false, as published.
    """

    uses: Tensor  # (n,) float32 whatever the precision: of each code in an update, running mean over about dead_after_steps
    last_used: Tensor  # (n,) int64: the update

    def __init__(self, *, dead_after_steps: Annotated[int, Gt(0)], restart: bool) -> None:
        super().__init__()
        self.dead_after_steps, self.restart = dead_after_steps, restart
        self._noted: Tensor | None = None

    def register(self, codebook_size: int) -> None:
        self.register_buffer("uses", torch.zeros(codebook_size))
        self.register_buffer("last_used", torch.zeros(codebook_size, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.uses = self.uses.float()
        return self

    def add(self, codes: Tensor) -> None:
        """Notes a batch of the update under way; codes of any shape."""
        uses = torch.bincount(codes.flatten(), minlength=len(self.uses))
        self._noted = uses if self._noted is None else self._noted + uses

    @torch.no_grad()
    def count(self, update: int) -> dict[str, Tensor]:
        """Takes the update's batches together. Returns `perplexity` over all ranks, and how many codes are `dead`."""
        assert self._noted is not None
        uses, self._noted = ranks.add(self._noted), None
        self.uses.lerp_(uses.float(), 1 / min(self.dead_after_steps, update))
        self.last_used[uses > 0] = update
        return {"perplexity": perplexity(uses), "dead": self._dead(update).sum().float()}

    def _dead(self, update: int) -> Tensor:
        return update - self.last_used > self.dead_after_steps

    @torch.no_grad()
    def revive(self, codebooks: list[nn.Embedding], optimizer: Optimizer, latent: Tensor, update: int, seed: int) -> int:
        """Gives each dead code a latent of rank 0's batch, without the momentum of the old one; returns how many there were.

        Args: codebooks: the trained one and its average.    latent: (b, emb_dim, h, w).
        """
        dead = self._dead(update).nonzero().flatten()
        if not len(dead):
            return 0
        vectors = latent.detach().permute(0, 2, 3, 1).flatten(0, 2).float()
        drawn = torch.randint(len(vectors), (len(dead),), generator=torch.Generator().manual_seed(seed + update))
        fresh = ranks.of_rank_zero(vectors[drawn.to(vectors.device)].contiguous())
        for codebook in codebooks:
            codebook.weight[dead] = fresh.to(codebook.weight.dtype)
        state: dict[str, Any] = optimizer.state[codebooks[0].weight]
        for value in state.values():
            if isinstance(value, Tensor) and value.ndim == 2:
                value[dead] = 0
        self.last_used[dead] = update
        return len(dead)

    def draw(self, file: Path, update: int) -> None:
        """A picture of how often each code is used, the most used first."""
        uses, dead = self.uses.sort(descending=True).values.cpu(), int(self._dead(update).sum())
        figure, axis = plt.subplots(figsize=(8, 4), constrained_layout=True)
        axis.step(range(len(uses)), uses.tolist())
        axis.set(
            title=f"update {update}: perplexity {perplexity(uses):.0f} of {len(uses)} codes, {dead} dead",
            xlabel="codes, the most used first",
            ylabel="uses an update",
            yscale="log" if uses[0] else "linear",
        )
        with replacing(file) as png:
            figure.savefig(png, format="png", dpi=100)
        plt.close(figure)


def perplexity(uses: Tensor) -> Tensor:
    """How many codes are in use: exp of the entropy of their frequencies, from 1 to n; a scalar. uses: (n,) of each code."""
    frequency = uses / uses.sum()
    return (-(frequency * (frequency + 1e-10).log()).sum()).exp()
