"""Training of IRControlNet on latents that were made before (python -m data.prepare latents)."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from data.prepare.__main__ import COMMANDS
from data.prepare.jobs.arguments import main as prepare
from models.files.first_stage import FirstStage
from tests.models.test_codeformer import tiny as codeformer
from tests.toy import write_photographs
from tests.train.tasks.test_control import Command, arguments, given, networks  # noqa: F401

SIZES = ["data.size=64", "data.val_size=64", "trainer.max_steps=2"]
IN_PROPORTION = ["optimizer.eps=1", "optimizer.lr=0.1"]  # to gradients: with Adam's own eps noise counts


@pytest.fixture(scope="module")
def made(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """hq/ and lq/, given pairs; latents/ of hq/, and conditions/ of lq/."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "lq").mkdir()
    for photograph in sorted(write_photographs(folder / "hq", size=64).iterdir()):
        pixels = np.asarray(Image.open(photograph)).astype(int)
        Image.fromarray((pixels // 2 + 30).astype(np.uint8)).save(folder / "lq" / photograph.name)
    common = [f"stable_diffusion={given}/sd", "size=64", "workers=1"]
    assert prepare(COMMANDS, ["latents", f"root={folder}/hq", f"out={folder}/latents", *common]) == 0
    of_lq = [f"root={folder}/lq", f"out={folder}/conditions", f"stage1={given}/runs/stage1", *common]
    assert prepare(COMMANDS, ["latents", *of_lq]) == 0
    return folder


@pytest.fixture
def folders(made: Path, tmp_path: Path) -> Path:
    """A copy of them, in the folder that commands run in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def pairs(folders: Path) -> list[str]:
    return ["data=pairs", f"data.root={folders}/lq", f"data.target_root={folders}/hq"]


SEEN = "input_blocks.0.0.weight"  # its last four channels see the condition
BOTH = ["data.latents=latents", "data.condition_latents=conditions"]


def doubled(folder: Path) -> str:
    other = shutil.copytree(folder, folder.with_name(f"{folder.name}2"))
    for file in other.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            moments, metadata = opened.get_tensor("moments"), opened.metadata()
        save_file({"moments": 2 * moments}, file, metadata)
    return str(other)


def test_the_training_is_the_same(given: Path, folders: Path, command: Command) -> None:  # noqa: F811
    from train.jobs.cli import main

    def trained(name: str, *more: str) -> dict[str, torch.Tensor]:
        code, printed = command(main, *arguments(given, *SIZES, *IN_PROPORTION, *pairs(folders)), f"name={name}", *more)
        assert code == 0, printed
        return networks(Path("runs") / name)

    fly, before = trained("fly"), trained("before", *BOTH)
    for key, value in fly.items():
        torch.testing.assert_close(before[key], value, atol=1e-6, rtol=1e-3)
    assert (before[SEEN] - fly[SEEN])[:, 4:].norm() < 1e-3 * fly[SEEN][:, 4:].norm(), "which has hardly begun to move"
    hq = trained("hq", f"data.latents={doubled(folders / 'latents')}")
    assert any((hq[key] - value).abs().max() > 1e-5 for key, value in before.items())
    condition = trained("condition", f"data.condition_latents={doubled(folders / 'conditions')}")
    assert (condition[SEEN] - before[SEEN])[:, 4:].norm() > 0.5 * before[SEEN][:, 4:].norm()


def test_with_both_neither_the_first_stage_nor_the_encoder_runs_in_an_update(
    given: Path,  # noqa: F811
    folders: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from train.jobs.cli import main
    from train.tasks.control import ControlTask

    updates = []
    step = ControlTask.run_network

    def watched(task: ControlTask, batch: dict) -> dict:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(task.diffusion.backbone, "moments", lambda *_: pytest.fail("an image was encoded"))
            patched.setattr(task.diffusion.stage1, "forward", lambda *_: pytest.fail("an image was restored"))
            updates.append(step(task, batch))
        return updates[-1]

    monkeypatch.setattr(ControlTask, "run_network", watched)
    code, printed = command(main, *arguments(given, *SIZES, *pairs(folders), *BOTH))
    assert code == 0, printed
    assert len(updates) == 2


def test_what_does_not_fit_is_refused(given: Path, folders: Path, command: Command) -> None:  # noqa: F811
    from train.jobs.cli import main

    def refused(*more: str) -> str:
        code, printed = command(main, *arguments(given, *SIZES, *pairs(folders)), *more)
        assert code == 1
        assert printed.count("error:") == 1
        assert "Traceback" not in printed
        return printed

    flipped = refused(*BOTH, "data.hflip_prob=0.5")
    assert "data.latents=latents are of images cut in one way, which training's are not with data.hflip_prob=0.5" in flipped
    assert "data.condition_latents=conditions are of images cut in one" in refused(BOTH[1], "data.hflip_prob=0.5")
    degraded = refused(BOTH[1], "data=ffhq", "data.target_root=null")
    assert "data.condition_latents=conditions are of LQs that are given, and the degradation makes others" in degraded
    assert "was made with stage1=, so that it is one for data.condition_latents" in refused("data.latents=conditions")
    assert "was made without stage1=, so that it is one for data.latents" in refused("data.condition_latents=latents")
    assert "trainer.precision=bf16-true would round data.condition_latents" in refused(BOTH[1], "trainer.precision=bf16-true")
    swapped = refused(BOTH[1], f"data.root={folders}/hq", f"data.target_root={folders}/lq")
    assert ".safetensors is of other pixels than" in swapped
    index = Path("conditions/latents.json")
    made = json.loads(index.read_text())
    index.write_text(json.dumps(made | {"stage1": "another"}))
    assert "data.condition_latents=conditions was made by another stage 1, or with another w or adain, than" in refused(BOTH[1])
    index.write_text(json.dumps(made | {"autoencoder": "another"}))
    assert "conditions was made by another autoencoder than that of init.stable_diffusion: make" in refused(BOTH[1])


def test_lqs_smaller_than_their_hqs_are_refused(given: Path, folders: Path, command: Command) -> None:  # noqa: F811
    from train.jobs.cli import main

    write_photographs(folders / "small", size=32)
    code, printed = command(main, *arguments(given, *SIZES, *pairs(folders), f"data.root={folders}/small"))
    assert code == 1
    assert "the network makes (32, 32) where the HQ is (64, 64): choose a network of the scale of the data" in printed


def test_options_that_the_first_stage_has_no_use_for(
    given: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = [f"root={write_photographs(tmp_path / 'lq', size=64)}", f"out={tmp_path}/made", f"stable_diffusion={given}/sd"]
    for more, key in ((["w=0.5"], "w"), ([f"stage1={given}/runs/stage1", "adain=true"], "adain")):
        assert prepare(COMMANDS, ["latents", *common, "size=64", *more]) == 1
        assert f"error: {key} does nothing: it is of a CodeFormer as stage1; leave it out\n" == capsys.readouterr().err
    network = codeformer(img_size=64, attn_resolutions=[32], connect_list=[32, 64])
    torch.save({"params_ema": network.state_dict()}, tmp_path / "codeformer.pth")
    stage1 = f"stage1={tmp_path}/codeformer.pth"
    assert prepare(COMMANDS, ["latents", *common, "size=64", stage1, "w=0.7", "workers=1"]) == 0
    made_by = json.loads((tmp_path / "made" / "latents.json").read_text())["stage1"]
    assert made_by == FirstStage(path=f"{tmp_path}/codeformer.pth", w=0.7, adain=True).fingerprint


def test_a_task_without_a_use_for_them_refuses_them(folders: Path, command: Command) -> None:
    from tests.toy import TINY_NETWORK
    from train.jobs.cli import main

    own = ["model=swinir_ffhq", *TINY_NETWORK, *pairs(folders), "data.size=64", "data.val_images=2", "data.num_workers=0"]
    own += ["data.hflip_prob=0", "trainer.accelerator=cpu", "trainer.max_steps=1", "validation.lpips=null"]
    for key, value in (each.split("=") for each in BOTH):
        code, printed = command(main, *own, f"{key}={value}")
        assert code == 1
        assert f"{key}={value}: RegressionTask trains without: set {key}=null" in printed
