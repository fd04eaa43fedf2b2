"""Our degradations beside the reference's (the CodeFormer/DiffBIR chain on basicsr's functions): CPU time of a sample.

Run: uv run benchmarks/degradations.py [--photos DIR] [--samples 300] [--profile] [--batched cpu|cuda]
Prints Markdown tables. One core; ours and the reference's take turns, so other load hits both alike. DIR holds
512x512 PNG files; left out, it is scikit-image's portrait of Eileen Collins. A packed source holds
the same pixels as BMP, which is what data.prepare pack encode=bmp writes.
"""

import argparse
import io
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from skimage import data as photographs
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `degradations` is one above

from data.images import decode, to_tensor
from degradations.filters import filtered_and_shrunk
from degradations.pipeline import Pipeline
from tests.basicsr_peer import degradations as peer
from tests.basicsr_peer import utils as peer_io

ROOT = Path(__file__).parent.parent
SIZE = (512, 512)
PIPELINES = ("diffbir", "codeformer_stage2", "challenge")


def pipeline(name: str) -> Pipeline:
    """conf/degradation/NAME.yaml as it is."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose(overrides=[f"+degradation={name}"]).degradation, _convert_="all")


def reference_degradation(hq: np.ndarray, ours: Pipeline) -> np.ndarray:
    """The reference's order on (h, w, 3) BGR in [0, 1], with the ranges of ours, and its 8-bit grid where ours has one."""
    height, width = hq.shape[:2]
    blur, down, noise, jpeg = (ours.operators[name] for name in ("blur", "downsample", "noise", "jpeg"))
    kinds, angles = (["iso", "aniso"], [0.5, 0.5]), [-math.pi, math.pi]
    kernel = peer.random_mixed_kernels(*kinds, 41, blur.sigma_px, blur.sigma_px, angles, noise_range=None)
    lq = cv2.filter2D(hq, -1, kernel)
    scale = np.random.uniform(*down.factor)
    lq = cv2.resize(lq, (int(width // scale), int(height // scale)), interpolation=cv2.INTER_LINEAR)
    lq = peer.random_add_gaussian_noise(lq, noise.sigma_255)
    lq = np.rint(np.clip(lq, 0, 1) * 255).astype(np.float32) / 255  # cv2 warns of float input, and rounds it so
    lq = peer.add_jpg_compression(lq, int(np.random.uniform(*jpeg.quality)))
    lq = cv2.resize(lq, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip((lq * 255.0).round(), 0, 255) / 255.0 if ours.quantize else lq


def reference_sample(png: bytes, ours: Pipeline) -> tuple[Tensor, Tensor]:
    """As its data sets: decode, degrade, to tensors."""
    hq = peer_io.imfrombytes(png, float32=True)
    lq = reference_degradation(hq, ours)
    hq, lq = peer_io.img2tensor([hq, lq], bgr2rgb=True, float32=True)
    return lq, hq


def our_sample(contents: bytes, ours: Pipeline, position: int) -> dict[str, Tensor]:
    """As data.faces.TrainingFaces."""
    hq = to_tensor(decode(contents, "photo"))
    return ours.apply(hq, ours.sample(0, position, SIZE))


def milliseconds(calls: dict[str, Callable[[int], Any]], samples: int) -> dict[str, float]:
    """Mean CPU milliseconds of each: the least of three turns, each over all samples, so that other load counts little."""
    least = dict.fromkeys(calls, math.inf)
    for _ in range(3):
        for name, call in calls.items():
            call(0)
            start = time.process_time()
            for sample in range(samples):
                call(sample)
            least[name] = min(least[name], time.process_time() - start)
    return {name: 1e3 * seconds / samples for name, seconds in least.items()}


def compare(name: str, photos: list[bytes], packed: list[bytes], samples: int) -> None:
    """Prints the three rows of one pipeline."""
    ours = pipeline(name)
    bgr = [peer_io.imfrombytes(photo, float32=True) for photo in photos]
    hq = [to_tensor(decode(photo, "photo")) for photo in photos]
    count = len(photos)
    calls = {
        "reference degradation": lambda i: reference_degradation(bgr[i % count], ours),
        "our degradation": lambda i: ours.apply(hq[i % count], ours.sample(0, i, SIZE)),
        "reference sample": lambda i: reference_sample(photos[i % count], ours),
        "our sample": lambda i: our_sample(photos[i % count], ours, i),
        "our packed sample": lambda i: our_sample(packed[i % count], ours, i),
    }
    spent = milliseconds(calls, samples)
    for row, theirs, mine in (
        ("degradation alone", "reference degradation", "our degradation"),
        ("whole sample, PNG", "reference sample", "our sample"),
        ("whole sample, ours packed", "reference sample", "our packed sample"),
    ):
        print(f"| {name} | {row} | {spent[theirs]:.2f} | {spent[mine]:.2f} | {spent[theirs] / spent[mine]:.2f} |")


def profile(photos: list[bytes], samples: int) -> None:
    """Prints where the time of our sample goes, for the first pipeline."""
    ours = pipeline(PIPELINES[0])
    spent: dict[str, float] = {}

    def lap(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = call(*arguments)
        spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return result

    blur, operators = ours.operators["blur"], ours.operators
    for i in range(samples):
        photo_u8_hwc = lap("PNG decoding", decode, photos[i % len(photos)], "photo")
        hq = lap("to tensor", to_tensor, photo_u8_hwc)
        drawn = lap("draws", ours.sample, 0, i, SIZE)
        kernel = lap("kernel", blur.kernel, drawn["blur"])
        size = (drawn["downsample"]["height"], drawn["downsample"]["width"])
        photo = lap("blur and shrink", filtered_and_shrunk, hq.numpy(), kernel, *size)
        for name in ("noise", "jpeg", "resize_back"):
            photo = lap(name, operators[name].apply, photo, drawn[name])
        lap("clip", np.clip, photo, 0, 1, photo)
    print(f"\n| {PIPELINES[0]}, stage | ms |\n|---|---|")
    for name, seconds in spent.items():
        print(f"| {name} | {1e3 * seconds / samples:.2f} |")


def images_a_second(device: str, photos: list[bytes], batch: int = 32) -> None:
    """Prints how many images the batched form makes in a second."""
    print(f"\n| batched on {device}, {batch} a batch | images/s |\n|---|---|")
    hq = torch.stack([to_tensor(decode(photos[i % len(photos)], "photo")) for i in range(batch)]).to(device)
    for name in PIPELINES:
        ours = pipeline(name)
        drawn = [
            torch.utils.data.default_collate([ours.sample(0, start + i, SIZE) for i in range(batch)])
            for start in range(0, 20 * batch, batch)
        ]
        ours.apply_batch(hq, drawn[0])
        torch.cuda.synchronize() if device == "cuda" else None
        start = time.perf_counter()
        rounds = drawn if device == "cuda" else drawn[:2]
        for parameters in rounds:
            ours.apply_batch(hq, parameters)
        torch.cuda.synchronize() if device == "cuda" else None
        print(f"| {name} | {len(rounds) * batch / (time.perf_counter() - start):.0f} |")


def bmp(png: bytes) -> bytes:
    """The same pixels, uncompressed."""
    packed = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(packed, format="BMP")
    return packed.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--batched", choices=["cpu", "cuda"])
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    if options.photos:
        photos = [path.read_bytes() for path in sorted(options.photos.glob("*.png"))]
    else:
        portrait = io.BytesIO()
        Image.fromarray(photographs.astronaut()).save(portrait, format="PNG")
        photos = [portrait.getvalue()]
    print("| degradation | | reference ms | ours ms | ratio |\n|---|---|---|---|---|")
    for name in PIPELINES:
        compare(name, photos, [bmp(photo) for photo in photos], options.samples)
    if options.profile:
        profile(photos, options.samples)
    if options.batched:
        images_a_second(options.batched, photos)


if __name__ == "__main__":
    main()
