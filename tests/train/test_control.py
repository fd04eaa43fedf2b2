"""IRControlNet's training at toy size, on a Stable Diffusion whose UNet tells noise as the real one does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.stable_diffusion import StableDiffusion
from tests.models.test_stable_diffusion import toy, write_folder
from tests.toy import TINY_NETWORK, write_photographs
from train.loggers import read_rows

Command = Callable[..., tuple[int, str]]

CONTROL = [
    *("network.model_channels=64", "network.channel_mult=[1,2]", "network.num_res_blocks=1", "network.context_dim=64"),
    *("network.attention_resolutions=[1]", "network.gradient_checkpointing=false"),
]
RUN = [
    *("data.size=32", "data.val_size=32", "data.val_images=2", "data.batch_size=2", "data.num_workers=0"),
    *("trainer.max_steps=3", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1", "trainer.accumulate_grad_batches=1"),
    *("trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.precision=32-true", "optimizer.lr=1e-3"),
    *("validation.lpips=null", "checkpoint.every_n_steps=2", "diffusion.sampler.steps=2", "name=run"),
]


@torch.no_grad()
def tell_noise(diffusion: StableDiffusion) -> None:
    """Fits the UNet's last convolution, so that at the last timestep it gives back the noise that it is shown."""
    unet, seen = diffusion.unet, []
    hook = unet.conv_out.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    noise = torch.randn(4, 4, 32, 32)
    diffusion(noise, torch.full((4,), 999), diffusion.text([""]).expand(4, -1, -1))
    hook.remove()
    columns = F.unfold(seen[0], 3, padding=1).transpose(1, 2).flatten(0, 1)
    weight = torch.linalg.lstsq(columns, noise.flatten(2).transpose(1, 2).flatten(0, 1)).solution
    unet.conv_out.weight.copy_(weight.T.view_as(unet.conv_out.weight))
    unet.conv_out.bias.zero_()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs/, sd/ (a diffusers folder) and stage1 (runs/stage1, a SwinIR of two updates)."""
    folder = tmp_path_factory.mktemp("given")
    write_photographs(folder / "photographs", size=48)
    tell_noise(toy())
    write_folder(folder / "sd")
    from train.cli import main

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        own = [*TINY_NETWORK, "data.root=photographs", "data.size=32", "data.val_images=2", "data.num_workers=0", "name=stage1"]
        own += ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "validation.lpips=null"]
        patched.setattr("sys.argv", ["train.py", "model=swinir_ffhq", *own, "trainer.enable_progress_bar=false"])
        main()
    return folder


def arguments(given: Path, *more: str) -> list[str]:
    start = [f"init.stable_diffusion={given}/sd", f"init.stage1={given}/runs/stage1", f"data.root={given}/photographs"]
    return ["model=ircontrolnet_ffhq", *CONTROL, *RUN, *start, *more]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_it_trains_the_control_network_alone(given: Path, command: Command) -> None:
    from train.cli import main

    code, printed = command(main, *arguments(given))
    assert code == 0, printed
    print(printed)
    saved = last(Path("runs/run"))
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network"}
    rows = read_rows(Path("runs/run/metrics.csv"))
    print(rows)
