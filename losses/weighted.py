"""A loss set: named, weighted terms that add up to what a training step minimises."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn


class Scheduled:
    """A weight that is `value` in the updates from_step + 1 to until_step alone; outside, its term is not computed.

    Args: until_step: null: to the end.    ramp_steps: as many updates it takes to rise linearly to the value.
    """

    def __init__(
        self,
        *,
        value: Annotated[float, Ge(0)],
        from_step: Annotated[int, Ge(0)] = 0,
        until_step: Annotated[int, Ge(1)] | None = None,
        ramp_steps: Annotated[int, Ge(0)] = 0,
    ) -> None:
        if until_step is not None and until_step <= from_step:
            raise ValueError(f"a weight from_step={from_step} until_step={until_step} is never on: raise until_step")
        self.value, self.from_step, self.until_step, self.ramp_steps = value, from_step, until_step, ramp_steps

    def at(self, update: int) -> float | None:
        """The weight in this update, counted from 1, or None."""
        since = update - self.from_step
        if since < 1 or (self.until_step is not None and update > self.until_step):
            return None
        return self.value * min(1.0, since / self.ramp_steps) if self.ramp_steps else self.value


Weight = Annotated[float, Ge(0)] | Scheduled


class Loss(nn.Module):
    """One term. Its forward names the tensors it needs (`restored`, `hq`, …) and returns a scalar, not yet weighted."""

    def __init__(self, *, weight: Weight) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, update: int) -> float | None:
        """Its weight in this update, counted from 1; None: it is not computed. 0 still shows its value."""
        return self.weight.at(update) if isinstance(self.weight, Scheduled) else self.weight

    def after_update(self, skipped: bool) -> None:
        """Called once the generator's step is done, or was skipped as its gradient was not finite."""


class OfDiscriminator(Loss):
    """A term of the generator's loss that needs a discriminator's answers.

    Args: of: the discriminator's name in adversary.discriminators.
    """

    adaptive_at: str | None = None  # the generator's parameter at which adaptive_weight compares gradients; None: nowhere

    def __init__(self, *, weight: Weight, of: str) -> None:
        super().__init__(weight=weight)
        self.of = of

    @staticmethod
    def adaptive_weight(others: Tensor, adversarial: Tensor, parameter: Tensor, scale: float = 1.0) -> Tensor:
        """The ratio of gradient norms at a parameter, in [0, 1] and without a graph (Esser et al. 2021, eq. 7).

        Args: others, adversarial: scalars with their graphs.
              scale: of the losses before their gradients are taken, undone afterwards; against underflow in float16.
        """
        norms = [
            torch.autograd.grad(scale * loss, parameter, retain_graph=True)[0].norm() / scale for loss in (others, adversarial)
        ]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1).detach()


class Term(NamedTuple):
    """What a term came to in a step, scalars both."""

    raw: Tensor  # detached
    weighted: Tensor


Terms = dict[str, Term]


def total(terms: Iterable[Term]) -> Tensor:
    """What is minimised, a scalar."""
    return torch.stack([term.weighted for term in terms]).sum()


def grad_norms(terms: Mapping[str, Term], parameters: Iterable[Tensor]) -> dict[str, Tensor]:
    """Term -> norm of the gradient of its weighted value at the parameters; costs a backward pass for each."""
    of = [p for p in parameters if p.requires_grad]
    norms = {}
    for name, term in terms.items():
        if term.weighted.requires_grad:
            found = torch.autograd.grad(term.weighted, of, retain_graph=True, allow_unused=True)
            norms[name] = torch.stack(torch._foreach_norm([g for g in found if g is not None])).norm()
    return norms


class LossSet(nn.Module):
    """Total and terms of a loss set.

    Args:   terms: name -> term; a YAML mapping, so that `loss.terms.lpips.weight=0.1` reaches one number.
            log_grad_norms: whether the task logs the gradient norm of each weighted term as well.
    Raises: ValueError for an empty set, and for one of which nothing counts.
    """

    def __init__(self, *, terms: dict[str, Loss], log_grad_norms: bool = False) -> None:
        super().__init__()
        if not terms:
            raise ValueError("loss.terms is empty: a training needs at least one term, such as loss=mse")
        if all(term.weight == 0 for term in terms.values()):
            raise ValueError(f"loss.terms: the weight of {', '.join(terms)} is 0, so there is nothing to minimise: raise one")
        self.terms, self.log_grad_norms = nn.ModuleDict(terms), log_grad_norms
        self._needs = {name: list(inspect.signature(term.forward).parameters) for name, term in terms.items()}

    def check_offered(self, offered: Collection[str], task: str) -> None:
        """Raises ValueError when a term needs a tensor that the task does not offer."""
        for name, needed in self._needs.items():
            if lacking := [key for key in needed if key not in offered]:
                raise ValueError(
                    f"loss.terms.{name} needs {lacking}, but {task} offers only {sorted(offered)}: "
                    f"remove the term (~loss.terms.{name}) or choose another task"
                )

    def needing(self, names: Collection[str]) -> set[str]:
        """Terms that need one of these tensors."""
        return {name for name, needed in self._needs.items() if not set(names).isdisjoint(needed)}

    def due(self, update: int, without: Collection[str] = ()) -> dict[str, float]:
        """Term -> weight, of those that are computed in this update, but for some."""
        weights: dict[str, Any] = {name: term.weight_at(update) for name, term in self.terms.items()}  # type: ignore[operator]
        return {name: weight for name, weight in weights.items() if weight is not None and name not in without}

    def after_update(self, skipped: bool) -> None:
        for term in self.terms.values():
            term.after_update(skipped)  # type: ignore[operator]

    def of_discriminators(self) -> dict[str, OfDiscriminator]:
        """The terms that need a discriminator, by name."""
        return {name: term for name, term in self.terms.items() if isinstance(term, OfDiscriminator)}

    def asked(self, update: int, without: Collection[str] = ()) -> dict[str, set[str]]:
        """Discriminator -> names of the tensors that this update's terms of it ask for."""
        found: dict[str, set[str]] = {}
        of_discriminators = self.of_discriminators()
        for name in self.due(update, without):
            if term := of_discriminators.get(name):
                found.setdefault(term.of, set()).update(self._needs[name])
        return found

    def needs(self, update: int) -> set[str]:
        """Names of the tensors that this update asks for."""
        return {key for name in self.due(update) for key in self._needs[name]}

    def forward(self, update: int, without: Collection[str] = (), /, **tensors: Any) -> tuple[Tensor, Terms]:
        """The weighted sum, and every term.

        Args:   update: the one under way, counted from 1.    without: names of terms to leave out.
                tensors: what the task offers, by name.
        Raises: ValueError when no term is on in this update.
        """
        terms: Terms = {}
        for name, weight in self.due(update, without).items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                raw = self.terms[name](**{key: tensors[key] for key in self._needs[name]})
            terms[name] = Term(raw.detach(), weight * raw)
        if not any(term.weighted.requires_grad for term in terms.values()) and torch.is_grad_enabled():
            raise ValueError(f"loss.terms: no term is on in update {update}: let one begin at from_step=0, or last longer")
        return total(terms.values()), terms
