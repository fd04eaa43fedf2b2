"""How CodeFormer's cases of networks and of code losses are run on our code: case -> {output name: full tensor}."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.codeformer import CodeFormer, adaptive_instance_normalization
from models.vqgan import Encoder, Generator, VectorQuantizer, VQAutoEncoder, perplexity
from tests.parity.cases import Case
from tests.parity.gan import given

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
        "perplexity": perplexity(codes, len(network.embedding.weight)),
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


def codeformer(case: Case) -> Outputs:
    network = CodeFormer(**codeformer_arguments(case.facts["config"])).eval()
    network.load_state_dict(case.weights, strict=True)
    lq = (given(case)["x"] + 1) / 2
    with torch.no_grad():
        _, logits, latent = network(lq, w=0, adain=False, code_only=True)
        codes = logits.argmax(2)
        embedded = network.codes_to_latent(codes.view(-1, *latent.shape[2:]))
        made = {
            "logits": logits,
            "lq_feat": latent,
            "top_idx": codes,
            "quant_feat_adain": adaptive_instance_normalization(embedded, latent),
        }
        for output in case.facts["outputs"]:
            if (name := output["name"]).startswith("out_w"):
                w, _, adain = name.removeprefix("out_w").partition("_")
                full = network(lq, w=float(w), adain=adain == "adain")
                assert torch.equal(full.logits, logits)
                assert torch.equal(full.latent, latent)
                made[name] = 2 * full.restored - 1
    return made


def code_step(case: Case) -> Outputs:
    """One step of stage II or of DT-BFR's fine-tuning, whose targets come from networks with the same weights."""
    network = CodeFormer(**codeformer_arguments(case.facts["config"]["network_g"]))
    network.load_state_dict(case.weights, strict=True)
    images = {name: (x + 1) / 2 for name, x in given(case).items()}
    with torch.no_grad():
        target = network.quantize.nearest(network.encode(images["gt"]))
        wanted = network.codes_to_latent(target)
    _, logits, latent = network(images["in"], w=0, adain=False, code_only=True)
    feature = F.mse_loss(latent, wanted)
    entropy = 0.5 * F.cross_entropy(logits.transpose(1, 2), target.flatten(1))
    (feature + entropy).backward()
    parts = dict(network.named_children())
    for name in case.facts["grad_none_top_modules"]:
        assert all(p.grad is None for p in parts[name].parameters())
    for name in case.facts["frozen_top_modules"]:
        assert not any(p.requires_grad for p in parts[name].parameters())
    norms = {f"gradnorm_g__{name}": p.grad.norm() for name, p in network.named_parameters() if p.grad is not None}
    return {"l_feat_encoder": feature.detach(), "cross_entropy_loss": entropy.detach(), "idx_gt": target.flatten(1), **norms}


RUNNERS: dict[str, Callable[[Case], Outputs]] = {
    "codeformer/encoder_*": encoder,
    "codeformer/generator_*": generator,
    "codeformer/vq_nearest": quantizer,
    "codeformer/vqae_*": autoencoder,
    "codeformer/codeformer_*": codeformer,
    "codeformer/step_stage2": code_step,
    "codeformer/step_dtbfr_codeformer": code_step,
}
