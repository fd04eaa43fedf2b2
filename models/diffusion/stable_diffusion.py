"""Stable Diffusion 2.1 as IRControlNet's frozen backbone: diffusers' UNet and autoencoder, transformers' text encoder.

Only what needs Stable Diffusion imports this file, as diffusers and transformers take seconds to import.
"""

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from models.diffusion import ldm
from models.diffusion.schedule import TIMESTEPS, Prediction
from models.files.family import CheckpointError, shown
from models.files.folders import check_size, settings, settings_of
from models.files.official import check_finite, read
from models.files.sizes import on_paper

HEAD_WIDTH = 64  # channels of an attention head, in all of Stable Diffusion 2's networks; no key tells
UNET, VAE, TEXT, TEXT_SD1 = (
    "model.diffusion_model.",
    "first_stage_model.",
    "cond_stage_model.model.",
    "cond_stage_model.transformer.",
)


class StableDiffusion(nn.Module):
    """The frozen parts: never trained, always in eval mode.

    A latent here is the autoencoder's, times its scaling factor (0.18215), as the UNet takes it. A network in half precision
    computes in half precision; one in float32 follows the autocast around it. Images and latents come out as float32 in both
    cases, so that sampling adds up in float32.

    Args:    tokenizer: for prompts; None allows the empty prompt alone.
    """

    def __init__(
        self,
        *,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer | None,
    ) -> None:
        super().__init__()
        self.unet: Any = unet  # Any, as diffusers and transformers annotate few of the methods used here
        self.vae: Any = vae
        self.text_encoder: Any = text_encoder
        self.features: Tensor
        self.tokenizer = tokenizer
        self.kept: list[str] = []  # prompts whose features stay when the text encoder is dropped
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "StableDiffusion":
        """Stays in eval mode, whatever the module around it does."""
        return super().train(False)

    def forward(self, latent: Tensor, timesteps: Tensor, text: Tensor, control: list[Tensor] | None = None) -> Tensor:
        """The UNet's output, noise or v, (b, 4, h, w) as latent.

        Args:    timesteps: (b,). text: (b, 77, c). control: an IRControlNet's residuals. The last is added to the middle block,
                     all others to the skip connections.
        """
        dtype = self.unet.dtype
        residuals: dict[str, Any] = {}
        if control is not None:  # given only one of the two, diffusers would take it for another kind of adapter
            *skips, middle = (each.to(dtype) for each in control)
            residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
        with in_its_precision(self.unet):
            return self.unet(latent.to(dtype), timesteps, text.to(dtype), return_dict=False, **residuals)[0].float()

    def moments(self, image: Tensor) -> Tensor:
        """(b, 3, h, w) in [0, 1] to mean and log variance of the autoencoder's posterior, (b, 8, h/8, w/8), unscaled.

        Raises:  ValueError: sides that are no multiples of the autoencoder's factor.
        """
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        if any(side % factor for side in image.shape[-2:]):
            h, w = image.shape[-2:]
            raise ValueError(f"an image of {h}x{w} has no latent: pad its sides to multiples of {factor}")
        with in_its_precision(self.vae):
            return self.vae.encode((2 * image - 1).to(self.vae.dtype)).latent_dist.parameters.float()

    def mode(self, moments: Tensor) -> Tensor:
        """The latent of a condition, (b, 4, h/8, w/8): the posterior's mean."""
        return self.vae.config["scaling_factor"] * moments.chunk(2, 1)[0]

    def sample(self, moments: Tensor, noise: Tensor) -> Tensor:
        """The latent of a training target, (b, 4, h/8, w/8): a draw from the posterior, made with unit noise of that shape."""
        mean, log_variance = moments.chunk(2, 1)
        return self.vae.config["scaling_factor"] * (mean + (log_variance.clamp(-30, 20) / 2).exp() * noise)

    def decode(self, latent: Tensor) -> Tensor:
        """(b, 4, h/8, w/8) to an image (b, 3, h, w), about [0, 1], not clamped."""
        unscaled = (latent / self.vae.config["scaling_factor"]).to(self.vae.dtype)
        with in_its_precision(self.vae):
            return (self.vae.decode(unscaled, return_dict=False)[0].float() + 1) / 2

    def text(self, prompts: list[str]) -> Tensor:
        """(b, 77, c): the output of the text encoder's last layer but one after its final norm. Padding is not masked.

        Raises:  ValueError: a prompt that is not empty, where there is no tokenizer, or one that was not kept.
        """
        if self.kept:
            if unknown := [prompt for prompt in prompts if prompt not in self.kept]:
                raise ValueError(f"the text encoder was let go, and the features of {unknown[0][:40]!r} were not kept")
            return torch.stack([self.features[self.kept.index(prompt)] for prompt in prompts])
        tokens = tokens_of(prompts, self.tokenizer, self.text_encoder.config)
        with in_its_precision(self.text_encoder):
            return self.text_encoder(tokens.to(self.text_encoder.device)).last_hidden_state

    @torch.no_grad()
    def keep_texts(self, prompts: list[str]) -> None:
        """Computes the features of these prompts once, and drops the text encoder, which has 354 M parameters."""
        self.register_buffer("features", self.text(prompts), persistent=False)
        self.kept, self.text_encoder = prompts, None

    def check_prediction(self, prediction: Prediction) -> None:
        """Raises CheckpointError: the UNet predicts something else; see the function `check_prediction`."""
        check_prediction(self, prediction)


def in_its_precision(part: Any) -> torch.autocast:
    """The autocast around a part, switched off if the part's weights are not float32."""
    kind = part.device.type
    return torch.autocast(kind, enabled=part.dtype == torch.float32 and torch.is_autocast_enabled(kind))


def tokens_of(prompts: list[str], tokenizer: CLIPTokenizer | None, config: CLIPTextConfig) -> Tensor:
    """(b, 77): OpenCLIP's tokens, which are start, words, end, zeros. Longer prompts are cut.

    The tokenizer's own padding is not used: its padding token is a different one, or drops the exclamation marks of a prompt.
    As in the reference, HTML entities are decoded twice. The reference's repair of broken Unicode is left out.
    """
    length = config.max_position_embeddings
    start, end = config.vocab_size - 2, config.vocab_size - 1  # the published folder's config.json names other numbers
    rows = []
    for prompt in prompts:
        text = html.unescape(html.unescape(prompt)).strip()
        if text and tokenizer is None:
            raise ValueError(
                f"the prompt {prompt[:40]!r} needs a tokenizer, and a single-file checkpoint has none: "
                "give tokenizer=FOLDER of one, with vocab.json and merges.txt"
            )
        words = tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer is not None and text else []
        row = [start, *words[: length - 2], end]
        rows.append(row + [0] * (length - len(row)))
    return torch.tensor(rows)


def load(path: str | Path, *, prediction: Prediction, tokenizer: str | Path | None = None) -> StableDiffusion:
    """Stable Diffusion 2.1-base in float32 on the CPU, from a diffusers folder or an official single file. Nothing is fetched.

    Args:    path: a folder with unet/, vae/, text_encoder/ and tokenizer/ as diffusers writes them (safetensors, or .bin where
                 there are none), or a .ckpt or .safetensors file. No code in it is run.
             prediction: what the UNet must predict: "eps" for 2.1-base, "v" for the one of DiffBIR v2.1. A single file does
                 not say it; `check_prediction` finds out.
             tokenizer: a folder with vocab.json and merges.txt, in place of the one in `path`.
    Raises:  FileNotFoundError; CheckpointError: parts missing, or weights of another model.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give Stable Diffusion 2.1-base, a diffusers folder or a single file")
    try:
        parts = _from_folder(path, prediction) if path.is_dir() else _from_file(path)
        words = Path(tokenizer) if tokenizer is not None else path / "tokenizer"
        return StableDiffusion(**parts, tokenizer=read_tokenizer(words) if tokenizer is not None or words.is_dir() else None)
    except (CheckpointError, OSError):
        raise
    except Exception as error:  # a stranger's settings, keys and shapes raise nearly anything
        raise CheckpointError(f"{path} is not Stable Diffusion 2.1-base: {shown(str(error), 1000)}") from error


def load_autoencoder(path: str | Path) -> StableDiffusion:
    """As `load`, but with the autoencoder alone, so that only `moments`, `mode`, `sample` and `decode` work."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give Stable Diffusion 2.1-base, a diffusers folder or a single file")
    try:
        vae = _part_of_folder(path, "vae", AutoencoderKL) if path.is_dir() else _autoencoder(_group(_finite(path, VAE), VAE))
    except Exception as error:  # a stranger's settings, keys and shapes raise nearly anything
        raise CheckpointError(f"{path} holds no autoencoder of Stable Diffusion: {shown(str(error), 1000)}") from error
    nothing: Any = None
    return StableDiffusion(unet=nothing, vae=vae, text_encoder=nothing, tokenizer=None)


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer from its vocabulary. Raises CheckpointError for a folder without it."""
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"tokenizer={folder} has no {missing[0]}: give the tokenizer/ of a diffusers folder")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges: Any = [
        (left, right) for left, _, right in (line.partition(" ") for line in lines if not line.startswith("#version")) if right
    ]
    return CLIPTokenizer(vocab=json.loads((folder / "vocab.json").read_text(encoding="utf-8")), merges=merges)


def _from_folder(path: Path, prediction: Prediction) -> dict[str, Any]:
    configs = {}
    for name in ("unet", "vae", "text_encoder"):
        file = path / name / "config.json"
        if not file.is_file():
            raise CheckpointError(
                f"{path} has no {name}/config.json: a diffusers folder of Stable Diffusion 2.1-base has unet/, vae/ and "
                "text_encoder/"
            )
        configs[name] = settings(file)
    scheduler = path / "scheduler" / "scheduler_config.json"
    predicted = settings(scheduler).get("prediction_type", "epsilon") if scheduler.is_file() else None
    _check_unet(configs["unet"], configs["text_encoder"]["hidden_size"])
    if configs["unet"].get("sample_size") == 96:
        raise ValueError("its UNet is made for images of 768 (Stable Diffusion 2.1, which predicts v); take 2.1-base")
    if predicted not in (None, {"eps": "epsilon", "v": "v_prediction"}[prediction]):
        raise ValueError(f"its scheduler says prediction_type={predicted}, but prediction={prediction} is asked for")
    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    return {name: _part_of_folder(path, name, kind) for name, kind in kinds.items()}


def _part_of_folder(path: Path, name: str, kind: Any) -> Any:
    disable_progress_bar()  # it would mix with a command's own progress bar
    safe, pickled = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
    if kind is CLIPTextModel:
        safe, pickled = "model.safetensors", "pytorch_model.bin"
    there = {file.name.removesuffix(".index.json") for file in (path / name).iterdir()}  # of shards there is an index
    if not {safe, pickled} & there:
        raise ValueError(f"{name}/ has neither {safe} nor {pickled}: fetch one of them, and no variant such as fp16 alone")
    weights: dict[str, Tensor] = {}
    if safe not in there:
        for file in (path / name).glob(f"{Path(pickled).stem}*.bin"):
            weights |= read(file).state  # diffusers runs no code of it either, but this says why a file is refused
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": safe in there, "output_loading_info": True}
    if kind is CLIPTextModel:
        known = settings_of(CLIPTextConfig, path / name)
        check_size(path / name, lambda: CLIPTextModel(CLIPTextConfig(**known)), weights)
        options |= {"config": CLIPTextConfig(**known), "attn_implementation": "sdpa", "dtype": torch.float32}
    else:
        check_size(path / name, lambda: kind(**settings_of(kind, path / name)), weights)
        options |= {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    part, report = kind.from_pretrained(path / name, **options)
    odd = [f"{what}: {key}" for what in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[what]]
    if odd := [each for each in odd if not each.endswith("position_ids")]:
        raise ValueError(f"{name}/ does not fit its config.json ({len(odd)} keys, the first is of {odd[0]})")
    check_finite(part.state_dict(), f"{path}/{name}")
    return part


def _from_file(path: Path) -> dict[str, Any]:
    state = _finite(path, UNET, VAE, TEXT)
    groups = {prefix: _group(state, prefix) for prefix in (UNET, VAE, TEXT)}
    shapes = {prefix: {key: tuple(value.shape) for key, value in group.items()} for prefix, group in groups.items()}
    if not groups[UNET]:
        raise ValueError(f"it has no UNet: no key begins with {UNET} (its first is {next(iter(state))})")
    unet = ldm.unet_config(shapes[UNET], HEAD_WIDTH)
    _check_unet(unet)
    for prefix, what in ((VAE, "autoencoder"), (TEXT, "text encoder")):
        if not groups[prefix]:
            raise ValueError(f"it has no {what}: no key begins with {prefix}; take the full checkpoint, not the UNet's alone")
    text = ldm.text_config(shapes[TEXT], HEAD_WIDTH)
    _check_unet(unet, text["hidden_size"])
    with on_paper(state):  # the weights come from the file, so drawing them would be lost time
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**unet),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    weights = {
        "unet": ldm.to_diffusers(groups[UNET], ldm.unet_names(unet), "its UNet"),
        "text_encoder": ldm.text_to_diffusers(groups[TEXT], text["num_hidden_layers"]),
    }
    for name, part in parts.items():
        _fill(part, weights[name], name)
    positions = torch.arange(text["max_position_embeddings"])[None]
    parts["text_encoder"].embeddings.position_ids = positions  # it is no weight, so it would stay on the meta device
    return parts | {"vae": _autoencoder(groups[VAE])}


def _finite(path: Path, *prefixes: str) -> dict[str, Tensor]:
    """The weights of a file, of which those of the parts asked for are finite."""
    state = read(path).state
    check_finite({key: value for key, value in state.items() if key.startswith(prefixes)}, str(path))
    return state


def _group(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _autoencoder(state: dict[str, Tensor]) -> Any:
    config = ldm.vae_config({key: tuple(value.shape) for key, value in state.items()})
    with on_paper(state):
        vae: Any = AutoencoderKL(**config)
    _fill(vae, ldm.to_diffusers(state, ldm.vae_names(config), "its autoencoder"), "vae")
    return vae


def _fill(part: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    wanted = part.state_dict()
    odd = [
        key
        for key in {**wanted, **weights}
        if key not in wanted or key not in weights or wanted[key].shape != weights[key].shape
    ]
    if odd:
        raise ValueError(
            f"its {name} is of another form: {len(odd)} keys are missing, unexpected or of another shape, such as {odd[0]}"
        )
    part.load_state_dict({key: value.float() for key, value in weights.items()}, strict=True, assign=True)


def _check_unet(config: Mapping[str, Any], text_width: int | None = None) -> None:
    if hint := ldm.hint_of_sd1(config):
        raise ValueError(hint.removeprefix("; ") + "; take 2.1-base")
    if config["in_channels"] != 4:
        raise ValueError(f"its UNet takes {config['in_channels']} channels, not 4: it is for inpainting, depth or upscaling")
    if text_width not in (None, config["cross_attention_dim"]):
        raise ValueError(f"its text encoder is {text_width} wide, its UNet wants {config['cross_attention_dim']}")


@torch.no_grad()
def check_prediction(diffusion: StableDiffusion, prediction: Prediction) -> None:
    """Tries what the UNet predicts: given pure noise, one that predicts eps returns it, and one that predicts v does not.

    It costs one forward on a small latent. A UNet with random weights counts as v.

    Raises:  CheckpointError: the UNet predicts something else than `prediction`.
    """
    device = diffusion.unet.device
    noise = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
    output = diffusion(noise, torch.tensor([TIMESTEPS - 1], device=device), diffusion.text([""]))
    if not output.isfinite().all():
        raise CheckpointError("the UNet's output on pure noise is not finite: check the weights, fetch them again")
    alike = torch.cosine_similarity(output.flatten(), noise.flatten(), 0).item()
    found = "eps" if alike > 0.5 else "v"
    if found != prediction:
        raise CheckpointError(
            f"the UNet predicts {found}, not {prediction} (its output on pure noise has a cosine of {alike:.2f} to it): for "
            "eps take Stable Diffusion 2.1-base (512 px), for v the zero-SNR UNet of DiffBIR v2.1; 2.1 at 768 px is neither"
        )
