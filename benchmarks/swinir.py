"""SwinIR of this repository against spandrel's copy of the official code: time and memory, DiffBIR's stage-1 network.

Run: uv run benchmarks/swinir.py [--repeats 7] [--device cpu]
Prints a Markdown table: 1x3x512x512, median seconds of interleaved runs, peak memory of training steps.
"""

import argparse
import multiprocessing
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from models.swinir import SwinIR

COMMON = {
    "img_size": 64,
    "in_chans": 3,
    "embed_dim": 180,
    "depths": [6] * 8,
    "num_heads": [6] * 8,
    "window_size": 8,
    "mlp_ratio": 2,
    "upscale": 8,
    "upsampler": "nearest+conv",
    "resi_connection": "1conv",
    "drop_path_rate": 0.1,  # as trained; off in eval
}
NETWORKS = ("spandrel", "ours")


def build(name: str, device: str) -> nn.Module:
    """The network with the same weights under either name."""
    # Deferred, so that the memory measured for one network doesn't contain the other's imports.
    from spandrel.architectures.SwinIR.__arch.SwinIR import SwinIR as SpandrelSwinIR

    warnings.filterwarnings("ignore", message="torch.meshgrid")  # spandrel's call
    torch.manual_seed(0)
    spandrel = SpandrelSwinIR(**COMMON, start_unshuffle=8)
    if name == "spandrel":
        return spandrel.to(device)
    ours = SwinIR(**COMMON, unshuffle=8)
    state = {key.replace("conv_first.", "conv_first.1."): value for key, value in spandrel.state_dict().items()}
    ours.load_state_dict(state)
    return ours.to(device)


def image(device: str) -> Tensor:
    return torch.rand(1, 3, 512, 512, generator=torch.Generator().manual_seed(1)).to(device)


def forward(network: nn.Module, lq: Tensor, bf16: bool) -> Tensor:
    with torch.no_grad(), torch.autocast(lq.device.type, torch.bfloat16, enabled=bf16):
        return network(lq)


def training_step(network: nn.Module, lq: Tensor, bf16: bool) -> None:
    network.zero_grad()
    with torch.autocast(lq.device.type, torch.bfloat16, enabled=bf16):
        loss = (network(lq) - lq).square().mean()
    loss.backward()


def interleaved(
    step: Callable[..., object], networks: dict[str, nn.Module], lq: Tensor, bf16: bool, repeats: int
) -> list[float]:
    """Median seconds of each network; the runs alternate, so that other load on the machine hits both alike."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repeats + 1):
        for name, network in networks.items():
            synchronize(lq)
            start = time.perf_counter()
            step(network, lq, bf16)
            synchronize(lq)
            seconds[name].append(time.perf_counter() - start)
    return [median(runs[1:]) for runs in seconds.values()]  # the first run of each warms up


def synchronize(lq: Tensor) -> None:
    if lq.device.type == "cuda":
        torch.cuda.synchronize()


def peak_memory(name: str, device: str, bf16: bool) -> float:
    """GiB at the peak of two training steps; meant to run in a process of its own. On a CPU, of the whole process."""
    network, lq = build(name, device).train(), image(device)
    for _ in range(2):
        training_step(network, lq, bf16)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage's ru_maxrss: a child starts with its parent's there.
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high_water is not None
    return int(high_water[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each network and kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()

    networks = {name: build(name, args.device).eval() for name in NETWORKS}
    lq = image(args.device)
    outputs = [forward(network, lq, bf16=False) for network in networks.values()]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    print(f"Largest difference of the outputs in float32: {difference:.1e}\n")
    if difference > 1e-5 and args.device == "cpu":
        sys.exit("the networks disagree: the times below would compare different things")

    print("| | spandrel | ours | ratio |\n|---|---|---|---|", flush=True)
    for precision in ("fp32", "bf16") if args.device == "cuda" else ("fp32",):
        bf16 = precision == "bf16"
        for label, step in (("forward", forward), ("training step", training_step)):
            for network in networks.values():
                network.train(step is training_step)
            theirs, ours = interleaved(step, networks, lq, bf16, args.repeats)
            print(f"| {label}, {precision} | {theirs:.3f} s | {ours:.3f} s | {theirs / ours:.2f}x |", flush=True)
        peaks = []
        for name in NETWORKS:
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                peaks.append(fresh.apply(peak_memory, (name, args.device, bf16)))
        print(
            f"| peak memory of training, {precision} | {peaks[0]:.2f} GiB | {peaks[1]:.2f} GiB | {peaks[0] / peaks[1]:.2f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
