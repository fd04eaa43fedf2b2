"""IRControlNet without diffusers: official keys, the names of LDM, what the residuals depend on, gradients, files."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from models.diffusion import ldm
from models.diffusion.ircontrolnet import IRControlNet, timestep_embedding
from models.files.family import CheckpointError
from models.files.official import build, export, recognise
from tests.parity.cases import folders, manifest, manifests_in

CONF = Path(__file__).parents[3] / "conf" / "network" / "ircontrolnet.yaml"
TINY: dict[str, Any] = {
    "in_channels": 4,
    "hint_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "num_head_channels": 64,
    "context_dim": 32,
    "gradient_checkpointing": False,
}
MANIFESTS = {path.name.split(".")[0]: path for folder in folders() for path in manifests_in(folder)}
KEYMAPS = [path for folder in folders() if (path := folder / "ircontrolnet" / "keymap_fullsize.json").is_file()]
PARTS = {"unet": ("sd21_ldm_unet", "model.diffusion_model."), "vae": ("sd21_ldm_vae", "first_stage_model.")}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def tiny(**changes: Any) -> IRControlNet:
    network = IRControlNet(**{**TINY, **changes})
    for name, value in network.named_parameters():
        if name.startswith(("zero_convs", "middle_block_out")):
            torch.nn.init.normal_(value, std=0.1)  # as drawn, they are zero, and all comes out zero
    return network


def inputs(h: int = 8, w: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.randn(2, 4, h, w), torch.tensor([3, 900]), torch.randn(2, 5, 32), torch.randn(2, 4, h, w)


def on_meta(path: Path, prefix: str = "") -> dict[str, Tensor]:
    shapes = manifest(path)["keys"]
    return {key.removeprefix(prefix): torch.empty(shape, device="meta") for key, shape in shapes.items()}


def full_size() -> IRControlNet:
    with torch.device("meta"):
        arguments = yaml.safe_load(CONF.read_text())
        assert arguments.pop("_target_") == "models.diffusion.ircontrolnet.IRControlNet"
        return IRControlNet(**arguments)


def test_the_published_size() -> None:
    network = full_size()
    assert len(network.state_dict()) == 324
    assert sum(p.numel() for p in network.parameters()) == 363_153_280
    assert len(network.zero_convs) == 12
    assert network.multiple == 8


@pytest.mark.skipif("diffbir_controlnet" not in MANIFESTS, reason="PARITY_DIR has no manifest of it")
def test_the_official_keys() -> None:
    official, network = on_meta(MANIFESTS["diffbir_controlnet"]), full_size()
    ours = {key: value.shape for key, value in network.state_dict().items()}
    assert ours == {key: value.shape for key, value in official.items()}
    assert list(ours) == list(official)  # in the official order too
    found = recognise(official)
    arguments = yaml.safe_load(CONF.read_text())
    del arguments["_target_"]
    assert (found.family, found.arguments) == ("ircontrolnet", arguments | {"gradient_checkpointing": False})
    assert found.assumed == ["hint_channels=4, num_head_channels=64: no key tells; so they are in every official file"]


@pytest.mark.skipif(not KEYMAPS, reason="PARITY_DIR has no map of keys")
@pytest.mark.parametrize("part", ["unet", "vae", "clip", "controlnet"])
def test_every_key_has_its_name_in_diffusers_and_back(part: str) -> None:
    wanted = json.loads(KEYMAPS[0].read_text())["maps"][part]
    if part == "controlnet":
        official, prefix = on_meta(MANIFESTS["diffbir_controlnet"]), ""
        shapes = {key: tuple(value.shape) for key, value in official.items()}
        names = ldm.control_names(ldm.unet_config(shapes, 64))
        made, back = ldm.to_diffusers(official, names, part), None
    elif part == "clip":
        official, prefix = on_meta(MANIFESTS["sd21_ldm_openclip"], "cond_stage_model.model."), "cond_stage_model.model."
        config = ldm.text_config({key: tuple(value.shape) for key, value in official.items()}, 64)
        assert (config["num_hidden_layers"], config["num_attention_heads"], config["hidden_act"]) == (23, 16, "gelu")
        made = ldm.text_to_diffusers(official, 23)
        back = ldm.text_to_official(made, 23)
    else:
        official, prefix = on_meta(MANIFESTS[PARTS[part][0]], PARTS[part][1]), PARTS[part][1]
        shapes = {key: tuple(value.shape) for key, value in official.items()}
        names = ldm.unet_names(ldm.unet_config(shapes, 64)) if part == "unet" else ldm.vae_names(ldm.vae_config(shapes))
        made = ldm.to_diffusers(official, names, part)
        back = ldm.to_official(made, names, part)
        assert set(back) == set(official)
    if part == "clip":
        assert set(made) == {name for found in wanted.values() for name in found}
    else:
        for key, found in wanted.items():
            own = ldm.to_diffusers({key.removeprefix(prefix): official[key.removeprefix(prefix)]}, names, part)
            if key != "input_blocks.0.0.weight":  # which diffusers splits between two modules
                assert list(own) == found, key
    if back is not None:
        assert all(back[key].shape == official[key].shape for key in back)


def test_one_residual_for_each_skip_connection_and_the_middle() -> None:
    with torch.no_grad():
        made = tiny(channel_mult=[1, 2, 2], num_res_blocks=2)(*inputs(8, 4))
    first, second, third = [(64, 8, 4)] * 3, [(128, 4, 2)] * 2, [(128, 2, 1)] * 2
    assert [tuple(each.shape[1:]) for each in made] == [*first, (64, 4, 2), *second, (128, 2, 1), *third, (128, 2, 1)]


def test_a_fresh_network_controls_nothing() -> None:
    with torch.no_grad():
        assert all(torch.equal(each, torch.zeros_like(each)) for each in IRControlNet(**TINY)(*inputs()))


def test_each_input_reaches_every_residual() -> None:
    network, given = tiny().eval(), inputs()
    with torch.no_grad():
        before = network(*given)
        for place in range(4):
            changed = list(given)
            changed[place] = changed[place] + 1
            after = network(*changed)
            first = 1 if place in (1, 2) else 0  # timestep and text come in behind the first convolution
            assert all((a - b).abs().max() > 1e-4 for a, b in zip(before[first:], after[first:], strict=True)), place


def test_latent_and_condition_are_not_interchangeable() -> None:
    network, (latent, timesteps, text, condition) = tiny().eval(), inputs()
    with torch.no_grad():
        first = network(latent, timesteps, text, condition)[0]
        swapped = network(condition, timesteps, text, latent)[0]
    assert (first - swapped).abs().max() > 1e-2


def test_timestep_embedding_by_hand() -> None:
    # dim 4: frequencies 1 and 10000 ** -(1 / 2) = 0.01; cosines first
    made = timestep_embedding(torch.tensor([0, 100]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [0.862319, 0.540302, -0.506366, 0.841471]])
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_checkpointing_gives_the_same_gradients() -> None:
    plain, thrifty = tiny(), tiny(gradient_checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    given = inputs()
    for network in (plain, thrifty):
        sum(each.square().mean() for each in network(*given)).backward()  # type: ignore[union-attr]
    for (name, p), q in zip(plain.named_parameters(), thrifty.parameters(), strict=True):
        assert p.grad is not None, name
        assert q.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad)


def test_bf16_autocast_trains() -> None:
    network, given = tiny(), inputs()
    exact = network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        made = network(*given)
    assert all((a - b.float()).norm() < 0.03 * a.norm() for a, b in zip(exact, made, strict=True))
    sum(each.float().square().mean() for each in made).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_bf16_weights_give_about_the_same() -> None:
    network, given = tiny().eval(), inputs()
    with torch.no_grad():
        full = network(*given)
        half = network.bfloat16()(*(each.bfloat16() if each.is_floating_point() else each for each in given))
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).norm() < 0.03 * a.norm()


@pytest.mark.parametrize("wrapper", ["none", "state_dict", "module"])
def test_official_files(tmp_path: Path, wrapper: str) -> None:
    network, given = tiny().eval(), inputs()
    state = network.state_dict()
    if wrapper == "module":
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save({"state_dict": state} if wrapper == "state_dict" else state, tmp_path / "v2.pth")
    again = build(tmp_path / "v2.pth")
    export(tmp_path / "v2.pth", tmp_path / "out.pth", "official")
    assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == set(network.state_dict())
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(network(*given), again(*given), strict=True))


def test_a_file_of_the_whole_model_is_no_control_network(tmp_path: Path) -> None:
    torch.save({f"model.diffusion_model.{k}": v for k, v in tiny().state_dict().items()}, tmp_path / "sd.ckpt")
    with pytest.raises(CheckpointError, match="unknown network"):
        build(tmp_path / "sd.ckpt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, r"network.model_channels=48: widths are multiples of 32"),
        ({"num_head_channels": 48}, r"network.num_head_channels=48 does not divide the width 64"),
        ({"attention_resolutions": [4]}, r"attention_resolutions=\[4\]: no level has factor 4; .* factors are \[1, 2\]"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a latent of 7x6 \(an image of 56x48\) can't be halved 1 times: .* multiples of 16"):
        tiny()(*inputs(7, 6))


def test_a_condition_of_another_size_is_refused() -> None:
    latent, timesteps, text, _ = inputs()
    with pytest.raises(ValueError, match=r"the condition is \(2, 4, 8, 8\), the latent \(2, 4, 8, 6\)"):
        tiny()(latent, timesteps, text, torch.randn(2, 4, 8, 8))


def test_keys_without_a_name_are_an_error() -> None:
    names = {"conv": "convolution"}
    assert list(ldm.to_diffusers({"conv.weight": torch.ones(1)}, names, "it")) == ["convolution.weight"]
    with pytest.raises(ValueError, match=r"it has 2 keys that don't belong there, the first is b.bias"):
        ldm.to_diffusers({"conv.weight": torch.ones(1), "b.bias": torch.ones(1), "c": torch.ones(1)}, names, "it")


def test_only_the_backbone_imports_diffusers() -> None:
    """Importing it takes seconds, which a training of another network would lose."""
    heavy = {"diffusers", "transformers", "models.diffusion.stable_diffusion", "models.diffusion.diffbir"}
    importing = {}
    root = CONF.parents[2]
    for file in (root / "models").rglob("*.py"):
        top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in top}
        importing[str(file.relative_to(root))] = modules & heavy
    assert len(importing) > 30
    users = {name for name, found in importing.items() if found}
    assert users == {"models/diffusion/stable_diffusion.py", "models/diffusion/tiny.py"}  # the second is a command
