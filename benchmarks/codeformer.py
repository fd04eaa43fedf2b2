"""CodeFormer and its autoencoder against spandrel_extra_arches' copy of the official code: time and memory, full size.

Run: uv run --with spandrel-extra-arches benchmarks/codeformer.py [--repeats 7] [--device cpu] [--only forward]
(that package is under CodeFormer's non-commercial licence, so it is no dependency of ours: it runs here, nothing more)
Prints a Markdown table: 1x3x512x512; CodeFormer at w=0.5 with AdaIN. Training steps are of the generator alone: the
autoencoder's image (stage I), the logits (stage II), the image at w=1 and the logits (stage III).
"""

import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first, and `models` is one above

from benchmarks.versus import STEPS, arguments, forward, image, interleaved, peak_memory, row

AUTOENCODER: dict[str, Any] = {
    "img_size": 512,
    "nf": 64,
    "ch_mult": [1, 2, 2, 4, 4, 8],
    "res_blocks": 2,
    "attn_resolutions": [16],
    "codebook_size": 1024,
    "emb_dim": 256,
}
TRANSFORMER: dict[str, Any] = {"dim_embd": 512, "n_head": 8, "n_layers": 9, "fix_modules": ["quantize", "generator"]}
SIDES = [32, 64, 128, 256]


class Theirs(nn.Module):
    """From and to [0, 1], as ours: an image; stage II: logits; stage III: the image and the logits in a row."""

    def __init__(self, network: Any, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, lq: Tensor) -> Tensor:
        x = 2 * lq - 1
        if self.kind == "stage II":  # that copy runs whole networks alone
            tokens = self.network.feat_emb(self.network.encoder(x).flatten(2).permute(2, 0, 1))
            position = self.network.position_emb.unsqueeze(1).repeat(1, len(x), 1)
            for layer in self.network.ft_layers:
                tokens = layer(tokens, query_pos=position)
            return self.network.idx_pred_layer(tokens).transpose(0, 1)
        if self.kind == "autoencoder":
            return (self.network(x)[0] + 1) / 2
        image, logits = self.network(x, weight=1.0 if self.kind == "stage III" else 0.5)
        return _shown((image + 1) / 2, logits, self.kind)


class Ours(nn.Module):
    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, lq: Tensor) -> Tensor:
        if self.kind == "autoencoder":
            return self.network(lq).restored
        w, codes = (1.0 if self.kind == "stage III" else 0.5), self.kind == "stage II"
        made = self.network(lq, w=w, adain=True, code_only=codes)
        return made.logits if codes else _shown(made.restored, made.logits, self.kind)


def _shown(image: Tensor, logits: Tensor, kind: str) -> Tensor:
    return torch.cat([image.flatten(), logits.flatten()]) if kind == "stage III" else image


def build(name: str, *, kind: str) -> nn.Module:
    # Deferred, so that the memory measured for one network doesn't contain the other's imports.
    from spandrel_extra_arches.architectures.CodeFormer.__arch import codeformer as peer

    from models.codeformer import CodeFormer
    from models.vqgan import VQAutoEncoder

    torch.manual_seed(0)
    theirs: nn.Module
    if kind == "autoencoder":
        theirs = peer.VQAutoEncoder(**AUTOENCODER)
        ours: nn.Module = VQAutoEncoder(**AUTOENCODER)
    else:
        theirs = peer.CodeFormer(**TRANSFORMER, codebook_size=1024, connect_list=[str(side) for side in SIDES])
        ours = CodeFormer(**AUTOENCODER, **TRANSFORMER, connect_list=SIDES)
        nn.init.normal_(theirs.get_parameter("position_emb"))
    nn.init.normal_(theirs.get_parameter("quantize.embedding.weight"))  # as drawn, codes are nearly equal
    if name == "theirs":
        return Theirs(theirs, kind)
    ours.load_state_dict(theirs.state_dict())
    return Ours(ours, kind)


def agree(kind: str) -> None:
    """Ends the program if the outputs differ; in float32, as theirs looks codes up in it whatever its type."""
    theirs, ours = (forward(build(name, kind=kind).eval(), image(1, 512, "cpu"), bf16=False) for name in ("theirs", "ours"))
    difference, largest = (theirs - ours).abs().max().item(), theirs.abs().max().item()
    print(f"{kind}: largest difference of the outputs: {difference:.1e}, of values up to {largest:.2g}")
    if difference > 1e-4 * largest:
        sys.exit("the networks disagree: the times below would compare different things")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=tuple(STEPS), help="forward passes or training steps alone")
    args = parser.parse_args()
    rows = [("CodeFormer", "forward"), ("autoencoder", "forward")]
    rows += [(kind, "training step") for kind in ("autoencoder", "stage II", "stage III")]
    for kind in ("CodeFormer", "autoencoder", "stage II", "stage III"):
        agree(kind)
    print("\n| | spandrel | ours | ratio |\n|---|---|---|---|", flush=True)
    lq = image(1, 512, args.device)
    for precision in ("fp32", "bf16") if args.device == "cuda" else ("fp32",):
        for kind, step in rows:
            if args.only and step != args.only:
                continue
            make = partial(build, kind=kind)
            networks = {name: make(name).to(args.device).train(step == "training step") for name in ("theirs", "ours")}
            label = f"{kind}, {step}, {precision}"
            print(row(label, "s", *interleaved(STEPS[step], networks, lq, precision == "bf16", args.repeats)), flush=True)
            del networks
            peaks = []
            for name in ("theirs", "ours"):
                with multiprocessing.get_context("spawn").Pool(1) as fresh:
                    peaks.append(fresh.apply(peak_memory, (make, name, step, (1, 512), args.device, precision == "bf16")))
            print(row("its peak memory", "GiB", *peaks), flush=True)


if __name__ == "__main__":
    main()
