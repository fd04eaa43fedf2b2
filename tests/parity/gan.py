"""How the cases of embedders, discriminators and losses are run on our code: case -> {output name: full tensor}."""

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.adversarial import Adversarial, fooled, judged_fake, judged_real
from losses.features import FeatureLoss
from models.adaface import AdaFace
from models.arcface import ResNetArcFace
from models.discriminators import VQGANDiscriminator
from models.vgg import BLOCKS, VGG19Features
from tests.parity import fill
from tests.parity.cases import Case

Outputs = dict[str, Tensor]
VGG_LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


def adaface_arguments(name: str) -> dict[str, Any]:
    """Ours from the reference's name: ir_18, ir_se_50, …"""
    return {"layers": int(name.rpartition("_")[2]), "mode": name.rpartition("_")[0]}


def adaface(case: Case) -> Outputs:
    network = AdaFace(**adaface_arguments(case.facts["config"]["model_name"])).eval()
    load(network, case.weights)
    entry = case.facts["input"]
    drawn = fill.tensor(entry["name"], entry["shape"], kind=entry["kind"])
    rgb_hwc = drawn.ndim == 3  # else BGR in [-1, 1]; ours takes RGB in [0, 1]
    faces = ((256 * drawn).floor() / 255).permute(2, 0, 1)[None] if rgb_hwc else drawn.flip(1)
    middle = [o["name"].removeprefix("mid.") for o in case.facts["outputs"] if o["name"].startswith("mid.")]
    found: Outputs = {}
    for name in middle:
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: found.update({f"mid.{name}": output})  # type: ignore[misc]
        )
    with torch.no_grad():
        embedding, norm = network(faces)
    return {**found, "embedding": embedding, "norm": norm}


def load(network: nn.Module, weights: Outputs) -> None:
    """Strictly, but for the counts of batches, which cases leave out."""
    missing, unexpected = network.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing), missing


def arcface(case: Case) -> Outputs:
    network = ResNetArcFace(layers=case.facts["config"]["layers"]).eval()
    load(network, case.weights)
    greys: list[Tensor] = []
    network.conv1.register_forward_pre_hook(lambda _module, inputs: greys.append(inputs[0]))
    with torch.no_grad():
        embedding = network((given(case)["x"] + 1) / 2)
    return {"gray": greys[0], "embedding": embedding}


def vqgan_discriminator(case: Case) -> Outputs:
    network = VQGANDiscriminator(**case.facts["config"]).eval()
    load(network, case.weights)
    image = (given(case)["x"] + 1) / 2
    with torch.no_grad():
        out = network(image)
        out_train = network.train()(image)
    first: Any = network.main[3]
    return {
        "out": out,
        "out_train": out_train,
        "running_mean_after_train": first.running_mean,
        "running_var_after_train": first.running_var,
    }


def given(case: Case) -> Outputs:
    """The inputs as drawn and mapped: `map` is x, 2*x-1 or alike."""
    made = {}
    for name, entry in case.facts["input"].items():
        x = fill.tensor(entry["fill"], entry["shape"], kind=entry["kind"])
        factor, offset = re.fullmatch(r"(?:([\d.]+)\*)?x(-[\d.]+)?", entry["map"]).groups()  # type: ignore[union-attr]
        made[name] = x * float(factor or 1) + float(offset or 0)
    return made


def gradient(loss: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(loss, at, retain_graph=True)[0]


def codeformer_adversarial_losses(case: Case) -> Outputs:
    x = given(case)
    fake, real = x["fake_logits"], x["real_logits"]
    weight, bias = (0.1 * x["last_weight"]).requires_grad_(), 0.1 * x["last_bias"]
    out = F.conv2d(x["feat"], weight, bias, padding=1)
    reconstruction = F.l1_loss(out, x["target"])

    def adversarial(scale: float) -> Tensor:
        return fooled(F.conv2d(out, scale * x["d_weight_conv"], stride=2, padding=1), "hinge")

    once, strong = adversarial(0.05), adversarial(20.0)
    norms = [gradient(loss, weight).norm() for loss in (reconstruction, once, strong)]
    adaptive = Adversarial.adaptive_weight(reconstruction, once, weight)
    return {
        "hinge_g": fooled(fake, "hinge"),
        "hinge_d_real": judged_real(real, "hinge"),
        "hinge_d_fake": judged_fake(fake, "hinge"),
        "vanilla_g_w0.1": 0.1 * fooled(fake, "vanilla"),
        "vanilla_d_real": judged_real(real, "vanilla"),
        "vanilla_d_fake": judged_fake(fake, "vanilla"),
        "softplus_g_w0.1": 0.1 * fooled(fake, "softplus"),
        "softplus_d_real": judged_real(real, "softplus"),
        "softplus_d_fake": judged_fake(fake, "softplus"),
        "adaptive_recon_l1": reconstruction.detach(),
        "adaptive_hinge_g": once.detach(),
        "adaptive_grad_norm_recon": norms[0],
        "adaptive_grad_norm_gan": norms[1],
        "adaptive_unclamped": norms[0] / (norms[1] + 1e-4),
        "adaptive_clamped_max1": adaptive,
        "adaptive_clamped_max1_times_0.8": 0.8 * adaptive,
        "adaptive2_grad_norm_gan": norms[2],
        "adaptive2_clamped_max1": Adversarial.adaptive_weight(reconstruction, strong, weight),
    }


def vgg_filled(scale: float) -> VGG19Features:
    """Filled by the reference's names, vgg.vgg_net.convX_Y.*."""
    network = VGG19Features(layers=list(VGG_LAYERS))
    names = [f"conv{block}_{n}" for block, (_, count) in enumerate(BLOCKS, start=1) for n in range(1, count + 1)]
    convolutions = [layer for layer in network.features if isinstance(layer, nn.Conv2d)]
    for name, layer in zip(names, convolutions, strict=True):
        for part in ("weight", "bias"):
            values = fill.weight(f"vgg.vgg_net.{name}.{part}", tuple(getattr(layer, part).shape))
            getattr(layer, part).data = values * (scale if values.ndim >= 2 else 1)
    network.weights_from = "the case"  # type: ignore[assignment]
    return network


def gfpgan_losses(case: Case) -> Outputs:
    x, config = given(case), case.facts["config"]
    made: Outputs = {}
    made["gan_g_w0.1"] = 0.1 * fooled(x["fake"], "softplus")
    made["gan_d"] = judged_real(x["real"], "softplus") + judged_fake(x["fake"], "softplus")
    made["component_g"] = fooled(x["comp_fake"], "vanilla")
    made["component_d"] = judged_real(x["comp_real"], "vanilla") + judged_fake(x["comp_fake"], "vanilla")
    image, wanted = ((x["img"] + 1) / 2).requires_grad_(), (x["img_gt"] + 1) / 2
    network = vgg_filled(config["vgg_scale"])
    for name, options in {
        "perceptual": {"perceptual_weight": 1.0, "style_weight": 0.0},
        "style": {"perceptual_weight": 0.0, "style_weight": 50.0},
    }.items():
        loss = FeatureLoss(weight=1.0, network=network, layer_weights=config["layer_weights"], **options)(image, wanted)
        made["style_x50" if name == "style" else name] = loss.detach()
        made[f"{name}_grad_norm_img"] = gradient(loss, image).norm() / 2  # at an image in [-1, 1]
    embedder = ResNetArcFace(layers=config["arcface"]["layers"]).eval()
    shapes = case.facts["state_dicts"]["arcface"]
    load(embedder, fill.state_dict(shapes, scale=1.0, leave_out=[k for k in shapes if k.endswith("num_batches_tracked")]))
    face = ((x["face"] + 1) / 2).requires_grad_()
    identity = 10 * F.l1_loss(embedder(face), embedder((x["face_gt"] + 1) / 2).detach())
    made["identity_x10"] = identity.detach()
    made["identity_grad_norm_face"] = gradient(identity, face).norm() / 2
    return made


RUNNERS: dict[str, Callable[[Case], Outputs]] = {
    "adaface/*": adaface,
    "gfpgan/arcface_small": arcface,
    "codeformer/vqgan_disc_small": vqgan_discriminator,
}
