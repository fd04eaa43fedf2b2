"""How IRControlNet's cases are run on our code: case -> {output name: full tensor}.

Weights are filled by the official key with its prefix in the published files. An image goes in as drawn, in [0, 1].
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.diffusion import ldm
from models.diffusion.colour import coarse, wavelet_colour_fix
from models.diffusion.diffbir import DiffBIR, controlled
from models.diffusion.guidance import (
    flatness,
    guidance_scale,
    guided,
    image_loss,
    latent_loss,
    restoration_guidance,
    squared_error,
)
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import (
    SAMPLERS,
    Draw,
    ddim_schedule,
    sample_spaced,
    sigma_schedule,
    spaced_schedule,
)
from models.diffusion.schedule import NoiseSchedule
from models.diffusion.stable_diffusion import TEXT, UNET, VAE, StableDiffusion, tokens_of
from models.diffusion.tiles import gaussian_weights, starts, tiled
from models.files.families.ircontrolnet import arguments
from tests.parity import fill
from tests.parity.cases import Apart, Case
from tests.parity.runners import Kind, gives

Outputs = dict[str, Tensor]
Shapes = dict[str, list[int]]
SCALE = 0.18215
BETAS = {"linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000}  # of every schedule of ours


def given(case: Case, name: str) -> Tensor:
    """An input, mapped as `post` says."""
    x, post = drawn(case, name), case.facts["inputs"][name].get("post", "")
    if mean := re.match(r"replicate-pad (\d+), (\d+)x\d+ mean filter stride 1", post):
        x = F.avg_pool2d(F.pad(x, [int(mean[1])] * 4, mode="replicate"), int(mean[2]), stride=1)
    if factor := re.match(r"x\*(\d*\.\d+)", post):
        return x * float(factor[1])
    return 2 * x - 1 if "*2-1" in post else x


def drawn(case: Case, name: str) -> Tensor:
    entry = case.facts["inputs"][name]
    if "value" in entry:
        return torch.tensor(entry["value"])
    return fill.tensor(entry["fill"], entry["shape"], kind=entry["kind"])


def smoothed(case: Case, name: str) -> Tensor:
    """An image whose `post` ends in the map to [-1, 1], before that map."""
    return (given(case, name) + 1) / 2


def listed(case: Case, names: list[str]) -> Draw:
    """The named noise, one after the other."""
    values: Iterator[Tensor] = (given(case, name) for name in names)
    return lambda _like: next(values)


def weights(case: Case, shapes: Shapes, prefix: str = "") -> Outputs:
    state = fill.state_dict(shapes, scale=case.facts["weights"]["scale"])
    assert all(key.startswith(prefix) for key in state)
    return {key.removeprefix(prefix): value for key, value in state.items()}


def sizes(state: Outputs) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def control_of(case: Case, shapes: Shapes, config: dict[str, Any]) -> IRControlNet:
    state = weights(case, shapes)
    found = arguments(sizes(state), config["hint_channels"])
    for name, value in found.items():
        assert config[name] == value, name
    network = IRControlNet(**found, num_head_channels=config["num_head_channels"], gradient_checkpointing=False).eval()
    network.load_state_dict(state, strict=True)
    return network


def unet_of(case: Case, shapes: Shapes, config: dict[str, Any]) -> UNet2DConditionModel:
    state = weights(case, shapes, UNET)
    ours = ldm.unet_config(sizes(state), config["num_head_channels"])
    network: Any = UNet2DConditionModel(**ours)
    network.load_state_dict(ldm.to_diffusers(state, ldm.unet_names(ours), "unet"), strict=True)
    return network


def vae_of(case: Case, shapes: Shapes) -> AutoencoderKL:
    state = weights(case, shapes, VAE)
    ours = ldm.vae_config(sizes(state))
    network: Any = AutoencoderKL(**ours)
    network.load_state_dict(ldm.to_diffusers(state, ldm.vae_names(ours), "vae"), strict=True)
    return network


def text_of(case: Case, shapes: Shapes, config: dict[str, Any], *, leave_out: int = 1) -> CLIPTextModel:
    """The tower without its last layers: all but one are what Stable Diffusion uses."""
    state = weights(case, shapes, TEXT)
    ours = ldm.text_config(sizes(state), config["text_cfg"]["width"] // config["text_cfg"]["heads"])
    layers = ours["num_hidden_layers"] + 1 - leave_out
    network = CLIPTextModel(CLIPTextConfig(**ours | {"num_hidden_layers": layers}))
    network.load_state_dict(ldm.text_to_diffusers(state, layers), strict=True)
    return network.eval()


def frozen(
    unet: nn.Module | None = None, vae: nn.Module | None = None, text: nn.Module | None = None, *, words: bool = False
) -> StableDiffusion:
    """With an empty module in place of what a case does not have."""
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": text}
    parts = {name: nn.Identity() if part is None else part for name, part in parts.items()}
    return StableDiffusion(**parts, tokenizer=tokenizer() if words else None)


def both_of(case: Case) -> tuple[IRControlNet, StableDiffusion]:
    """The networks of a composite case, as far as it has them."""
    shapes, config = case.facts["state_dict"], case.facts["config"].get("cldm", case.facts["config"])
    return control_of(case, shapes["controlnet"], config["controlnet_cfg"]), frozen(
        unet_of(case, shapes["unet"], config["unet_cfg"]),
        vae_of(case, shapes["vae"]) if "vae" in shapes else None,
        text_of(case, shapes["clip"], config["clip_cfg"]) if "clip" in shapes else None,
        words="clip" in shapes,
    )


def tokenizer() -> CLIPTokenizer:
    """With the part of CLIP's vocabulary that the cases' texts take: a line is a token's number and the two that it joins."""
    lines = (Path(__file__).parents[1] / "clip_merges.txt").read_text().splitlines()
    numbers, merges = [], []
    for line in lines:
        number, left, right = line.split(" ")
        numbers.append((left + right, int(number)))
        merges.append((left, right))
    single = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    vocabulary = {name: i for i, name in enumerate([*single, *(f"{each}</w>" for each in single)])}
    ends = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    many: Any = merges
    return CLIPTokenizer(vocab=vocabulary | dict(numbers) | ends, merges=many)


@torch.no_grad()
def controlnet(case: Case) -> Outputs:
    network = control_of(case, case.facts["state_dict"], case.facts["config"])
    x = {name: given(case, name) for name in ("x", "timesteps", "context", "hint")}
    residuals = network(x["x"], x["timesteps"], x["context"], x["hint"])
    return {f"control_{i}": each for i, each in enumerate(residuals)}


@torch.no_grad()
def controlled_unet(case: Case) -> Outputs:
    diffusion = frozen(unet_of(case, case.facts["state_dict"], case.facts["config"]))
    x = [given(case, name) for name in ("x", "timesteps", "context")]
    made = {"out_no_control": diffusion(*x)}
    if controls := [name for name in case.facts["inputs"] if re.fullmatch(r"control_\d+", name)]:
        scales = case.facts["inputs"]["control_scales"]["value"]
        residuals = [given(case, name) * scale for name, scale in zip(controls, scales, strict=False)]
        made["out_control"] = diffusion(*x, residuals)
        middle = given(case, controls[-1]) * scales[len(controls) - 1]
        made["out_only_mid"] = diffusion(*x, [*(torch.zeros_like(each) for each in residuals[:-1]), middle])
    return made


@torch.no_grad()
def autoencoder(case: Case) -> Outputs:
    diffusion = frozen(vae=vae_of(case, case.facts["state_dict"]))
    moments = diffusion.moments(drawn(case, "image"))
    mode = diffusion.mode(moments)
    one = torch.ones_like(mode)
    return {
        "moments": moments,
        "mode": mode / SCALE,
        "logvar_clamped": 2 * ((diffusion.sample(moments, one) - mode) / SCALE).log(),
        "decoded": 2 * diffusion.decode(SCALE * given(case, "z")) - 1,
        "reconstruction_of_mode": 2 * diffusion.decode(mode) - 1,
    }


def tokens(case: Case) -> Outputs:
    rows = case.facts["outputs"]["tokens"]["rows"]
    texts = [case.facts["inputs"][name]["text"] for name in rows]
    config = CLIPTextConfig(vocab_size=49408, bos_token_id=49406, eos_token_id=49407)
    return {"tokens": tokens_of(texts, tokenizer(), config).int()}


@torch.no_grad()
def text_tower(case: Case) -> Outputs:
    shapes, config = case.facts["state_dict"], case.facts["config"]
    made = {}
    for name, leave_out in (("penultimate", 1), ("last", 0)):
        tower: Any = text_of(case, shapes, config, leave_out=leave_out)
        made[name] = tower(given(case, "tokens")).last_hidden_state
    diffusion = frozen(text=text_of(case, shapes, config), words=True)
    assert torch.equal(diffusion.text(case.facts["inputs"]["tokens"]["texts"]), made["penultimate"])
    return made


@torch.no_grad()
def whole(case: Case) -> Outputs:
    """From images and prompts to the loss of a training step."""
    control, diffusion = both_of(case)
    text = diffusion.text(case.facts["inputs"]["text"]["value"])
    condition = diffusion.mode(diffusion.moments(drawn(case, "cond_image")))
    clean = diffusion.sample(diffusion.moments(drawn(case, "gt_image")), given(case, "gt_posterior_noise"))
    timesteps, noise = given(case, "t"), given(case, "noise")
    made = {"c_txt": text, "c_img": condition, "x0_sampled": clean, "decoded_c_img": 2 * diffusion.decode(condition) - 1}
    losses = case.facts["scalars"]
    for prediction in ("eps", "v"):
        schedule = NoiseSchedule(prediction=prediction, zero_snr=prediction == "v")
        noisy = schedule.noised(clean, timesteps, noise)
        target = schedule.target(clean, timesteps, noise)
        output = controlled(control, diffusion, noisy, timesteps, text, condition)
        made |= {f"x_noisy_{prediction}": noisy, f"model_out_{prediction}": output, f"target_{prediction}": target}
        for name in (o["name"] for o in case.outputs if o["name"].startswith(f"model_out_{prediction}_strength")):
            strength = float(name.rpartition("strength")[2])
            made[name] = controlled(control, diffusion, noisy, timesteps, text, condition, strength=strength)
        within = {"rel": case.facts["tolerance"]["loss_rtol"]}
        assert F.mse_loss(output, target).item() == pytest.approx(losses[f"p_losses_{prediction}"], **within)
        if prediction == "eps":
            assert F.l1_loss(output, target).item() == pytest.approx(losses["p_losses_eps_l1"], **within)
    return made


def schedules(case: Case) -> Outputs:
    assert BETAS.items() <= case.facts["config"].items(), case.facts["config"]
    made: Outputs = {}
    for prediction in ("eps", "v"):
        schedule = NoiseSchedule(prediction=prediction, zero_snr=prediction == "v")
        made |= {f"{prediction}/betas": schedule.betas, f"{prediction}/alphas_cumprod": schedule.alphas_cumprod}
        for steps in case.facts["config"]["steps"]:
            spaced = spaced_schedule(schedule, steps)
            a, variance = spaced.alphas_cumprod, spaced.posterior_variance
            tables = {
                "sqrt_alphas_cumprod": a.sqrt(),
                "sqrt_one_minus_alphas_cumprod": (1 - a).sqrt(),
                "sqrt_recip_alphas_cumprod": 1 / a.sqrt(),
                "sqrt_recipm1_alphas_cumprod": (1 / a - 1).sqrt(),
                "posterior_variance": variance,
                "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
                "posterior_mean_coef1": spaced.posterior_mean_coef1,
                "posterior_mean_coef2": spaced.posterior_mean_coef2,
            }
            made |= {f"{prediction}/spaced{steps}/{name}": table.float() for name, table in tables.items()}
            made[f"{prediction}/spaced{steps}/timesteps"] = torch.tensor(spaced.timesteps, dtype=torch.int32)
            edm = sigma_schedule(schedule, steps)
            made[f"{prediction}/edm{steps}/sigmas"] = torch.tensor(edm.sigmas, dtype=torch.float32)
            made[f"{prediction}/edm{steps}/timesteps"] = torch.tensor(edm.timesteps, dtype=torch.int32)
            ddim = ddim_schedule(schedule, steps)
            made[f"{prediction}/ddim{steps}/timesteps"] = torch.tensor(ddim.timesteps, dtype=torch.int32)
            made[f"{prediction}/ddim{steps}/ddim_alphas"] = ddim.alphas_cumprod.float()
            made[f"{prediction}/ddim{steps}/ddim_alphas_prev"] = ddim.alphas_cumprod_before.float()
            made[f"{prediction}/ddim{steps}/ddim_sigmas"] = torch.zeros(steps)  # ours has no other
    for name in (output["name"] for output in case.outputs):
        if name.startswith("rescaled_cfg/"):
            used = [guidance_scale(float(name.rpartition("/")[2]), timestep, True) for timestep in range(1000)]
            made[name] = torch.tensor(used, dtype=torch.float64)
    return made


def schedule_of(case: Case) -> NoiseSchedule:
    config = case.facts["config"]["diffusion"]
    assert BETAS.items() <= config.items(), config
    return NoiseSchedule(prediction=config.get("parameterization", "eps"), zero_snr=config.get("zero_snr", False))


@torch.no_grad()
def sampling(case: Case) -> Outputs:
    config = case.facts["config"]
    control, diffusion = both_of(case)
    strength = config["control_scales"][0]
    assert set(config["control_scales"]) == {strength}
    model = partial(controlled, control, diffusion, strength=strength)
    if config.get("tiled"):
        model = tiled(model, size=config["tiled"]["tile_size"], stride=config["tiled"]["tile_stride"])
    predict = guided(
        model,
        condition=given(case, "c_img"),
        positive=given(case, "c_txt_pos"),
        negative=given(case, "c_txt_neg"),
        scale=config["cfg_scale"],
        rescale=config["rescale_cfg"],
    )
    seen: list[int] = []

    def counted(latent: Tensor, timestep: int) -> Tensor:
        seen.append(timestep)
        return predict(latent, timestep)

    noises = [name for name in case.facts["inputs"] if re.fullmatch(r"noise_\d+", name)]
    sample, steps = SAMPLERS[config["sampler"]], config["steps"]
    states = list(sample(counted, schedule_of(case), given(case, "x_T"), steps, listed(case, noises)))
    assert seen == (case.facts["timesteps_used"] if config["sampler"] == "spaced" else case.facts["timesteps"][:-1])
    for timestep, scale in zip(seen, case.facts.get("cfg_scale_per_step", []), strict=False):
        assert guidance_scale(config["cfg_scale"], timestep, config["rescale_cfg"]) == pytest.approx(scale, abs=1e-9)
    return {f"x_after_step_{i}": state for i, state in enumerate(states)} | {"z": states[-1]}


def guidance_gradients(case: Case) -> Outputs:
    made, target, scalars = given(case, "pred").requires_grad_(), given(case, "target"), case.facts["scalars"]
    weight = flatness((target + 1) / 2)
    deltas = {"weight_map": weight}
    for name, loss in (("mse", squared_error(made, target)), ("w_mse", squared_error(made, target, weight))):
        assert loss.item() == pytest.approx(scalars[f"{name}_loss"], rel=1e-5)
        (gradient,) = torch.autograd.grad(loss, made)
        deltas[f"{name}_delta"] = -case.facts["config"]["internal_scale"] * gradient
    return deltas


@torch.no_grad()
def guided_sampling(case: Case) -> Outputs:
    config = case.facts["config"]
    control, diffusion = both_of(case)
    predict = guided(
        partial(controlled, control, diffusion),
        condition=given(case, "c_img"),
        positive=given(case, "c_txt_pos"),
        negative=given(case, "c_txt_neg"),
        scale=config["cfg_scale"],
        rescale=False,
    )
    draw = listed(case, [name for name in case.facts["inputs"] if name.startswith(("noise", "target_posterior"))])
    target = smoothed(case, "target")
    if config["g_space"] == "rgb":
        loss = image_loss(diffusion.decode, target, weighted=True)
    else:
        moments = diffusion.moments(target)
        loss = latent_loss(lambda: diffusion.sample(moments, draw(moments)))
    losses: list[float] = []

    def recorded(clean: Tensor) -> Tensor:
        value = loss(clean)
        losses.append(value.item())
        return value

    correct = restoration_guidance(
        recorded, scale=config["g_scale"], start=config["g_start"], stop=config["g_stop"], repeats=config["g_repeat"]
    )
    latent, steps = given(case, "x_T"), config["steps"]
    states = list(sample_spaced(predict, schedule_of(case), latent, steps, draw, correct))
    used = [each for each, applied in zip(case.facts["guidance_loss"], case.facts["guidance_applied"], strict=True) if applied]
    means = torch.tensor(losses).view(-1, config["g_repeat"]).mean(1)  # over the repeats of a step
    assert means.tolist() == pytest.approx(used, rel=1e-4)
    return {f"x_after_step_{i}": state for i, state in enumerate(states)}


def pipeline(case: Case) -> Outputs:
    config, inputs = case.facts["config"], case.facts["inputs"]
    control, diffusion = both_of(case)
    images: list[Tensor] = []
    decode = diffusion.decode
    diffusion.decode = lambda latent: images.append(decode(latent)) or images[-1]  # type: ignore[method-assign, func-returns-value]
    restorer = DiffBIR(
        control=control,
        diffusion=diffusion,
        schedule=schedule_of(case),
        sampler=config["sampler"],
        steps=config["steps"],
        scale=config["cfg_scale"],
        rescale=config["rescale_cfg"],
        positive=inputs["prompts"]["positive"],
        negative=inputs["prompts"]["negative"],
        strength=config["strength"],
        start=config["start_point_type"],
        noise_aug=config["noise_aug"],
        tile_px=0,
        stride_px=0,
        guidance=None,
    )
    first = drawn(case, "cond_image")
    names = [name for name in inputs if "fill" in inputs[name] and name != "cond_image"]  # in the order of their calls
    restored = restorer(first, listed(case, names))
    cropped = images[0][..., : first.shape[2], : first.shape[3]]
    return {
        "decoded_cropped": 2 * cropped - 1,
        "color_fixed": restored,
        "uint8": (255 * restored).clamp(0, 255).to(torch.uint8),
    }


def colour_fix(case: Case) -> Outputs:
    content, style = given(case, "content"), given(case, "style")
    return {
        "high": content - coarse(content),
        "low": coarse(content),
        "reconstruction": wavelet_colour_fix(content, style),
    }


def settings(case: Case) -> set[str]:
    """Their names."""
    return set(case.facts["config"])


def tiles(case: Case) -> Outputs:
    for name, windows in case.facts["windows"].items():
        h, w, size, stride = (int(number) for number in re.findall(r"\d+", name))
        ours = [[top, top + size, left, left + size] for top in starts(h, size, stride) for left in starts(w, size, stride)]
        assert ours == windows, name
    sides = {output["name"]: int(output["name"].removeprefix("gaussian_")) for output in case.outputs}
    return {name: gaussian_weights(side, side) for name, side in sides.items()}


KEPT = 10  # cases in tests/golden
KINDS = [
    Kind(tells=gives("control_0"), run=controlnet),
    Kind(tells=gives("out_no_control"), run=controlled_unet),
    Kind(tells=gives("moments", "decoded"), run=autoencoder),
    Kind(tells=gives("tokens"), run=tokens),
    Kind(tells=gives("penultimate"), run=text_tower),
    Kind(tells=gives("c_txt", "model_out_"), run=whole),
    Kind(tells=lambda case: any(re.search(r"/(spaced|edm|ddim)\d+/", o["name"]) for o in case.outputs), run=schedules),
    Kind(tells=lambda case: {"sampler", "control_scales"} <= settings(case) and "g_space" not in settings(case), run=sampling),
    Kind(tells=gives("mse_delta"), run=guidance_gradients),
    Kind(tells=lambda case: "g_space" in settings(case), run=guided_sampling),
    # The published chain ends with a truncation, so a rounding becomes a whole level.
    Kind(tells=gives("uint8"), run=pipeline, apart={"uint8": Apart(share=0.005, most=1)}),
    Kind(tells=gives("high", "low", "reconstruction"), run=colour_fix),
    Kind(tells=gives("gaussian_"), run=tiles),
]
