"""Stages after one another over a folder: what is kept, what goes on, and what is refused."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.images import to_tensor
from models.files import official
from models.files.families import full_state
from restoration.cli import main
from tests.restoration.test_run import picture, tiny_elan
from tests.toy import ROOT, write_photographs

Cli = Callable[..., tuple[int, str]]
STAGE = """
  {name}:
    _target_: restoration.network.Network
    ckpt: ${{{name}}}"""


@pytest.fixture
def elans(tmp_path: Path) -> list[Path]:
    """Two networks that differ."""
    files = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for seed, file in enumerate(files):
        torch.save({"params": full_state(tiny_elan(seed))}, file)
    return files


@pytest.fixture
def arguments(elans: list[Path], tmp_path: Path) -> list[str]:
    """pipeline=two of a folder beside: first, then second."""
    folder = tmp_path / "conf" / "pipeline"
    folder.mkdir(parents=True)
    stages = "".join(STAGE.format(name=name) for name in ("first", "second"))
    (folder / "two.yaml").write_text(f"# @package _global_\npipeline:{stages}\nfirst: ???\nsecond: ???\n")
    keys = [f"first={elans[0]}", f"second={elans[1]}", "device=cpu", "input=in", "output=out"]
    return [f"--config-dir={tmp_path / 'conf'}", "pipeline=two", *keys]


@pytest.fixture
def restore(command: Cli) -> Cli:
    return lambda *arguments: command(main, *arguments)


@torch.no_grad()
def one_by_one(photo: Path, *, to_8bit: bool = False) -> torch.Tensor:
    first = tiny_elan(0)(picture(photo)[None])
    if to_8bit:
        first = (first.clamp(0, 1) * 255).round() / 255
    return (tiny_elan(1)(first)[0].clamp(0, 1) * 255).round() / 255


def outputs(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.png")}


def test_a_chain_is_its_stages_one_by_one(arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in", count=2, size=40) / "01.png"
    code, printed = restore(*arguments)
    assert (code, printed.count("\n")) == (0, 1), printed
    torch.testing.assert_close(picture(tmp_path / "out" / "01.png"), one_by_one(photo), rtol=0, atol=1e-6)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["00.png", "01.png", "restore.json"]
    assert restore(*arguments, "output=out8", "quantize=8bit")[0] == 0
    rounded = one_by_one(photo, to_8bit=True)
    torch.testing.assert_close(picture(tmp_path / "out8" / "01.png"), rounded, rtol=0, atol=1e-6)
    assert not torch.equal(rounded, one_by_one(photo)), "8 bits between the stages make a difference"


@pytest.mark.parametrize("keep", ["true", "[first]"])
@torch.no_grad()
def test_what_a_stage_made_is_kept_as_it_was(keep: str, arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in" / "deep", count=1, size=40) / "00.png"
    assert restore(*arguments, f"keep={keep}")[0] == 0
    made = torch.from_numpy(np.load(tmp_path / "out" / ".stages" / "first" / "deep" / "00.npy"))
    torch.testing.assert_close(made, tiny_elan(0)(picture(photo)[None])[0], rtol=0, atol=1e-6)
    seen = picture(tmp_path / "out" / ".stages" / "first" / "deep" / "00.png")
    torch.testing.assert_close(seen, made.clamp(0, 1), rtol=0, atol=0.51 / 255)


def test_one_stage_is_in_memory_at_a_time(
    arguments: list[str], tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path / "in", count=3, size=32)
    living: list[int] = []
    build = official.build
    alive = 0

    def counted(*given: object) -> torch.nn.Module:
        nonlocal alive
        network = build(*given)  # type: ignore[arg-type]
        alive += 1
        living.append(alive)

        def gone() -> None:
            nonlocal alive
            alive -= 1

        weakref.finalize(network, gone)
        return network

    monkeypatch.setattr(official, "build", counted)
    assert restore(*arguments)[0] == 0
    assert living == [1, 1, 1], "the second to see that it opens, the first, the second"


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_folder_that_was_killed_goes_on_to_the_same_bytes(
    times: int, arguments: list[str], tmp_path: Path, restore: Cli
) -> None:
    write_photographs(tmp_path / "in", count=20, size=150)
    assert restore(*arguments, "output=alone")[0] == 0
    command = [sys.executable, str(ROOT / "restore.py"), *arguments]
    random.seed(0)
    kills = 0
    for _ in range(times):
        running = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = set((tmp_path / "out").rglob("*.*"))
        while running.poll() is None and set((tmp_path / "out").rglob("*.*")) == before:
            time.sleep(0.01)
        time.sleep(random.random() / 10)
        running.send_signal(signal.SIGKILL)
        kills += running.wait() == -signal.SIGKILL
    assert kills > 0
    left = len(outputs(tmp_path / "out")) < 20 or times > 1
    code, printed = restore(*arguments)
    assert code == 0, printed
    assert left
    assert outputs(tmp_path / "out") == outputs(tmp_path / "alone")
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_shards_and_processes_make_what_one_makes(arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=5, size=32)
    assert restore(*arguments)[0] == 0
    for shard, count in (("1/2", 3), ("2/2", 2)):
        assert restore(*arguments, "output=parts", f"shard={shard}")[1].startswith(f"{count} of {count} images")
    assert restore(*arguments, "output=processes", "devices=2")[0] == 0
    alone = outputs(tmp_path / "out")
    assert len(alone) == 5
    assert outputs(tmp_path / "parts") == alone == outputs(tmp_path / "processes")


@torch.no_grad()
def test_batches(arguments: list[str], tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path / "in", count=5, size=32)
    write_photographs(tmp_path / "more", count=2, size=48)
    for number, photo in enumerate((tmp_path / "more").iterdir()):
        photo.rename(tmp_path / "in" / f"02{'ab'[number]}.png")
    (tmp_path / "in" / "04.png").write_bytes(b"not a picture")
    sizes: list[int] = []
    network = type(tiny_elan())
    forward = network.forward

    def counted(elan: torch.nn.Module, lq: torch.Tensor) -> torch.Tensor:
        sizes.append(len(lq))
        return forward(elan, lq)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "forward", counted)
    code, printed = restore(*arguments, "batch_size=2")
    assert (code, printed.startswith("6 of 7 images")) == (1, True), printed
    assert "in/04.png can't be read" in printed
    assert sizes == 2 * [2, 1, 2, 1], "00 and 01, 02, 02a and 02b, 03; 04 fails"
    for photo in ("01.png", "02a.png"):
        torch.testing.assert_close(
            picture(tmp_path / "out" / photo), one_by_one(tmp_path / "in" / photo), rtol=0, atol=1.01 / 255
        )
    before = outputs(tmp_path / "out")
    (tmp_path / "out" / "01.png").unlink()
    sizes.clear()
    assert restore(*arguments, "batch_size=2")[0] == 1
    assert sizes == [2, 2], "with the same neighbour, in both stages"
    assert outputs(tmp_path / "out") == before


def test_an_image_that_spoils_its_batch_fails_alone(
    arguments: list[str], tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photographs(tmp_path / "in", count=3, size=32)
    network = type(tiny_elan())
    forward = network.forward

    def fails(elan: torch.nn.Module, lq: torch.Tensor) -> torch.Tensor:
        if (lq == to_tensor(np.zeros((32, 32, 3), dtype=np.uint8))).all(dim=(1, 2, 3)).any():
            raise ValueError("too dark")
        return forward(elan, lq)  # type: ignore[arg-type]

    Image.new("RGB", (32, 32)).save(tmp_path / "in" / "01.png")
    monkeypatch.setattr(network, "forward", fails)
    code, printed = restore(*arguments, "batch_size=3")
    assert code == 1
    assert printed.startswith("2 of 3 images")
    assert "error: in/01.png: too dark\n" in printed
    assert {*outputs(tmp_path / "out")} == {"00.png", "02.png"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["quantize=8bit"], 'quantize was null, is "8bit"'),
        (["pipeline.first.tile_px=32", "pipeline.first.overlap_px=16"], "pipeline.first.tile_px was null, is 32"),
        (["second={here}/c.pth"], "second had other weights ({here}/b.pth)"),
        (["batch_size=2"], "batch_size was 1, is 2"),
        (["input=other"], "out/00.png was made of input=in, not of input=other"),
    ],
)
def test_what_another_configuration_made_is_not_kept_silently(
    changed: list[str], says: str, arguments: list[str], tmp_path: Path, restore: Cli
) -> None:
    for folder in ("in", "other"):
        write_photographs(tmp_path / folder, count=1, size=32)
    torch.save({"params": full_state(tiny_elan(2))}, tmp_path / "c.pth")
    assert restore(*arguments)[0] == 0
    before = outputs(tmp_path / "out")
    changed = [each.format(here=tmp_path) for each in changed]
    code, printed = restore(*arguments, *changed)
    assert (code, printed.count("\n")) == (1, 1)
    assert says.format(here=tmp_path) in printed
    assert "give another output, or overwrite=true to make all anew" in printed
    assert outputs(tmp_path / "out") == before
    assert restore(*arguments, *changed, "output=another")[0] == 0
    assert restore(*arguments, *changed, "overwrite=true")[0] == 0
    assert outputs(tmp_path / "out") == outputs(tmp_path / "another")
    assert restore(*arguments, *changed)[1].startswith("0 of 1"), "restore.json says what is there now"


def test_weights_that_changed_under_their_name(arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=1, size=32)
    assert restore(*arguments)[0] == 0
    kept = json.loads((tmp_path / "out" / "restore.json").read_text())
    assert kept["settings"]["pipeline.first._target_"] == "restoration.network.Network"
    assert [*kept["weights"]] == ["first", "second"]
    os.utime(tmp_path / "a.pth")
    assert restore(*arguments)[0] == 0, "touched, and the same"
    torch.save({"params": full_state(tiny_elan(3))}, tmp_path / "a.pth")
    assert "first had other weights" in restore(*arguments)[1]


def test_outputs_of_nobody_knows_what_are_refused(arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=1, size=32)
    assert restore(*arguments)[0] == 0
    (tmp_path / "out" / "restore.json").unlink()
    assert "out/00.png is there, and no restore.json says what made it" in restore(*arguments)[1]
    (tmp_path / "out" / "restore.json").write_text("{")
    assert "restore.json can't be read" in restore(*arguments)[1]
    assert restore(*arguments, "overwrite=true")[0] == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["shard=3/2"], "shard=3/2: give one of 1/2 to 2/2"),
        (["shard=half"], "shard='half': String should match pattern"),
        (["keep=[second]"], "keep=second: give first"),
        (["batch_size=0"], "batch_size=0: Input should be greater than or equal to 1"),
        (["quantize=16bit"], "quantize='16bit': Input should be '8bit'"),
        (["first={here}/gone.pth"], "gone.pth does not exist"),
        (["second={here}/gone.pth"], "gone.pth does not exist"),
        (["pipeline.first.tlie_px=3"], "did you mean pipeline.first.tile_px?"),
        (["pipeline=tow"], "pipeline=tow: there is no such pipeline (there are acvlab, cx, "),
        (["pipeline=tow"], "network, night_watch, two); did you mean two?"),
        (["--cgf=job"], "--cgf=job: there is no such option"),
        (["x", "y", "z"], "x: give KEY=VALUE"),
        (["seed=-1", "w=2"], "w is of pipeline=acvlab, cx, difface, …, not of pipeline=two"),
    ],
)
def test_mistakes(given: list[str], says: str, arguments: list[str], tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=1, size=32)
    code, printed = restore(*arguments, *(each.format(here=tmp_path) for each in given))
    assert (code, "Traceback" in printed) == (1, False)
    assert says in printed
    assert printed.count("\n") == 1, "before any image is read"
    assert not outputs(tmp_path / "out")


@pytest.mark.parametrize(
    ("pipeline", "says"),
    [
        (
            "pipeline: {a: {_target_: restoration.network.Netwrok, ckpt: x}}",
            "pipeline.a._target_='restoration.network.Netwrok'",
        ),
        ("pipeline: {a: {ckpt: x}}", "pipeline.a is no node that names a class: give it a _target_"),
        ("pipeline: {a: {_target_: restoration.network.Network, ckpt: x, q: 1}}", "restoration.network.Network has no q"),
        ("pipeline: {a: {_target_: restoration.network.Network}}", "pipeline.a.ckpt is missing"),
        ("pipeline: {a: {_target_: restoration.network.Network, ckpt: x}}\nq: 1", "q=1: no stage of this pipeline reads it"),
        ("pipeline: {a: {_target_: restoration.network.Network, ckpt: '${q}'}}", "Interpolation key 'q' not found"),
    ],
)
def test_mistakes_of_a_pipeline(pipeline: str, says: str, tmp_path: Path, restore: Cli) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "mine.yaml").write_text(f"# @package _global_\n{pipeline}\n")
    code, printed = restore("--config-dir", str(tmp_path), "pipeline=mine", "input=in", "output=out")
    assert (code, "Traceback" in printed, printed.count("\n")) == (1, False, 1), printed
    assert says in printed


def test_as_a_person_types_it(elans: list[Path], tmp_path: Path, restore: Cli) -> None:
    photo = write_photographs(tmp_path / "in", count=1, size=32) / "00.png"
    assert restore(str(elans[0]), str(photo))[1].startswith("1 of 1 images restored into restored/a")
    assert restore(str(elans[0]), "in", "out", "device=cpu")[0] == 0
    assert outputs(tmp_path / "out") == outputs(tmp_path / "restored" / "a")
    code, printed = restore(str(elans[0]), "in", "--cfg", "job")
    assert code == 0
    assert "input: in\n" in printed
    assert f"ckpt: {elans[0]}\n" in printed
