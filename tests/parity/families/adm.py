"""How the cases of the diffusion network in pixels and of its process are run on our code."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.diffusion.adm import ADM
from models.diffusion.pixels import PixelDiffusion
from tests.parity import fill
from tests.parity.cases import Case
from tests.parity.runners import Kind, refers

KEPT = 0  # cases in tests/golden
POSTS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "clamp(x*0.6, -1, 1)": lambda x: (0.6 * x).clamp(-1, 1),
    "(x > 0.6) as float, the first channel for all three": lambda x: (x[:, :1] > 0.6).float().expand_as(x).clone(),
}
TABLES = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance", "posterior_log_variance_clipped")
TABLES += ("posterior_mean_coef1", "posterior_mean_coef2", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod")


def arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Ours from the reference's."""
    ours = {key: config[key] for key in config.keys() - {"dropout", "dims", "use_fp16"}}
    return ours | {"num_res_blocks": config["num_res_blocks"]}


def inputs(case: Case) -> dict[str, Tensor]:
    made = {}
    for name, of in case.facts["inputs"].items():
        given = torch.tensor(of["value"]) if "value" in of else fill.tensor(of["fill"], of["shape"], kind=of["kind"])
        made[name] = POSTS[of.get("post")](given)
    return made


def network_of(case: Case, config: dict[str, Any]) -> ADM:
    network = ADM(**arguments(config)).eval()
    state = fill.state_dict(case.facts["state_dict"], scale=case.facts["weights"]["scale"])
    network.load_state_dict(state, strict=True)
    return network


@torch.no_grad()
def forward(case: Case) -> dict[str, Tensor]:
    network = network_of(case, case.facts["config"])
    made: dict[str, Tensor] = {}
    for name in (each["name"].removeprefix("mid.") for each in case.outputs if each["name"].startswith("mid.")):
        module = network.time_embed if name == "emb" else network.get_submodule(name)
        module.register_forward_hook(lambda _module, _inputs, output, name=name: made.update({f"mid.{name}": output.clone()}))
    given = inputs(case)
    return made | {"out": network(given["x"], given["timesteps"], given.get("y"))}


def process(config: dict[str, Any], **changes: Any) -> PixelDiffusion:
    of = {**config, **changes}
    fixed = "small" if of.get("sigma_small") else "large"
    return PixelDiffusion(
        steps=of["steps"],
        schedule=of["noise_schedule"],
        respacing=of["timestep_respacing"],
        predicts="clean" if of.get("predict_xstart") else "noise",
        variance="learned" if of.get("learn_sigma", True) else fixed,
        rescaled=of.get("rescale_timesteps", False),
    )


def tables(case: Case) -> dict[str, Tensor]:
    made = {}
    for tag, config in case.facts["config"]["tags"].items():
        chain = process(config)
        made[f"{tag}/timestep_map"] = torch.tensor(chain.timesteps)
        made |= {f"{tag}/{name}": torch.from_numpy(getattr(chain, name)) for name in TABLES}
    return made


@torch.no_grad()
def posteriors(case: Case) -> dict[str, Tensor]:
    given, config = inputs(case), case.facts["config"]
    network, chain = network_of(case, config["unet"]), process(config["diffusion"])
    whole = any(each["name"].startswith("clipped.") for each in case.outputs)
    made: dict[str, Tensor] = {}
    for prefix, clamp in (("clipped.", True), ("unclipped.", False)) if whole else (("", True),):
        of = chain.posterior(network, given["x"], given["index"], clamp=clamp)
        made |= {f"{prefix}pred_xstart": of.clean, f"{prefix}mean": of.mean}
        made |= {f"{prefix}variance": of.variance, f"{prefix}log_variance": of.log_variance}
    if whole:
        mean, variance, log_variance = chain.true_posterior(given["x_start"], given["x"], given["index"])
        made |= {"q_posterior.mean": mean, "q_posterior.variance": variance, "q_posterior.log_variance_clipped": log_variance}
        made["q_sample"] = chain.noised(given["x_start"], given["index"], given["noise"])
        made["eps_from_xstart"] = chain.noise_of(given["x"], given["x_start"], given["index"])
    return {name: value.flatten() if value.shape[1:] == (1, 1, 1) else value for name, value in made.items()}


def losses(case: Case) -> dict[str, Tensor]:
    given, config = inputs(case), case.facts["config"]
    network = network_of(case, config["unet"])
    made = {}
    for prefix, index, changes, rescaled in (
        ("rescaled", "index", {}, True),
        ("plain", "index", {}, False),
        ("rescaled_ddim10", "index_ddim10", {"timestep_respacing": "ddim10"}, True),
    ):
        chain = process(config["diffusion"], **changes)
        found = chain.losses(network, given["x_start"], given[index], given["noise"], rescaled=rescaled)
        made |= {f"{prefix}.{name}": value.detach() for name, value in found.items()}
    return made


@torch.no_grad()
def sampling(case: Case) -> dict[str, Tensor]:
    given, config = inputs(case), case.facts["config"]
    network, chain = network_of(case, config["unet"]), process(config["diffusion"])
    way = config["sampling"]
    made: dict[str, Tensor] = {}
    x, start = given.get("x_T"), way["start_timesteps"]
    if x is None:
        x = chain.noised(given["x_start"], torch.full((len(given["x_start"]),), start), given["start_noise"])
        made["x_start_noised"] = x
    noises = iter([given[f"noise_{i}"] for i in range(len(given)) if f"noise_{i}" in given])
    draw = lambda like: next(noises)  # noqa: E731
    if way["mode"] == "ddpm":
        steps = chain.ancestral(network, x, draw)
    else:
        correct = None
        if "gamma" in way:
            known = 1 - given["mask"]
            correct = lambda clean: clean - way["gamma"] * 2 * known * (clean - given["y0"])  # noqa: E731
        from_difface = "DifFace" in case.reference
        steps = chain.ddim(network, x, draw, eta=way["eta"], start=start, noise_again=not from_difface, correct=correct)
    for number, (clean, after) in enumerate(steps):
        made |= {f"pred_xstart_step_{number}": clean, f"x_after_step_{number}": after}
    return made


KINDS = [
    Kind(tells=refers(r"models/unet\.py UNetModel"), run=forward),
    Kind(tells=lambda case: "tags" in case.facts["config"], run=tables),
    Kind(tells=refers(r"gaussian_diffusion\.py p_mean_variance"), run=posteriors),
    Kind(tells=refers(r"gaussian_diffusion\.py training_losses"), run=losses),
    Kind(tells=refers(r"gaussian_diffusion\.py (p|ddim)_sample_loop_progressive"), run=sampling),
]
