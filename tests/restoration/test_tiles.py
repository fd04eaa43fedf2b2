"""Tiles: the values of the whole image where the overlap allows it, nothing lost, memory that follows the tile."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.elan import ELAN
from restoration.tiles import ramp, restore_tiled, spans
from tests.parity import fill


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
    assert calls == [(64, 30), (64, 30), (68, 30)], "they start at multiples of 16, and none is thinner than a tile"


def test_the_sum_is_made_on_the_cpu_in_float32() -> None:
    class Elsewhere(Tensor):
        """As on a GPU: only `cpu` makes a plain tensor of it, which others can be added to."""

        def __mul__(self, other: Tensor) -> Tensor:  # type: ignore[override]
            raise AssertionError("two devices in one product")

        def cpu(self) -> Tensor:  # type: ignore[override]
            return self.as_subclass(Tensor)

    made = restore_tiled(lambda x: x.bfloat16().as_subclass(Elsewhere), image(64, 100), tile_px=64, overlap_px=16, multiple=1)
    assert (type(made), made.dtype) == (Tensor, torch.float32)
    torch.testing.assert_close(made, image(64, 100).bfloat16().float())


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
    assert spans(100, 64, 16, 16) == [(0, 64), (32, 100)]
    assert spans(64, 64, 16, 16) == [(0, 64)]
    assert spans(30, 64, 16, 16) == [(0, 30)]
    assert spans(200, 64, 16, 8) == [(0, 64), (48, 112), (96, 160), (136, 200)]
    assert spans(65, 32, 0, 16) == [(0, 32), (32, 65)], "no last tile of one pixel"
    assert ramp(0, 8, 8, 4, 1).tolist() == [1] * 8
    assert ramp(4, 12, 12, 4, 1).tolist() == [0, 0.25, 0.75, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("tile", "overlap", "says"),
    [
        (64, -5, "tile_px=64 with overlap_px=-5: give a tile of 1 or more, and an overlap of 0 or more"),
        (0, 0, "tile_px=0 with overlap_px=0: give a tile of 1 or more"),
        (-5, 64, "tile_px=-5 with overlap_px=64: give a tile of 1 or more"),
        (
            *(40, 20),
            r"tile_px=40 with overlap_px=20 \(48 with 32 as multiples of the network's 16\): the overlap is more than half a "
            "tile: give an overlap_px of at most 16, or a tile_px of at least 64",
        ),
    ],
)
def test_settings_that_make_no_sense(tile: int, overlap: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        restore_tiled(lambda x: x, image(128, 128), tile_px=tile, overlap_px=overlap, multiple=16)
