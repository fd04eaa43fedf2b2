"""Tiles: no seam, nothing lost, memory that follows the tile."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.elan import ELAN
from tests.parity import fill
from train.tiles import ramp, restore_tiled, starts


def image(height: int, width: int) -> Tensor:
    return fill.tensor("input/tiles", (1, 3, height, width), kind="uniform")


@pytest.mark.parametrize("scale", [1, 2])
def test_elan_by_tiles_is_elan_of_the_whole_image(scale: int) -> None:
    network = ELAN(scale=scale, m_elan=2, c_elan=15, n_share=0, r_expand=2, window_sizes=[4, 8, 16], img_range=1.0).eval()
    state = network.state_dict()
    network.load_state_dict({k: fill.weight(k, v.shape) if v.is_floating_point() else v for k, v in state.items()})
    lq = image(344, 409)
    with torch.inference_mode():
        whole = network(lq)
        tiled = restore_tiled(network, lq, tile_px=320, overlap_px=160, multiple=network.multiple)
    difference = (whole - tiled).abs()
    border = 48 * scale  # shifted windows reach around the border of the image, or of a tile
    assert difference[..., border:-border, border:-border].max() < 1e-4
    assert difference.max() > 1e-3, "tiles see other borders"


def test_one_tile_is_the_whole_image() -> None:
    calls: list[tuple[int, ...]] = []

    def restore(lq: Tensor) -> Tensor:
        calls.append(tuple(lq.shape[-2:]))
        return lq

    assert torch.equal(restore_tiled(restore, image(64, 30), tile_px=64, overlap_px=16, multiple=16), image(64, 30))
    restore_tiled(restore, image(100, 30), tile_px=64, overlap_px=16, multiple=16)
    assert calls == [(64, 30), (64, 30), (52, 30)], "none is larger than a tile, and they start at multiples of 16"


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "multiple"), [((100, 77), 32, 16, 8), ((65, 200), 64, 0, 16), ((50, 50), 25, 12, 7)]
)
def test_every_pixel_comes_back(size: tuple[int, int], tile: int, overlap: int, multiple: int) -> None:
    lq = image(*size)
    torch.testing.assert_close(restore_tiled(lambda x: x, lq, tile_px=tile, overlap_px=overlap, multiple=multiple), lq)
    twice = restore_tiled(lambda x: F.interpolate(x, scale_factor=2), lq, tile_px=tile, overlap_px=overlap, multiple=multiple)
    torch.testing.assert_close(twice, F.interpolate(lq, scale_factor=2))


def test_a_step_between_tiles_is_blended() -> None:
    brightness = iter([0.0, 1.0])
    made = restore_tiled(lambda x: torch.full_like(x, next(brightness)), image(32, 112), tile_px=64, overlap_px=16, multiple=16)
    row = made[0, 0, 0]
    assert row[:52].max() == 0
    assert row[60:].min() == 1
    assert row[52:60].tolist() == pytest.approx([(i + 0.5) / 8 for i in range(8)], abs=1e-6)


def test_places_by_hand() -> None:
    assert starts(100, 64, 16, 16) == [0, 48]
    assert starts(64, 64, 16, 16) == [0]
    assert starts(200, 64, 16, 8) == [0, 48, 96, 136]
    assert ramp(0, 8, 8, 4, 1).tolist() == [1] * 8
    assert ramp(4, 12, 12, 4, 1).tolist() == [0, 0.25, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("overlap", [-16, 48])
def test_an_overlap_that_makes_no_sense(overlap: int) -> None:
    with pytest.raises(ValueError, match=rf"tile_px=64 and overlap_px={overlap} .*0 to half a tile"):
        restore_tiled(lambda x: x, image(128, 128), tile_px=64, overlap_px=overlap, multiple=16)
