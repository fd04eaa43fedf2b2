"""Sometimes and OneOf: how often, what is done, and that the draws of one never move those of another."""

import numpy as np
import pytest

from degradations.draws import generator
from degradations.operators.choose import OneOf, Sometimes
from degradations.operators.colour import Grey
from degradations.operators.jpeg import Jpeg
from degradations.operators.noise import GaussianNoise
from tests.degradations.samples import draws, photo

NOISE = GaussianNoise(sigma_255=(0, 15), grey_prob=0.4)
JPEG = Jpeg(quality=(30, 95), codec="libjpeg")


def choice(**ways):
    share = 1 / len(ways)
    return OneOf(probs=dict.fromkeys(ways, share), ways=ways)


def test_sometimes():
    operator = Sometimes(prob=0.3, operator=NOISE)
    every = draws(operator)
    assert np.mean([each["done"] for each in every]) == pytest.approx(0.3, abs=0.041)  # 4 standard errors
    given = {"sigma_255": 9.0, "grey": 0, "field_seed": 4}
    np.testing.assert_array_equal(operator.apply(photo(), {"done": 1, **given}), NOISE.apply(photo(), given))
    np.testing.assert_array_equal(operator.apply(photo(), {"done": 0, **given}), photo())


@pytest.mark.parametrize(("prob", "done"), [(0, {0}), (1, {1})])
def test_never_and_always(prob, done):
    operator = Sometimes(prob=prob, operator=Grey())
    every = draws(operator, count=500)
    assert {each["done"] for each in every} == done
    luma = np.tensordot([0.299, 0.587, 0.114], photo(), 1)  # of BT.601
    np.testing.assert_allclose(operator.apply(photo(), every[0])[1], luma if prob else photo()[1], atol=1e-6)


def test_the_probability_does_not_move_the_operators_draws():
    rare, frequent = (draws(Sometimes(prob=prob, operator=NOISE), count=50) for prob in (0.1, 0.9))
    assert [{**each, "done": 0} for each in rare] == [{**each, "done": 0} for each in frequent]


def test_one_of_several():
    operator = OneOf(
        probs={"noise": 0.5, "both": 0.3, "none": 0.2},
        ways={"noise": {"noise": NOISE}, "both": {"grey": Grey(), "jpeg": JPEG}, "none": {}},
    )
    every = draws(operator, count=4000)
    for way, prob in operator_probs(operator).items():
        share = np.mean([each["way"] == way for each in every])
        assert share == pytest.approx(prob, abs=4 * np.sqrt(prob * (1 - prob) / 4000))
    given = every[0]
    both = JPEG.apply(Grey().apply(photo(), {}), given["both"]["jpeg"])  # in this order
    np.testing.assert_array_equal(operator.apply(photo(), {**given, "way": "both"}), both)
    np.testing.assert_array_equal(
        operator.apply(photo(), {**given, "way": "noise"}), NOISE.apply(photo(), given["noise"]["noise"])
    )
    np.testing.assert_array_equal(operator.apply(photo(), {**given, "way": "none"}), photo())


def operator_probs(operator):
    return dict(zip(operator.names, np.diff(operator.limits, prepend=0), strict=True))


def test_every_way_is_reached_at_the_ends():
    class Fixed:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

        def integers(self, high):
            return 5

    operator = OneOf(probs={"a": 0.1, "b": 0.2, "c": 0.7}, ways={"a": {}, "b": {}, "c": {}})
    seen = [operator.sample(Fixed(value), (8, 8))["way"] for value in (0.0, 0.0999, 0.1001, 0.29, 0.31, 1 - 2**-53)]
    assert seen == ["a", "a", "b", "b", "c", "c"]
    assert list(operator.limits) == pytest.approx([0.1, 0.3, 1])


def test_a_way_does_not_move_the_draws_of_another():
    before = choice(first={"noise": NOISE, "jpeg": JPEG}, second={"jpeg": JPEG})
    after = choice(
        first={"noise": GaussianNoise(sigma_255=(3, 4), grey_prob=1), "jpeg": JPEG}, second={"extra": Grey(), "jpeg": JPEG}
    )
    for position in range(20):
        ours, theirs = (each.sample(generator(1, position, "x"), (8, 8)) for each in (before, after))
        assert ours["way"] == theirs["way"]
        assert ours["first"]["jpeg"] == theirs["first"]["jpeg"]
        assert ours["second"]["jpeg"] == theirs["second"]["jpeg"]
        assert ours["first"]["noise"] != theirs["first"]["noise"]


def test_ways_of_one_name_draw_apart():
    operator = choice(
        first={"jpeg": Jpeg(quality=(1, 100), codec="diffjpeg")}, second={"jpeg": Jpeg(quality=(1, 100), codec="diffjpeg")}
    )
    pairs = np.array([[each[way]["jpeg"]["quality"] for way in ("first", "second")] for each in draws(operator)])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.09


def test_errors():
    with pytest.raises(ValueError, match=r"probs names \['a'\], ways \['b'\]: give each way its probability"):
        OneOf(probs={"a": 1}, ways={"b": {}})
    with pytest.raises(ValueError, match=r"the probabilities of a, b sum to 0\.9, not to 1"):
        OneOf(probs={"a": 0.5, "b": 0.4}, ways={"a": {}, "b": {}})
    with pytest.raises(ValueError, match=r"b=-0.5 is no probability"):
        OneOf(probs={"a": 1.5 - 0.5, "b": -0.5}, ways={"a": {}, "b": {}})
    with pytest.raises(ValueError, match=r"prob=1.1 is no probability"):
        Sometimes(prob=1.1, operator=Grey())
