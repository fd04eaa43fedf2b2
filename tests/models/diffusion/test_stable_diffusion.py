"""IRControlNet beside Stable Diffusion: the same encoder, folders and single files, wrong weights, the whole second stage.

All that needs diffusers is in this file: importing it takes seconds, once in a process.
"""

import copy
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from models.diffusion import ldm
from models.diffusion.diffbir import DiffBIR, Guidance, controlled
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import SAMPLERS, drawn_from, sigma_schedule
from models.diffusion.schedule import NoiseSchedule
from models.diffusion.stable_diffusion import (
    TEXT,
    UNET,
    VAE,
    StableDiffusion,
    check_prediction,
    load,
    load_autoencoder,
    tokens_of,
)
from models.diffusion.tiny import TEXT_CONFIG, UNET_CONFIG, VAE_CONFIG, tiny, write
from models.files import official
from models.files.families.ircontrolnet import from_diffusers, to_diffusers
from models.files.family import CheckpointError
from tests.parity.families.ircontrolnet import tokenizer

CONTROL: dict[str, Any] = {
    "in_channels": 4,
    "hint_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "num_head_channels": 64,
    "context_dim": 64,
    "gradient_checkpointing": False,
}
EPS, V = NoiseSchedule(prediction="eps", zero_snr=False), NoiseSchedule(prediction="v", zero_snr=True)


@cache
def toy(*, words: bool = False) -> StableDiffusion:
    diffusion = tiny()
    diffusion.tokenizer = tokenizer() if words else None
    return diffusion


def control(seed: int = 1, *, drawn: bool = True, **changes: Any) -> IRControlNet:
    torch.manual_seed(seed)
    network = IRControlNet(**{**CONTROL, **changes}).eval()
    for name, value in network.named_parameters():
        if drawn and name.startswith(("zero_convs", "middle_block_out")):
            torch.nn.init.normal_(value, std=0.1)
    return network


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(2, 4, 8, 6), torch.tensor([3, 900]), torch.randn(2, 5, 64), torch.randn(2, 4, 8, 6)


# The control network and diffusers' networks --------------------------------------------------------------------------


@torch.no_grad()
def test_a_copy_sees_what_the_unets_encoder_sees() -> None:
    network, unet, (latent, timesteps, text, condition) = control(), toy().unet, inputs()
    network.copy_encoder(unet)
    for zero in (*network.zero_convs, network.middle_block_out):
        torch.nn.init.dirac_(zero[0].weight)
        torch.nn.init.zeros_(zero[0].bias)
    seen: list[Tensor] = []
    hooks = [unet.conv_in.register_forward_hook(lambda _m, _i, out: seen.append(out))]
    hooks += [each.register_forward_hook(lambda _m, _i, out: seen.extend(out[1])) for each in unet.down_blocks]
    hooks += [unet.mid_block.register_forward_hook(lambda _m, _i, out: seen.append(out))]
    unet(latent, timesteps, text)
    for hook in hooks:
        hook.remove()
    made = network(latent, timesteps, text, condition)
    assert len(made) == len(seen) == 5
    for ours, theirs in zip(made, seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not network.input_blocks[0][0].weight[:, 4:].any()  # type: ignore[index]


@torch.no_grad()
def test_a_fresh_copy_leaves_the_unet_as_it_was() -> None:
    network, (latent, timesteps, text, condition) = control(drawn=False), inputs()
    network.copy_encoder(toy().unet)
    assert torch.equal(controlled(network, toy(), latent, timesteps, text, condition), toy()(latent, timesteps, text))


@torch.no_grad()
def test_control_reaches_the_output_as_strongly_as_asked() -> None:
    network, (latent, timesteps, text, condition) = control(), inputs()
    without = toy()(latent, timesteps, text)
    full, none, half = (
        controlled(network, toy(), latent, timesteps, text, condition, strength=strength) for strength in (1, 0, 0.5)
    )
    assert torch.equal(none, without)
    assert (full - without).abs().max() > 1e-3
    assert 0 < (half - without).norm() < (full - without).norm()


def test_gradients_reach_the_control_alone() -> None:
    network, diffusion, (latent, timesteps, text, condition) = control(drawn=False).train(), toy(), inputs()
    network.copy_encoder(diffusion.unet)
    target = EPS.target(latent, timesteps, torch.ones_like(latent))
    (controlled(network, diffusion, latent, timesteps, text, condition) - target).square().mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in diffusion.parameters())
    touched = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"zero_convs", "middle_block_out"}  # the rest waits until these are no longer zero


def test_the_frozen_parts_stay_in_eval_mode() -> None:
    whole = torch.nn.ModuleList([toy(), control()]).train()
    assert not any(module.training for module in toy().modules())
    assert whole[1].training


@torch.no_grad()
def test_diffusers_own_controlnet_gives_the_same_residuals(tmp_path: Path) -> None:
    network, (latent, timesteps, text, condition) = control(), inputs()
    to_diffusers(network).save_pretrained(tmp_path)  # type: ignore[operator]
    theirs: Any = ControlNetModel.from_pretrained(tmp_path, local_files_only=True, low_cpu_mem_usage=False)
    down, middle = theirs(latent, timesteps, text, controlnet_cond=condition, return_dict=False)
    for ours, other in zip(network(latent, timesteps, text, condition), [*down, middle], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-4)
    again = from_diffusers(theirs)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert again.num_head_channels == 64


def test_a_control_network_as_a_folder_of_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = control(num_head_channels=32)
    torch.save(network.state_dict(), tmp_path / "v2.pth")
    recorded = {"_target_": "models.diffusion.ircontrolnet.IRControlNet", **CONTROL, "num_head_channels": 32}
    save_file(network.state_dict(), tmp_path / "v2.safetensors", {"network": json.dumps(recorded)})
    folder = tmp_path / "v2"
    official.main(["export", f"{folder}.safetensors", "--format", "diffusers"])
    assert capsys.readouterr().out == f"wrote {folder}\n"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    official.main(["export", str(folder), "--format", "official", "--output", str(tmp_path / "back.pth")])
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("v2.pth", "back.pth"))
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    again: Any = official.build(folder)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(*inputs()), again(*inputs()), strict=True))
    with pytest.raises(SystemExit, match=r"v2 exists: name the folder to write with --output"):
        official.main(["export", f"{folder}.pth", "--format", "diffusers", "--output", str(folder)])


def test_folders_of_diffusers_that_hold_something_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json is of UNet2DConditionModel, not of ControlNetModel"):
        official.build(write_folder(tmp_path / "sd") / "unet")
    made: Any = to_diffusers(control())
    made.save_pretrained(tmp_path / "control")
    file = tmp_path / "control" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"weights don't fit its config.json: 1 keys, such as conv_in.weight"):
        official.build(tmp_path / "control")


def test_a_controlnet_of_images_is_refused() -> None:
    made: Any = to_diffusers(control())
    torch.nn.init.ones_(made.controlnet_cond_embedding.conv_in.weight)
    with pytest.raises(ValueError, match="takes an image as condition, or another latent"):
        from_diffusers(made)


def test_a_unet_of_another_form_is_not_copied() -> None:
    network = control(context_dim=32)
    before = {name: p.clone() for name, p in network.named_parameters()}
    with pytest.raises(
        ValueError,
        match=r"another form than the control network: 4 keys differ, first .*attn2.to_k.weight \(64, 64\), here \(64, 32\)",
    ):
        network.copy_encoder(toy().unet)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    sd1: Any = UNet2DConditionModel(**{**UNET_CONFIG, "use_linear_projection": False, "cross_attention_dim": 768})
    with pytest.raises(ValueError, match=r"it is of Stable Diffusion 1 \(text of width 768\)"):
        network.copy_encoder(sd1)


# Full size, on the meta device ----------------------------------------------------------------------------------------


def test_every_weight_of_stable_diffusion_has_an_official_name() -> None:
    unet = {
        **UNET_CONFIG,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
    }
    vae = {**VAE_CONFIG, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
    text = {**TEXT_CONFIG, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    with torch.device("meta"):
        parts: list[Any] = [UNet2DConditionModel(**unet), AutoencoderKL(**vae), CLIPTextModel(CLIPTextConfig(**text))]
    states = [part.state_dict() for part in parts]
    named = [
        ldm.to_official(states[0], ldm.unet_names(unet), "unet"),
        ldm.to_official(states[1], ldm.vae_names(vae), "vae"),
        ldm.text_to_official(states[2], 23),
    ]
    assert [len(each) for each in named] == [686, 248, 280]
    back = [
        ldm.to_diffusers(named[0], ldm.unet_names(unet), "unet"),
        ldm.to_diffusers(named[1], ldm.vae_names(vae), "vae"),
        ldm.text_to_diffusers(named[2], 23),
    ]
    for made, given in zip(back, states, strict=True):
        assert {k: v.shape for k, v in made.items()} == {k: v.shape for k, v in given.items()}
    shapes = {key: tuple(value.shape) for key, value in named[0].items()}
    assert ldm.unet_config(shapes, 64) == unet


# Files ----------------------------------------------------------------------------------------------------------------


def write_folder(
    path: Path,
    *,
    prediction_type: str = "epsilon",
    unet: dict[str, Any] | None = None,
    diffusion: StableDiffusion | None = None,
) -> Path:
    write(diffusion or toy(), path)
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": prediction_type}))
    if unet:
        file = path / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | unet))
    words = tokenizer()
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "vocab.json").write_text(json.dumps(words.get_vocab()))
    (path / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in words._merges))
    return path


def official_state() -> dict[str, Tensor]:
    diffusion = toy()
    text = ldm.text_to_official(diffusion.text_encoder.state_dict(), 1)
    last = {key.replace("resblocks.0", "resblocks.1"): 2 * value for key, value in text.items() if "resblocks.0" in key}
    text |= last | {"text_projection": torch.ones(64, 64), "logit_scale": torch.ones(())}
    return {
        **{UNET + k: v for k, v in ldm.to_official(diffusion.unet.state_dict(), ldm.unet_names(UNET_CONFIG), "").items()},
        **{VAE + k: v for k, v in ldm.to_official(diffusion.vae.state_dict(), ldm.vae_names(VAE_CONFIG), "").items()},
        **{TEXT + k: v for k, v in text.items()},
        "betas": EPS.betas.float(),  # official files hold their schedule too
    }


@torch.no_grad()
def assert_same(found: StableDiffusion) -> None:
    (latent, timesteps, text, _), prompt = inputs(), [""]
    assert torch.equal(found(latent, timesteps, text), toy()(latent, timesteps, text))
    assert torch.equal(found.text(prompt), toy().text(prompt))
    image = torch.rand(1, 3, 16, 24)
    assert torch.equal(found.moments(image), toy().moments(image))
    assert torch.equal(found.decode(latent), toy().decode(latent))
    assert not any(p.requires_grad or p.is_meta for p in found.parameters())
    assert not any(buffer.is_meta for buffer in found.buffers())


def test_a_diffusers_folder(tmp_path: Path) -> None:
    found = load(write_folder(tmp_path / "sd"), prediction="eps")
    assert_same(found)
    words = ["a low-resolution photo"]
    assert torch.equal(found.text(words), toy(words=True).text(words))


WEIGHTS = {
    "unet": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "vae": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": ("model.safetensors", "pytorch_model.bin"),
}


def pickled(path: Path) -> Path:
    """The folder with .bin files in place of safetensors."""
    for part, (safe, pickle) in WEIGHTS.items():
        torch.save(load_file(path / part / safe), path / part / pickle)
        (path / part / safe).unlink()
    return path


def test_a_folder_of_pickles(tmp_path: Path) -> None:
    path = pickled(write_folder(tmp_path / "sd"))
    torch.save({"run": print}, path / "text_encoder" / "training_args.bin")  # of another program, and no weights
    assert_same(load(path, prediction="eps"))
    image = torch.rand(1, 3, 16, 24)
    assert torch.equal(load_autoencoder(path).moments(image), toy().moments(image))


@pytest.mark.parametrize("part", WEIGHTS)
def test_pickles_that_are_refused(part: str, tmp_path: Path) -> None:
    path = pickled(write_folder(tmp_path / "sd"))
    safe, pickle = WEIGHTS[part]
    file = path / part / pickle
    torch.save({"state_dict": torch.load(file, weights_only=True), "run": print}, file)
    with pytest.raises(CheckpointError, match=rf"{part}/{pickle} is refused: as a pickle it would run code .*print"):
        load(path, prediction="eps")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"{part}/{pickle} is truncated or not a checkpoint"):
        load(path, prediction="eps")
    file.rename(file.with_suffix(".fp16.bin"))
    with pytest.raises(CheckpointError, match=rf"sd is not .* 2.1-base: {part}/ has neither {safe} nor {pickle}: fetch one"):
        load(path, prediction="eps")


def test_a_folder_with_older_keys(tmp_path: Path) -> None:
    """As the published one has them."""
    path = write_folder(tmp_path / "sd")
    file = path / "text_encoder" / "model.safetensors"
    state = {f"text_model.{key}": value for key, value in load_file(file).items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file, {"format": "pt"})
    file = path / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in older.items():
        state = {key.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value for key, value in state.items()}
    save_file(state, file, {"format": "pt"})
    assert_same(load(path, prediction="eps"))


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_single_file(tmp_path: Path, suffix: str) -> None:
    path, state = tmp_path / f"sd.{suffix}", official_state()
    if suffix == "ckpt":
        torch.save({"state_dict": state, "global_step": 1}, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    found = load(path, prediction="eps")
    assert_same(found)
    with pytest.raises(ValueError, match="the prompt 'a photo' needs a tokenizer"):
        found.text(["a photo"])
    folder = write_folder(tmp_path / "sd") / "tokenizer"
    words = ["blurry"]
    assert torch.equal(load(path, prediction="eps", tokenizer=folder).text(words), toy(words=True).text(words))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    torch.save({key: value.half() for key, value in official_state().items()}, tmp_path / "sd.ckpt")
    found = load(tmp_path / "sd.ckpt", prediction="eps")
    assert {p.dtype for p in found.parameters()} == {torch.float32}


def without(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(prefix)}


def of_sd1(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for key, value in state.items():
        if ".attn2.to_k." in key or ".attn2.to_v." in key:
            state[key] = torch.ones(len(value), 768)
    return {key.replace(TEXT, "cond_stage_model.transformer."): value for key, value in state.items()}


def of_inpainting(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {f"{UNET}input_blocks.0.0.weight": torch.ones(64, 9, 3, 3)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without(TEXT), "it has no text encoder: no key begins with cond_stage_model.model."),
        (without(VAE), "it has no autoencoder: no key begins with first_stage_model."),
        (without(UNET), "it has no UNet: no key begins with model.diffusion_model."),
        (of_sd1, r"it is of Stable Diffusion 1 \(text of width 768\); take 2.1-base"),
        (of_inpainting, "its UNet takes 9 channels, not 4"),
        (without(f"{VAE}decoder.mid."), "its vae is of another form: 26 keys are missing"),
        (lambda state: state | {f"{UNET}spade.weight": torch.ones(1)}, "its UNet has 1 keys .* first is spade.weight"),
    ],
)
def test_wrong_single_files(tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], says: str) -> None:
    torch.save({"state_dict": change(official_state())}, tmp_path / "sd.ckpt")
    with pytest.raises(CheckpointError, match=rf"sd.ckpt is not Stable Diffusion 2.1-base: {says}"):
        load(tmp_path / "sd.ckpt", prediction="eps")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"prediction_type": "v_prediction"}, "its scheduler says prediction_type=v_prediction, but prediction=eps"),
        ({"unet": {"sample_size": 96}}, "its UNet is made for images of 768"),
        ({"unet": {"cross_attention_dim": 768}}, r"it is of Stable Diffusion 1 \(text of width 768\)"),
        ({"unet": {"use_linear_projection": False}}, "it is of Stable Diffusion 1"),
        ({"unet": {"cross_attention_dim": 1024}}, "its text encoder is 64 wide, its UNet wants 1024"),
    ],
)
def test_wrong_folders(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError, match=rf"is not Stable Diffusion 2.1-base: {says}"):
        load(write_folder(tmp_path / "sd", **options), prediction="eps")


def test_missing_parts(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "sd")
    for file in (path / "text_encoder").iterdir():
        file.rename(file.with_suffix(".gone"))
    with pytest.raises(CheckpointError, match=r"has no text_encoder/config\.json"):
        load(path, prediction="eps")
    with pytest.raises(FileNotFoundError, match=r"gone does not exist: give Stable Diffusion 2\.1-base"):
        load(tmp_path / "gone", prediction="eps")
    with pytest.raises(CheckpointError, match=r"tokenizer=.*unet has no vocab.json"):
        load(write_folder(tmp_path / "other"), prediction="eps", tokenizer=path / "unet")


def test_incomplete_weights_of_a_folder(tmp_path: Path) -> None:
    file = write_folder(tmp_path / "sd") / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_in.weight"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unet/ does not fit its config.json \(1 keys, .* missing_keys: conv_in.weight"):
        load(tmp_path / "sd", prediction="eps")


@pytest.mark.parametrize("key", [f"{UNET}out.2.bias", f"{VAE}quant_conv.bias", f"{TEXT}ln_final.bias"])
def test_weights_that_are_not_finite(tmp_path: Path, key: str) -> None:
    state = official_state()
    state[key] = torch.full_like(state[key], float("nan"))
    torch.save({"state_dict": state}, tmp_path / "sd.ckpt")
    with pytest.raises(
        CheckpointError, match=rf"sd\.ckpt holds values that are not finite, in {re.escape(key)}: fetch it again"
    ):
        load(tmp_path / "sd.ckpt", prediction="eps")


def test_weights_of_a_folder_that_are_not_finite(tmp_path: Path) -> None:
    file = write_folder(tmp_path / "sd") / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["quant_conv.bias"][0] = float("inf")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"sd/vae holds values that are not finite, in quant_conv\.bias"):
        load(tmp_path / "sd", prediction="eps")


@pytest.mark.parametrize(("found", "asked"), [("eps", "v"), ("v", "eps")])
def test_what_the_unet_predicts_is_tried(monkeypatch: pytest.MonkeyPatch, found: str, asked: Any) -> None:
    diffusion = toy()
    monkeypatch.setattr(
        StableDiffusion, "forward", lambda _self, latent, *_: latent if found == "eps" else torch.ones_like(latent)
    )
    check_prediction(diffusion, found)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=f"the UNet predicts {found}, not {asked}"):
        check_prediction(diffusion, asked)


# Tokens and latents ---------------------------------------------------------------------------------------------------


def test_tokens() -> None:
    config = toy().text_encoder.config
    empty, marked, plain, long = tokens_of(["", "noisy!", "noisy", "noisy " * 100], tokenizer(), config).tolist()
    assert empty == [49406, 49407] + [0] * 75
    noisy = plain[1]
    assert plain == [49406, noisy, 49407] + [0] * 74
    assert marked == [49406, noisy, 256, 49407] + [0] * 73  # an exclamation mark is a word of its own, and no padding
    assert long == [49406] + [noisy] * 75 + [49407]
    entity, plain_sign = tokens_of(["&amp;amp; noisy", "& noisy"], tokenizer(), config).tolist()
    assert entity == plain_sign


@torch.no_grad()
def test_latents_of_images() -> None:
    diffusion, image = toy(), torch.rand(2, 3, 16, 24)
    moments = diffusion.moments(image)
    assert moments.shape == (2, 8, 2, 3)
    mode = diffusion.mode(moments)
    torch.testing.assert_close(mode, 0.18215 * diffusion.vae.encode(2 * image - 1).latent_dist.mode())
    noise = torch.randn_like(mode)
    deviation = diffusion.vae.encode(2 * image - 1).latent_dist.std
    torch.testing.assert_close(diffusion.sample(moments, noise), mode + 0.18215 * deviation * noise)
    decoded = diffusion.vae.decode(mode / 0.18215).sample
    torch.testing.assert_close(diffusion.decode(mode), (decoded + 1) / 2)


def test_images_without_a_latent() -> None:
    with pytest.raises(ValueError, match="an image of 20x24 has no latent: pad its sides to multiples of 8"):
        toy().moments(torch.rand(1, 3, 20, 24))


# Samplers against diffusers' ------------------------------------------------------------------------------------------


def wavy(latent: Tensor, timestep: int) -> Tensor:
    """A smooth function in place of a network."""
    return torch.sin(latent + timestep / 300) + 0.1 * latent


BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize("schedule", [EPS, V], ids=["eps", "v"])
def test_the_spaced_sampler_is_diffusers_ddpm(schedule: NoiseSchedule) -> None:
    scheduler: Any = DDPMScheduler(
        **BETAS,
        prediction_type="epsilon" if schedule is EPS else "v_prediction",
        rescale_betas_zero_snr=schedule is V,
        clip_sample=False,
        variance_type="fixed_small",
    )
    scheduler.set_timesteps(timesteps=[999, 666, 333, 0])
    generator, latent = torch.Generator().manual_seed(3), torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    *_, ours = SAMPLERS["spaced"](wavy, schedule, latent, 4, drawn_from(torch.Generator().manual_seed(3)))
    for timestep in scheduler.timesteps:
        latent = scheduler.step(wavy(latent, int(timestep)), timestep, latent, generator=generator).prev_sample
    torch.testing.assert_close(ours, latent, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("steps", [4, 7])
def test_ddim_is_diffusers(steps: int) -> None:
    scheduler: Any = DDIMScheduler(
        **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading"
    )
    scheduler.set_timesteps(steps)
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    states = list(SAMPLERS["ddim"](wavy, EPS, latent, steps, drawn_from(torch.Generator())))
    if steps == 7:  # 1000 // 7 leaves room for an eighth, the noisiest: diffusers leaves it out
        assert len(states) == 8
        return
    for timestep in scheduler.timesteps:
        latent = scheduler.step(wavy(latent, int(timestep)), timestep, latent).prev_sample
    torch.testing.assert_close(states[-1], latent, atol=1e-4, rtol=1e-4)


def test_dpmpp_2m_is_diffusers() -> None:
    scheduler: Any = DPMSolverMultistepScheduler(
        **BETAS, algorithm_type="dpmsolver++", solver_order=2, lower_order_final=False, final_sigmas_type="zero"
    )
    timesteps, sigmas = sigma_schedule(EPS, 6)
    scheduler.set_timesteps(6)
    scheduler.timesteps, scheduler.sigmas = torch.tensor(timesteps[:-1]), torch.tensor(sigmas)
    latent = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    *_, ours = SAMPLERS["edm_dpm++_2m"](wavy, EPS, latent, 6, drawn_from(torch.Generator()))
    for timestep in scheduler.timesteps:
        latent = scheduler.step(wavy(latent, int(timestep)), timestep, latent).prev_sample
    torch.testing.assert_close(ours, latent, atol=2e-3, rtol=1e-3)


# The second stage -----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "schedule": EPS,
    "sampler": "spaced",
    "steps": 2,
    "scale": 4.0,
    "rescale": False,
    "positive": "",
    "negative": "low quality, blurry",
    "strength": 1.0,
    "start": "noise",
    "noise_aug": 0,
    "tile_px": 0,
    "stride_px": 0,
    "guidance": None,
}
GUIDANCE: dict[str, Any] = {"scale": 0.1, "start": 1001, "stop": -1, "space": "rgb", "repeats": 1, "weighted": True}


def restored(first: Tensor, *, seed: int = 0, **changes: Any) -> Tensor:
    stage = DiffBIR(control=control(), diffusion=toy(words=True), **{**SETTINGS, **changes})
    return stage(first, drawn_from(torch.Generator().manual_seed(seed)))


def photograph(h: int, w: int) -> Tensor:
    return torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(5))


def test_any_size_comes_back_in_its_size() -> None:
    first = photograph(21, 35)
    made = restored(first)
    assert made.shape == first.shape
    assert made.isfinite().all()
    assert torch.equal(made, restored(first))
    assert not torch.equal(made, restored(first, seed=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "edm_dpm++_3m_sde", "schedule": V},
        {"sampler": "edm_dpm++_2m"},
        {"sampler": "ddim"},
        {"scale": 1.0},
        {"rescale": True},
        {"negative": ""},
        {"strength": 0.5},
        {"start": "cond"},
        {"noise_aug": 100},
        {"tile_px": 16, "stride_px": 8},
        {"guidance": Guidance(**GUIDANCE)},
        {"guidance": Guidance(**GUIDANCE | {"space": "latent", "weighted": False, "repeats": 2})},
    ],
    ids=", ".join,  # a schedule's own text has its address, and all processes must give a test the same name
)
def test_each_setting_changes_the_result(changes: dict[str, Any]) -> None:
    first = photograph(32, 32)
    made = restored(first, **changes)
    assert made.isfinite().all()
    assert (made - restored(first)).abs().max() > 1e-5


def test_images_of_a_batch_do_not_touch() -> None:
    both = torch.cat([photograph(16, 16), photograph(16, 16) / 2])
    stage = DiffBIR(control=control(), diffusion=toy(words=True), **SETTINGS)
    fixed = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    together = stage(both, lambda like: fixed.expand_as(like))
    for i in range(2):
        torch.testing.assert_close(together[i : i + 1], stage(both[i : i + 1], lambda like: fixed), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_bf16_networks_and_float32_sampling(how: str) -> None:
    first, seen = photograph(16, 16), []
    full = restored(first)
    network, diffusion = control(), copy.deepcopy(toy(words=True))
    if how == "weights":
        network, diffusion = network.bfloat16(), diffusion.bfloat16()
    stage = DiffBIR(control=network, diffusion=diffusion, **SETTINGS)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        made = stage(
            first, drawn_from(torch.Generator().manual_seed(0)), lambda states: (seen.append(x.dtype) or x for x in states)
        )
    assert set(seen) == {torch.float32}
    assert made.dtype == torch.float32
    assert 0 < (made - full).norm() < 0.2 * full.norm()


def test_progress_sees_every_step() -> None:
    seen: list[Tensor] = []

    def progress(states: Any) -> Any:
        for state in states:
            seen.append(state)
            yield state

    stage = DiffBIR(control=control(), diffusion=toy(words=True), **SETTINGS | {"steps": 3})
    stage(photograph(16, 16), drawn_from(torch.Generator().manual_seed(0)), progress)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampler": "euler"}, "sampler=euler: there are spaced, ddim, edm_dpm"),
        ({"start": "image"}, "start=image: give noise or cond"),
        ({"start": "cond", "schedule": V}, "start=cond with a zero-SNR schedule"),
        ({"noise_aug": 1000}, r"noise_aug=1000: a timestep from 0 \(none\) to 999"),
        ({"tile_px": 100, "stride_px": 8}, "tile_px=100, stride_px=8: multiples of 8"),
        ({"guidance": Guidance(**GUIDANCE), "sampler": "ddim"}, "guidance with sampler=ddim"),
    ],
)
def test_settings_that_do_not_go_together(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DiffBIR(control=control(), diffusion=toy(), **{**SETTINGS, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"space": "pixel"}, "guidance space=pixel: give rgb or latent"),
        ({"space": "latent"}, "g_loss=w_mse with g_space=latent"),
    ],
)
def test_guidance_that_does_not_exist(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Guidance(**{**GUIDANCE, **changes})
