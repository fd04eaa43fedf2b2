"""SwinIR: heads, shifted attention, the fused up-convolution, training options, and agreement with spandrel's copy."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.kernels import nearest_up_convolution
from models.swinir import RGB_MEAN, Block, StochasticDepth, SwinIR, shift_windows, to_windows

TINY: dict[str, Any] = {
    "img_size": 16,
    "in_chans": 3,
    "embed_dim": 12,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": 8,
    "mlp_ratio": 2,
    "unshuffle": 1,
    "upscale": 4,
    "upsampler": "nearest+conv",
    "resi_connection": "1conv",
    "drop_path_rate": 0.0,
}
HEADS = [
    ("nearest+conv", 2),
    ("nearest+conv", 4),
    ("nearest+conv", 8),
    ("pixelshuffle", 2),
    ("pixelshuffle", 3),
    ("pixelshuffle", 4),
    ("pixelshuffledirect", 2),
    ("pixelshuffledirect", 3),
    ("", 1),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**changes: Any) -> SwinIR:
    return SwinIR(**{**TINY, **changes})


def gradients(network: torch.nn.Module, lq: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    network(lq).square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(("upsampler", "upscale"), HEADS)
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_output_grows_by_upscale_at_odd_sizes(upsampler: str, upscale: int, resi_connection: str) -> None:
    network = tiny(upsampler=upsampler, upscale=upscale, resi_connection=resi_connection)
    restored = network(torch.rand(2, 3, 50, 38))
    assert restored.shape == (2, 3, 50 * upscale, 38 * upscale)
    restored.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_unshuffle_keeps_the_size_of_an_image_that_needs_padding() -> None:
    lq = torch.rand(1, 3, 100, 90)
    assert tiny(unshuffle=8, upscale=8)(lq).shape == (1, 3, 100, 90)
    torch.testing.assert_close(tiny(unshuffle=8, upscale=8, image_skip=True)(lq), lq)  # which starts as the identity


def test_padding_does_not_reach_the_cropped_output() -> None:
    """An image padded by hand, by reflection to the next multiple of the window, gives the same pixels."""
    network, lq = tiny().eval(), torch.rand(1, 3, 20, 30)
    padded = F.pad(lq, (0, 2, 0, 4), mode="reflect")
    torch.testing.assert_close(network(lq), network(padded)[..., :80, :120])


def plain_block(block: Block, image: Tensor) -> Tensor:
    """Shifted-window block written out token by token on (b, h, w, c): what the paper says, with no window tensors."""
    b, h, w, c = image.shape
    attention, window, shift, heads = block.attn, block.window, block.shift, block.attn.heads
    x = block.norm1(image).roll((-shift, -shift), dims=(1, 2))
    q, k, v = attention.qkv(x).view(b, h, w, 3, heads, c // heads).unbind(3)
    mixed = torch.zeros(b, h, w, heads, c // heads)
    region = lambda i, length: 0 if i < length - window else 1 if i < length - shift else 2  # noqa: E731
    for y0 in range(0, h, window):
        for x0 in range(0, w, window):
            tokens = [(y, x) for y in range(y0, y0 + window) for x in range(x0, x0 + window)]
            for yq, xq in tokens:
                scores = []
                for yk, xk in tokens:
                    row = (yq - yk + window - 1) * (2 * window - 1) + xq - xk + window - 1
                    score = (q[:, yq, xq] * k[:, yk, xk]).sum(-1) * (c // heads) ** -0.5
                    score = score + attention.relative_position_bias_table[row]
                    together = not shift or (region(yq, h), region(xq, w)) == (region(yk, h), region(xk, w))
                    scores.append(score if together else score - 100)
                weights = torch.stack(scores).softmax(0)  # (n, b, heads)
                values = torch.stack([v[:, yk, xk] for yk, xk in tokens])  # (n, b, heads, d)
                mixed[:, yq, xq] = (weights[..., None] * values).sum(0)
    image = image + attention.proj(mixed.flatten(3)).roll((shift, shift), dims=(1, 2))
    return image + block.mlp["fc2"](F.gelu(block.mlp["fc1"](block.norm2(image))))


@pytest.mark.parametrize("shift", [0, 2])
def test_block_equals_plain_attention(shift: int) -> None:
    block = Block(dim=12, heads=2, window=4, shift=shift, mlp_ratio=2, drop_path=0.0)
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    image = torch.randn(2, 8, 12, 12)
    shifted = shift_windows(8, 12, 4, shift, image.device) if shift else None
    with torch.no_grad():
        torch.testing.assert_close(block(to_windows(image, 4), shifted), to_windows(plain_block(block, image), 4))


def test_nearest_up_convolution_equals_interpolation_and_convolution() -> None:
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 7, 4), (6, 5, 3, 3), (6,))]
    fused = nearest_up_convolution(*inputs)
    plain = F.conv2d(F.interpolate(inputs[0], scale_factor=2, mode="nearest"), inputs[1], inputs[2], padding=1)
    torch.testing.assert_close(fused, plain)
    weights = torch.randn_like(plain)
    got, expected = (torch.autograd.grad((y * weights).sum(), inputs) for y in (fused, plain))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients(drop_path_rate: float) -> None:
    network, lq = tiny(drop_path_rate=drop_path_rate), torch.rand(2, 3, 16, 24)
    kept = {}
    for recompute in (False, True):
        network.gradient_checkpointing = recompute
        torch.manual_seed(1)  # the same branches are dropped
        kept[recompute] = gradients(network, lq)
    torch.testing.assert_close(kept[True], kept[False])


def test_stochastic_depth_drops_whole_branches_and_keeps_their_mean() -> None:
    depth = StochasticDepth(0.25).train()
    branch = depth(torch.ones(4000, 2, 4, 4)).flatten(1)
    assert (branch == branch[:, :1]).all()
    assert branch[:, 0].unique().tolist() == pytest.approx([0, 4 / 3])
    assert (branch[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations
    depth.uniform = torch.tensor([0.2, 0.25, 0.9, 0.0])
    assert depth(torch.ones(4, 3)).tolist() == [[0] * 3, [pytest.approx(4 / 3)] * 3, [pytest.approx(4 / 3)] * 3, [0] * 3]
    assert (depth.eval()(torch.ones(8, 2, 4, 4)) == 1).all()


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    rates = [m.drop_attn.rate for m in tiny(drop_path_rate=0.3).modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_initialisation_is_the_official_one() -> None:
    network = tiny(embed_dim=48)
    for name, parameter in network.named_parameters():
        if name.endswith(("qkv.weight", "fc1.weight", "relative_position_bias_table")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        if name.endswith(("qkv.bias", "fc1.bias", "norm1.bias")):
            assert (parameter == 0).all(), name


def test_no_window_is_shifted_on_a_feature_map_of_one_window() -> None:
    network = tiny(img_size=8, window_size=8)
    assert {m.shift for m in network.modules() if isinstance(m, Block)} == {0}
    assert tiny(img_size=4, window_size=8).window_size == 4
    assert network(torch.rand(1, 3, 24, 16)).shape == (1, 3, 96, 64)


@pytest.mark.parametrize("upsampler", ["nearest+conv", ""])
def test_image_skip_starts_as_the_identity(upsampler: str) -> None:
    factor = 1 if upsampler == "" else 2
    network, lq = tiny(upsampler=upsampler, upscale=factor, unshuffle=factor, image_skip=True), torch.rand(1, 3, 40, 34)
    torch.testing.assert_close(network(lq), lq)


def test_mean_and_range_are_undone_at_the_end() -> None:
    network = tiny(img_range=255.0)
    torch.nn.init.zeros_(network.conv_last.weight)
    torch.nn.init.zeros_(network.conv_last.bias)
    restored = network(torch.rand(1, 3, 16, 16))
    torch.testing.assert_close(restored, torch.tensor(RGB_MEAN).view(1, 3, 1, 1).expand_as(restored))


def test_too_small_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4x20 is too small .* multiple of 8 .* more than 4 pixels"):
        tiny()(torch.rand(1, 3, 4, 20))
    assert tiny()(torch.rand(1, 3, 5, 5)).shape == (1, 3, 20, 20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": [2]}, r"depths=\[2, 2\] and network.num_heads=\[2\] differ in length"),
        ({"num_heads": [2, 5]}, r"num_heads=\[2, 5\]: 5 does not divide network.embed_dim=12"),
        ({"image_skip": True}, r"upscale=4 differs from unshuffle=1"),
        ({"upsampler": ""}, r"upscale=4 and unshuffle=1 must be 1"),
        ({"upsampler": "pixelshuffle", "upscale": 5}, r"upscale=5: .* 3 or a power of 2"),
        ({"upscale": 3}, r"upscale=3: .* takes 2, 4 or 8"),
        ({"upscale": 16}, r"upscale=16: .* takes 2, 4 or 8"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_compiled_network_agrees() -> None:
    network, lq = tiny(), torch.rand(2, 3, 16, 24)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")  # PyTorch's own, of its tracer
        torch.testing.assert_close(compiled(lq), network(lq))
        got = gradients(compiled, lq)
    expected = gradients(network, lq)
    torch.testing.assert_close({name.removeprefix("_orig_mod."): g for name, g in got.items()}, expected)


def test_bf16_autocast_trains() -> None:
    network, lq = tiny(), torch.rand(2, 3, 16, 24)
    exact = network(lq)
    with torch.autocast("cpu", torch.bfloat16):
        restored = network(lq)
        restored.square().mean().backward()
    torch.testing.assert_close(restored.float(), exact, atol=2e-2, rtol=0)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("upsampler", "upscale", "window", "unshuffle"),
    [
        ("nearest+conv", 4, 8, 1),
        ("nearest+conv", 8, 4, 8),
        ("pixelshuffle", 2, 7, 1),
        ("pixelshuffle", 3, 8, 1),
        ("pixelshuffledirect", 2, 8, 1),
        ("", 1, 7, 1),
    ],
)
@pytest.mark.parametrize("resi_connection", ["1conv", "3conv"])
def test_equals_spandrel(upsampler: str, upscale: int, window: int, unshuffle: int, resi_connection: str) -> None:
    """Outputs and gradients, in float64: in float32 a LeakyReLU near zero may take its other slope."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)  # spandrel's call
        from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR as SpandrelSwinIR

        changes = {"upsampler": upsampler, "upscale": upscale, "window_size": window, "resi_connection": resi_connection}
        common = {**TINY, "img_size": 3 * window, **changes}
        del common["unshuffle"]
        reference = SpandrelSwinIR(**common, start_unshuffle=unshuffle).double()
    rename = lambda key: key.replace("conv_first.", "conv_first.1.") if unshuffle > 1 else key  # noqa: E731
    for name, parameter in reference.named_parameters():
        if name.endswith(("qkv.weight", "relative_position_bias_table")):
            parameter.data.mul_(20)  # otherwise attention is nearly uniform
    ours = SwinIR(**common, unshuffle=unshuffle).double()
    ours.load_state_dict({rename(key): value for key, value in reference.state_dict().items()})
    reference.mean = ours.mean = ours.mean.double()
    lq = torch.rand(2, 3, 2 * window * unshuffle, 3 * window * unshuffle, dtype=torch.float64)
    if unshuffle == 1:
        lq = lq[..., :-3, :-2]  # spandrel doesn't crop when it unshuffles
    torch.testing.assert_close(ours(lq), reference(lq))
    expected = {rename(name): gradient for name, gradient in gradients(reference, lq).items()}
    torch.testing.assert_close(gradients(ours, lq), expected, rtol=1e-7, atol=1e-10)
