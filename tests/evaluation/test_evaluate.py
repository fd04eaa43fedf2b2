"""evaluate.py as a user calls it: folders in, a table and a report out, and what must not go by silently."""

import csv
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from data.images import to_tensor
from evaluation import challenge
from evaluation.certainty import compared, interval
from evaluation.cli import main
from evaluation.fid import Inception, Statistics
from evaluation.metrics import LPIPS, PSNR, SSIM, ColourShift
from models.adaface import AdaFace
from tests.toy import write_photographs

Cli = Callable[..., tuple[int, str]]
SETS = list(challenge.WEIGHTS)


@pytest.fixture
def evaluate(command: Cli) -> Cli:
    return lambda *arguments: command(main, *arguments)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """hq, and a and b, which are blurred more and less."""
    for photo in sorted(write_photographs(tmp_path / "hq", count=4, size=128).iterdir()):
        for folder, radius in (("a", 2), ("b", 1)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.open(photo).filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / folder / photo.name)
    return tmp_path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_table_and_a_report(folders: Path, evaluate: Cli) -> None:
    code, printed = evaluate("outputs=[a,b]", "hq=hq", "protocol=paired", "show=1")
    assert code == 0, printed
    assert "missing: lpips: weights/alexnet-owt-7be5be79.pth does not exist" in printed
    told = json.loads((folders / "scores" / "report.json").read_text())
    names = ["00.png", "01.png", "02.png", "03.png"]
    ours = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for folder in told["folders"]:
        pairs = [(pixels(folders / "hq" / name), pixels(folders / folder["outputs"] / name)) for name in names]
        psnr = np.mean([peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs])
        ssim = np.mean([structural_similarity(*pair, channel_axis=2, data_range=255, **ours) for pair in pairs])
        assert folder["means"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-6)
        assert folder["means"]["ssim"]["mean"] == pytest.approx(ssim, abs=2e-3)
        assert folder["means"]["psnr"]["low"] < psnr < folder["means"]["psnr"]["high"]
    assert told["comparison"]["psnr"]["won"] == 1
    assert told["comparison"]["psnr"]["difference"]["low"] > 0
    assert set(told["missing"]) == {"lpips", "identity"}
    with (folders / "scores" / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["outputs"], row["image"]) for row in rows[:5]] == [*(("a", name[:2]) for name in names), ("b", "00")]
    page = (folders / "scores" / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", page), "nothing comes from elsewhere"
    assert page.count("<figure class=pair>") == 2
    assert "psnr: gained" in page
    assert "| b | 4 |" in (folders / "scores" / "report.md").read_text()


def test_the_second_call_computes_nothing_and_a_killed_one_goes_on(
    folders: Path, evaluate: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("outputs=a", "hq=hq", "protocol=paired")
    assert evaluate(*arguments)[0] == 0
    first = (folders / "scores" / "report.json").read_bytes()
    counted: list[str] = []
    works = PSNR.__call__

    def count(metric: PSNR, image: np.ndarray, reference: np.ndarray | None, name: str) -> float:
        counted.append(name)
        return works(metric, image, reference, name)

    monkeypatch.setattr(PSNR, "__call__", count)
    assert evaluate(*arguments)[0] == 0
    assert counted == []
    cache = folders / "scores" / "cache.jsonl"
    lines = [line for line in cache.read_text().splitlines() if "PSNR" in line]
    cache.write_text("\n".join([*lines[:3], lines[3][:20]]))  # in the middle of a line
    assert evaluate(*arguments)[0] == 0
    assert counted == ["03"]
    assert (folders / "scores" / "report.json").read_bytes() == first
    Image.open(folders / "a" / "01.png").filter(ImageFilter.GaussianBlur(1)).save(folders / "a" / "01.png")
    assert evaluate(*arguments)[0] == 0
    assert counted == ["03", "01"], "by its content"


def test_the_numbers_are_the_same_in_two_processes(folders: Path, evaluate: Cli) -> None:
    for workers in ("1", "2"):
        assert evaluate("outputs=a", "hq=hq", "protocol=paired", f"workers={workers}", f"report=with{workers}")[0] == 0
    one, two = (json.loads((folders / f"with{workers}" / "report.json").read_text()) for workers in ("1", "2"))
    assert one == two


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "a/01.png").unlink(), "hq=hq holds 1 images without an output: 01"),
        (lambda root: (root / "hq/01.png").unlink(), "hq=hq lacks 1 images: 01"),
        (lambda root: shutil.copy(root / "a/01.png", root / "hq/09.png"), "hq=hq holds 1 images without an output: 09"),
        (lambda root: Image.open(root / "a/01.png").save(root / "a/01.jpg"), "a holds 01 twice"),
        (lambda root: (root / "a/01.png").write_bytes(b"no"), "a: 01, psnr: a/01.png can't be read"),
        (lambda root: Image.open(root / "a/01.png").resize((96, 96)).save(root / "a/01.png"), "psnr: it has 96x96 pixels, its"),
        (lambda root: shutil.copy(root / "hq/01.png", root / "a/01.png"), "01, psnr: it equals its reference"),
        (lambda root: (root / "a/checkpoints").mkdir(), "a is a run: restore with it first (python restore.py a LQ OUT)"),
    ],
)
def test_no_image_goes_by_silently(spoil: Callable[[Path], Any], says: str, folders: Path, evaluate: Cli) -> None:
    spoil(folders)
    code, printed = evaluate("outputs=a", "hq=hq", "protocol=paired")
    assert (code, "Traceback" in printed) == (1, False), printed
    assert says in printed
    if "psnr:" in says:
        told = json.loads((folders / "scores" / "report.json").read_text())["folders"][0]
        assert "psnr" not in told["means"], "no mean of what is left"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "outputs is not set: give outputs=DIR"),
        (["outputs=a", "protocol=paird"], "there is no such protocol (there are ntire2025"),
        (["outputs=a", "protocol=paired"], "hq is not set, which psnr, ssim, lpips"),
        (["outputs=a", "protocol=ntire2025", "lq=hq"], "landmarks is not set: give landmarks=FILE"),
        (["outputs=a", "protocl=own"], "protocl: there is no such key"),
        (["outputs=a", "workers=0"], "workers=0: Input should be greater than or equal to 1"),
        (["outputs=a", "hq=hq", "protocol=paired", "metrics.psnr.border_px=-1"], "metrics.psnr.border_px=-1"),
        (["outputs=gone"], "gone does not exist"),
        (["a"], "a: give KEY=VALUE"),
        (["statistics", "images=hq"], "out is not set: python evaluate.py statistics images=DIR out=FILE.npz"),
    ],
)
def test_mistakes(arguments: list[str], says: str, folders: Path, evaluate: Cli) -> None:
    code, printed = evaluate(*arguments)
    assert (code, "Traceback" in printed, says in printed) == (1, False, True), printed


class Stands(nn.Module):
    """In place of pyiqa's networks: the brightness, in the metric's range."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.scale = {"musiq": 100.0, "qalign": 5.0}.get(name, 1.0)

    def forward(self, images: Tensor) -> Tensor:
        return images.mean() * self.scale


class Twelve(nn.Module):
    """In place of Inception."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An entry to the challenge: two images of each set, with stand-ins for what must be fetched."""
    rng = np.random.default_rng(0)
    names = [f"{name}_{number}" for name in SETS for number in range(2)]
    for folder in ("lq", "out"):
        for name in names:
            place = tmp_path / folder / (name.rpartition("_")[0] if folder == "lq" else "flat")
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)).save(place / f"{name}.png")
    points = "193,240,319,240,257,314,201,371,313,371"
    head = ",".join(f"{p}_{a}" for p in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for a in "xy")
    rows = [f"{name},{name.rpartition('_')[0]},0,0,9,9,{points}" for name in names]
    (tmp_path / "faces.csv").write_text("\n".join([f"filename,dataset,x1,y1,x2,y2,{head}", *rows]))
    torch.manual_seed(0)
    state = {f"model.{key}": value for key, value in AdaFace(layers=50, mode="ir").state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "ada.ckpt")
    pyiqa: Any = ModuleType("pyiqa")
    pyiqa.__version__ = "0"
    pyiqa.create_metric = lambda name, device: Stands(name)
    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa)
    monkeypatch.setattr("evaluation.fid.Inception", lambda path: Twelve())
    monkeypatch.setattr("models.files.weights.find", lambda **given: tmp_path / "ada.ckpt")
    Statistics.of(rng.random((50, 12))).save(tmp_path / "ffhq.npz")
    return tmp_path


def test_the_challenge(entry: Path, evaluate: Cli) -> None:
    common = ("outputs=out", "lq=lq", "landmarks=faces.csv", "fid_statistics=ffhq.npz")
    code, printed = evaluate(*common, "protocol=ntire2025")
    assert code == 0, printed
    told = json.loads((entry / "scores" / "report.json").read_text())["folders"][0]
    assert set(told["score"]["terms"]) == {"clipiqa", "maniqa", "musiq", "niqe", "qalign", "fid"}
    assert told["score"]["total"] == pytest.approx(sum(told["score"]["terms"].values()))
    assert told["score_between"][0] <= told["score"]["total"] <= told["score_between"][1]
    assert set(told["sets"]) == set(SETS)
    assert "identity gate of 2025" in printed
    assert "identity gate of 2026" in printed
    again = evaluate(*common, "protocol=ntire2026", "terms=5", "report=five")
    assert again[0] == 0
    five = json.loads((entry / "five" / "report.json").read_text())["folders"][0]["score"]
    assert five["total"] == pytest.approx(told["score"]["total"] - told["score"]["terms"]["qalign"])
    (entry / "out" / "flat" / "CelebA_0.png").unlink()
    code, printed = evaluate(*common, "protocol=ntire2025")
    assert (code, "outputs=out lacks 1 images: CelebA_0" in printed) == (1, True)


SUBMIT = ("submit", "outputs=out", "lq=lq", "landmarks=faces.csv", "zip=entry.zip", "runtime_s=1.5", "device=gpu")


def test_a_submission_is_packed(entry: Path, evaluate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, printed = evaluate(*SUBMIT, "extra_data=false", "description=two stages, of our own")
    assert code == 0, printed
    assert "entry.zip: 10 images (CelebA 2, CelebChild-Test 2, LFW-Test 2, WebPhoto-Test 2, Wider-Test 2), " in printed
    with zipfile.ZipFile(entry / "entry.zip") as archive:
        assert sorted(archive.namelist())[0] == "CelebA/CelebA_0.png"
        assert len(archive.namelist()) == 11
        readme = archive.read("readme.txt").decode().splitlines()
    assert readme[:2] == ["runtime per image [s] : 1.5", "CPU[1] / GPU[0] : 0"]
    assert readme[3] == "Other description : two stages, of our own"
    monkeypatch.setattr(challenge, "low", lambda *_: list(range(10)))
    assert evaluate(*SUBMIT, "extra_data=true")[0] == 0
    monkeypatch.setattr(challenge, "MOST_LOW", 9)
    code, printed = evaluate(*SUBMIT, "extra_data=true", "zip=other.zip")
    assert (code, "with more than 9 an entry gets no score: CelebA_0, " in printed) == (1, True)
    assert not (entry / "other.zip").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda place: place.unlink(), "outputs=out lacks 1 images: CelebA_0"),
        (lambda place: shutil.copy(place, place.with_name("more.png")), "outputs=out holds 1 images that the challenge does"),
        (lambda place: Image.open(place).convert("RGBA").save(place), "CelebA_0.png is RGBA of 512x512, not RGB of 512x512"),
        (lambda place: Image.open(place).resize((256, 256)).save(place), "CelebA_0.png is RGB of 256x256, not RGB of 512x512"),
        (lambda place: place.write_bytes(b"no"), "CelebA_0.png is no PNG"),
    ],
)
def test_a_submission_that_would_get_no_score(spoil: Callable[[Path], Any], says: str, entry: Path, evaluate: Cli) -> None:
    spoil(entry / "out" / "flat" / "CelebA_0.png")
    code, printed = evaluate(*SUBMIT, "extra_data=false")
    assert (code, says in printed, (entry / "entry.zip").exists()) == (1, True, False), printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (SUBMIT, "extra_data is not set: python evaluate.py submit outputs=… lq=…"),
        ((*SUBMIT, "extra_data=maybe"), "extra_data='maybe': Input should be a valid boolean"),
        ((*SUBMIT, "extra=1"), "extra: there is no such key"),
    ],
)
def test_mistakes_of_a_submission(arguments: tuple[str, ...], says: str, tmp_path: Path, evaluate: Cli) -> None:
    code, printed = evaluate(*arguments)
    assert (code, says in printed) == (1, True), printed


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not here")
def test_the_page_in_a_browser(folders: Path, evaluate: Cli) -> None:
    """It sorts, and the line follows the slider."""
    assert evaluate("outputs=[a,b]", "hq=hq", "protocol=paired", "show=1")[0] == 0
    page = folders / "scores" / "report.html"
    asks = """
    document.querySelectorAll("th button")[2].click(); document.querySelectorAll("th button")[2].click();
    const slider = document.querySelector(".slider input"); slider.value = 20; slider.dispatchEvent(new Event("input"));
    const first = document.querySelector("tbody tr td").textContent;
    const loaded = [...document.images].every(image => image.naturalWidth > 0);
    document.title = [first, getComputedStyle(slider.parentElement).getPropertyValue("--at"), loaded].join(" ");
    """
    page.write_text(page.read_text().replace("</script>", f"window.addEventListener('load', () => {{{asks}}});</script>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom", str(page)]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert re.search(r"<title>a 20% true</title>", dom), re.search(r"<title>.*?</title>", dom)


def test_without_pyiqa_there_is_no_score(entry: Path, evaluate: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    code, printed = evaluate("outputs=out", "lq=lq", "landmarks=faces.csv", "fid_statistics=ffhq.npz", "protocol=ntire2025")
    assert code == 0
    assert "no score: S needs clipiqa, maniqa, musiq, qalign too" in printed
    assert "missing: qalign: qalign needs pyiqa, which is for non-commercial use: uv pip install pyiqa icecream" in printed
    assert json.loads((entry / "scores" / "report.json").read_text())["folders"][0]["score"] is None


def test_an_image_of_another_size_has_no_identity(entry: Path, evaluate: Cli) -> None:
    path = entry / "out" / "flat" / "CelebA_0.png"
    Image.open(path).resize((256, 256)).save(path)
    code, printed = evaluate("outputs=out", "lq=lq", "landmarks=faces.csv", "protocol=ntire2025")
    assert code == 1
    assert "CelebA_0, identity: it has 256x256 pixels, and the landmarks are in pixels of 512x512" in printed
    assert "no score: " in printed


def test_other_landmarks_are_not_answered_from_the_cache(entry: Path, evaluate: Cli) -> None:
    arguments = ("outputs=out", "lq=lq", "landmarks=faces.csv", "protocol=ntire2025")

    def cosines() -> dict[str, float]:
        with (entry / "scores" / "images.csv").open(newline="") as file:
            return {row["image"]: float(row["identity"]) for row in csv.DictReader(file)}

    assert evaluate(*arguments)[0] == 0
    before = cosines()
    table = (entry / "faces.csv").read_text().splitlines()
    table[1] = table[1].replace("193,240,319,240", "153,200,359,240")
    (entry / "faces.csv").write_text("\n".join(table))
    assert evaluate(*arguments)[0] == 0
    assert {name for name, cosine in cosines().items() if cosine != before[name]} == {table[1].partition(",")[0]}


def test_lpips_is_the_losses_own(folders: Path) -> None:
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).features.state_dict(prefix="features."), folders / "alex.pth")
    metric = LPIPS(net="alex", weights="weights", file=str(folders / "alex.pth"))
    metric.open(torch.device("cpu"))
    image, hq = (pixels(folders / folder / "00.png") for folder in ("a", "hq"))
    expected = metric.distance(to_tensor(image)[None], to_tensor(hq)[None])
    assert float(expected) > 0
    assert metric(image, hq, "00") == pytest.approx(float(expected))
    assert metric(hq, hq, "00") == 0
    assert "alex" in metric.key()


def test_features_are_those_of_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_fid import inception

    torch.manual_seed(0)
    with monkeypatch.context() as patched:  # its own random weights in place of those that it would fetch
        patched.setattr(inception, "load_state_dict_from_url", lambda *_, **__: None)
        patched.setattr(nn.Module, "load_state_dict", lambda *_: None)
        torch.save(inception.fid_inception_v3().state_dict(), tmp_path / "inception.pth")
    fetch = inception.load_state_dict_from_url
    ours = Inception(tmp_path / "inception.pth")
    assert inception.load_state_dict_from_url is fetch
    state = torch.load(tmp_path / "inception.pth", weights_only=True)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: state)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        theirs = inception.InceptionV3([3]).eval()(images)[0].flatten(1)
    torch.testing.assert_close(ours(images), theirs)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is not pytorch-fid's Inception"):
        Inception(tmp_path / "other.pth")


def test_intervals() -> None:
    values = np.random.default_rng(1).normal(3, 2, 400).tolist()
    found = interval(values)
    assert found == interval(values)
    half = 1.96 * np.std(values) / 20
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=0.15)
    gains = compared([1, 2, 3, 4], [2, 2, 2, 5], higher_is_better=True)
    assert (gains.difference.mean, gains.won, gains.order) == (0.25, 0.625, [2, 1, 0, 3])
    assert compared([1.0], [2.0], higher_is_better=False).difference.mean == -1


def test_metrics_of_luma_and_borders() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    framed = other.copy()
    framed[4:-4, 4:-4] = one[4:-4, 4:-4]
    framed[10, 10] ^= 1
    assert PSNR(border_px=4)(framed, one, "") > 60 > PSNR()(framed, one, "")
    assert PSNR(luma=True)(one, other, "") > PSNR()(one, other, "")
    assert SSIM()(one, one, "") == pytest.approx(1)
    warmer = np.clip(one.astype(int) + np.array([30, 0, 0]), 0, 255).astype(np.uint8)
    assert ColourShift()(one, one, "") == 0
    assert 2 < ColourShift()(warmer, one, "") < 30


def test_statistics_of_the_organisers(tmp_path: Path) -> None:
    mean, cov = np.arange(3.0), np.eye(3)
    torch.save({"name": "ffhq", "size": 512, "mean": mean, "cov": cov}, tmp_path / "ffhq.pth")
    found = Statistics.load(tmp_path / "ffhq.pth")
    assert (found.mean == mean).all()
    assert (found.covariance == cov).all()
    (tmp_path / "bad.pth").write_bytes(b"no")
    torch.save({"mean": SimpleNamespace()}, tmp_path / "code.pth")
    for name in ("bad.pth", "code.pth"):
        with pytest.raises(ValueError, match="holds no statistics"):
            Statistics.load(tmp_path / name)
