"""What the tests of single operators share: a photo, many draws, and what uniform draws look like."""

from typing import Any

import numpy as np

from degradations.draws import Parameters, generator
from degradations.operators.operator import Operator


def photo(height: int = 64, width: int = 48) -> np.ndarray:
    """White noise, (3, height, width), in which nothing that happens to a pixel stays hidden."""
    return generator(0, 0, "photo").random((3, height, width), dtype=np.float32)


def draws(operator: Operator, count: int = 2000, size: tuple[int, int] = (64, 48)) -> list[Parameters]:
    return [operator.sample(generator(3, position, "test"), size) for position in range(count)]


def drawn(operator: Operator, name: str, **options: Any) -> np.ndarray:
    return np.array([each[name] for each in draws(operator, **options)])


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Both ends are come close to, none is passed, and the quartiles lie where they should."""
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high >= values.max() > high - 0.01 * (high - low)
    expected = low + np.array([0.25, 0.5, 0.75]) * (high - low)
    np.testing.assert_allclose(np.quantile(values, [0.25, 0.5, 0.75]), expected, atol=0.04 * (high - low))
