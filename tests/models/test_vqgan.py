"""CodeFormer's autoencoder: the map of codes, gradients through and around the codebook, fused norms, official keys."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.files.official import recognise
from models.vqgan import Attention, Downsample, GroupNorm, ResBlock, Upsample, VectorQuantizer, VQAutoEncoder
from tests.parity.cases import folders, manifest, manifests_in
from tests.parity.families.codeformer import autoencoder_arguments

TINY: dict[str, Any] = {
    "img_size": 32,
    "nf": 32,
    "ch_mult": [1, 2],
    "res_blocks": 1,
    "attn_resolutions": [16],
    "codebook_size": 24,
    "emb_dim": 8,
}
MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if "codeformer_vqgan_stage1" in path.name]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**changes: Any) -> VQAutoEncoder:
    network = VQAutoEncoder(**{**TINY, **changes})
    nn.init.normal_(network.quantize.embedding.weight)  # as drawn, the codes are nearly equal
    return network


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".json")[0])
def test_the_official_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("normal_", "uniform_", "kaiming_uniform_"):  # only keys and shapes count, and drawing takes seconds
        monkeypatch.setattr(torch.nn.init, draw, lambda values, *_, **__: values)
    official = manifest(path)
    network = VQAutoEncoder(**autoencoder_arguments(official["config"]))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == official["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == official["n_params"]
    found = recognise(network.state_dict())
    assert (found.family, found.arguments) == ("vqgan", autoencoder_arguments(official["config"]))


@pytest.mark.parametrize("size", [(32, 32), (2, 2), (34, 50)])
def test_shapes(size: tuple[int, int]) -> None:
    made = tiny()(torch.rand(2, 3, *size))
    h, w = size[0] // 2, size[1] // 2
    assert made.restored.shape == (2, 3, *size)
    assert made.latent.shape == made.quantized.shape == (2, 8, h, w)
    assert made.codes.shape == (2, h, w)
    assert made.codes.dtype == torch.int64


def test_codes_are_the_nearest_and_make_the_image() -> None:
    network, hq = tiny().eval(), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        made = network(hq)
        latent = network.encode(hq)
        book = network.quantize.embedding.weight
        apart = torch.cdist(latent.permute(0, 2, 3, 1).reshape(-1, 8), book)
        assert torch.equal(made.codes.flatten(), apart.argmin(1))
        assert torch.equal(made.quantized, network.codes_to_latent(made.codes))
        assert torch.equal(made.quantized[1, :, 3, 5], book[made.codes[1, 3, 5]])
        torch.testing.assert_close(network.decode(made.quantized), made.restored)


def test_the_network_works_in_minus_one_to_one() -> None:
    network, seen = tiny(), []
    network.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    last = network.generator.blocks[-1]
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, 0.5)
    restored = network(torch.tensor([0.0, 0.25, 1.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)).restored
    assert seen[0][0, :, 0, 0].tolist() == [-1, -0.5, 1]
    torch.testing.assert_close(restored, torch.full_like(restored, 0.75))


def test_gradients_pass_the_codebook_straight_through() -> None:
    network, hq, inputs = tiny(), torch.rand(2, 3, 32, 32), []
    network.generator.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    made = network(hq)
    for each in (made.latent, inputs[0]):
        each.retain_grad()
    made.restored.square().mean().backward()
    assert torch.equal(made.latent.grad, inputs[0].grad)
    at = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert at.pop("quantize.embedding.weight") is None
    assert all(gradient is not None and gradient.isfinite().all() for gradient in at.values())
    assert at["encoder.blocks.0.weight"].abs().max() > 0
    last = max(int(name.split(".")[2]) for name in at if name.startswith("generator"))
    assert network.get_parameter(f"generator.blocks.{last}.weight").shape == (3, 32, 3, 3)


def test_the_codebook_learns_from_quantized_and_the_encoder_from_latent() -> None:
    network = tiny()
    made = network(torch.rand(2, 3, 32, 32))
    F.mse_loss(made.quantized, made.latent.detach()).backward(retain_graph=True)
    assert [name for name, p in network.named_parameters() if p.grad is not None] == ["quantize.embedding.weight"]
    book, code = network.quantize.embedding.weight, made.codes[0, 0, 0]
    nearest = made.latent.detach().movedim(1, 3)[made.codes == code]
    torch.testing.assert_close(book.grad[code], 2 * (book[code].detach() - nearest).sum(0) / made.latent.numel())
    network.zero_grad()
    F.mse_loss(made.latent, made.quantized.detach()).backward()
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None} == {"encoder"}


def test_a_hand_worked_book() -> None:
    quantize = VectorQuantizer(codebook_size=3, emb_dim=2)
    quantize.embedding.weight.data = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    latent = torch.tensor([[0.4, 0.6, 0.5], [0.0, 0.1, 2.0]]).view(1, 2, 1, 3)
    quantized, codes = quantize(latent)
    assert codes.tolist() == [[[0, 1, 2]]]
    assert quantized[0, :, 0].tolist() == [[0, 1, 0], [0, 0, 3]]


def plain(block: ResBlock, x: Tensor) -> Tensor:
    branch = x
    for norm, conv in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        normed = F.group_norm(branch, 32, norm.weight, norm.bias, 1e-6)
        branch = conv(normed * normed.sigmoid())
    return branch + block.conv_out(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("inputs", "outputs", "height"), [(32, 64, 6), (64, 64, 6), (32, 32, 130)])
def test_a_block_is_norm_swish_convolution_twice(layout: torch.memory_format, inputs: int, outputs: int, height: int) -> None:
    """Outputs and gradients; the largest map is one that `normalised` sums itself."""
    block = ResBlock(inputs, outputs).double()
    for norm in (block.norm1, block.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = (torch.randn(2, inputs, height, 127, dtype=torch.float64) + 0.5).contiguous(memory_format=layout).requires_grad_()
    wanted = [x, *block.parameters()]
    got, expected = block(x), plain(block, x)
    torch.testing.assert_close(got, expected)
    along = torch.randn_like(expected) / len(expected.flatten()) ** 0.5
    at = [torch.autograd.grad((y * along).sum(), wanted) for y in (got, expected)]
    torch.testing.assert_close(at[0], at[1], rtol=1e-7, atol=1e-10)
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(block(x), expected)
        assert torch.equal(x, before), "the input is someone else's"


def test_norms_of_large_maps_are_exact() -> None:
    """PyTorch's own kernel is off by 1e-4 here."""
    norm, x = GroupNorm(32), torch.randn(1, 32, 512, 256) + 1
    with torch.no_grad():
        got = norm(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(got.double(), F.group_norm(x.double(), 32, eps=1e-6), atol=3e-6, rtol=0)


def test_a_flat_map_is_normalised_to_nothing() -> None:
    """Squares less the square of the mean would round to a negative variance, and that to NaN."""
    flat = torch.full((1, 32, 200, 200), 12.3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert GroupNorm(32)(flat).abs().max() < 0.05


def test_a_block_keeps_only_what_its_backward_pass_needs() -> None:
    block, x = ResBlock(32, 32), torch.randn(1, 32, 24, 24, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        block(x)
    assert sum(each.shape == x.shape for each in kept) == 2, "one for each half"


@pytest.mark.parametrize("frozen", ["norm", "conv", "both"])
def test_frozen_parts_of_a_block_get_no_gradient(frozen: str) -> None:
    block, x = ResBlock(32, 32), torch.randn(1, 32, 8, 8)
    whole = dict(block.named_parameters())
    block(x).square().mean().backward()
    expected = {name: p.grad for name, p in whole.items()}
    block.zero_grad()
    stopped = {name for name in whole if frozen == "both" or frozen in name}
    for name in stopped:
        whole[name].requires_grad_(False)
    restored = block(x.requires_grad_())
    restored.square().mean().backward()
    assert {name for name, p in whole.items() if p.grad is None} == stopped
    got = {name: p.grad for name, p in whole.items() if name not in stopped}
    torch.testing.assert_close(got, {name: expected[name] for name in got})
    assert x.grad is not None


def test_attention_is_over_all_pixels() -> None:
    attention, x = Attention(32), torch.randn(2, 32, 4, 6)
    normed = attention.norm(x)
    q, k, v = (conv(normed).flatten(2) for conv in (attention.q, attention.k, attention.v))
    weights = (torch.einsum("bci,bcj->bij", q, k) * 32**-0.5).softmax(2)
    mixed = torch.einsum("bij,bcj->bci", weights, v).view_as(x)
    torch.testing.assert_close(attention(x), x + attention.proj_out(mixed))


def test_down_looks_right_and_below_and_up_repeats() -> None:
    down, up, x = Downsample(2), Upsample(2), torch.randn(1, 2, 6, 4)
    at_corner = (down.conv.weight * x[0, :, :3, :3]).sum((1, 2, 3)) + down.conv.bias
    torch.testing.assert_close(down(x)[0, :, 0, 0], at_corner)
    assert down(x).shape == (1, 2, 3, 2)
    torch.testing.assert_close(up(x), up.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": 33}, r"img_size=33 can't be halved 1 times, .*ch_mult=\[1, 2\] .* multiple of 2"),
        ({"nf": 48}, r"nf=48 with network.ch_mult=\[1, 2\] has a level of 48 channels, .* multiples of 32"),
        ({"attn_resolutions": [16, 8]}, r"attn_resolutions=\[16, 8\]: no map has a side of 8; .* the sides are \[32, 16\]"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_an_image_that_can_not_be_halved_is_refused() -> None:
    with pytest.raises(ValueError, match="30x33 can't be halved 1 times: give sides that are multiples of 2"):
        tiny()(torch.rand(1, 3, 30, 33))


def test_compiled_network_agrees() -> None:
    network, hq = tiny(), torch.rand(1, 3, 8, 8)
    compiled = torch.compile(copy.deepcopy(network), backend="aot_eager")

    def train(each: Any) -> tuple[Any, dict[str, Tensor]]:
        made = each(hq)
        (made.restored.square().mean() + F.mse_loss(made.quantized, made.latent)).backward()
        return made, {name.removeprefix("_orig_mod."): p.grad for name, p in each.named_parameters()}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"torch\.")  # PyTorch's own, of its tracer
        got = train(compiled)
    torch.testing.assert_close(got, train(network))


def test_bf16_autocast_trains_and_keeps_the_codebook_exact() -> None:
    network, hq = tiny(), torch.rand(2, 3, 32, 32)
    exact = network(hq)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(hq)
        assert torch.equal(network.quantize.nearest(exact.latent), exact.codes)
        loss = made.restored.float().square().mean() + F.mse_loss(made.quantized, made.latent)
    loss.backward()
    assert made.restored.dtype == torch.bfloat16
    torch.testing.assert_close(made.latent.float(), exact.latent, atol=0.1, rtol=0)
    assert all(p.grad is not None and p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in network.parameters())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network.eval()(hq).latent, made.latent, atol=0.1, rtol=0)


def test_half_precision_weights() -> None:
    network, hq = tiny(), torch.rand(1, 3, 32, 32)
    exact = network(hq).latent.detach()
    network, hq = network.bfloat16(), hq.bfloat16()
    made = network(hq)
    torch.testing.assert_close(made.latent.float(), exact, atol=0.1, rtol=0)
    made.restored.float().mean().backward()
    assert made.restored.dtype == torch.bfloat16
    with torch.no_grad():
        assert network(hq).restored.dtype == torch.bfloat16
