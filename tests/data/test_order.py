"""Which image and which positions: pure functions, whatever the number of ranks."""

from itertools import chain, islice

import numpy as np
import pytest

import degradations.draws
from data.order import BlockOrder, Order, PositionSampler, draws, image_at


def test_every_pass_sees_every_image_once_in_a_new_order():
    passes = [[image_at(position, 50, 3) for position in range(start, start + 50)] for start in (0, 50, 100, 5000)]
    assert all(sorted(each) == list(range(50)) for each in passes)
    assert len({tuple(each) for each in passes}) == 4


def test_the_order_depends_on_the_seed_and_not_on_what_was_asked_before():
    there = [image_at(position, 20, 1) for position in range(100)]
    assert there == list(reversed([image_at(position, 20, 1) for position in reversed(range(100))]))
    assert there != [image_at(position, 20, 2) for position in range(100)]


def test_first_positions_are_spread_evenly():
    first = np.array([image_at(0, 4, seed) for seed in range(4000)])
    np.testing.assert_allclose(np.bincount(first) / 4000, 0.25, atol=0.03)


def test_one_image():
    assert [image_at(position, 1, 0) for position in range(5)] == [0] * 5


def test_draws_follow_the_rule_of_the_degradations():
    np.testing.assert_array_equal(draws(5, 6, "x").random(4), degradations.draws.generator(5, 6, "x").random(4))


def batches(count, **options):
    return list(islice(PositionSampler(**options), count))


def test_positions_by_hand():
    assert batches(2, start=100, batch_size=2, rank=1, world=3) == [[102, 103], [108, 109]]


def test_ranks_share_out_what_one_rank_reads():
    alone = batches(5, start=7, batch_size=6, rank=0, world=1)
    for world, batch_size in ((2, 3), (3, 2), (6, 1)):
        ranks = [batches(5, start=7, batch_size=batch_size, rank=rank, world=world) for rank in range(world)]
        assert [[*chain(*step)] for step in zip(*ranks, strict=True)] == alone


def test_starting_at_n_goes_on_where_n_samples_ended():
    assert batches(6, start=0, batch_size=4, rank=0, world=1)[2:] == batches(4, start=8, batch_size=4, rank=0, world=1)


def test_iterating_twice_starts_again():
    sampler = PositionSampler(start=3, batch_size=1, rank=0, world=1)
    assert list(islice(sampler, 3)) == list(islice(sampler, 3)) == [[3], [4], [5]]


# blocks


def test_a_pass_over_blocks_sees_every_image_once_block_by_block():
    lengths = (5, 1, 8, 0, 3)
    order = BlockOrder(lengths=lengths, seed=2)
    block_of = np.repeat(np.arange(5), lengths)
    passes = [[order.image_at(position) for position in range(start, start + 17)] for start in (0, 17, 170)]
    for each in passes:
        assert sorted(each) == list(range(17))
        changes = np.count_nonzero(np.diff(block_of[each]))
        assert changes == 3, "each block is left once"
    assert len({tuple(each) for each in passes}) == 3
    assert len({tuple(dict.fromkeys(block_of[each])) for each in passes}) > 1, "the blocks come in another order"


def test_the_order_of_blocks_does_not_depend_on_what_was_asked_before():
    one, two = BlockOrder(lengths=(4, 6, 2), seed=1), BlockOrder(lengths=(4, 6, 2), seed=1)
    assert [one.image_at(position) for position in range(60)] == [two.image_at(position) for position in reversed(range(60))][
        ::-1
    ]
    assert [one.image_at(position) for position in range(12)] != [
        BlockOrder(lengths=(4, 6, 2), seed=2).image_at(position) for position in range(12)
    ]


@pytest.mark.parametrize("blocks", [(), (2, 3)])
def test_an_order_gives_the_image_of_a_position_those_that_follow_and_its_draws(blocks):
    order = Order(count=5, blocks=blocks, seed=3)
    indices, at_four = order.at(4)
    found = list(indices)
    alone = BlockOrder(lengths=blocks, seed=3).image_at if blocks else lambda position: image_at(position, 5, 3)
    assert found == [alone(position) for position in range(4, 14)]
    assert sorted(found[1:6]) == [0, 1, 2, 3, 4]
    assert at_four.of("data.crop").random() == draws(3, 4, "data.crop").random()
    assert at_four.of("data.crop").random() == draws(3, 4, "data.crop").random(), "a stream begins anew with each call"
