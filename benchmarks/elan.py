"""ELAN of this repository against a plain transcription of the paper's attention: time and memory, HGGT's x1 network or x4.

Run: uv run benchmarks/elan.py [--repeats 5] [--scale 1] [--light]
No package on PyPI holds ELAN, so the peer is the architecture written down as the paper has it: depthwise
convolutions that shift, 1x1 convolutions, BatchNorm, and scores as an explicit softmax(q q^T) per window, channels first.
Prints a Markdown table: a 512x512 image forward (128x128 for x4), a training batch of 4 patches of 96x96 (of 48x48 for x4).
"""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from benchmarks.versus import arguments, table
from models.elan import ELAN, Block, GroupAttention, LocalFeatures, Shift

WINDOWS = [4, 8, 16]


class PlainShift(nn.Module):
    def __init__(self, ours: Shift) -> None:
        super().__init__()
        self.register_buffer("kernel", ours.kernel())
        self.conv1x1 = ours.conv1x1

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(F.conv2d(x, self.kernel, padding=1, groups=x.shape[1]))


class PlainFeatures(nn.Module):
    def __init__(self, ours: LocalFeatures) -> None:
        super().__init__()
        self.first, self.second = (PlainShift(module["shift_conv"]) for module in (ours.conv0, ours.conv1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


class PlainAttention(nn.Module):
    def __init__(self, ours: GroupAttention) -> None:
        super().__init__()
        self.project_inp, self.project_out, self.shifted = ours.project_inp, ours.project_out, ours.shifted

    def forward(self, x: Tensor, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        b, c, h, w = x.shape
        made, attended = [], []
        for i, (part, window) in enumerate(zip(self.project_inp(x).chunk(3, dim=1), WINDOWS, strict=True)):
            part = part.roll((-(window // 2), -(window // 2)), (2, 3)) if self.shifted else part
            tokens = (
                part.view(b, -1, h // window, window, w // window, window)
                .permute(0, 2, 4, 3, 5, 1)
                .reshape(-1, window**2, part.shape[1])
            )
            if maps:
                y = maps[i] @ tokens
            else:
                q, v = tokens.chunk(2, dim=-1)
                made.append((q @ q.transpose(1, 2)).softmax(dim=-1))
                y = made[i] @ v
            y = y.view(b, h // window, w // window, window, window, c // 3).permute(0, 5, 1, 3, 2, 4).reshape(b, c // 3, h, w)
            attended.append(y.roll((window // 2, window // 2), (2, 3)) if self.shifted else y)
        return self.project_out(torch.cat(attended, dim=1)), maps or made


class PlainBlock(nn.Module):
    def __init__(self, ours: Block) -> None:
        super().__init__()
        self.features = nn.ModuleList(PlainFeatures(module) for module in ours.modules_lfe.values())
        self.attention = nn.ModuleList(PlainAttention(module) for module in ours.modules_gmsa.values())

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for features, attention in zip(self.features, self.attention, strict=True):
            x = features(x) + x
            attended, maps = attention(x, maps)
            x = attended + x
        return x


class PlainELAN(nn.Module):
    def __init__(self, ours: ELAN) -> None:
        super().__init__()
        self.head, self.tail, self.range = ours.head, ours.tail, ours.img_range
        self.register_buffer("mean", ours.mean)
        self.body = nn.Sequential(*(PlainBlock(block) for block in ours.body))

    def forward(self, lq: Tensor) -> Tensor:
        features = self.head((lq - self.mean) * self.range)
        return self.tail(self.body(features) + features) / self.range + self.mean


def build(name: str, *, scale: int, light: bool) -> nn.Module:
    torch.manual_seed(0)
    body = {"m_elan": 24, "c_elan": 60, "n_share": 1} if light else {"m_elan": 36, "c_elan": 180, "n_share": 0}
    ours = ELAN(scale=scale, **body, r_expand=2, window_sizes=WINDOWS, img_range=255.0)
    return ours if name == "ours" else PlainELAN(ours)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--scale", type=int, default=1)
    parser.add_argument("--light", action="store_true", help="ELAN-light instead of ELAN")
    args = parser.parse_args()
    shapes = {"forward": (1, 512 // args.scale), "training step": (4, 96 if args.scale == 1 else 48)}
    made = partial(build, scale=args.scale, light=args.light)
    table(made, peer="transcription", shapes=shapes, device=args.device, repeats=args.repeats)
