"""restore.py pipeline=difface as a user calls it, with tiny networks."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.diffusion.adm import ADM
from models.diffusion.pixels import PixelDiffusion
from models.diffusion.sampling import drawn_from
from models.files.families import FAMILIES, full_state
from restoration.cli import main
from restoration.diffbir import noise_of
from tests.models.diffusion.test_adm import tiny
from tests.restoration.test_diffbir import tiny_swinir
from tests.restoration.test_run import picture
from tests.toy import write_photographs

Cli = Callable[..., tuple[int, str]]


@pytest.fixture
def network(tmp_path: Path) -> ADM:
    network = tiny(num_head_channels=64)
    torch.save(FAMILIES["adm"].write(network), tmp_path / "iddpm.pth")
    torch.save({"params": full_state(tiny_swinir())}, tmp_path / "swinir.pth")
    return network


@pytest.fixture
def restore(command: Cli) -> Cli:
    common = ("stage1=swinir.pth", "diffusion=iddpm.pth", "respacing=ddim10", "start=4", "input=in", "output=out", "device=cpu")
    return lambda *arguments: command(main, "pipeline=difface", *common, *arguments)


@torch.no_grad()
def test_it_is_its_steps_one_by_one(network: ADM, tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in", count=2, size=16) / "01.png"
    code, printed = restore()
    assert code == 0, printed
    first = 2 * tiny_swinir()(picture(photo)[None]).clamp(0, 1) - 1
    chain, draw = PixelDiffusion(respacing="ddim10"), drawn_from(noise_of(231, "01.png"))
    x = chain.noised(first, torch.tensor([4]), draw(first))
    *_, (_, last) = chain.ddim(network, x, draw, eta=0.5, start=4, noise_again=False)
    expected = ((last[0] + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(picture(tmp_path / "out" / "01.png"), expected, rtol=0, atol=0.51 / 255)
    assert restore("output=together", "batch_size=2")[0] == 0
    torch.testing.assert_close(picture(tmp_path / "together" / "01.png"), expected, rtol=0, atol=1.01 / 255)
    for more in ("eta=0", "start=2", "seed=1", "respacing=10", "bf16=true"):
        assert restore(f"output={more}", more)[0] == 0
        assert not torch.equal(picture(tmp_path / more / "01.png"), picture(tmp_path / "out" / "01.png")), more


@pytest.mark.usefixtures("network")
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("start=10", "start=10: the chain of respacing=ddim10 has 10 steps, 0 the cleanest"),
        ("respacing=ddim300", "respacing=ddim300: no whole stride gives 300 of 1000 steps"),
        ("eta=2", "eta=2: Input should be less than or equal to 1"),
        ("diffusion=swinir.pth", "diffusion=swinir.pth holds SwinIR: give the diffusion network in pixels"),
        ("diffusion=three.pth", "diffusion=three.pth has no learned variance: its last convolution has not 6 channels"),
        ("input=odd", "the diffusion network takes sides that are multiples of 2, and this image has 17x17"),
    ],
)
def test_mistakes(given: str, says: str, tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=1, size=16)
    write_photographs(tmp_path / "odd", count=1, size=17)
    torch.save(FAMILIES["adm"].write(tiny(num_head_channels=64, out_channels=3)), tmp_path / "three.pth")
    code, printed = restore(given)
    assert (code, says in printed, "Traceback" in printed) == (1, True, False), printed
