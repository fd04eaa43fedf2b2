"""GFPGAN: official keys, both forms of one network, what is fixed, noise, and the parts of a face."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.components import FacialComponentDiscriminator, boxes_of, cut, mirrored
from models.files.families import FAMILIES
from models.files.official import CheckpointError, build, export, load_into, recognise
from models.gfpgan import GFPGANv1, GFPGANv1Clean, to_clean, to_equalised
from models.stylegan2 import StyleGAN2Generator
from tests.parity.cases import folders, manifest, manifests_in
from tests.parity.families.gfpgan import bilinear_arguments, gfpgan_arguments

CLEAN: dict[str, Any] = {
    "out_size": 16,
    "num_style_feat": 12,
    "channel_multiplier": 1,
    "fix_decoder": False,
    "num_mlp": 2,
    "different_w": True,
    "narrow": 1 / 32,
    "sft_half": True,
}
TINY: dict[str, Any] = {**CLEAN, "resample_kernel": [1.0, 3.0, 3.0, 1.0], "fix_decoder": True, "lr_mlp": 0.01}
BILINEAR: dict[str, Any] = {**TINY, "resample_kernel": None}
MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if path.name.startswith("gfpgan_")]
NETWORKS = [path for path in MANIFESTS if path.name.startswith(("gfpgan_v1", "gfpgan_bilinear"))]
PARTS = [path for path in MANIFESTS if "component" in path.name]
OF_THE_FILE = {"gfpgan": {"fix_decoder": True, "resample_kernel": [1, 3, 3, 1]}, "gfpgan_clean": {"fix_decoder": False}}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(network: nn.Module) -> Any:
    """In eval mode and float64, with no weight of noise and no bias left at zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double().eval()


def image(b: int = 2) -> Tensor:
    return torch.rand(b, 3, 16, 16).double()


def tiny(*, clean: bool = False, **changes: Any) -> Any:
    return GFPGANv1Clean(**{**CLEAN, **changes}) if clean else GFPGANv1(**{**TINY, **changes})


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.name.split(".json")[0])
def test_the_official_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", torch.empty)  # drawing takes seconds
    for draw in ("kaiming_uniform_", "kaiming_normal_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, draw, lambda values, *_, **__: values)
    official = manifest(path)
    clean, bilinear = "clean" in path.name, "bilinear" in path.name
    arguments = (bilinear_arguments if bilinear else gfpgan_arguments)(official["config"])
    network: Any = (GFPGANv1Clean if clean else GFPGANv1)(**arguments)
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == official["state_dict"]
    assert list(state) == list(official["state_dict"])  # in the official order too
    assert sum(p.numel() for p in network.parameters()) == official["n_params"]
    unused = sum(p.numel() for p in network.stylegan_decoder.style_mlp.parameters())
    trained = official["n_params_trainable"] - (0 if arguments["fix_decoder"] else unused)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == trained
    found, family = recognise(state), "gfpgan_clean" if clean else "gfpgan"
    assert (found.family, found.arguments) == (family, arguments | OF_THE_FILE[family])


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.name.split(".json")[0])
def test_the_official_keys_of_a_part(path: Path) -> None:
    state = FacialComponentDiscriminator().state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == manifest(path)["state_dict"]


@pytest.mark.parametrize("clean", [True, False])
def test_round_trip(tmp_path: Path, clean: bool) -> None:
    network, lq = shaken(tiny(clean=clean, out_size=64, narrow=1 / 64)).float(), torch.rand(1, 3, 64, 64)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "given.pth")
    export(tmp_path / "given.pth", tmp_path / "out.pth", "official")
    assert list(torch.load(tmp_path / "out.pth", weights_only=True)) == ["params_ema"]
    again = build(tmp_path / "out.pth")
    assert type(again) is type(network)
    with torch.no_grad():
        assert torch.equal(again(lq).restored, network(lq).restored)


def test_official_files_hold_no_kernel() -> None:
    network, lq = shaken(GFPGANv1(**BILINEAR)), image(1)
    state = FAMILIES["gfpgan"].write(network)["params_ema"]
    found = recognise(state)
    assert found.family == "gfpgan_clean"
    again = GFPGANv1Clean(**found.arguments).double().eval()
    again.load_state_dict(state)
    torch.testing.assert_close(again(lq).restored, network(lq).restored)
    with pytest.raises(CheckpointError, match=r"resample_kernel=\[1, 2, 2, 1\] has no official form"):
        FAMILIES["gfpgan"].write(tiny(resample_kernel=[1, 2, 2, 1]))


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("changes", [{"different_w": False}, {"sft_half": False}, {"num_mlp": 0}, {"num_style_feat": 8}])
def test_what_a_file_tells(clean: bool, changes: dict[str, Any]) -> None:
    network = tiny(clean=clean, **changes)
    found = recognise(network.state_dict())
    assert found.arguments == {**(CLEAN if clean else TINY), **changes}
    assert found.assumed[-1] == "channel_multiplier=1: no key tells below 64 px"


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    state = tiny(clean=True).state_dict()
    with pytest.raises(CheckpointError, match=r"does not fit GFPGANv1Clean: \d+ keys match, \d+ missing"):
        load_into(tiny(clean=True, out_size=32), state)
    with pytest.raises(CheckpointError, match=r"does not fit GFPGANv1: "):
        load_into(tiny(), state)
    del state["stylegan_decoder.to_rgb1.modulated_conv.modulation.weight"]
    with pytest.raises(CheckpointError, match="looks like gfpgan_clean, but its configuration can't be read"):
        recognise(state)


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("changes", [{}, {"different_w": False}, {"sft_half": False}])
def test_shapes_and_that_a_gradient_changes_nothing(clean: bool, changes: dict[str, Any]) -> None:
    network, lq = shaken(tiny(clean=clean, **changes)), image()
    made = network(lq)
    assert made.restored.shape == (2, 3, 16, 16)
    assert [tuple(each.shape) for each in made.pyramid] == [(2, 3, 8, 8), (2, 3, 16, 16)]
    with torch.no_grad():
        alone = network(lq)
        one = network(lq[:1])
    for mine, with_gradient, single in zip(
        (alone.restored, *alone.pyramid), (made.restored, *made.pyramid), (one.restored, *one.pyramid), strict=True
    ):
        torch.testing.assert_close(mine, with_gradient)
        torch.testing.assert_close(mine[:1], single)
    made.restored.square().mean().backward()
    silent = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad and p.grad is None}
    assert silent == {"toRGB"}, "which the pyramid alone trains"


def test_everything_reaches_the_image() -> None:
    network, lq = shaken(tiny(fix_decoder=False)), image(1)
    network(lq).restored.square().mean().backward()
    still = {name for name, p in network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert all(name.startswith("toRGB.") for name in still), still


@pytest.mark.parametrize("form", ["kernel", "bilinear", "clean"])
def test_values_and_gradients_are_those_of_the_official_code(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from spandrel.architectures.GFPGAN.__arch import (
        fused_act,
        gfpgan_bilinear_arch,
        gfpganv1_arch,
        gfpganv1_clean_arch,
        stylegan2_arch,
        stylegan2_bilinear_arch,
    )

    def leaky(x: Tensor, bias: Tensor, slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
        return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), slope) * scale

    for module in (fused_act, stylegan2_arch, stylegan2_bilinear_arch):
        monkeypatch.setattr(module, "fused_leaky_relu", leaky)  # theirs is compiled for GPUs alone
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "kernel": (gfpganv1_arch.GFPGANv1, GFPGANv1, {**TINY, "fix_decoder": False}),
        "bilinear": (gfpgan_bilinear_arch.GFPGANBilinear, GFPGANv1, {**BILINEAR, "fix_decoder": False}),
        "clean": (gfpganv1_clean_arch.GFPGANv1Clean, GFPGANv1Clean, CLEAN),
    }
    official, kind, arguments = kinds[form]
    theirs = shaken(official(**{k: v for k, v in arguments.items() if v is not None}, input_is_latent=True))
    ours = shaken(kind(**arguments))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    lq = image().requires_grad_()
    restored, pyramid = theirs(2 * lq - 1, randomize_noise=False)
    made = ours(lq)
    torch.testing.assert_close(2 * made.restored - 1, restored)
    for mine, each in zip(made.pyramid, pyramid, strict=True):
        torch.testing.assert_close(2 * mine - 1, each)
    wanted = dict(theirs.named_parameters())
    found = {name: parameter for name, parameter in ours.named_parameters() if parameter.requires_grad}
    assert len(found) == len(wanted) - 4, "all but the weights and biases of style_mlp"
    weights = torch.linspace(-1, 2, restored.numel()).double().view_as(restored)
    sums = [
        (restored * weights).mean() + sum(each.square().mean() for each in pyramid),
        ((2 * made.restored - 1) * weights).mean() + sum((2 * each - 1).square().mean() for each in made.pyramid),
    ]
    gradients = [
        torch.autograd.grad(sums[0], [lq, *(wanted[name] for name in found)]),
        torch.autograd.grad(sums[1], [lq, *found.values()]),
    ]
    for name, theirs_at, ours_at in zip(("lq", *found), *gradients, strict=True):
        torch.testing.assert_close(ours_at, theirs_at, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("changes", [{}, {"different_w": False}, {"sft_half": False}])
def test_both_forms_give_the_same_image(changes: dict[str, Any]) -> None:
    trained, lq = shaken(GFPGANv1(**{**BILINEAR, "fix_decoder": False, **changes})), image()
    clean = to_clean(trained)
    assert isinstance(clean, GFPGANv1Clean)
    assert not clean.training
    back = to_equalised(clean, lr_mlp=0.01)
    style = torch.randn(3, 12).double()
    for network in (clean, back):
        for mine, wanted in zip(network(lq).pyramid, trained(lq).pyramid, strict=True):
            torch.testing.assert_close(mine, wanted)
        torch.testing.assert_close(network(lq).restored, trained(lq).restored)
        decoders = (network.stylegan_decoder, trained.stylegan_decoder)
        torch.testing.assert_close(*(decoder.style_mlp(style) for decoder in decoders))
    state = trained.state_dict()
    assert list(back.state_dict()) == list(state)
    for key, value in back.state_dict().items():
        torch.testing.assert_close(value, state[key])


def test_a_network_with_a_kernel_has_no_clean_form() -> None:
    with pytest.raises(ValueError, match=r"resample_kernel=\[1.0, 3.0, 3.0, 1.0\]: only a GFPGANv1 with resample_kernel=null"):
        to_clean(tiny())


def test_noise_is_drawn_in_training_alone() -> None:
    network, lq = shaken(tiny()), image(1)
    calm = network(lq).restored
    assert torch.equal(network(lq).restored, calm)
    network.train()
    assert torch.equal(network(lq, noise=network.stylegan_decoder.stored_noise()).restored, calm)
    one, other = network(lq), network(lq)
    assert not torch.allclose(one.restored, other.restored)
    assert torch.equal(one.pyramid[-1], other.pyramid[-1])
    drawn = [network(lq, noise=torch.Generator().manual_seed(5)).restored for _ in range(2)]
    assert torch.equal(*drawn)


def test_weights_of_the_prior_fit_in_by_name() -> None:
    prior = StyleGAN2Generator(
        **{key: TINY[key] for key in ("out_size", "num_style_feat", "num_mlp", "channel_multiplier", "narrow")},
        resample_kernel=[1.0, 3.0, 3.0, 1.0],
        lr_mlp=0.01,
    )
    network = tiny()
    network.stylegan_decoder.load_state_dict(prior.state_dict(), strict=True)
    latent, noise = torch.randn(2, 12), prior.stored_noise()
    torch.testing.assert_close(network.stylegan_decoder(latent, noise=noise), prior(latent, noise=noise))


@pytest.mark.parametrize("clean", [True, False])
def test_what_is_fixed(clean: bool) -> None:
    free = tiny(clean=clean, fix_decoder=False)
    fixed = {name for name, p in free.named_parameters() if not p.requires_grad}
    assert {name.rpartition(".style_mlp.")[0] for name in fixed} == {"stylegan_decoder"}
    bound = tiny(clean=clean, fix_decoder=True)
    assert {name.split(".")[0] for name, p in bound.named_parameters() if not p.requires_grad} == {"stylegan_decoder"}
    assert not any(p.requires_grad for p in bound.stylegan_decoder.parameters())


def test_the_prior_starts_nearly_untouched() -> None:
    """Scales start around 1 and shifts around 0 (equalised form)."""
    network = tiny(narrow=1 / 4)
    scales, shifts = zip(*_conditions(network, torch.rand(4, 3, 16, 16)), strict=True)
    assert all(0.5 < each.mean() < 1.5 for each in scales)
    assert all(-0.5 < each.mean() < 0.5 for each in shifts)


def _conditions(network: Any, lq: Tensor) -> list[tuple[Tensor, Tensor]]:
    found: list[Any] = []
    network.stylegan_decoder.register_forward_pre_hook(
        lambda _module, _inputs, options: found.extend(options["conditions"]), with_kwargs=True
    )
    network(lq)
    return found


@pytest.mark.parametrize("clean", [True, False])
def test_another_size_is_refused(clean: bool) -> None:
    with pytest.raises(ValueError, match="out_size=16 takes images of 16x16, not 16x32"):
        tiny(clean=clean)(torch.rand(1, 3, 16, 32))


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(("changes", "message"), [({"out_size": 48}, "out_size=48"), ({"narrow": 1 / 999}, "without channels")])
def test_impossible_configurations_are_refused(clean: bool, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(clean=clean, **changes)


@pytest.mark.parametrize("clean", [True, False])
def test_autocast_trains(clean: bool) -> None:
    network = tiny(clean=clean, fix_decoder=False)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(image().float())
        with torch.no_grad():
            assert network(image(1).float()).restored.isfinite().all()
    (made.restored.float().square().mean() + sum(each.float().abs().mean() for each in made.pyramid)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


# Parts of a face ----------------------------------------------------------------------------------------------------------


def test_boxes_by_hand() -> None:
    components = torch.tensor([[[100.0, 200.0, 20.0], [300.0, 210.0, 30.0], [200.0, 350.0, 40.0]]])
    (boxes,) = boxes_of(components, eye_enlarge=1.5)
    assert boxes.tolist() == [[71, 171, 130, 230], [256, 166, 345, 255], [161, 311, 240, 390]]
    (other,) = mirrored(components, 512)
    assert other.tolist() == [[212, 210, 30], [412, 200, 20], [312, 350, 40]]
    assert torch.equal(mirrored(mirrored(components, 512), 512), components)


def test_cuts() -> None:
    ramp = torch.arange(64.0).expand(2, 3, 64, 64).clone().requires_grad_()
    made = cut(ramp, torch.tensor([[8.0, 8.0, 24.0, 24.0], [20.0, 0.0, 36.0, 16.0]]), 8)
    assert made.shape == (2, 3, 8, 8)
    assert made[0, 0, 0].tolist() == pytest.approx([8.5 + 2 * i + 0.5 for i in range(8)])  # as aligned=False places pixels
    assert made[1, 0, 0].tolist() == pytest.approx([20.5 + 2 * i + 0.5 for i in range(8)])
    made.sum().backward()
    assert ramp.grad is not None
    assert not ramp.grad[0, :, :7].any()
    assert ramp.grad[0, :, 10, 10].all()


def test_odd_components_and_boxes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"components of shape \(2, 3\): give \(b, 3, 3\)"):
        boxes_of(torch.zeros(2, 3), eye_enlarge=1.4)
    with pytest.raises(ValueError, match=r"boxes of shape \(1, 4\) for 2 images: give one each, \(2, 4\)"):
        cut(torch.zeros(2, 3, 8, 8), torch.zeros(1, 4), 4)


def test_the_judge_of_a_part() -> None:
    network = FacialComponentDiscriminator()
    part = torch.rand(2, 3, 21, 30, requires_grad=True)
    features, logits = network.features(part), network(part)
    assert [tuple(each.shape) for each in features] == [(2, 128, 10, 15), (2, 256, 5, 7)]
    assert logits.shape == (2, 1, 5, 7)
    kept = [each.clone() for each in features]
    logits.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(features, kept, strict=True)), "nothing overwrites them"
    assert part.grad is not None
