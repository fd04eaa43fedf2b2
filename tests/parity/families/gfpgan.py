"""How GFPGAN's cases are run on our code: case -> {output name: full tensor}."""

import re
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.utils.data import DataLoader

from losses.adversarial import R1
from losses.features import FeatureLoss
from losses.identity import EmbeddingL1
from losses.pyramid import Pyramid, pairs
from losses.regions import ComponentStyle
from losses.weighted import LossSet
from models.components import PARTS, FacialComponentDiscriminator, boxes_of, cut, mirrored
from models.gfpgan import GFPGANv1, GFPGANv1Clean
from models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator, StyleGAN2GeneratorClean
from tests.parity import fill, gan
from tests.parity.cases import Case
from tests.parity.gan import arcface_of, given, gradient, vgg_filled
from tests.parity.runners import Kind, refers
from train.jobs.cli import compose
from train.jobs.config import plain
from train.runs.building import quieten
from train.tasks.adversarial import AdversarialTask
from train.tasks.calling import outputs
from train.tasks.discriminators import Adversary
from train.tasks.state import resume_at
from train.tasks.validation import Validation
from train.trust import build

Outputs = dict[str, Tensor]


def gfpgan_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's: the styles always come from the U-Net, and weights are loaded by other means."""
    config = dict(config)
    config.pop("input_is_latent")  # see through_style_mlp
    config.pop("decoder_load_path", None)
    return config


def bilinear_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Of the reference's GFPGANBilinear, which is our GFPGANv1 without a kernel."""
    return {"resample_kernel": None, **gfpgan_arguments(config)}


def said(case: Case, pattern: str) -> str:
    """A number that the case's json gives in words."""
    found = re.search(pattern, case.facts["forward"])
    assert found, f"{case.name}: forward has no {pattern}"
    return found[1]


def through_style_mlp(network: GFPGANv1 | GFPGANv1Clean) -> None:
    """As with the reference's input_is_latent=false, which no published file has: the U-Net gives styles, not latents.

    With a style for each layer, the reference's norm goes over the layers, the axis that is the features' for one style.
    """
    mlp = network.stylegan_decoder.style_mlp

    def hook(_decoder: object, inputs: tuple[Tensor]) -> tuple[Tensor]:
        styles = inputs[0]
        return (mlp(styles) if network.latents > 1 else mlp(styles[:, 0])[:, None].expand_as(styles),)

    network.stylegan_decoder.register_forward_pre_hook(hook)


def arcface(case: Case) -> Outputs:
    network = arcface_of(case.facts["config"], case.weights)
    greys: list[Tensor] = []
    network.conv1.register_forward_pre_hook(lambda _module, inputs: greys.append(inputs[0]))
    with torch.no_grad():
        embedding = network((given(case)["x"] + 1) / 2)
    return {"gray": greys[0], "embedding": embedding}


def generator(case: Case) -> Outputs:
    kind = StyleGAN2GeneratorClean if "Clean" in case.reference else StyleGAN2Generator
    network = kind(**case.facts["config"]).eval()
    network.load_state_dict(case.weights, strict=True)
    x, layers = given(case), network.num_latent

    def image(latent: Tensor) -> Tensor:
        return 2 * network(latent) - 1

    with torch.no_grad():
        latent, other = network.style_mlp(x["s"]), network.style_mlp(x["s2"])
        first = int(said(case, r"inject_index=(\d+)"))
        mixed = torch.stack([latent] * first + [other] * (layers - first), 1)
        return {
            "image": image(latent),
            "latent": latent,
            "image_truncated": image(
                torch.lerp(other.mean(0, keepdim=True), latent, float(said(case, r"truncation ([\d.]+\d)")))
            ),
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
    kind = GFPGANv1Clean if "Clean" in case.reference else GFPGANv1
    arguments = bilinear_arguments if "Bilinear" in case.reference else gfpgan_arguments
    network = kind(**arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    if not case.facts["config"]["input_is_latent"]:
        through_style_mlp(network)
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


def components_of(case: Case, size: int) -> Tensor:
    """(b, 3, 3), some mirrored."""
    config = case.facts["config"]
    components = torch.tensor([[each[part] for part in PARTS] for each in config["components"]])
    return torch.where(torch.tensor(config["hflip"]).view(-1, 1, 1), mirrored(components, size), components)


def crops(case: Case) -> Outputs:
    config = case.facts["config"]
    components = components_of(case, config["out_size"])
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
    sides = sorted(int(name.removeprefix("rgb_")) for name in x if name.startswith("rgb_"))
    pyramid = [(x[f"rgb_{side}"] + 1) / 2 for side in sides]
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
        **{f"pyramid_{side}": 2 * levels[side][1] - 1 for side in sides[:-1]},
        "comp_style_one_part": style.detach(),
        "comp_style_one_part_x200": strong.detach(),
        "comp_style_grad_norm_eye": gradient(strong, eye).norm() / 2,
    }


class Watch(Callback):
    """The gradients of an update before anything steps."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, task: L.LightningModule, optimizer: Any) -> None:
        self.gradients = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


class Rows(DummyLogger):
    """What updates log."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:  # type: ignore[override]
        self.rows.append(metrics)


def engine(case: Case) -> AdversarialTask:
    """As model=gfpgan_ffhq describes it, with the case's widths and weights."""
    config, shapes, scale = case.facts["config"], case.facts["state_dicts"], case.facts["config"]["scale"]
    arguments = {
        "network": gfpgan_arguments(config["network_g"]),
        "adversary.discriminators.image.network": config["network_d"],
    }
    given_ = [f"{node}.{key}={value}" for node, values in arguments.items() for key, value in values.items()]
    recipe = plain(compose(["model=gfpgan_ffhq", *given_]), resolve=True)
    terms = recipe["loss"]["terms"]
    unfilled = [key for key in shapes["arcface"] if key.endswith("num_batches_tracked")]
    embedder = arcface_of(config["arcface"], fill.state_dict(shapes["arcface"], scale=scale["arcface"], leave_out=unfilled))
    embedder.weights_from = "the case"  # type: ignore[assignment]
    losses = {name: build(node) for name, node in terms.items() if name not in ("vgg", "id")}
    vgg = {key: value for key, value in terms["vgg"].items() if key not in ("_target_", "network")}
    losses["vgg"] = FeatureLoss(network=vgg_filled(scale["vgg_scale"]), **vgg)
    losses["id"] = EmbeddingL1(weight=terms["id"]["weight"], embedder=embedder)
    network: GFPGANv1 = build(recipe["network"])
    network.load_state_dict(case.weights, strict=True)
    adversary: Adversary = build(recipe["adversary"])
    for name, each in adversary.networks.items():
        kind = "net_d" if name == "image" else "component_disc"
        filled = shapes[next(key for key in shapes if key.startswith(kind))]
        each.load_state_dict(fill.state_dict(filled, scale=scale[kind]), strict=True)
    task = AdversarialTask(
        network=network,
        adversary=adversary,
        loss=LossSet(terms=losses),
        optimizer=build(recipe["optimizer"]),
        schedule=build(recipe["schedule"]),
        parts=None,
        ema_decay=recipe["ema_decay"],
        validation=Validation(lpips=None, pictures=0, luma=False, border_px=0),
    )
    task.config = {"seed": 0}
    return task


def step(case: Case) -> Outputs:
    """One update of the engine, with the case's boxes and stored noise."""
    task, update = engine(case), case.facts["config"]["current_iter"]
    network: Any = task.network
    made: list[dict[str, Any]] = []

    def run_network(batch: Any) -> dict[str, Any]:
        made.append(outputs(network(batch["lq"], noise=network.stylegan_decoder.stored_noise())))
        return made[-1]

    task.run_network = run_network  # type: ignore[method-assign]
    images = {name: (x + 1) / 2 for name, x in given(case).items()}
    batch = {
        "lq": images["lq"],
        "hq": images["gt"],
        "components": components_of(case, network.out_size),
        "position": torch.arange(len(images["gt"])),
        "unreadable": torch.zeros(len(images["gt"]), dtype=torch.int64),
    }
    watch, rows = Watch(), Rows()
    quiet: dict[str, Any] = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    quieten()
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=-1, max_steps=update, logger=rows, callbacks=[watch], log_every_n_steps=1, **quiet
    )
    resume_at(trainer, update - 1)
    trainer.fit(task, DataLoader([batch], batch_size=None))  # type: ignore[arg-type]
    for optimizer, wanted in zip(trainer.optimizers, case.facts["optimizers"], strict=True):
        (group,) = optimizer.param_groups
        assert group["lr"] == wanted["lr_used"]
        torch.testing.assert_close(list(group["betas"]), wanted["betas"])
    assert not any(name.startswith("network.stylegan_decoder.") for name in watch.gradients)
    (logged,), (output,) = rows.rows, made
    levels = {
        image.shape[-1]: 2 * F.l1_loss(image, wanted).detach() for image, wanted in pairs(output["pyramid"], images["gt"])
    }
    torch.testing.assert_close(logged["weighted/pyramid"], sum(map(float, levels.values())))
    vgg: Any = task.loss.terms["vgg"]
    parts, weights = {}, {"perceptual": vgg.perceptual_weight, "style": vgg.style_weight}
    for name in weights:
        vgg.perceptual_weight, vgg.style_weight = (weights[each] if each == name else 0.0 for each in weights)
        with torch.no_grad():
            parts[name] = vgg(output["restored"], images["gt"])
    torch.testing.assert_close(logged["weighted/vgg"], sum(map(float, parts.values())))
    r1: Any = task.adversary.discriminators["image"].loss.terms["r1"]
    found = {
        "l_g_pix": logged["weighted/l1"],
        "l_g_gan": logged["weighted/gan"],
        **{f"l_g_gan_{part}": logged[f"weighted/gan_{part}"] for part in PARTS},
        "l_g_comp_style_loss": sum(logged[f"weighted/style_{part}"] for part in PARTS),
        "l_identity": logged["weighted/id"],
        "l_d": logged["train/image.gan"],
        "real_score": logged["train/image.real"],
        "fake_score": logged["train/image.fake"],
        "l_d_r1": logged["train/image.r1"] * r1.weight_at(update),
        **{f"l_d_{part}": logged[f"train/{part}.gan"] for part in PARTS},
    }
    return {
        **{name: torch.tensor(value) for name, value in found.items()},
        **{f"l_p_{side}": value for side, value in levels.items()},
        "l_g_percep": parts["perceptual"],
        "l_g_style": parts["style"],
        **{name: watch.gradients[ours_of(name)].norm() for name in case.stored if name.startswith("gradnorm")},
    }


def ours_of(name: str) -> str:
    """gradnorm_g__KEY, gradnorm_d__KEY or gradnorm_d_PART__KEY to our task's parameter."""
    whose, _, key = name.removeprefix("gradnorm_").partition("__")
    if whose == "g":
        return f"network.{key}"
    return f"adversary.discriminators.{whose.removeprefix('d').removeprefix('_') or 'image'}.network.{key}"


KEPT = 6  # cases in tests/golden
KINDS = [
    Kind(tells=refers(r"::ResNetArcFace\b"), run=arcface),
    Kind(tells=refers(r"::StyleGAN2Generator(Clean)?$"), run=generator),
    Kind(tells=refers(r"::StyleGAN2Discriminator\b"), run=discriminator),
    Kind(tells=refers(r"::GFPGAN(v1|v1Clean|Bilinear)$"), run=gfpgan),
    Kind(tells=refers(r"::FacialComponentDiscriminator\b"), run=component_discriminator),
    Kind(tells=refers(r"::get_roi_regions\b"), run=crops),
    Kind(tells=refers(r"::GFPGANModel; .* losses$"), run=losses),
    Kind(tells=refers(r"::GFPGANModel\.optimize_parameters"), run=step),
]
