"""Two implementations of one network against each other: equal outputs, time and memory. Used by the scripts beside it."""

import argparse
import multiprocessing
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

Build = Callable[[str], nn.Module]  # "theirs" or "ours", with the same weights


def image(batch: int, size: int, device: str) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)


def forward(network: nn.Module, lq: Tensor, bf16: bool) -> Tensor:
    with torch.no_grad(), torch.autocast(lq.device.type, torch.bfloat16, enabled=bf16):
        return network(lq)


def training_step(network: nn.Module, lq: Tensor, bf16: bool) -> None:
    network.zero_grad()
    with torch.autocast(lq.device.type, torch.bfloat16, enabled=bf16):
        loss = network(lq).square().mean()
    loss.backward()


STEPS: dict[str, Callable[..., object]] = {"forward": forward, "training step": training_step}


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


def peak_memory(build: Build, name: str, kind: str, shape: tuple[int, int], device: str, bf16: bool) -> float:
    """GiB at the peak of two steps; meant to run in a process of its own. On a CPU, of the whole process."""
    network, lq = build(name).to(device).train(kind == "training step"), image(*shape, device)
    for _ in range(2):
        STEPS[kind](network, lq, bf16)
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # Not getrusage's ru_maxrss: a child starts with its parent's there.
    high_water = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert high_water is not None
    return int(high_water[1]) / 2**20


def row(label: str, unit: str, theirs: float, ours: float) -> str:
    digits = 3 if unit == "s" else 2
    return f"| {label} | {theirs:.{digits}f} {unit} | {ours:.{digits}f} {unit} | {theirs / ours:.2f}x |"


def table(build: Build, *, peer: str, shapes: dict[str, tuple[int, int]], device: str, repeats: int) -> None:
    """Prints whether the outputs agree (on 64x64 in float64), and a Markdown table of seconds and GiB.

    Args:    peer: its name as the column's head. shapes: "forward" and "training step" to (batch, side of the LQ).
    """
    exact = [build(name).double().eval() for name in ("theirs", "ours")]
    outputs = [forward(network, image(1, 64, "cpu").double(), bf16=False) for network in exact]
    difference = (outputs[0] - outputs[1]).abs().max().item()
    print(f"Largest difference of the outputs in float64: {difference:.1e}, of values up to {outputs[0].abs().max():.2g}\n")
    if difference > 1e-6:
        sys.exit("the networks disagree: the times below would compare different things")

    networks = {name: build(name).to(device) for name in ("theirs", "ours")}
    print(f"| | {peer} | ours | ratio |\n|---|---|---|---|", flush=True)
    for precision in ("fp32", "bf16") if device == "cuda" else ("fp32",):
        bf16 = precision == "bf16"
        for kind, shape in shapes.items():
            size = f"{shape[0]}x3x{shape[1]}x{shape[1]}, {precision}"
            for network in networks.values():
                network.train(kind == "training step")
            print(
                row(f"{kind}, {size}", "s", *interleaved(STEPS[kind], networks, image(*shape, device), bf16, repeats)),
                flush=True,
            )
            peaks = []
            for name in networks:
                with multiprocessing.get_context("spawn").Pool(1) as fresh:
                    peaks.append(fresh.apply(peak_memory, (build, name, kind, shape, device, bf16)))
            print(row(f"its peak memory, {size}", "GiB", *peaks), flush=True)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each network and kind")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser
