"""The diffusion network in pixels: its official files, what it refuses, and its process on small chains."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.diffusion.adm import ADM
from models.diffusion.pixels import PixelDiffusion, kept_timesteps
from models.files import official
from models.files.families import FAMILIES
from tests.parity.cases import folders, manifest, manifests_in

TINY: dict[str, Any] = {
    "image_size": 16,
    "model_channels": 32,
    "num_res_blocks": [1, 2],
    "attention_resolutions": [8],
    "channel_mult": [1, 2],
}
MANIFESTS = [path for folder in folders() for path in manifests_in(folder) if path.name.startswith("adm_")]


def tiny(**changes: Any) -> ADM:
    torch.manual_seed(0)
    network = ADM(**{**TINY, **changes})
    for parameter in network.parameters():  # not the identity that it begins as
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_official_keys(path: Path) -> None:
    given = manifest(path)
    shapes = {key.removeprefix("module."): tuple(shape) for key, shape in given["state_dict"].items()}
    recognised = FAMILIES["adm"].recognise(shapes)
    assert recognised is not None
    arguments, assumed = recognised
    for key in ("image_size", "model_channels", "channel_mult", "in_channels", "out_channels", "num_head_channels"):
        assert arguments[key] == given["config"][key], key
    assert sorted(arguments["attention_resolutions"]) == sorted(given["config"]["attention_resolutions"])
    assert len(assumed) == 2
    with torch.device("meta"):
        network = ADM(**arguments)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == shapes
    assert list(network.state_dict()) == list(shapes), "in the official order too"
    assert sum(parameter.numel() for parameter in network.parameters()) == given["n_params"]


@torch.no_grad()
def test_a_file_opens_and_goes_back(tmp_path: Path) -> None:
    network = tiny(num_head_channels=64)
    content = FAMILIES["adm"].write(network)
    assert all(key.startswith("module.") for key in content)
    torch.save(content, tmp_path / "iddpm.pth")
    again = official.build(tmp_path / "iddpm.pth")
    x, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    assert torch.equal(again(x, timesteps), network(x, timesteps))
    official.export(tmp_path / "iddpm.pth", tmp_path / "out.pth", "official")
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in content.items()}
    assert all(torch.equal(value, content[key]) for key, value in written.items())


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match=r"num_res_blocks=\[1\] for 2 levels"):
        ADM(**{**TINY, "num_res_blocks": [1]})
    with pytest.raises(ValueError, match="sides that are multiples of 2, and this image has 17x16"):
        tiny()(torch.zeros(1, 3, 16, 17), torch.tensor([0]))


def test_it_begins_without_residuals() -> None:
    network = ADM(**TINY).eval()
    x = torch.randn(1, 3, 16, 16)
    seen: list[Tensor] = []
    network.middle_block.register_forward_hook(lambda _m, given, made: seen.extend([given[0], made]))
    network(x, torch.tensor([5]))
    assert torch.equal(*seen)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    x, timesteps = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    found = []
    for again in (False, True):
        network = tiny(gradient_checkpointing=again)
        network(x, timesteps).square().mean().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("respacing", "says"),
    [("ddim300", "no whole stride gives 300 of 1000 steps"), ("2000", "2000 of 1000 steps can't be kept")],
)
def test_chains_that_there_are_not(respacing: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kept_timesteps(respacing, 1000)


def test_sampling_finds_what_a_perfect_network_knows() -> None:
    """A network that always knows the clean image leads there, by either sampler, from any start."""
    clean = torch.rand(2, 3, 8, 8) * 2 - 1
    chain = PixelDiffusion(respacing="ddim50", predicts="clean", variance="small")
    know = lambda x, timesteps: clean  # noqa: E731
    draw = lambda like: torch.randn(like.shape, generator=generator)  # noqa: E731
    generator = torch.Generator().manual_seed(0)
    for steps in (
        chain.ancestral(know, torch.randn(2, 3, 8, 8), draw),
        chain.ddim(know, torch.randn(2, 3, 8, 8), draw, eta=0.5, start=20),
    ):
        *_, (_, last) = steps
        torch.testing.assert_close(last, clean, rtol=0, atol=0.05)


def test_the_forward_process_is_the_posteriors_inverse() -> None:
    chain = PixelDiffusion(respacing="10")
    clean, noise = torch.rand(10, 3, 4, 4) * 2 - 1, torch.randn(10, 3, 4, 4)
    index = torch.arange(10)
    x = chain.noised(clean, index, noise)
    torch.testing.assert_close(chain.noise_of(x, clean, index), noise, rtol=1e-3, atol=1e-3)
    mean, variance, log_variance = chain.true_posterior(clean, x, index)
    torch.testing.assert_close(mean[0], clean[0], rtol=0, atol=1e-5)
    assert float(variance[0]) == 0
    assert torch.isfinite(log_variance).all()
    assert np.isclose(chain.alphas_cumprod[-1], math.exp(np.log(1 - chain.betas).sum()))
