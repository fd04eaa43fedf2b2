"""Every number that the challenge's supplement (NTIRE 2025, real-world face restoration) names: fact, preset, key, value."""

from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from yaml import safe_load

from train.conf import CONF
from train.jobs.cli import compose, register_resolvers
from train.jobs.config import check
from train.jobs.stages import planned

BATCH = "data.batch_size x trainer.accumulate_grad_batches"  # on one device

AIIALAB = "AIIALab, SwinIR: 512 px, batch 96, learning rate 1e-4, 150k updates; flips, rotations, random cuts"
LOSSES = "AIIALab, both models: a perceptual loss and an AdaFace loss, with weights of 0.01 for both, are added"
CODEFORMER = "CodeFormer I, II, III: Adam, batch 16, learning rates 8e-5, 8e-5, 2e-5; 1.5M, 200k, 20k updates"
CONTROL = "AIIALab, IRControlNet: Stable Diffusion 2.1, batch 256, 80k updates, 1e-4, after 30k of them 1e-5"
UPHORSE = "UpHorse: 50,000 images of FFHQ, cuts of 512, learning rate 1e-4, 150k updates, one RTX 4090"
CX = "CX: Adam, learning rate 1.17e-6, 80k updates, batch 6 on each of 5 A5000"
ACVLAB = "ACVLab: Adam 2e-3, halved at 600k and 700k of 800k; one step of the discriminator a step of the generator"
FUSTAR = "Fustar-fsr: ELAN without upsampling; L1, perceptual and adversarial loss; Adam's betas 0.9 and 0.999, epsilon 1e-8"
BASELINE = "DiffBIR stage 1: 512 px, batch 6, learning rate 1e-4, 150k updates"

ROWS: list[tuple[str, str, str, Any]] = [
    (BASELINE, "model=swinir_ffhq", "data.size", 512),
    (BASELINE, "model=swinir_ffhq", "data.batch_size", 6),
    (BASELINE, "model=swinir_ffhq", "optimizer.lr", 1e-4),
    (BASELINE, "model=swinir_ffhq", "trainer.max_steps", 150_000),
    (AIIALAB, "experiment=aiialab", "data.size", 512),
    (AIIALAB, "experiment=aiialab", BATCH, 96),
    (AIIALAB, "experiment=aiialab", "optimizer.lr", 1e-4),
    (AIIALAB, "experiment=aiialab", "trainer.max_steps", 150_000),
    (LOSSES, "experiment=aiialab", "loss.terms.mse.weight", 1),
    (LOSSES, "experiment=aiialab", "loss.terms.mse.reduction", "mean"),
    (LOSSES, "experiment=aiialab", "loss.terms.lpips.weight", 0.01),
    (LOSSES, "experiment=aiialab", "loss.terms.id.weight", 0.01),
    *(
        (LOSSES, f"experiment=aiialab_codeformer_stage{stage}", f"loss.terms.{term}.weight", weight)
        for stage in (1, 3)  # stage II makes no image
        for term, weight in (("lpips", 1 + 0.01), ("id", 0.01))  # added to CodeFormer's own, which weighs 1
    ),
    *(
        (CODEFORMER, name, key, value)
        for stage, lr, updates in ((1, 8e-5, 1_500_000), (2, 8e-5, 200_000), (3, 2e-5, 20_000))
        for name in (f"model=codeformer_stage{stage}", f"experiment=aiialab_codeformer_stage{stage}")
        for key, value in (
            ("optimizer._target_", "torch.optim.Adam"),
            (BATCH, 16),
            ("optimizer.lr", lr),
            ("trainer.max_steps", updates),
        )
    ),
    *(
        (CONTROL, name, key, value)
        for name in ("model=ircontrolnet_ffhq", "experiment=aiialab_ircontrolnet")
        for key, value in (
            (BATCH, 256),
            ("trainer.max_steps", 80_000),
            ("optimizer.lr", 1e-4),
            ("schedule.milestones", [30_000]),
            ("schedule.gamma", 0.1),
        )
    ),
    *(
        (AIIALAB, f"experiment=aiialab{name}", f"augmentation.transforms.{key}", f"albumentations.{value}")
        for name in ("", "_codeformer_stage1", "_codeformer_stage2", "_codeformer_stage3", "_ircontrolnet")
        for key, value in (
            ("flip._target_", "HorizontalFlip"),
            ("rotate._target_", "Rotate"),
            ("cut._target_", "RandomCrop"),
        )
    ),
    (UPHORSE, "experiment=uphorse", "data.first", 50_000),
    (UPHORSE, "experiment=uphorse", "data.roots.first", 50_000),
    (UPHORSE, "experiment=uphorse", "data.size", 512),
    (UPHORSE, "experiment=uphorse", "optimizer.lr", 1e-4),
    (UPHORSE, "experiment=uphorse", "trainer.max_steps", 150_000),
    (UPHORSE, "experiment=uphorse", "trainer.devices", 1),
    (CX, "experiment=cx", "optimizer._target_", "torch.optim.Adam"),
    (CX, "experiment=cx", "optimizer.lr", 1.17e-6),
    (CX, "experiment=cx", "schedule.milestones", []),
    (CX, "experiment=cx", "trainer.max_steps", 80_000),
    (CX, "experiment=cx", BATCH, 6),
    (CX, "experiment=cx trainer=ddp", "trainer.devices", 5),
    (ACVLAB, "experiment=acvlab_gfpgan", "optimizer._target_", "torch.optim.Adam"),
    (ACVLAB, "experiment=acvlab_gfpgan", "optimizer.lr", 2e-3),
    (ACVLAB, "experiment=acvlab_gfpgan", "schedule.milestones", [600_000, 700_000]),
    (ACVLAB, "experiment=acvlab_gfpgan", "schedule.gamma", 0.5),
    (ACVLAB, "experiment=acvlab_gfpgan", "trainer.max_steps", 800_000),
    (ACVLAB, "experiment=acvlab_gfpgan", "adversary.steps_per_update", 1),
    (FUSTAR, "experiment=fustar_elan", "network.scale", 1),
    (FUSTAR, "experiment=fustar_elan", "loss.terms.l1.weight", 1),
    (FUSTAR, "experiment=fustar_elan", "optimizer.betas", [0.9, 0.999]),
    (FUSTAR, "experiment=fustar_elan", "optimizer.eps", 1e-8),
]


@cache
def composed(given: str) -> DictConfig:
    register_resolvers()
    return compose(given.split())


@pytest.mark.parametrize(("fact", "preset", "key", "value"), ROWS, ids=[f"{preset} {key}" for _, preset, key, _ in ROWS])
def test_the_supplements_number(fact: str, preset: str, key: str, value: Any) -> None:
    config, found = composed(preset), 1
    for part in key.split(" x "):
        node = OmegaConf.select(config, part)
        found = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node if key == part else found * node
    assert found == (pytest.approx(value) if isinstance(value, float) else value), fact


def test_aiialabs_recipes_pass_the_checker() -> None:
    config = composed("experiment=aiialab_ircontrolnet init.stable_diffusion=a init.stage1=b data.root=c")
    assert check(config)["name"] == "aiialab_ircontrolnet"
    chain = safe_load((CONF / "stages" / "aiialab_codeformer.yaml").read_text())
    configs = planned("aiialab_codeformer", chain, ["data.root=c"])
    assert [config["optimizer"]["lr"] for config in configs.values()] == [8e-5, 8e-5, 2e-5]
    assert configs["stage3"]["init"]["stage2"] == "runs/aiialab_codeformer/stage2"


def test_no_flip_is_drawn_twice_and_what_makes_no_image_has_no_loss_of_images() -> None:
    for name in ("", "_codeformer_stage1", "_codeformer_stage2", "_codeformer_stage3", "_ircontrolnet"):
        assert composed(f"experiment=aiialab{name}").data.hflip_prob == 0
    for name, terms in (("codeformer_stage2", {"feature", "code"}), ("ircontrolnet", {"denoising"})):
        assert set(composed(f"experiment=aiialab_{name}").loss.terms) == terms
