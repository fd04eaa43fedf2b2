"""Inputs, losses and embedders that CodeFormer's and GFPGAN's cases have in common."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.adversarial import Adversarial, fooled, judged_fake, judged_real
from losses.features import FeatureLoss
from models.arcface import ResNetArcFace
from models.vgg import BLOCKS, VGG19Features
from tests.parity import fill
from tests.parity.cases import Case
from tests.parity.networks import load

Outputs = dict[str, Tensor]
VGG_LAYERS = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}


def given(case: Case) -> Outputs:
    """The inputs as drawn and mapped: `map` is x, 2*x-1 or alike."""
    made = {}
    for name, entry in case.facts["input"].items():
        x = fill.tensor(entry["fill"], entry["shape"], kind=entry["kind"])
        factor, offset = re.fullmatch(r"(?:([\d.]+)\*)?x(-[\d.]+)?", entry["map"]).groups()  # type: ignore[union-attr]
        made[name] = x * float(factor or 1) + float(offset or 0)
    return made


def arcface_of(config: dict[str, Any], weights: Outputs) -> ResNetArcFace:
    """The reference's embedder, in eval mode."""
    assert config["block"] == "IRBlock", config
    network = ResNetArcFace(layers=config["layers"], use_se=config["use_se"]).eval()
    load(network, weights)
    return network


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
    shapes = case.facts["state_dicts"]["arcface"]
    counts = [key for key in shapes if key.endswith("num_batches_tracked")]
    embedder = arcface_of(config["arcface"], fill.state_dict(shapes, scale=1.0, leave_out=counts))
    face = ((x["face"] + 1) / 2).requires_grad_()
    identity = config["identity_weight"] * F.l1_loss(embedder(face), embedder((x["face_gt"] + 1) / 2).detach())
    made["identity_x10"] = identity.detach()
    made["identity_grad_norm_face"] = gradient(identity, face).norm() / 2
    return made
