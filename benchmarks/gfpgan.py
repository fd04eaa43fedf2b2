"""GFPGAN and StyleGAN2's discriminator against the official code: time and memory, full size.

Run: uv pip install --no-deps --target DIR gfpgan==1.3.8
     PYTHONPATH=DIR uv run benchmarks/gfpgan.py [--repeats 7] [--device cpu] [--only clean]
The official code is gfpgan 1.3.8 on basicsr 1.4.2.
Their CUDA operators are replaced by what basicsr runs on a CPU, on a GPU too: there the rows of v1 and of the discriminator
say nothing about a machine that has compiled them. Prints a Markdown table: 512x512, stored noise in GFPGAN.
"""

import multiprocessing
import sys
from functools import partial
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from benchmarks.versus import STEPS, arguments, forward, image, interleaved, peak_memory, row


class Subject(NamedTuple):
    """What is timed: steps and the batch of each."""

    label: str
    forward: int
    training_step: int


SUBJECTS = {
    "clean": Subject("GFPGANv1Clean (1.3, 1.4)", 1, 1),
    "v1": Subject("GFPGANv1, prior fixed", 1, 2),
    "discriminator": Subject("StyleGAN2Discriminator", 2, 2),
}
COMMON: dict[str, Any] = {
    "out_size": 512,
    "num_style_feat": 512,
    "num_mlp": 8,
    "narrow": 1,
    "different_w": True,
    "sft_half": True,
}
KERNEL = [1, 3, 3, 1]


class Theirs(nn.Module):
    """From and to [0, 1], as ours; a discriminator's output stays as it is."""

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__()
        self.network, self.options = network, options

    def forward(self, lq: Tensor) -> Tensor:
        made = self.network(2 * lq - 1, **self.options)
        return (made[0] + 1) / 2 if isinstance(made, tuple) else made


class Ours(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, lq: Tensor) -> Tensor:
        return self.network(lq, noise=self.network.stylegan_decoder.stored_noise()).restored


def without_cuda_operators(arch: ModuleType, act: ModuleType, resampling: ModuleType) -> None:
    """Puts PyTorch's operations in place of the compiled ones."""

    def leaky(x: Tensor, bias: Tensor, negative_slope: float = 0.2, scale: float = 2**0.5) -> Tensor:
        return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), negative_slope) * scale

    def resampled(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
        return resampling.upfirdn2d_native(x, kernel, up, up, down, down, pad[0], pad[1], pad[0], pad[1])

    arch.fused_leaky_relu = act.fused_leaky_relu = leaky  # type: ignore[attr-defined]
    arch.upfirdn2d = resampled  # type: ignore[attr-defined]


def official(subject: str) -> nn.Module:
    # Deferred, as are ours, so that the memory measured for one network doesn't contain the other's imports.
    import_module("tests.basicsr_peer")  # without it basicsr can't be imported
    from basicsr.archs import stylegan2_arch

    operators = [import_module(f"basicsr.ops.{name}.{name}") for name in ("fused_act", "upfirdn2d")]
    without_cuda_operators(stylegan2_arch, *operators)
    if "gfpgan" not in sys.modules:
        elsewhere = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent.resolve()]  # not this file
        found = PathFinder.find_spec("gfpgan", elsewhere)
        if found is None:
            sys.exit("gfpgan 1.3.8 is not here: uv pip install --no-deps --target DIR gfpgan==1.3.8, then PYTHONPATH=DIR")
        package = sys.modules["gfpgan"] = ModuleType("gfpgan")  # its own __init__ imports more than its networks
        package.__path__ = list(found.submodule_search_locations or [])
    clean, arch = (import_module(f"gfpgan.archs.gfpganv1_{name}") for name in ("clean_arch", "arch"))
    torch.manual_seed(0)  # imports draw
    if subject == "discriminator":
        return stylegan2_arch.StyleGAN2Discriminator(512, channel_multiplier=1)
    if subject == "clean":
        return clean.GFPGANv1Clean(**COMMON, channel_multiplier=2, input_is_latent=True)
    return arch.GFPGANv1(**COMMON, channel_multiplier=1, input_is_latent=True, fix_decoder=True)


def build(name: str, *, subject: str) -> nn.Module:
    from models.gfpgan import GFPGANv1, GFPGANv1Clean
    from models.stylegan2 import StyleGAN2Discriminator

    theirs = official(subject)
    for key, parameter in theirs.named_parameters():  # at zero they would hide a mistake
        if key.endswith(".bias") or parameter.numel() == 1:
            nn.init.normal_(parameter, 1.0 if "modulation" in key else 0.0, 0.1)
    if name == "theirs":
        return Theirs(theirs) if subject == "discriminator" else Theirs(theirs, randomize_noise=False)
    ours: nn.Module
    if subject == "discriminator":
        ours = StyleGAN2Discriminator(out_size=512, channel_multiplier=1, resample_kernel=KERNEL, stddev_group=4, narrow=1)
    elif subject == "clean":
        ours = GFPGANv1Clean(**COMMON, channel_multiplier=2, fix_decoder=False)
    else:
        ours = GFPGANv1(**COMMON, channel_multiplier=1, fix_decoder=True, resample_kernel=KERNEL, lr_mlp=0.01)
    ours.load_state_dict(theirs.state_dict())
    return ours if subject == "discriminator" else Ours(ours)


def agree(subject: str) -> None:
    """Ends the program if the outputs differ, with a gradient or without."""
    networks = [build(name, subject=subject).eval() for name in ("theirs", "ours")]
    lq = image(2 if subject == "discriminator" else 1, 512, "cpu")
    theirs, ours = (forward(network, lq, bf16=False) for network in networks)
    difference, largest = (theirs - ours).abs().max().item(), theirs.abs().max().item()
    print(f"{SUBJECTS[subject].label}: largest difference of the outputs: {difference:.1e}, of values up to {largest:.2g}")
    if difference > 1e-4 * largest:
        sys.exit("the networks disagree: the times below would compare different things")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=tuple(SUBJECTS), help="one of the networks")
    args = parser.parse_args()
    subjects = [args.only] if args.only else list(SUBJECTS)
    for subject in subjects:
        agree(subject)
    print("\n| | official | ours | ratio |\n|---|---|---|---|", flush=True)
    for precision in ("fp32", "bf16") if args.device == "cuda" else ("fp32",):
        bf16 = precision == "bf16"
        for subject in subjects:
            for step in STEPS:
                batch = getattr(SUBJECTS[subject], step.replace(" ", "_"))
                make, shape = partial(build, subject=subject), (batch, 512)
                networks = {name: make(name).to(args.device).train(step == "training step") for name in ("theirs", "ours")}
                times = interleaved(STEPS[step], networks, image(*shape, args.device), bf16, args.repeats)
                print(row(f"{SUBJECTS[subject].label}, {step}, batch {batch}, {precision}", "s", *times), flush=True)
                del networks
                peaks = []
                for name in ("theirs", "ours"):
                    with multiprocessing.get_context("spawn").Pool(1) as fresh:
                        peaks.append(fresh.apply(peak_memory, (make, name, step, shape, args.device, bf16)))
                print(row("its peak memory", "GiB", *peaks), flush=True)


if __name__ == "__main__":
    main()
