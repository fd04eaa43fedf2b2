"""How CodeFormer's cases of networks and of code losses are run on our code: case -> {output name: full tensor}."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.adversarial import Adversarial, judged_fake, judged_real
from losses.perceptual import LPIPS
from losses.weighted import LossSet
from models.codeformer import CodeFormer, adaptive_instance_normalization
from models.discriminators import VQGANDiscriminator
from models.vqgan import Encoder, Generator, VectorQuantizer, VQAutoEncoder
from tests.parity import fill
from tests.parity.cases import Case
from tests.parity.gan import codeformer_adversarial_losses, given, gradient
from tests.parity.networks import load
from tests.parity.runners import Kind, refers
from train.jobs.cli import compose
from train.tasks.codebook import perplexity
from train.trust import build

Outputs = dict[str, Tensor]

# What the reference's CodeFormer builds whatever its arguments say.
FIXED: dict[str, Any] = {
    "img_size": 512,
    "nf": 64,
    "ch_mult": [1, 2, 2, 4, 4, 8],
    "res_blocks": 2,
    "attn_resolutions": [16],
    "emb_dim": 256,
}
DEFAULTS: dict[str, Any] = {"res_blocks": 2, "attn_resolutions": [16], "emb_dim": 256, "beta": 0.25}  # of its VQAutoEncoder


def autoencoder_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's: `beta` is an argument of the loss."""
    config = DEFAULTS | config
    assert config.pop("quantizer") == "nearest"
    del config["beta"]
    return config


def codeformer_arguments(config: dict[str, Any]) -> dict[str, Any]:
    config = dict(config)
    assert config.pop("latent_size", 256) == 256, "img_size tells it"
    sides = [int(side) for side in config.pop("connect_list")]
    return {**FIXED, "fix_modules": ["quantize", "generator"], **config, "connect_list": sides}


def encoder(case: Case) -> Outputs:
    config = dict(case.facts["config"])
    network = Encoder(img_size=config.pop("resolution"), res_blocks=config.pop("num_res_blocks"), **config).eval()
    network.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        return {"out": network(given(case)["x"])}


def generator(case: Case) -> Outputs:
    network = Generator(**case.facts["config"]).eval()
    network.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        return {"out": network(given(case)["x"])}


def codebook_loss(latent: Tensor, quantized: Tensor, beta: float) -> Tensor:
    """beta weighs the term that moves the codebook."""
    return F.mse_loss(quantized.detach(), latent) + beta * F.mse_loss(quantized, latent.detach())


def statistics(network: VectorQuantizer, latent: Tensor) -> Outputs:
    quantized, codes = network(latent)
    distances = network._distances(latent) + latent.permute(0, 2, 3, 1).flatten(0, 2).square().sum(1, keepdim=True)
    return {
        "indices": codes.flatten(1),
        "perplexity": perplexity(codes.flatten().bincount(minlength=len(network.embedding.weight))),
        "mean_distance": distances.mean(),
        "quant": quantized,
    }


def quantizer(case: Case) -> Outputs:
    config = dict(case.facts["config"])
    beta = config.pop("beta")
    network = VectorQuantizer(**config)
    network.load_state_dict(case.weights, strict=True)
    x = given(case)
    latent, book = x["z"].requires_grad_(), network.embedding.weight
    quantized, codes = network(latent)
    loss = codebook_loss(latent, quantized, beta)
    through = latent + (quantized - latent).detach()
    made = statistics(network, latent)
    backwards = codes.flatten().flip(0).view_as(codes)
    return {
        "z_q": through,
        "loss": loss,
        "perplexity": made["perplexity"],
        "mean_distance": made["mean_distance"],
        "indices": made["indices"],
        "grad_loss_z": torch.autograd.grad(loss, latent, retain_graph=True)[0],
        "grad_loss_embedding": torch.autograd.grad(loss, book)[0],
        "grad_straight_through_z": torch.autograd.grad((through * x["g"]).sum(), latent)[0],
        "codebook_feat": network.embed(backwards),
        "codebook_feat_flat": network.embed(backwards).permute(0, 2, 3, 1).flatten(0, 2),
    }


def autoencoder(case: Case) -> Outputs:
    network = VQAutoEncoder(**autoencoder_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        made = network((given(case)["x"] + 1) / 2)
        return {
            "out": 2 * made.restored - 1,
            "enc": made.latent,
            "codebook_loss": codebook_loss(made.latent, made.quantized, case.facts["config"]["beta"]),
            **statistics(network.quantize, made.latent),
        }


def discriminator(case: Case) -> Outputs:
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


def codeformer(case: Case) -> Outputs:
    network = CodeFormer(**codeformer_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    lq = (given(case)["x"] + 1) / 2
    with torch.no_grad():
        latent, features = network.encoder.with_taps(network.signed(lq), map(int, network.fuse_convs_dict))
        # Once for all outputs: it takes as long as all the rest.
        network.encoder.with_taps = lambda _image, sizes: (latent, {size: features[size] for size in sizes})
        _, logits, _ = network(lq, w=0, adain=False, code_only=True)
        codes = logits.argmax(2)
        embedded = network.codes_to_latent(codes.view(-1, *latent.shape[2:]))
        made = {
            "logits": logits,
            "lq_feat": latent,
            "top_idx": codes,
            "quant_feat_adain": adaptive_instance_normalization(embedded, latent),
        }
        for output in case.outputs:
            if (name := output["name"]).startswith("out_w"):
                w, _, adain = name.removeprefix("out_w").partition("_")
                full = network(lq, w=float(w), adain=adain == "adain")
                assert torch.equal(full.logits, logits)
                made[name] = 2 * full.restored - 1
    return made


def lpips_filled(case: Case) -> LPIPS:
    """Filled by the reference's names, with ImageNet's normalisation before LPIPS's own."""
    shapes, scale = case.facts["state_dicts"]["lpips"], case.facts["config"]["lpips_scale"]
    filled = fill.state_dict(shapes, scale=scale, leave_out=[])
    trunk = {f"features.{key.split('.', 3)[3]}": value for key, value in filled.items() if ".slice" in key}
    term = LPIPS(weight=1.0, net="vgg", reduction="mean", backbone=lambda: trunk, imagenet_first=True)
    heads = {key.removeprefix("perceptual."): value for key, value in filled.items() if ".lin" in key}
    (metric,) = term.metric.frozen
    metric.load_state_dict(metric.state_dict() | heads | {k.replace("lin", "lins.", 1): v for k, v in heads.items()})
    return term


def losses(case: Case) -> Outputs:
    x = given(case)
    target = (x["idx_uniform"] * len(x["codebook"])).long().view(-1, *x["lq_feat"].shape[2:])
    wanted = x["codebook"][target].permute(0, 3, 1, 2)
    set_: LossSet = build(compose(["experiment=codeformer_official_stage2"])["loss"])
    _, terms = set_(1, logits=x["code_logits"].requires_grad_(), latent=x["lq_feat"], target_codes=target, target_latent=wanted)
    image, other = ((x[name] + 1) / 2 for name in ("img_a", "img_b"))
    distance = lpips_filled(case)(image.requires_grad_(), other)
    slope = gradient(distance, image) / 2  # at an image in [-1, 1]
    return codeformer_adversarial_losses(case) | {
        "cross_entropy_w0.5": terms["code"].weighted.detach(),
        "feat_mse_w1.0": terms["feature"].weighted.detach(),
        "idx": target.flatten(1),
        "lpips_mean": distance.detach(),
        "lpips_grad_a": slope[..., ::4, ::4],
        "lpips_grad_norm_a": slope.norm(),
    }


def losses_of(experiment: str, case: Case) -> LossSet:
    """The loss set that a recipe's YAML describes, with the case's weights in LPIPS."""
    terms = compose([f"experiment={experiment}"])["loss"]["terms"]
    made = {name: build(node) for name, node in terms.items() if name != "lpips"}
    assert terms["lpips"]["imagenet_first"]
    assert terms["lpips"]["net"] == "vgg"
    assert terms["lpips"]["weight"] == 1
    return LossSet(terms={**made, "lpips": lpips_filled(case)})


@contextmanager
def recorded_gradients() -> Iterator[list[Tensor]]:
    """What torch.autograd.grad gives meanwhile, for its first input."""
    found: list[Tensor] = []
    whole = torch.autograd.grad

    def grad(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        made = whole(*arguments, **options)
        found.append(made[0])
        return made

    with patch("torch.autograd.grad", grad):
        yield found


def against(case: Case, network: torch.nn.Module, set_: LossSet, tensors: dict[str, Any], hq: Tensor) -> Outputs:
    """A step of the generator with its adaptive weight, and the discriminator's, written out by hand as the engine has them."""
    discriminator = VQGANDiscriminator(**case.facts["config"]["network_d"])
    shapes = case.facts["state_dicts"]["net_d"]
    load(discriminator, fill.state_dict(shapes, scale=1.0, leave_out=[k for k in shapes if k.endswith("num_batches_tracked")]))
    discriminator.requires_grad_(False)
    opinion = {"fake_logits": {"image": discriminator(tensors["restored"])}}
    _, terms = set_(1, (), **tensors, **opinion)
    gan: Any = set_.terms["gan"]
    last = network.get_parameter(gan.adaptive_at)
    others = sum(term.weighted for name, term in terms.items() if name != "gan")
    with recorded_gradients() as gradients:  # each takes a pass back through all that lies behind the last layer
        share = Adversarial.adaptive_weight(others, terms["gan"].weighted / gan.weight, last)
    norms = [each.norm() for each in gradients]
    (others + share * terms["gan"].weighted).backward()
    discriminator.requires_grad_(True)
    real, fake = discriminator(hq), discriminator(tensors["restored"].detach())
    (judged_real(real, gan.kind) + judged_fake(fake, gan.kind)).backward()
    return {
        **weighted(terms),
        "l_g_gan": (share * terms["gan"].weighted).detach(),
        "d_weight": share * gan.weight,
        "d_weight_unclamped": norms[0] / (norms[1] + 1e-4),
        "grad_norm_recon_last_layer": norms[0],
        "grad_norm_gan_last_layer": norms[1],
        "l_d_real": judged_real(real, gan.kind).detach(),
        "l_d_fake": judged_fake(fake, gan.kind).detach(),
        "out_d_real": real.mean().detach(),
        "out_d_fake": fake.mean().detach(),
        **{f"gradnorm_d__{name}": p.grad.norm() for name, p in discriminator.named_parameters() if p.grad is not None},
        **gradient_norms(network),
    }


def gradient_norms(network: torch.nn.Module) -> Outputs:
    return {f"gradnorm_g__{name}": p.grad.norm() for name, p in network.named_parameters() if p.grad is not None}


def autoencoder_step(case: Case) -> Outputs:
    """One step of stage I, and of the same before the discriminator begins."""
    config = compose(["experiment=codeformer_official_stage1"])
    assert config["adversary"]["start_step"] == case.facts["config"]["net_d_start_iter"]
    network = VQAutoEncoder(**autoencoder_arguments(case.facts["config"]["network_g"]))
    network.load_state_dict(case.weights, strict=True)
    set_ = losses_of("codeformer_official_stage1", case)
    set_.terms["gan"].adaptive_at = "generator.blocks.11.weight"  # of the toy network  # type: ignore[assignment]
    hq = (given(case)["gt"] + 1) / 2
    before, terms = set_(1, {"gan"}, **network(hq)._asdict(), hq=hq)
    before.backward()
    made = {f"pre__{name}": value for name, value in {**named(weighted(terms)), **gradient_norms(network)}.items()}
    network.zero_grad()
    return made | named(against(case, network, set_, {**network(hq)._asdict(), "hq": hq}, hq))


def named(values: Outputs) -> Outputs:
    """Our names of terms as the reference's."""
    theirs = {
        "l1": "l_g_pix",
        "lpips": "l_g_percep",
        "codebook": "l_codebook",
        "feature": "l_feat_encoder",
        "code": "cross_entropy_loss",
    }
    return {theirs.get(name, name): value for name, value in values.items()}


def weighted(terms: Any) -> Outputs:
    return {name: term.weighted.detach() for name, term in terms.items()}


def controllable_step(case: Case) -> Outputs:
    """One step of stage III that makes an image; the target codes come from a network with the same weights."""
    config = compose(["experiment=codeformer_official_stage3"])
    phases = [build(phase) for phase in config["codes"]["phases"].values()]
    update = case.facts["config"]["current_iter"]
    w = next(phase for phase in phases if phase.until_step is None or update <= phase.until_step).fidelity(update)
    assert w == case.facts["config"]["w"]
    network = CodeFormer(**codeformer_arguments(case.facts["config"]["network_g"]))
    network.load_state_dict(case.weights, strict=True)
    images = {name: (x + 1) / 2 for name, x in given(case).items()}
    with torch.no_grad():
        target = network.quantize.nearest(network.encode(images["gt"]))
        latent = network.codes_to_latent(target)
    tensors = {
        **network(images["in"], w=w, adain=False)._asdict(),
        **{"target_codes": target, "target_latent": latent, "hq": images["gt"]},
    }
    made = named(against(case, network, losses_of("codeformer_official_stage3", case), tensors, images["gt"]))
    return made | {"idx_gt": target.flatten(1)}


def code_step(case: Case) -> Outputs:
    """One step of stage II or of DT-BFR's fine-tuning, whose targets come from networks with the same weights."""
    network = CodeFormer(**codeformer_arguments(case.facts["config"]["network_g"]))
    network.load_state_dict(case.weights, strict=True)
    images = {name: (x + 1) / 2 for name, x in given(case).items()}
    with torch.no_grad():
        target = network.quantize.nearest(network.encode(images["gt"]))
        wanted = network.codes_to_latent(target)
    _, logits, latent = network(images["in"], w=0, adain=False, code_only=True)
    set_: LossSet = build(compose(["experiment=codeformer_official_stage2"])["loss"])
    loss, terms = set_(1, logits=logits, latent=latent, target_codes=target, target_latent=wanted)
    loss.backward()
    parts = dict(network.named_children())
    for name in case.facts["grad_none_top_modules"]:
        assert all(p.grad is None for p in parts[name].parameters())
    for name in case.facts["frozen_top_modules"]:
        assert not any(p.requires_grad for p in parts[name].parameters())
    return {
        "l_feat_encoder": terms["feature"].raw,
        "cross_entropy_loss": terms["code"].weighted.detach(),
        "idx_gt": target.flatten(1),
        **gradient_norms(network),
    }


KEPT = 4  # cases in tests/golden
KINDS = [
    Kind(tells=refers(r"::Encoder\b"), run=encoder),
    Kind(tells=refers(r"::Generator\b"), run=generator),
    Kind(tells=refers(r"::VectorQuantizer\b"), run=quantizer),
    Kind(tells=refers(r"::VQAutoEncoder\b"), run=autoencoder),
    Kind(tells=refers(r"::VQGANDiscriminator\b"), run=discriminator),
    Kind(tells=refers(r"::CodeFormer\b"), run=codeformer),
    Kind(tells=refers(r"/losses\.py\b"), run=losses),
    Kind(tells=refers(r"::VQGANModel\.optimize_parameters"), run=autoencoder_step),
    Kind(tells=refers(r"::(CodeFormerIdxModel|CodeFormerModel)\.optimize_parameters"), run=code_step),
    Kind(tells=refers(r"::CodeFormerJointModel\.optimize_parameters"), run=controllable_step),
]
