"""Operators that are done with a probability, or one way out of several."""

import numpy as np

from degradations.draws import Parameters, Probability, checked_prob, field_seed, generator
from degradations.operators.operator import Operator


class Sometimes:
    """An operator done with a probability.

    Args:    prob: 0 to 1. operator: drawn always, so that prob changes nothing else.
    Raises:  ValueError: prob is none.
    """

    def __init__(self, *, prob: Probability, operator: Operator) -> None:
        self.prob = checked_prob("prob", prob)
        self.operator = operator

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """done (0 or 1), and the operator's own."""
        return {"done": int(rng.random() < self.prob), **self.operator.sample(rng, size)}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; as the operator, or the photo itself."""
        return self.operator.apply(photo, parameters) if parameters["done"] else photo


class OneOf:
    """One of several ways, each some operators in a row.

    Args:    probs: way -> probability; 1 in sum. ways: way -> (name -> operator); an empty one changes nothing.
    Raises:  ValueError: other names in one than in the other, or probabilities that don't sum to 1.
    """

    def __init__(self, *, probs: dict[str, Probability], ways: dict[str, dict[str, Operator]]) -> None:
        if probs.keys() != ways.keys():
            raise ValueError(f"probs names {sorted(probs)}, ways {sorted(ways)}: give each way its probability")
        if abs(sum(checked_prob(name, prob) for name, prob in probs.items()) - 1) > 1e-6:
            raise ValueError(f"the probabilities of {', '.join(probs)} sum to {sum(probs.values()):g}, not to 1")
        self.names, self.limits = list(probs), np.cumsum(list(probs.values()))
        self.ways = {name: dict(operators) for name, operators in ways.items()}

    def sample(self, rng: np.random.Generator, size: tuple[int, int]) -> Parameters:
        """way, and for every way the parameters of its operators, those that are not done too."""
        way = self.names[min(int(np.searchsorted(self.limits, rng.random(), side="right")), len(self.names) - 1)]
        seed = field_seed(rng)
        drawn = {
            name: {each: operator.sample(generator(seed, 0, f"{name}.{each}"), size) for each, operator in operators.items()}
            for name, operators in self.ways.items()
        }
        return {"way": way, **drawn}

    def apply(self, photo: np.ndarray, parameters: Parameters) -> np.ndarray:
        """photo: (3, h, w) float32; as the operators of the way."""
        for name, operator in self.ways[parameters["way"]].items():
            photo = operator.apply(photo, parameters[parameters["way"]][name])
        return photo
