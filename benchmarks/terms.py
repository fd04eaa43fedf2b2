"""What each term of a loss does: alone it goes down; identity keeps faces alike; a GAN stays finite.

Run: uv run benchmarks/terms.py --train DIR --val DIR [--updates 300]
Prints Markdown. A small SwinIR on aligned faces at 128x128, CPU. VGG16 and VGG19 have random weights here (any network of
features is a distance), and the embedder is a small network that this script trains on DIR's faces, one class each;
the faces of --val are in neither training.
"""

import argparse
import csv
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))  # a script finds its own folder first

from losses.identity import aligned_faces, identity_similarity
from models.files import official
from models.vgg import VGG19Features

ROOT = Path(__file__).parent.parent
COMMON = [
    *("model=swinir_ffhq", "network=swinir_tiny", "trainer=cpu", "optimizer.lr=5e-4", "data.size=128", "data.batch_size=4"),
    *("data.num_workers=0", "data.keep_decoded=true", "data.hflip_prob=0.5", "data.val_size=128", "seed=0"),
    *("trainer.log_every_n_steps=1", "trainer.enable_progress_bar=false", "validation.lpips=null", "logger=csv"),
]
LPIPS = "{_target_: losses.perceptual.LPIPS, weight: %s, net: vgg, reduction: mean, backbone: "
LPIPS += "{_target_: models.files.weights.state_dict, _partial_: true, name: vgg16, folder: weights, file: null}}"
VGG = "{_target_: losses.features.FeatureLoss, weight: 1.0, perceptual_weight: %s, style_weight: %s, "
VGG += "layer_weights: {conv1_2: 0.1, conv2_2: 0.1, conv3_4: 1.0}, "
VGG += "network: {_target_: models.files.weights.pretrained, name: vgg19, folder: weights, file: null, "
VGG += "unused: [classifier.], network: {_target_: models.vgg.VGG19Features, layers: [conv1_2, conv2_2, conv3_4]}}}"
ID = "{_target_: losses.identity.Identity, weight: %s, embedder: "
ID += "{_target_: models.files.weights.pretrained, name: adaface_ir18, folder: weights, "
ID += "file: embedder.pth, network: {_target_: benchmarks.terms.SmallEmbedder, classes: %d}}}"
GAN = "{_target_: losses.adversarial.Adversarial, weight: 0.1, kind: %s, of: image, adaptive_at: null}"
IMAGE = "adversary.discriminators.image"
ADVERSARY = ["task=adversarial", "adversary=unet_sn", f"{IMAGE}.network.num_feat=16"]


class SmallEmbedder(nn.Module):
    """Faces of 64x64 in [0, 1] to unit vectors of 64 numbers; `head` has a direction for each person it was trained on."""

    face_px = 64

    def __init__(self, *, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.GroupNorm(8, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 64))
        self.head = nn.Linear(64, classes, bias=False)

    def forward(self, faces: Tensor) -> Tensor:
        return F.normalize(self.body(2 * faces - 1), dim=1)


def faces_of(folder: Path, side: int = 128) -> Tensor:
    """(n, 3, side, side) in [0, 1]."""
    photos = [cv2.imread(str(path))[:, :, ::-1] for path in sorted(folder.iterdir())]
    photos = [cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA) for photo in photos]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255


def challenge() -> Any:
    """The challenge's degradations."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return instantiate(compose("train", ["experiment=demo", "degradation=challenge"]).degradation, _convert_="all")


def degraded(faces: Tensor, seed: int) -> Tensor:
    """Each face under a degradation of its own."""
    pipeline = challenge()
    draws = [pipeline.sample(seed, position, tuple(faces.shape[2:])) for position in range(len(faces))]
    return torch.stack([pipeline.apply(face, drawn)["lq"] for face, drawn in zip(faces, draws, strict=True)])


def train_embedder(faces: Tensor, file: Path, updates: int = 500) -> SmallEmbedder:
    """Tells the faces apart as they are and degraded, in any light, grey, mirrored and moved a little."""
    torch.manual_seed(0)
    views = torch.stack([*[faces] * 10, *degraded(faces.repeat(40, 1, 1, 1), seed=9).view(40, *faces.shape)], dim=1)
    network = SmallEmbedder(classes=len(faces))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(updates):
        who = torch.randint(len(faces), (32,))
        batch = views[who, torch.randint(50, (32,))]
        batch = batch.roll((int(torch.randint(-3, 4, ())), int(torch.randint(-3, 4, ()))), (2, 3))
        batch = torch.where(torch.rand(32, 1, 1, 1) < 0.5, batch.flip(-1), batch)
        batch = torch.where(torch.rand(32, 1, 1, 1) < 0.5, batch.mean(1, keepdim=True), batch)
        batch = (batch * (0.7 + 0.6 * torch.rand(32, 1, 1, 1))).clamp(0, 1)
        cosines = network(aligned_faces(batch, 64)) @ F.normalize(network.head.weight, dim=1).T
        loss = F.cross_entropy(16 * (cosines - 0.3 * F.one_hot(who, len(faces))), who)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"embedder: cross-entropy {loss.item():.3f} of {len(faces)} people (chance {np.log(len(faces)):.2f})\n", flush=True)
    torch.save(network.state_dict(), file)
    return network.eval()


def run(folder: Path, name: str, updates: int, *arguments: str) -> list[dict[str, str]]:
    """A training in the folder, and its rows."""
    command = [*COMMON, f"name={name}", f"trainer.max_steps={updates}", f"trainer.val_check_interval={updates}", *arguments]
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), *command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout}{done.stderr}")
    with (folder / "runs" / name / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mean_of(rows: list[dict[str, str]], column: str, part: slice) -> float:
    return float(np.mean([float(row[column]) for row in rows if row.get(column)][part]))


def each_alone(folder: Path, common: list[str], updates: int, people: int) -> None:
    print("| term alone | first tenth | last tenth | |\n|---|---|---|---|")
    terms = {
        "mse": [],
        "l1": ["loss=l1"],
        "charbonnier": ["loss=charbonnier"],
        "lpips": [f"+loss.terms.lpips={LPIPS % 1.0}", "~loss.terms.mse"],
        "perceptual": [f"+loss.terms.perceptual={VGG % (1.0, 0.0)}", "~loss.terms.mse"],
        "style": [f"+loss.terms.style={VGG % (0.0, 50.0)}", "~loss.terms.mse"],
        "id": [f"+loss.terms.id={ID % (1.0, people)}", "~loss.terms.mse"],
        "gan": [f"+loss.terms.gan={GAN % 'vanilla'}", "~loss.terms.mse", *ADVERSARY, f"{IMAGE}.optimizer.lr=1e-9"],
    }
    for name, arguments in terms.items():
        first = ["loss=mse"] if not (arguments and arguments[0].startswith("loss=")) else []
        rows = run(folder, f"alone_{name}", updates, *first, *arguments, *common)
        tenth = max(1, updates // 10)
        before, after = mean_of(rows, f"train/{name}", slice(tenth)), mean_of(rows, f"train/{name}", slice(-tenth, None))
        print(f"| {name} | {before:.4g} | {after:.4g} | {after / before - 1:+.0%} |", flush=True)


def identity(folder: Path, common: list[str], updates: int, embedder: SmallEmbedder, held_out: Tensor, people: int) -> None:
    print("\n| seed | weight of id beside mse | PSNR | cosine of held-out faces (LQ) | restored |\n|---|---|---|---|---|")
    hq = held_out.repeat_interleave(8, 0)
    lq = degraded(hq, seed=1)
    for seed, weight in itertools.product((0, 1), (0, 0.02, 0.1)):
        name = f"id_{weight}_seed_{seed}"
        term = [f"+loss.terms.id={ID % (weight, people)}"] if weight else []
        calm = ["ema_decay=0.99", "schedule=onecycle", "optimizer.lr=1e-3", f"seed={seed}"]
        rows = run(folder, name, updates, "loss=mse", *term, *common, *calm)
        with torch.no_grad():
            restored = official.build(folder / "runs" / name)(lq).clamp(0, 1)
        cosines = [identity_similarity(images, hq, embedder).mean().item() for images in (lq, restored)]
        psnr = next(float(row["val/psnr"]) for row in rows if row.get("val/psnr"))
        print(f"| {seed} | {weight} | {psnr:.2f} | {cosines[0]:.4f} | {cosines[1]:.4f} |", flush=True)


def adversarial(folder: Path, common: list[str], updates: int) -> None:
    print("\n| GAN | updates | L1, first and last tenth | logits of real / restored at the end | all finite |")
    print("|---|---|---|---|---|")
    for kind in ("vanilla", "hinge"):
        own = [*ADVERSARY, f"{IMAGE}.loss.terms.gan.kind={kind}", f"+loss.terms.gan={GAN % kind}"]
        rows = run(folder, f"gan_{kind}", updates, "loss=l1", *own, *common)
        values = [float(value) for row in rows for key, value in row.items() if value and key != "step"]
        tenth = updates // 10
        parts = [mean_of(rows, "train/l1", part) for part in (slice(tenth), slice(-tenth, None))]
        logits = [mean_of(rows, f"train/image.{each}", slice(-tenth, None)) for each in ("real", "fake")]
        finite = "yes" if np.isfinite(values).all() else "NO"
        numbers = f"{parts[0]:.4f}, {parts[1]:.4f} | {logits[0]:.2f} / {logits[1]:.2f}"
        print(f"| {kind} | {updates} | {numbers} | {finite} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="folder of aligned faces")
    parser.add_argument("--val", type=Path, required=True, help="folder of other aligned faces")
    parser.add_argument("--updates", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="terms") as name:
        folder = Path(name)
        (folder / "weights").mkdir()
        torch.manual_seed(0)
        torch.save(
            torchvision.models.vgg16(weights=None).features.state_dict(prefix="features."),
            folder / "weights/vgg16-397923af.pth",
        )
        torch.save(VGG19Features(layers=["conv3_4"]).state_dict(), folder / "weights/vgg19-dcbb9e9d.pth")
        common = [f"data.root={options.train.resolve()}", f"data.val_root={options.val.resolve()}"]
        faces, held_out = faces_of(options.train), faces_of(options.val)
        embedder = train_embedder(faces, folder / "embedder.pth")
        each_alone(folder, common, options.updates // 2, len(faces))
        identity(folder, common, options.updates, embedder, held_out, len(faces))
        adversarial(folder, common, 500)


if __name__ == "__main__":
    main()
