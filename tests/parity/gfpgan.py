"""How GFPGAN's cases are run on our code: case -> {output name: full tensor}."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.adversarial import R1
from losses.pyramid import Pyramid, pairs
from losses.regions import ComponentStyle
from models.components import PARTS, FacialComponentDiscriminator, boxes_of, cut, mirrored
from models.gfpgan import GFPGANv1, GFPGANv1Clean
from models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator, StyleGAN2GeneratorClean
from tests.parity import fill, gan
from tests.parity.cases import Case
from tests.parity.gan import given, gradient

Outputs = dict[str, Tensor]


def gfpgan_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's: the styles always come from the U-Net, and weights are loaded by other means."""
    config = dict(config)
    assert config.pop("input_is_latent")
    config.pop("decoder_load_path", None)
    return config


def bilinear_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Of the reference's GFPGANBilinear, which is our GFPGANv1 without a kernel."""
    return {"resample_kernel": None, **gfpgan_arguments(config)}


def generator(case: Case) -> Outputs:
    kind = StyleGAN2GeneratorClean if "clean" in case.name else StyleGAN2Generator
    network = kind(**case.facts["config"]).eval()
    network.load_state_dict(case.weights, strict=True)
    x, layers = given(case), network.num_latent

    def image(latent: Tensor) -> Tensor:
        return 2 * network(latent) - 1

    with torch.no_grad():
        latent, other = network.style_mlp(x["s"]), network.style_mlp(x["s2"])
        mixed = torch.stack([latent] * 3 + [other] * (layers - 3), 1)
        return {
            "image": image(latent),
            "latent": latent,
            "image_truncated": image(torch.lerp(other.mean(0, keepdim=True), latent, 0.7)),
            "image_mixed": image(mixed),
            "latent_mixed": mixed,
            "image_wplus": image(x["w"]),
        }


def discriminator(case: Case) -> Outputs:
    network = StyleGAN2Discriminator(**case.facts["config"])
    network.load_state_dict(case.weights, strict=True)
    image = ((given(case)["x"] + 1) / 2).requires_grad_()
    logits = network(image)
    penalty = R1(weight=1.0, every_n_steps=1)(real=image, real_logits=logits) / 4  # at an image in [-1, 1]
    names = ("conv_body.0.0.weight", "final_linear.1.weight")
    norms = {f"r1_gradnorm_{name}": gradient(penalty, network.get_parameter(name)).norm() for name in names}
    with torch.no_grad():
        return {"out": logits.detach(), "out_first2": network(image[:2]), "r1_penalty": penalty.detach(), **norms}


def gfpgan(case: Case) -> Outputs:
    kind = GFPGANv1Clean if "clean" in case.name else GFPGANv1
    network = kind(**gfpgan_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        made = network((given(case)["x"] + 1) / 2)
    return {"image": 2 * made.restored - 1, **{f"rgb_{image.shape[-1]}": 2 * image - 1 for image in made.pyramid}}


def component_discriminator(case: Case) -> Outputs:
    network = FacialComponentDiscriminator()
    network.load_state_dict(case.weights, strict=True)
    part = (given(case)["x"] + 1) / 2
    with torch.no_grad():
        half, quarter = network.features(part)
        return {"out": network(part), "feat_0": half, "feat_1": quarter}


def crops(case: Case) -> Outputs:
    config = case.facts["config"]
    components = torch.tensor([[each[part] for part in PARTS] for each in config["components"]])
    flipped = torch.tensor(config["hflip"]).view(-1, 1, 1)
    components = torch.where(flipped, mirrored(components, config["out_size"]), components)
    boxes = dict(zip(PARTS, boxes_of(components, eye_enlarge=config["eye_enlarge_ratio"]).unbind(1), strict=True))
    images = {name: F.avg_pool2d(image, 9, stride=1, padding=4) for name, image in given(case).items()}

    def part(name: str, of: str) -> Tensor:
        return cut(images[name], boxes[of], config["mouth_out_size" if of == "mouth" else "eye_out_size"])

    return {
        **{f"loc_{of}": box for of, box in boxes.items()},
        "left_eyes_gt": part("gt", "left_eye"),
        "right_eyes_gt": part("gt", "right_eye"),
        "mouths_gt": part("gt", "mouth"),
        "left_eyes": part("output", "left_eye"),
        "mouths": part("output", "mouth"),
    }


def losses(case: Case) -> Outputs:
    x, config = given(case), case.facts["config"]
    pyramid = [(x[f"rgb_{side}"] + 1) / 2 for side in (8, 16, 32, 64)]
    hq = (x["gt"] + 1) / 2
    levels = {image.shape[-1]: (image, wanted) for image, wanted in pairs(pyramid, hq)}
    each = {f"l_p_{side}": 2 * F.l1_loss(*level) for side, level in levels.items()}  # theirs are in [-1, 1]
    torch.testing.assert_close(2 * Pyramid(weight=1.0)(pyramid=pyramid, hq=hq), torch.stack(list(each.values())).sum())
    network = FacialComponentDiscriminator()
    name = next(name for name in case.facts["state_dicts"] if name.startswith("component_disc"))
    network.load_state_dict(fill.state_dict(case.facts["state_dicts"][name], scale=config["component_disc_scale"]), strict=True)
    eye = ((x["eye"] + 1) / 2).requires_grad_()
    features = ({"eye": network.features(part)} for part in (eye, (x["eye_gt"] + 1) / 2))
    style = ComponentStyle(weight=1.0, of="eye")(*features)
    strong = config["comp_style_weight"] * style
    return {
        **gan.gfpgan_losses(case),
        **each,
        **{f"pyramid_{side}": 2 * levels[side][1] - 1 for side in (8, 16)},
        "comp_style_one_part": style.detach(),
        "comp_style_one_part_x200": strong.detach(),
        "comp_style_grad_norm_eye": gradient(strong, eye).norm() / 2,
    }


RUNNERS: dict[str, Callable[[Case], Outputs]] = {
    "gfpgan/stylegan2_disc_small": discriminator,
    "gfpgan/stylegan2*": generator,
    "gfpgan/gfpganv1*": gfpgan,
    "gfpgan/facial_component_disc": component_discriminator,
    "gfpgan/roi_crops": crops,
    "gfpgan/losses": losses,
}
