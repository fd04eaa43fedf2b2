"""CodeFormer: what w and AdaIN do, where gradients go, freezing, the transformer against PyTorch's, official keys."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.codeformer import CodeFormer, Fusion, SelfAttention, adaptive_instance_normalization
from models.files.official import build, export, recognise
from models.vqgan import VQAutoEncoder
from tests.parity.cases import folders, manifest, manifests_in
from tests.parity.families.codeformer import codeformer_arguments

AUTOENCODER: dict[str, Any] = {
    "img_size": 16,
    "nf": 32,
    "ch_mult": [1, 2],
    "res_blocks": 2,
    "attn_resolutions": [8],
    "codebook_size": 24,
    "emb_dim": 8,
}
TINY: dict[str, Any] = {
    **AUTOENCODER,
    "dim_embd": 16,
    "n_head": 2,
    "n_layers": 2,
    "connect_list": [8, 16],
    "fix_modules": ["quantize", "generator"],
}
MANIFESTS = [
    path
    for folder in folders()
    for path in manifests_in(folder)
    if path.name.startswith(("codeformer_stage", "codeformer_inpainting", "codeformer_colorization"))
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**changes: Any) -> CodeFormer:
    network = CodeFormer(**{**TINY, **changes})
    nn.init.normal_(network.quantize.embedding.weight)  # as drawn, the codes are nearly equal, and positions are zero
    nn.init.normal_(network.position_emb)
    return network


def image(b: int = 2) -> Tensor:
    return torch.rand(b, 3, 16, 16)


def trained(network: nn.Module) -> set[str]:
    """The parts that have a gradient other than zero, `fuse_convs_dict.SIDE` for each side."""
    names = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    return {".".join(name.split(".")[: 2 if name.startswith("fuse") else 1]) for name in names}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".json")[0])
def test_the_official_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for draw in ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_"):  # drawing takes seconds
        monkeypatch.setattr(torch.nn.init, draw, lambda values, *_, **__: values)
    official = manifest(path)
    network = CodeFormer(**codeformer_arguments(official["config"]))
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == official["state_dict"]
    assert sum(p.numel() for p in network.parameters()) == official["n_params"]
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == official["n_params_trainable"]
    found = recognise(network.state_dict())
    fixed = {"fix_modules": ["quantize", "generator"]}  # which no file tells
    assert (found.family, found.arguments) == ("codeformer", codeformer_arguments(official["config"]) | fixed)


def test_round_trip(tmp_path: Path) -> None:
    network = tiny(n_head=8).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "given.pth")
    export(tmp_path / "given.pth", tmp_path / "out.pth", "official")
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == ["params_ema"]
    again, lq = build(tmp_path / "out.pth"), image()
    with torch.no_grad():
        assert torch.equal(again(lq, w=0.5, adain=True).restored, network(lq, w=0.5, adain=True).restored)


@pytest.mark.parametrize("w", [0, 0.5, 1.3])
@pytest.mark.parametrize("adain", [False, True])
def test_shapes(w: float, adain: bool) -> None:
    made = tiny()(image(), w=w, adain=adain)
    assert made.restored.shape == (2, 3, 16, 16)
    assert made.logits.shape == (2, 64, 24)
    assert made.latent.shape == (2, 8, 8, 8)


def test_at_w_0_the_image_is_the_decoded_codes() -> None:
    network = tiny().eval()
    with torch.no_grad():
        made = network(image(), w=0, adain=False)
        codes = made.logits.argmax(2).view(2, 8, 8)
        torch.testing.assert_close(made.restored, network.decode(network.codes_to_latent(codes)))
        alone = network(image(), w=0, adain=False, code_only=True)
    assert alone.restored is None


def test_code_only_gives_the_same_logits_and_latent_whatever_w() -> None:
    network, lq = tiny().eval(), image()
    with torch.no_grad():
        alone = network(lq, w=1, adain=True, code_only=True)
        for w, adain in ((0, False), (1, True)):
            full = network(lq, w=w, adain=adain)
            assert torch.equal(full.logits, alone.logits)
            assert torch.equal(full.latent, alone.latent)
    torch.testing.assert_close(alone.latent, network.encode(lq))
    torch.testing.assert_close(alone.logits, network.predict(alone.latent))


def test_w_reaches_the_image_and_adain_the_codes() -> None:
    network, lq = tiny().eval(), image()
    with torch.no_grad():
        made = [network(lq, w=w, adain=adain).restored for w in (0, 0.5, 1) for adain in (False, True)]
    for i, one in enumerate(made):
        assert all((one - other).abs().max() > 1e-3 for other in made[i + 1 :])


def test_fusion_is_taken_where_the_official_network_takes_it() -> None:
    network = CodeFormer(**{**TINY, "img_size": 64, "ch_mult": [1, 2, 2], "attn_resolutions": [16], "connect_list": [64]})
    # as blocks.0 conv; 1, 2 | 3 down; 4, 5 | 6 down; 7 attention 8, 9 attention 10
    assert network.encoder.taps == {64: 2, 32: 5, 16: 9}
    # 0 conv; 1 to 3 middle; 4 attention 5, 6 attention 7; 8 up; 9, 10; 11 up; 12, 13
    assert network.generator.taps == {16: 6, 32: 9, 64: 12}
    assert network.generator.widths == {16: 64, 32: 64, 64: 32}


def test_images_train_the_fusion_alone() -> None:
    network = tiny()
    made = network(image(), w=1, adain=False)
    made.restored.square().mean().backward(retain_graph=True)
    assert trained(network) == {"fuse_convs_dict.8", "fuse_convs_dict.16"}
    network.zero_grad()
    F.cross_entropy(made.logits.transpose(1, 2), torch.zeros(2, 64, dtype=torch.int64)).backward(retain_graph=True)
    assert trained(network) == {"encoder", "position_emb", "feat_emb", "ft_layers", "idx_pred_layer"}
    network.zero_grad()
    made.latent.square().mean().backward()
    assert trained(network) == {"encoder"}
    assert network.get_parameter("fuse_convs_dict.16.shift.2.weight").requires_grad  # of the adaptive weight


def test_images_train_the_generator_too_unless_it_is_fixed() -> None:
    network = tiny(fix_modules=[])
    network(image(), w=0, adain=False).restored.square().mean().backward()
    assert trained(network) == {"generator"}


def test_with_adain_the_latents_moments_carry_a_gradient() -> None:
    network = tiny()
    network(image(), w=0, adain=True).restored.square().mean().backward()
    assert trained(network) == {"encoder"}


def test_fixed_modules_are_not_trained() -> None:
    network = tiny(fix_modules=["fuse_convs_dict", "quantize"])
    fixed = {name.split(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert fixed == {"fuse_convs_dict", "quantize"}


def test_weights_of_stage_one_fit_in_by_name() -> None:
    first, network = VQAutoEncoder(**AUTOENCODER), tiny()
    missing, unexpected = network.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {
        "position_emb",
        "feat_emb",
        "ft_layers",
        "idx_pred_layer",
        "fuse_convs_dict",
    }
    codes = torch.randint(24, (1, 8, 8))
    assert torch.equal(network.decode(network.codes_to_latent(codes)), first.decode(first.codes_to_latent(codes)))


def test_attention_is_pytorchs_with_positions_on_queries_and_keys() -> None:
    ours, theirs = SelfAttention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens, position = torch.randn(3, 10, 16), torch.randn(10, 16)
    placed = tokens + position
    torch.testing.assert_close(ours(tokens, position), theirs(placed, placed, tokens, need_weights=False)[0])


def test_attention_starts_as_pytorchs() -> None:
    ours = SelfAttention(64, 4)
    limit = math.sqrt(6 / (3 * 64 + 64))  # Xavier's, of the three in one
    assert ours.in_proj_weight.abs().max().item() == pytest.approx(limit, rel=0.01)
    assert not ours.in_proj_bias.any()
    assert not ours.out_proj.bias.any()
    assert not CodeFormer(**TINY).position_emb.any()


def test_adain_gives_the_moments_of_the_style() -> None:
    content, style = torch.randn(2, 3, 8, 6) * 5 + 1, torch.randn(2, 3, 4, 5) - 2
    made = adaptive_instance_normalization(content, style)
    torch.testing.assert_close(made.mean((2, 3)), style.mean((2, 3)))
    torch.testing.assert_close(made.var((2, 3)), style.var((2, 3)), rtol=1e-3, atol=0)
    # two pixels: content 0, 2 has mean 1 and variance 2; style 3, 7 has mean 5 and variance 8
    pair = [torch.tensor(values).view(1, 1, 1, 2) for values in ([0.0, 2.0], [3.0, 7.0])]
    assert adaptive_instance_normalization(*pair).flatten().tolist() == pytest.approx([3, 7], abs=1e-4)


def test_fusion_scales_and_shifts_by_w() -> None:
    fusion = Fusion(32)
    for branch, value in ((fusion.scale, 0.5), (fusion.shift, 3.0)):
        last = branch[2]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, value)  # type: ignore[arg-type]
    decoded = torch.randn(1, 32, 4, 4)
    made = fusion(decoded, torch.randn(1, 32, 4, 4), 0.8)
    torch.testing.assert_close(made, decoded + 0.8 * (0.5 * decoded + 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 3}, r"network.n_head=3 does not divide network.dim_embd=16"),
        ({"connect_list": [8, 32]}, r"connect_list=\[8, 32\]: no map has a side of 32; .* the sides are \[16, 8\]"),
        ({"connect_list": [8, 8]}, r"connect_list=\[8, 8\] names a side twice"),
        ({"fix_modules": ["decoder"]}, r"there is no decoder; the parts are encoder, quantize, generator"),
        ({"img_size": 15}, r"img_size=15 can't be halved"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="img_size=16 takes images of 16x16, not 16x32"):
        tiny()(torch.rand(1, 3, 16, 32), w=0, adain=False)


@pytest.mark.parametrize("w", [-0.1, float("nan")])
def test_no_fidelity_below_zero(w: float) -> None:
    with pytest.raises(ValueError, match=f"w={w}: fidelity is 0 or more"):
        tiny()(image(), w=w, adain=False)


def test_bf16_autocast_trains() -> None:
    network, lq = tiny(fix_modules=[]), image()
    exact = network(lq, w=1, adain=True, code_only=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(lq, w=1, adain=True)
    torch.testing.assert_close(made.latent.float(), exact.latent, atol=0.1, rtol=0)
    torch.testing.assert_close(made.logits.float(), exact.logits, atol=0.1, rtol=0)
    (made.restored.float().square().mean() + made.logits.float().square().mean()).backward()
    assert trained(network) == {
        *("encoder", "generator", "position_emb", "feat_emb", "ft_layers", "idx_pred_layer"),
        *("fuse_convs_dict.8", "fuse_convs_dict.16"),
    }
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
