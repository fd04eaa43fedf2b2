"""Folders of diffusers from strangers: their config.json loads no code, and asks for no more than the weights beside it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.diffusion.stable_diffusion import load, load_autoencoder
from models.files import official
from models.files.families.ircontrolnet import to_diffusers
from models.files.family import CheckpointError
from models.files.folders import LOADS
from tests.models.diffusion.test_stable_diffusion import assert_same, control, official_state, pickled, write_folder


@pytest.fixture
def sd(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "sd")


def change(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("key", LOADS)
def test_settings_that_load_code_are_refused(sd: Path, part: str, key: str) -> None:
    change(sd / part / "config.json", {key: "someone/kernel\x1b[2J"})
    with pytest.raises(
        CheckpointError, match=rf"{part}/config\.json is refused: {key}=someone/kernel\\x1b\[2J would load code"
    ):
        load(sd, prediction="eps")


def test_the_text_encoder_takes_our_attention(sd: Path) -> None:
    """Whatever a later name of that setting may be: the library sees known settings alone."""
    change(sd / "text_encoder" / "config.json", {"attention_from": "someone/kernel", "_attn_implementation_internal": "a/b"})
    found = load(sd, prediction="eps")
    assert_same(found)
    assert found.text_encoder.config._attn_implementation == "sdpa"
    assert not hasattr(found.text_encoder.config, "attention_from")


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"layers_per_block": 10**7}),
        ("unet", {"block_out_channels": [400_000, 400_000]}),
        ("unet", {"block_out_channels": "many"}),
        ("vae", {"layers_per_block": 10**7}),
        ("vae", {"latent_channels": 10**7}),
        ("text_encoder", {"num_hidden_layers": 10**7}),
        ("text_encoder", {"vocab_size": 10**10}),
        ("text_encoder", {"num_attention_heads": 0}),
    ],
)
@pytest.mark.parametrize("bins", [False, True])
def test_networks_larger_than_their_weights(sd: Path, part: str, changes: dict[str, Any], bins: bool) -> None:
    change((pickled(sd) if bins else sd) / part / "config.json", changes)
    with pytest.raises(CheckpointError, match=rf"sd/{part}/config\.json does not suit the weights beside it: "):
        load(sd, prediction="eps")
    if part == "vae":
        with pytest.raises(CheckpointError, match=r"sd/vae/config\.json does not suit the weights beside it: "):
            load_autoencoder(sd)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, "\x00", "null"])
@pytest.mark.parametrize("file", ["unet/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"])
def test_files_without_settings(sd: Path, file: str, text: str) -> None:
    (sd / file).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{file} (is no JSON|holds a \w+ in place of settings)"):
        load(sd, prediction="eps")


def test_an_index_that_names_other_folders(sd: Path) -> None:
    (sd / "vae" / "diffusion_pytorch_model.safetensors").rename(sd / "private.safetensors")
    index = {"weight_map": {"encoder.conv_in.weight": "../private.safetensors"}, "metadata": {}}
    (sd / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json is refused: it names weights that do not lie beside it"):
        load(sd, prediction="eps")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"quantization_config": {"quant_method": "someone"}}, "is refused: quantization_config=.* would load code"),
        ({"layers_per_block": 10**7}, "does not suit the weights beside it: the network that it asks for is larger"),
        ({"_class_name": ["\x1b[2J"]}, r"its config.json is of \['\\x1b\[2J'\], not of ControlNetModel"),
        ({"conditioning_channels": None}, "does not suit the weights"),
    ],
)
def test_control_networks(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    made: Any = to_diffusers(control())
    made.save_pretrained(tmp_path / "control")
    change(tmp_path / "control" / "config.json", changes)
    with pytest.raises(CheckpointError, match=says):
        official.build(tmp_path / "control")


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.9999999.0.in_layers.0.weight",
        "model.diffusion_model.input_blocks.1.0.\x1b[2J",
        "first_stage_model.encoder.down.9999999.block.0.conv1.weight",
        "cond_stage_model.model.transformer.resblocks.0.\x1b[2J",
    ],
)
def test_far_layers_of_a_single_file(tmp_path: Path, key: str) -> None:
    torch.save(official_state() | {key: torch.ones(64, 64, 3, 3)}, tmp_path / "sd.ckpt")
    with pytest.raises(CheckpointError, match=r"sd\.ckpt is not Stable Diffusion 2\.1-base") as caught:
        load(tmp_path / "sd.ckpt", prediction="eps")
    assert str(caught.value).isprintable()
