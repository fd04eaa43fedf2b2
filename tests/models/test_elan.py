"""ELAN: sizes, gradients of its hand-written moves, BatchNorm in training, and what a user may get wrong."""

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from benchmarks.elan import PlainELAN
from models.elan import ELAN, Moved, window_orders
from models.files.families import elan as elan_files
from models.files.families import full_state, recognise
from models.files.official import CheckpointError, build, export, load_into
from models.kernels import Reorder
from tests.parity import fill

TINY: dict[str, Any] = {
    "scale": 1,
    "m_elan": 4,
    "c_elan": 18,
    "n_share": 0,
    "r_expand": 2,
    "window_sizes": [4, 8, 16],
    "img_range": 1.0,
}


def tiny(**changes: Any) -> ELAN:
    """With weights and running statistics that are not those of a fresh network."""
    network = ELAN(**{**TINY, **changes})
    state = network.state_dict()
    network.load_state_dict({k: fill.weight(k, v.shape) if v.is_floating_point() else v for k, v in state.items()})
    return network


def image(*shape: int) -> Tensor:
    return fill.tensor("input/elan", shape, kind="uniform")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_sizes(scale: int) -> None:
    network = tiny(scale=scale).eval()
    with torch.no_grad():
        assert network(image(2, 3, 21, 37)).shape == (2, 3, 21 * scale, 37 * scale)
        network.tail[0].weight.zero_()  # type: ignore[operator, union-attr]
        network.tail[0].bias.fill_(0.25)  # type: ignore[operator, union-attr]
        restored = network(image(1, 3, 16, 16))
    mean = torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1)  # of DIV2K, as the official code has it
    torch.testing.assert_close(restored, (0.25 + mean).expand_as(restored))


@pytest.mark.parametrize("n_share", [0, 1])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_plain_form(n_share: int, training: bool) -> None:
    ours = tiny(n_share=n_share).double().train(training)
    twin = copy.deepcopy(ours)
    plain = PlainELAN(twin).double().train(training)  # of the twin's own parameters
    lq = image(2, 3, 32, 48).double()
    outputs = [network(lq) for network in (ours, plain)]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-10)
    for output in outputs:
        output.square().mean().backward()
    torch.testing.assert_close(*({n: p.grad for n, p in network.named_parameters()} for network in (ours, twin)))
    torch.testing.assert_close(ours.state_dict(), twin.state_dict())  # running statistics among them


@pytest.mark.parametrize("relu", [False, True])
def test_gradient_of_the_moves(relu: bool) -> None:
    rows = fill.tensor("input/rows", (1, 4, 3, 7), kind="normal").double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Moved.apply(x, 1, relu), rows)
    (of_sum,) = torch.autograd.grad(Moved.apply(rows.abs() + 1, 1, relu).sum(), rows)
    wanted = rows.detach().sign()
    wanted[..., 0, 0] = 0  # the first channel moves left, so that its first column goes nowhere
    torch.testing.assert_close(of_sum[..., 0], wanted[..., 0])


def test_moves_by_hand() -> None:
    rows = torch.arange(1.0, 5).view(1, 2, 2, 1).expand(1, 2, 2, 6)  # 1 2 / 3 4 in each channel
    out = Moved.apply(rows, 1, False)[0].permute(2, 0, 1)
    assert out[0].tolist() == [[2, 0], [4, 0]]  # the right neighbour
    assert out[1].tolist() == [[0, 1], [0, 3]]
    assert out[2].tolist() == [[3, 4], [0, 0]]  # the pixel below
    assert out[3].tolist() == [[0, 0], [1, 2]]
    assert out[4].tolist() == out[5].tolist() == [[1, 2], [3, 4]]  # the fifth group and the rest stay


def test_orders_by_hand() -> None:
    order, back = window_orders(4, 4, [2], torch.device("cpu"))[2, False]
    assert order[:6].tolist() == [0, 1, 4, 5, 2, 3]
    assert order[back].tolist() == list(range(16))
    shifted, _ = window_orders(4, 4, [2], torch.device("cpu"))[2, True]
    assert shifted[-4:].tolist() == [15, 12, 3, 0]  # the four corners meet in the last window
    x = torch.rand(2, 16, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Reorder.apply(x, order, back), x)
    there = Reorder.apply(x, order, back)
    assert torch.equal(there[0, 2], x[0, 4]), "the third pixel of the first window begins the second row"
    assert torch.equal(Reorder.apply(there, back, order), x)


def test_image_skip_starts_as_the_identity() -> None:
    lq = image(1, 3, 20, 33)
    with torch.no_grad():
        torch.testing.assert_close(ELAN(**TINY, image_skip=True)(lq), lq)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window_sizes": [4, 8]}, r"window_sizes=\[4, 8\]: give three even sizes"),
        ({"window_sizes": [4, 5, 8]}, r"window_sizes=\[4, 5, 8\]: give three even sizes"),
        ({"c_elan": 20}, "c_elan=20 is no multiple of 3"),
        ({"m_elan": 1, "n_share": 1}, "m_elan=1 is less than the 1 . n_share=2"),
        ({"scale": 2, "image_skip": True}, "image_skip=true needs an output of the input's size, but scale=2"),
    ],
)
def test_impossible_configurations(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ELAN(**{**TINY, **changes})


def test_an_image_too_small_to_pad() -> None:
    with pytest.raises(ValueError, match=r"an image of 8x40 is too small .* multiple of 16"):
        tiny().eval()(image(1, 3, 8, 40))


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize("form", ["official", "safetensors"])
def test_round_trip(scale: int, form: Literal["official", "safetensors"], tmp_path: Path) -> None:
    network = tiny(scale=scale, img_range=255.0).eval()
    wrapped = {"params": full_state(network)} if scale == 1 else full_state(network)
    torch.save(wrapped, tmp_path / "given.pth")
    out = tmp_path / ("out.pth" if form == "official" else "out.safetensors")
    export(tmp_path / "given.pth", out, form)
    again = build(out)
    assert isinstance(again, ELAN)
    assert all(torch.equal(value, full_state(again)[key]) for key, value in full_state(network).items())
    if form == "official":
        content = torch.load(out, weights_only=True)
        assert list(content) == ["params" if scale == 1 else "model_state_dict"]
        assert ("module.sub_mean.bias" in content.get("model_state_dict", {})) == (scale > 1)


def test_a_file_of_another_range_is_refused(tmp_path: Path) -> None:
    torch.save({"model_state_dict": full_state(tiny(scale=2))}, tmp_path / "unit.pt")
    with pytest.raises(ValueError, match=r"sub_mean\.bias holds \[-0\.44.* where network\.img_range=255"):
        load_into(tiny(scale=2, img_range=255.0), tmp_path / "unit.pt")
    load_into(tiny(scale=2), tmp_path / "unit.pt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("img_range", [255.0, 1.0])
def test_a_file_above_x1_tells_its_range_at_any_precision(dtype: torch.dtype, img_range: float, tmp_path: Path) -> None:
    network = tiny(scale=2, img_range=img_range).eval().to(dtype).float()  # the file's values
    state = full_state(network)
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model_state_dict": state}, tmp_path / "x2.pt")
    again = build(tmp_path / "x2.pt")
    with torch.no_grad():
        network.mean.copy_(again.mean)  # a constant, which the file's precision doesn't touch
        torch.testing.assert_close(again(image(1, 3, 16, 16)), network(image(1, 3, 16, 16)), rtol=0, atol=0)
    assert recognise(state).arguments["img_range"] == img_range
    assert recognise(state).assumed == ["window_sizes=[4, 8, 16]: no key tells; so they are in every official file"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_skip": True}, "image_skip=true has no official form"),
        ({"img_range": 1.0}, "img_range=1 at scale 1 has no official form"),
        ({"window_sizes": [2, 4, 8]}, r"window_sizes=\[2, 4, 8\] has no official form"),
        ({"window_sizes": [2, 4, 8], "scale": 2}, r"window_sizes=\[2, 4, 8\] has no official form"),
    ],
)
def test_what_no_file_tells_has_no_official_form(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=f"{says}.*use --format safetensors"):
        elan_files.write(tiny(**{"img_range": 255.0, **changes}))
