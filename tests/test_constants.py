"""What stands in two rooms because neither may import the other (tests/test_imports.py) is the same in both."""

import numpy as np
import pytest

import data.columns.components
import models.components
from data.order import draws
from degradations.draws import generator
from losses.perceptual import IMAGENET_MEAN, IMAGENET_STD
from models.vgg import MEAN, STD


def test_imagenets_mean_and_deviation() -> None:
    assert (IMAGENET_MEAN, IMAGENET_STD) == (MEAN, STD)


def test_the_parts_of_a_face_in_their_order() -> None:
    assert data.columns.components.PARTS == models.components.PARTS


@pytest.mark.parametrize(("seed", "position", "stream"), [(0, 0, "blur"), (231, 70_000_000, "data.order"), (2**64 - 1, 5, "é")])
def test_the_draws_of_a_position(seed: int, position: int, stream: str) -> None:
    ours, theirs = draws(seed, position, stream), generator(seed, position, stream)
    np.testing.assert_array_equal(ours.random(5), theirs.random(5))
