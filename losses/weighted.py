"""A loss set: named, weighted terms that add up to what a training step minimises."""

import inspect
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

Weight = Annotated[float, Ge(0)]


class Loss(nn.Module):
    """One term. Its forward names the tensors it needs (`restored`, `hq`, …) and returns a scalar, not yet weighted."""

    def __init__(self, *, weight: Weight) -> None:
        super().__init__()
        self.weight = weight


class LossSet(nn.Module):
    """Total and raw terms of a loss set.

    Args:   terms: name -> term; a YAML mapping, so that `loss.terms.lpips.weight=0.1` reaches one number.
    Raises: ValueError for an empty set.
    """

    def __init__(self, *, terms: dict[str, Loss]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("loss.terms is empty: a training needs at least one term, such as loss=mse")
        self.terms = nn.ModuleDict(terms)
        self.weights = {name: term.weight for name, term in terms.items()}
        self._needs = {name: list(inspect.signature(term.forward).parameters) for name, term in terms.items()}

    def forward(self, **tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Args:    tensors: what the task offers, by name (see the task's training_step).
        Returns: the weighted sum (scalar) and each term's raw value (detached scalars).
        Raises:  ValueError when a term needs a tensor that the task does not offer.
        """
        raw: dict[str, Tensor] = {}
        for name, term in self.terms.items():
            if lacking := [key for key in self._needs[name] if key not in tensors]:
                raise ValueError(
                    f"loss.terms.{name} needs {lacking}, but this task offers only {sorted(tensors)}: "
                    f"remove the term (~loss.terms.{name}) or choose another task"
                )
            raw[name] = term(**{key: tensors[key] for key in self._needs[name]})
        total = torch.stack([self.weights[name] * value for name, value in raw.items()]).sum()
        return total, {name: value.detach() for name, value in raw.items()}
