"""StyleGAN2: resampling, modulated convolutions and their gradients against the formulas written plainly; noise; groups."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.stylegan2 import (
    ModulatedConv2d,
    Resampler,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    StyleGAN2GeneratorClean,
    channels,
    transformed,
)
from tests.parity.cases import folders, manifest, manifests_in

CLEAN: dict[str, Any] = {"out_size": 16, "num_style_feat": 12, "num_mlp": 2, "channel_multiplier": 1, "narrow": 1 / 64}
TINY: dict[str, Any] = {**CLEAN, "resample_kernel": [1, 3, 3, 1], "lr_mlp": 0.01}
JUDGE: dict[str, Any] = {
    "out_size": 16,
    "channel_multiplier": 1,
    "resample_kernel": [1, 3, 3, 1],
    "stddev_group": 4,
    "narrow": 1 / 64,
}
KERNELS = ([1.0, 3.0, 3.0, 1.0], [1.0, 2.0, 4.0, 1.0], None)
MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if path.name.startswith("stylegan2")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shaken(network: nn.Module) -> Any:
    """In float64, with no weight of noise and no bias left at zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network.double()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name.split(".json")[0])
def test_the_official_keys(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", torch.empty)  # drawing takes seconds
    official = manifest(path)
    kinds = {
        "stylegan2_discriminator": StyleGAN2Discriminator,
        "stylegan2_generator": StyleGAN2Generator,
        "stylegan2clean_generator": StyleGAN2GeneratorClean,
    }
    kind = kinds[path.name.partition("_512")[0]]
    defaults = {"stddev_group": 4, "narrow": 1} if kind is StyleGAN2Discriminator else {}
    network = kind(**{**defaults, **official["config"]})
    state = network.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == official["state_dict"]
    assert list(state) == list(official["state_dict"])  # in the official order too
    assert sum(p.numel() for p in network.parameters()) == official["n_params"]


# Against the formulas, plainly --------------------------------------------------------------------------------------------


def plain_filter(x: Tensor, kernel: list[float], *, up: int, down: int, pad: tuple[int, int], gain: float) -> Tensor:
    """Zeros between the pixels and around, a true convolution, every down-th pixel."""
    b, c, h, w = x.shape
    spread = x.new_zeros(b, c, h * up, w * up)
    spread[..., ::up, ::up] = x
    taps = torch.tensor(kernel, dtype=x.dtype)
    taps = gain * torch.outer(taps, taps) / taps.sum() ** 2
    spread = F.pad(spread, (*pad, *pad)).flatten(0, 1).unsqueeze(1)
    return F.conv2d(spread, taps.flip(0, 1)[None, None])[..., ::down, ::down].unflatten(0, (b, c)).squeeze(2)


def plain_doubled(x: Tensor, kernel: list[float] | None) -> Tensor:
    if kernel is None:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return plain_filter(x, kernel, up=2, down=1, pad=(2, 1), gain=4)


def plain_double_convolution(x: Tensor, weight: Tensor, kernel: list[float] | None) -> Tensor:
    if kernel is None:
        return F.conv2d(plain_doubled(x, None), weight, padding=1)
    spread = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    return plain_filter(spread, kernel, up=1, down=1, pad=(1, 1), gain=4)


def plain_halve_convolution(x: Tensor, weight: Tensor, kernel: list[float] | None) -> Tensor:
    side = weight.shape[-1]
    if kernel is None:
        return F.conv2d(F.avg_pool2d(x, 2), weight, padding=side // 2)
    pad = (1, 1) if side == 1 else (2, 2)
    return F.conv2d(plain_filter(x, kernel, up=1, down=1, pad=pad, gain=1), weight, stride=2)


def same_with_gradients(ours: Any, plain: Any, *inputs: Tensor) -> None:
    """Both of the inputs: equal values, and equal gradients at each of the inputs."""
    found = []
    for function in (ours, plain):
        leaves = [each.detach().clone().requires_grad_() for each in inputs]
        made = function(*leaves)
        weights = torch.linspace(-1, 2, made.numel(), dtype=made.dtype).view_as(made)
        found.append([made, *torch.autograd.grad((made * weights).sum(), leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS, ids=["official", "uneven", "bilinear"])
def test_resampling(kernel: list[float] | None) -> None:
    resampler, x = Resampler(kernel).double(), torch.randn(2, 3, 6, 8).double()
    weight, point = torch.randn(5, 3, 3, 3).double(), torch.randn(5, 3, 1, 1).double()
    same_with_gradients(resampler.doubled, lambda x: plain_doubled(x, kernel), x)
    same_with_gradients(
        lambda x, w: resampler.double_convolution(x, w, None), lambda x, w: plain_double_convolution(x, w, kernel), x, weight
    )
    for each in (weight, point):
        same_with_gradients(
            lambda x, w: resampler.halve_convolution(x, w, None), lambda x, w: plain_halve_convolution(x, w, kernel), x, each
        )
    plane = torch.ones(1, 3, 8, 8).double()
    inside = resampler.halve_convolution(plane, point, None)[0, :, 1:3, 1:3]
    torch.testing.assert_close(inside, point.sum((1, 2, 3)).view(5, 1, 1).expand(5, 2, 2))  # a kernel's sum is 1


def test_a_kernel_keeps_a_plane_as_it_is() -> None:
    resampler, plane = Resampler([1, 3, 3, 1]), torch.ones(1, 2, 8, 8)
    assert torch.allclose(resampler.doubled(plane)[..., 2:-2, 2:-2], torch.ones(12, 12))
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert resampler.doubled(ramp)[0, 0, 8, 4:8].tolist() == pytest.approx([1.75, 2.25, 2.75, 3.25])  # bilinear, inside


@pytest.mark.parametrize("size", [(32, 40), (2, 3), (33, 32)])
@pytest.mark.parametrize("bias", [True, False])
def test_bilinear_doubling_is_the_same_without_a_gradient(size: tuple[int, int], bias: bool) -> None:
    resampler, x = Resampler(None).double(), torch.randn(2, 3, *size).double()
    weight, offset = torch.randn(4, 3, 3, 3).double(), torch.randn(4).double() if bias else None
    with torch.no_grad():
        fast = resampler.double_convolution(x, weight, offset)
        strips = resampler._bilinear_convolution(x, weight, offset)
    plain = F.conv2d(plain_doubled(x, None), weight, offset, padding=1)
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(strips, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [None, KERNELS[0], "none"], ids=["bilinear", "kernel", "same size"])
@pytest.mark.parametrize(("b", "side"), [(1, 3), (1, 12), (2, 6)], ids=["small map", "large map", "batch"])
@pytest.mark.parametrize("equalised", [True, False])
@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution(b: int, side: int, equalised: bool, demodulate: bool, kernel: Any) -> None:
    layer = shaken(ModulatedConv2d(4, 6, 3, 5, equalised=equalised, demodulate=demodulate))
    doubler = None if kernel == "none" else Resampler(kernel).double()
    x, style, bias = torch.randn(b, 4, side, side).double(), torch.randn(b, 5).double(), torch.randn(6).double()
    noise = torch.randn(1, 1, side, side).double() if doubler is None else torch.randn(b, 1, 2 * side, 2 * side).double()
    weight = layer.weight.detach()

    def plain(x: Tensor, style: Tensor, bias: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        affine = layer.modulation.weight / (5**0.5 if equalised else 1)
        scale = (4 * 9) ** -0.5 if equalised else 1.0
        made = []
        for sample, s in zip(x, style @ affine.T + layer.modulation.bias, strict=True):
            w = scale * weight[0] * s.view(1, 4, 1, 1)
            if demodulate:
                w = w / (w.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
            plainly = (
                F.conv2d(sample[None], w, padding=1) if doubler is None else plain_double_convolution(sample[None], w, kernel)
            )
            made.append(plainly)
        return 1.7 * torch.cat(made) + noise + bias.view(1, -1, 1, 1)

    def ours(x: Tensor, style: Tensor, bias: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
        layer.weight.data = weight.detach()
        given = {"weight": weight}
        return torch.func.functional_call(layer, given, (x, style, bias, 1.7, noise, doubler))

    same_with_gradients(ours, plain, x, style, bias, noise, weight)
    without = ours(x, style, bias, torch.zeros_like(noise), weight)
    torch.testing.assert_close(layer(x, style, bias, 1.7, None, doubler), without, rtol=1e-9, atol=1e-9)


# The generator ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["equalised", "bilinear", "clean"])
def test_an_image_follows_from_its_latent_and_noise(kind: str) -> None:
    options = CLEAN if kind == "clean" else {**TINY, "resample_kernel": None if kind == "bilinear" else TINY["resample_kernel"]}
    network = shaken((StyleGAN2GeneratorClean if kind == "clean" else StyleGAN2Generator)(**options)).eval()
    latent = network.style_mlp(torch.randn(2, 12).double())
    one = network(latent)
    assert one.shape == (2, 3, 16, 16)
    assert torch.equal(network(latent), one), "the stored noise"
    assert torch.equal(network(latent, noise=network.stored_noise()), one)
    each = latent.unsqueeze(1).expand(-1, network.num_latent, -1)
    assert network.num_latent == 6
    assert torch.equal(network(each), one)
    torch.testing.assert_close(torch.cat([network(latent[:1]), network(latent[1:])]), one)
    with torch.no_grad():
        torch.testing.assert_close(network(latent), one)
    drawn = [network(latent, noise=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    network.train()
    assert not torch.allclose(network(latent), one), "drawn anew in training"
    torch.manual_seed(3)
    again = network(latent)
    torch.manual_seed(3)
    assert torch.equal(network(latent), again)


def test_samples_have_noise_of_their_own() -> None:
    network = shaken(StyleGAN2Generator(**TINY))
    one, other = network(torch.ones(1, 12).double().expand(2, -1))
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("shape", [(2, 11), (2, 5, 12), (12,), (2, 6, 12, 1)])
def test_latents_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents of shape \(.*give \(b, 12\) for all layers, or \(b, 6, 12\)"):
        StyleGAN2Generator(**TINY)(torch.zeros(shape))


def test_noise_of_another_shape_is_refused() -> None:
    network = StyleGAN2Generator(**TINY)
    latent, noise = torch.zeros(2, 12), network.stored_noise()
    message = r"noise of shapes .*give 5 maps \(2 or 1, 1, side, side\) of the sides \[4, 8, 8, 16, 16\]"
    for wrong in (noise[:-1], [*noise, noise[-1]], [*noise[:-1], noise[0]], [each.expand(3, -1, -1, -1) for each in noise]):
        with pytest.raises(ValueError, match=message):
            network(latent, noise=wrong)


def test_styles_are_brought_to_one_length() -> None:
    network, style = StyleGAN2Generator(**TINY), torch.randn(3, 12)
    torch.testing.assert_close(network.style_mlp(style), network.style_mlp(5 * style))


def test_transforming_the_last_channels() -> None:
    x, scale, shift = torch.randn(2, 6, 3, 3), torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    made = transformed(x, scale, shift)
    assert torch.equal(made[:, :2], x[:, :2])
    torch.testing.assert_close(made[:, 2:], x[:, 2:] * scale + shift)
    with torch.no_grad():
        assert torch.equal(transformed(x.clone(), scale, shift), made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_size": 24}, "network.out_size=24: give a power of 2 from 8 to 1024"),
        ({"out_size": 4}, "network.out_size=4: give a power of 2"),
        ({"narrow": 0.001}, "network.narrow=0.001 leaves a level without channels"),
        ({"resample_kernel": [1, -1, 1, -1]}, r"resample_kernel=\[1, -1, 1, -1\] adds up to 0"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StyleGAN2Generator(**{**TINY, **changes})
    with pytest.raises(ValueError, match=message):
        StyleGAN2Discriminator(**{**JUDGE, **changes})


def test_channels() -> None:
    assert channels(1024, 2, 1.0) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    assert channels(64, 1, 0.5) == {4: 256, 8: 256, 16: 256, 32: 256, 64: 128}


# The discriminator --------------------------------------------------------------------------------------------------------


def test_a_group_is_judged_together() -> None:
    network = shaken(StyleGAN2Discriminator(**JUDGE))
    images = torch.rand(8, 3, 16, 16).double()
    logits = network(images)
    assert logits.shape == (8, 1)
    assert not torch.allclose(network(images[:4]), logits[:4])
    # of 8 images in groups of 4, every other one is in the same group
    torch.testing.assert_close(network(images[::2]), logits[::2])
    torch.testing.assert_close(network(images[1::2]), logits[1::2])
    assert network(images[:3]).shape == (3, 1)


def test_images_that_it_cannot_judge_are_refused() -> None:
    network = StyleGAN2Discriminator(**JUDGE)
    with pytest.raises(ValueError, match=r"stddev_group=4 does not divide a batch of 6: change data.batch_size"):
        network(torch.rand(6, 3, 16, 16))
    with pytest.raises(ValueError, match=r"out_size=16 judges no 16x32: change data.size"):
        network(torch.rand(4, 3, 16, 32))


def test_the_slope_at_an_image_can_be_trained() -> None:
    """R1 needs second derivatives; those of the fast operations are right."""
    network = shaken(StyleGAN2Discriminator(**{**JUDGE, "out_size": 8, "narrow": 1 / 256}))
    image = torch.rand(2, 3, 8, 8).double().requires_grad_()
    weight = network.get_parameter("conv_body.1.conv2.1.weight")

    def penalty() -> Tensor:
        (slope,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
        return slope.square().sum()

    (found,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight += step * direction
        values.append(penalty().item())
        with torch.no_grad():
            weight -= step * direction
    assert (found * direction).sum().item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_autocast_trains(precision: torch.dtype) -> None:
    generator, judge = StyleGAN2Generator(**TINY), StyleGAN2Discriminator(**JUDGE)
    with torch.autocast("cpu", precision):
        image = generator(generator.style_mlp(torch.randn(2, 12)))
        loss = judge(image).float().square().mean()
    loss.backward()
    for network in (generator, judge):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
