"""A trained restorer in a file, as the first stage of another pipeline (DiffBIR, Lin et al. 2023, section 3.1)."""

import inspect
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from models.files import official
from models.files.fingerprints import digest_of


class FirstStage(nn.Module):
    """A trained restorer, whose restorations are the conditions.

    Args:   path: a run or official file of a restorer that keeps the size: SwinIR, CodeFormer, GFPGAN, ELAN x1.
            w, adain: of a CodeFormer, see models/codeformer.py; the others have no use for them.
    Raises: ValueError: the path holds something else than a restorer.
    """

    def __init__(self, *, path: str, w: Annotated[float, Ge(0)], adain: bool) -> None:
        super().__init__()
        self.path, self.network = path, official.build(path)
        arguments = inspect.signature(self.network.forward).parameters
        if "lq" not in arguments:
            raise ValueError(f"stage1={path} holds {type(self.network).__name__}, which restores no images: give a restorer")
        self.options = {"w": float(w), "adain": adain} if "w" in arguments else {}
        self.eval().requires_grad_(False)
        self.fingerprint = f"{digest_of(self.network)} {self.options}"

    def forward(self, lq: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1], same shape out, about [0, 1]: not clamped, as in DiffBIR's train_stage2.py."""
        weight = next(self.network.parameters())  # in half precision with a -true precision of the trainer
        made = self.network(lq.to(weight.dtype), **self.options)
        image: Tensor = made if isinstance(made, Tensor) else made.restored
        return image.float()

    def check(self, image: Tensor) -> Tensor:
        """The restoration. Raises ValueError: it is of another size, or not finite."""
        made: Tensor = self(image)
        if made.shape != image.shape:
            raise ValueError(
                f"stage1={self.path} makes {tuple(made.shape[-2:])} of {tuple(image.shape[-2:])}: give a restorer that keeps "
                "the size"
            )
        if not made.isfinite().all():
            raise ValueError(f"a restoration of stage1={self.path} is not finite: check its weights, or take a wider precision")
        return made
