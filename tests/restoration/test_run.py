"""restore.py as a user calls it: runs and files in, PNGs out, and what can go wrong."""

import errno
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.images import to_tensor, write_png
from models.codeformer import CodeFormer
from models.elan import ELAN
from models.files.families import full_state
from restoration.cli import main
from restoration.tiles import restore_tiled
from tests.toy import ROOT, write_photographs

Cli = Callable[..., tuple[int, str]]
TINY = {"m_elan": 2, "c_elan": 15, "n_share": 0, "r_expand": 2, "window_sizes": [4, 8, 16], "img_range": 255.0}
ROUNDED = {"rtol": 0.0, "atol": 0.51 / 255}  # to 8 bits


@pytest.fixture
def restore(command: Cli) -> Cli:
    return lambda *arguments: command(main, *arguments)


def tiny_elan(seed: int = 0) -> ELAN:
    torch.manual_seed(seed)
    return ELAN(scale=1, **TINY).eval()  # type: ignore[arg-type]


@pytest.fixture
def elan(tmp_path: Path) -> Path:
    torch.save({"params": full_state(tiny_elan())}, tmp_path / "elan.pth")
    return tmp_path / "elan.pth"


def picture(file: Path) -> Tensor:
    """(3, h, w) in [0, 1]."""
    return to_tensor(np.asarray(Image.open(file)))


@torch.no_grad()
def restored(photo: Path) -> Tensor:
    """What the network of elan.pth makes of a photograph as a whole, (3, h, w) in [0, 1]."""
    return tiny_elan()(picture(photo)[None])[0].clamp(0, 1)


def assert_holds(file: Path, image: Tensor) -> None:
    """The file is (3, h, w) in about [0, 1], but for rounding to 8 bits."""
    torch.testing.assert_close(picture(file), image.clamp(0, 1), **ROUNDED)


@torch.no_grad()
def test_a_folder(elan: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in" / "deep", count=3, size=90)
    arguments = [f"ckpt={elan}", f"input={photographs.parent}", f"output={tmp_path / 'out'}", "tile_px=48", "overlap_px=16"]
    code, printed = restore(*arguments)
    assert code == 0, printed
    assert printed.startswith(f"3 of 3 images restored into {tmp_path / 'out'}, ")
    made = sorted((tmp_path / "out" / "deep").iterdir())
    assert [file.name for file in made] == ["00.png", "01.png", "02.png"]
    lq = picture(photographs / "00.png")[None]
    tiled = restore_tiled(tiny_elan(), lq, tile_px=48, overlap_px=16, multiple=16)
    assert_holds(made[0], tiled[0])
    for other in (tiny_elan()(lq), restore_tiled(tiny_elan(), lq, tile_px=48, overlap_px=16, multiple=1)):
        assert (other - tiled).abs().max() > 2 / 255, "the file tells that it was tiled, and where"
    made[1].unlink()
    before = made[0].stat().st_mtime_ns
    assert restore(*arguments)[1].startswith("1 of 3 images restored"), "it goes on where it ended"
    assert made[0].stat().st_mtime_ns == before
    assert restore(*arguments, "overwrite=true")[1].startswith("3 of 3")


def test_one_image_through_the_script(elan: Path, tmp_path: Path) -> None:
    photo = write_photographs(tmp_path / "in", count=1) / "00.png"
    command = [sys.executable, str(ROOT / "restore.py"), f"ckpt={elan}", f"input={photo}", "output=out", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), restored(photo), **ROUNDED)


@torch.no_grad()
def test_which_weights_of_a_run_and_bfloat16(tmp_path: Path, restore: Cli) -> None:
    networks = {"network": tiny_elan(1), "ema": tiny_elan(2)}
    state = {f"network.{key}": value for key, value in networks["network"].state_dict().items()}
    state |= {f"ema.average.{key}": value for key, value in networks["ema"].state_dict().items()}
    config = {"network": {"_target_": "models.elan.ELAN", "scale": 1, **TINY}}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state, "config": config}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    photo = write_photographs(tmp_path / "in", count=1) / "00.png"
    lq = picture(photo)[None]
    for output, arguments in {
        "left_out": [],
        "ema": ["which=ema"],
        "network": ["which=network"],
        "bf16": ["bf16=true"],
    }.items():
        code, printed = restore("ckpt=run", f"input={photo}", f"output={output}", "device=cpu", *arguments)
        assert code == 0, printed
    expected = {name: network(lq)[0] for name, network in networks.items()}
    assert (expected["ema"] - expected["network"]).abs().max() > 2 / 255
    assert_holds(tmp_path / "left_out" / "00.png", expected["ema"])
    assert_holds(tmp_path / "ema" / "00.png", expected["ema"])
    assert_holds(tmp_path / "network" / "00.png", expected["network"])
    rounded = (picture(tmp_path / "bf16" / "00.png") - expected["ema"].clamp(0, 1)).abs()
    assert 1 / 255 < rounded.max() < 0.5, "the same picture, in fewer digits"


@pytest.fixture
def codeformer(tmp_path: Path) -> CodeFormer:
    torch.manual_seed(0)
    small = {"img_size": 16, "nf": 32, "ch_mult": [1, 2], "res_blocks": 1, "attn_resolutions": [8], "codebook_size": 24}
    network = CodeFormer(
        **small, emb_dim=8, dim_embd=16, n_head=8, n_layers=1, connect_list=[8, 16], fix_modules=["quantize", "generator"]
    ).eval()
    torch.save({"params_ema": network.state_dict()}, tmp_path / "codeformer.pth")
    return network


def test_codeformer_at_several_w(codeformer: CodeFormer, tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in", count=1, size=16) / "00.png"
    code, printed = restore(f"ckpt={tmp_path / 'codeformer.pth'}", f"input={photo}", "output=out", "w=[0,0.5,1]")
    assert code == 0, printed
    with torch.no_grad():
        each = [codeformer(picture(photo)[None], w=w, adain=True).restored[0] for w in (0, 0.5, 1)]
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), torch.cat(each, dim=-1).clamp(0, 1), **ROUNDED)


def test_a_face_larger_than_a_tile_is_not_cut_up_for_codeformer(codeformer: CodeFormer, tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in", count=1, size=520) / "00.png"
    code, printed = restore("ckpt=codeformer.pth", f"input={photo}", "output=out")
    assert code == 1
    assert f"error: {photo}: CodeFormer restores aligned faces of 16x16, and this is an image of 520x520: faces=" in printed
    assert not [*(tmp_path / "out").iterdir()]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ckpt=elan.pth", "w=0.5"], "w does nothing: elan.pth holds ELAN, which takes no fidelity; leave w out"),
        (["ckpt=codeformer.pth", "tile_px=512"], "tile_px does nothing: codeformer.pth holds CodeFormer, which takes no tiles"),
        (["ckpt=codeformer.pth", "overlap_px=0"], "overlap_px does nothing: codeformer.pth holds CodeFormer, which takes no"),
    ],
)
@pytest.mark.usefixtures("elan", "codeformer")
def test_keys_that_the_network_has_no_use_for(arguments: list[str], says: str, tmp_path: Path, restore: Cli) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "00.png").write_bytes(b"never read")
    code, printed = restore(*arguments, "input=in", "output=out")
    assert (code, len(printed.splitlines())) == (1, 1), printed
    assert f"error: {says}" in printed


def test_bad_images_are_named_and_the_rest_is_done(elan: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in", count=2)
    (photographs / "00.png").write_bytes(b"not a picture")
    Image.fromarray(np.zeros((5, 5, 3), dtype=np.uint8)).save(photographs / "tiny.png")
    code, printed = restore(f"ckpt={elan}", f"input={photographs}", f"output={tmp_path / 'out'}")
    assert code == 1
    assert "1 of 3 images restored" in printed
    assert f"error: {photographs / '00.png'}" in printed
    assert f"error: {photographs / 'tiny.png'}: an image of 5x5 is too small" in printed
    torch.testing.assert_close(picture(tmp_path / "out" / "01.png"), restored(photographs / "01.png"), **ROUNDED)


def test_nothing_is_written_where_the_output_is_not_finite(
    elan: Path, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ELAN, "forward", lambda network, lq: torch.full_like(lq, torch.inf))
    photographs = write_photographs(tmp_path / "in", count=1)
    code, printed = restore(f"ckpt={elan}", f"input={photographs}", "output=out")
    assert code == 1
    assert f"error: {photographs / '00.png'}: the output of network is not finite" in printed
    assert not [*(tmp_path / "out").iterdir()]


def test_an_image_that_memory_does_not_hold(elan: Path, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path / "in", count=3, size=32)
    Image.new("RGB", (70, 40)).save(tmp_path / "in" / "01.png")
    forward = ELAN.forward

    def with_little(network: ELAN, lq: Tensor) -> Tensor:
        if lq.shape[-1] > 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(network, lq)

    monkeypatch.setattr(ELAN, "forward", with_little)
    code, printed = restore(f"ckpt={elan}", "input=in", "output=out", "device=cpu", "tile_px=64", "overlap_px=16")
    assert code == 1
    assert "2 of 3 images restored into out" in printed
    assert "error: in/01.png: memory ran out on its 70x40 pixels: set tile_px below 64\n" in printed
    torch.testing.assert_close(picture(tmp_path / "out" / "02.png"), restored(tmp_path / "in" / "02.png"), **ROUNDED)

    def broken(network: ELAN, lq: Tensor) -> Tensor:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(ELAN, "forward", broken)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        restore(f"ckpt={elan}", "input=in", "output=out2")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            1,
            "error: out/02.png can't be written: No space left on device; what was written is whole: mend this and give",
        ),
        (KeyboardInterrupt(), 130, "interrupted: the same command goes on from there"),
    ],
)
def test_what_went_wrong_before_an_abort_is_told(
    error: BaseException, code: int, says: str, elan: Path, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = write_photographs(tmp_path / "in", count=4, size=32)
    (photographs / "00.png").write_bytes(b"not a picture")

    def until_02(path: Path, image: Tensor) -> None:
        if path.name == "02.png":
            raise error
        write_png(path, image)

    monkeypatch.setattr("restoration.run.write_png", until_02)
    arguments = [f"ckpt={elan}", "input=in", "output=out"]
    ended, printed = restore(*arguments)
    assert ended == code
    assert "1 of 4 images restored into out" in printed
    assert "error: in/00.png can't be read" in printed
    assert says in printed
    monkeypatch.setattr("restoration.run.write_png", write_png)
    assert "2 of 4 images restored into out" in restore(*arguments)[1]
    torch.testing.assert_close(picture(tmp_path / "out" / "03.png"), restored(photographs / "03.png"), **ROUNDED)


def test_sigterm_ends_it_as_ctrl_c_does(elan: Path, tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=60, size=200)
    arguments = [f"ckpt={elan}", "input=in", "output=out", "tile_px=48", "overlap_px=16"]
    command = [sys.executable, str(ROOT / "restore.py"), *arguments, "device=cpu"]
    running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while running.poll() is None and not (tmp_path / "out" / "00.png").exists():
        time.sleep(0.01)
    running.terminate()
    running.terminate()  # as timeout does
    printed, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (75, "interrupted: the same command goes on from there\n")
    made = sorted(file.name for file in (tmp_path / "out").glob("*.png"))
    assert 0 < len(made) < 60
    assert made == [f"{number:02d}.png" for number in range(len(made))], "nothing of the one that was dropped"
    counted = [f"{count} of 60 images restored into out" for count in (len(made), len(made) - 1)]  # it may come in between
    assert printed.startswith(tuple(counted))


def test_a_name_that_can_not_be_written_stops_no_other(elan: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in", count=3, size=32)
    longest = f"{'n' * 251}.png"
    (photographs / "01.png").rename(photographs / longest)
    (photographs / "deep").mkdir()
    (photographs / "00.png").rename(photographs / "deep" / "00.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").write_text("in the way")
    code, printed = restore(f"ckpt={elan}", "input=in", "output=out")
    assert code == 1
    assert "2 of 3 images restored into out" in printed
    assert "error: out/deep/00.png can't be written: File exists" in printed
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["02.png", "deep", longest, "restore.json"]
    torch.testing.assert_close(picture(tmp_path / "out" / longest), restored(photographs / longest), **ROUNDED)


@pytest.mark.parametrize(
    ("given", "output"),
    [("in", "in"), ("in", "in/made"), ("in", "in/deep/../made"), ("in/00.png", "in"), ("in", "elsewhere"), ("linked", "in")],
)
@pytest.mark.parametrize("more", [[], ["overwrite=true"]])
def test_an_output_among_the_inputs_is_refused(
    given: str, output: str, more: list[str], elan: Path, tmp_path: Path, restore: Cli
) -> None:
    photo = write_photographs(tmp_path / "in", count=1, size=32) / "00.png"
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "00.png").symlink_to(photo)
    (tmp_path / "elsewhere").symlink_to("in")
    before = photo.read_bytes()
    code, printed = restore(f"ckpt={elan}", f"input={given}", f"output={output}", *more)
    assert (code, printed) == (1, f"error: output={output} is where the input lies: give another folder\n")
    assert photo.read_bytes() == before
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["00.png"]


@pytest.mark.parametrize("name", ["2024_01", "yes", "0010", "{x}", "${x}", "a: b", "a=b", "[1]", "~"])
def test_paths_are_taken_as_they_stand(
    name: str, elan: Path, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    place = tmp_path / "home" if name == "~" else tmp_path / name
    write_photographs(place / "in", count=1, size=32)
    elan.rename(place / "elan.pth")
    code, printed = restore(f"ckpt={name}/elan.pth", f"input={name}/in", f"output={name}/out")
    assert code == 0, printed
    torch.testing.assert_close(picture(place / "out" / "00.png"), restored(place / "in" / "00.png"), **ROUNDED)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "ckpt is not set: give ckpt=PATH, a run"),
        (["ckpt={elan}", "inptu=x"], "inptu: there is no such key; did you mean input"),
        (["ckpt={elan}", "input={here}/gone", "output=o"], "gone"),
        (["ckpt={here}/gone.pth", "input={photos}", "output=o"], "gone.pth"),
        (["ckpt={elan}", "input={photos}", "output=o", "tile_px=many"], "tile_px='many': Input should be a valid integer"),
        (["ckpt={elan}", "input={photos}", "output=o", "which=best"], "which='best': Input should be 'ema' or 'network'"),
        (["ckpt={elan}", "input={photos}", "output=o", "device=tpu9"], "device=tpu9 can't be used"),
        (["ckpt={elan}", "input={photos}", "output=o", "device=meta"], "device=meta can't be used"),
        (["ckpt={elan}", "input={photos}", "output=o", "overwrite=2"], "overwrite=2: Input should be a valid boolean"),
        (["ckpt={elan}", "input={photos}", "output=o", "w=[]"], r"w=\[\]: .* at least 1 item"),
        (["ckpt={elan}", "input={photos}", "output=o", "w=-1"], "w=-1: Input should be greater than or equal to 0"),
        (["ckpt={elan}", "input={photos}", "output=o", "w=[0,nan]"], r"w=\[0, nan\]: .* a finite number"),
        (["ckpt={elan}", "input={photos}", "output="], "output is not set"),
        (["ckpt={here}/gone.pth", "input={photos}", "output={elan}"], r"elan.pth can't be made a folder \(File exists\)"),
        (
            ["ckpt={elan}", "input={photos}", "output=o", "tile_px=48"],
            "tile_px=48 with overlap_px=64 .* or a tile_px of at least",
        ),
        (["ckpt={elan}", "input={photos}", "output=o", "tile_px=0"], "tile_px=0 with overlap_px=64: give a tile of 1 or more"),
        (["ckpt={elan}", "input={twins}", "output=o"], "several images would become o/a.png"),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: str,
    elan: Path,
    tmp_path: Path,
    restore: Cli,
) -> None:
    photos = write_photographs(tmp_path / "photos", count=2)
    twins = tmp_path / "twins"
    twins.mkdir()
    for name in ("a.png", "a.jpg"):
        Image.open(photos / "00.png").save(twins / name)
    places = {"elan": elan, "here": tmp_path, "photos": photos, "twins": twins}
    code, printed = restore(*(argument.format(**places) for argument in arguments))
    assert code == 1
    assert re.search(says, printed), printed
    assert len(printed.splitlines()) == 1, "it is said once, before any image"
    assert "Traceback" not in printed
