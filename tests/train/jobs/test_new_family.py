"""A family that nobody here knows: its files alone, outside of the project, are enough to train and to be refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs

Cli = Callable[..., tuple[int, str]]

FILES = {
    "toyfamily.py": '''
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from annotated_types import Ge

from models.files import official
from train.tasks.regression import RegressionTask
from train.tasks.task import constructed


class Helper:
    def __init__(self, *, teacher: str, share: Annotated[float, Ge(0)], after_step: int) -> None:
        official.read(teacher)
        self.share, self.after_step = share, after_step


@constructed
class ToyTask(RegressionTask):
    """Weighs its loss by what the helper says."""

    helper: Helper

    kept = (*RegressionTask.kept, "helper")

    @classmethod
    def mistakes(cls, config: dict[str, Any]) -> Iterator[str]:
        yield from super().mistakes(config)
        if config["helper"]["after_step"] >= config["trainer"]["max_steps"]:
            yield "helper.after_step: the helper would do nothing: raise trainer.max_steps"

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        return super().training_step(batch, batch_index) * (1 + self.helper.share)
''',
    "conf/task/toy.yaml": """# A toy
defaults: [regression, _self_]
_target_: toyfamily.ToyTask
helper: ${helper}
""",
    "conf/model/toy_folder.yaml": """# @package _global_
# A toy
defaults:
  - override /task: toy
  - override /data: folder
  - override /degradation: demo
name: toy
init: {teacher: null, required: true, ckpt: '${init.teacher}'}
helper: {_target_: toyfamily.Helper, teacher: '${init.teacher}', share: 0.5, after_step: 1}
""",
}


@pytest.fixture
def toy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name, text in FILES.items():
        file = tmp_path / "family" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "family")
    monkeypatch.setenv("FACEWRIGHT_TARGETS", "toyfamily")
    faces = write_photographs(tmp_path / "faces", count=4)
    own = ["--config-dir", str(tmp_path / "family" / "conf"), f"data.root={faces}", "data.val_images=1"]
    tiny = [*TINY_NETWORK, *TINY_DATA[:2], *TINY_DATA[3:], *TINY_RUN, "validation.lpips=null", "logger=csv", "trainer=cpu"]
    return lambda *arguments: cli(*own, *tiny, *arguments)


@pytest.fixture
def teacher(cli: Cli, tmp_path: Path) -> str:
    """A run of the same network."""
    faces = write_photographs(tmp_path / "faces", count=4)
    run = ["model=swinir_ffhq", "data=folder", "degradation=demo", f"data.root={faces}", "data.val_images=1", "name=teacher"]
    code, printed = cli(*run, *TINY_NETWORK, *TINY_DATA[:2], *TINY_DATA[3:], *TINY_RUN, "validation.lpips=null", "trainer=cpu")
    assert code == 0, printed
    return "init.teacher=runs/teacher"


def test_it_trains_and_goes_on(toy: Cli, teacher: str) -> None:
    code, printed = toy("model=toy_folder", teacher)
    assert code == 0, printed
    assert "init.ckpt=runs/teacher: " in printed
    assert "runs/toy after 2 updates" in printed
    code, printed = toy("model=toy_folder", teacher, "trainer.max_steps=3", "helper.share=0.25")
    assert code == 1
    assert "another configuration: helper.share: 0.5 -> 0.25" in printed
    code, printed = toy("model=toy_folder", teacher, "trainer.max_steps=3")
    assert code == 0, printed


REFUSED = [
    (["model=toy_folder"], "init.teacher is not set, and this recipe starts from trained weights: give init.teacher=PATH"),
    (["model=toy_folder", "init.techer=x"], "init.techer: there is no such key; did you mean init.teacher?"),
    (["model=toy_folder", "init.teacher=x", "+init.stage1=x"], "nothing reads the key init.stage1"),
    (["model=toy_folder", "init.teacher=7"], "init.teacher=7: Input should be a valid string"),
    (["model=toy_folder", "init.teacher=x", "helper.share=-1"], "helper.share=-1: Input should be greater than or equal to 0"),
    (["model=toy_folder", "init.teacher=x", "helper.shar=1"], "helper.shar: there is no such key; did you mean helper.share?"),
    (["model=toy_folder", "init.teacher=x", "+helper.shar=1"], "toyfamily.Helper has no shar; did you mean helper.share?"),
    (["model=toy_folder", "init.teacher=x", "~helper.after_step"], "helper.after_step is missing: toyfamily.Helper needs it"),
    (["model=toy_folder", "init.teacher=x", "helper.after_step=9"], "helper.after_step: the helper would do nothing"),
    (["model=toy_folder", "init.teacher=x", "~helper"], "task.helper: this task needs helper, of which there is none"),
    (
        ["model=toy_folder", "init.teacher=x", "adversary=unet_sn"],
        "adversary: toyfamily.ToyTask does not read it: choose task=",
    ),
    (
        ["model=toy_folder", "init.teacher=x", "data.codes=c.npz"],
        "data.codes=c.npz: ToyTask trains without: set data.codes=null",
    ),
    (["model=toy_folder", "init.teacher=x", "task=regression"], "nothing reads the key helper"),
    (["model=toy_folder", "init.teacher=x", "task.helper=1"], "conf/task wires the groups together; set helper instead"),
    (["model=toy_folder", "init.teacher=nowhere"], "nowhere does not exist"),
]


@pytest.mark.parametrize(("typed", "message"), REFUSED, ids=[" ".join(typed[1:]) or "no file" for typed, _ in REFUSED])
def test_it_gets_every_refusal(toy: Cli, tmp_path: Path, typed: list[str], message: str) -> None:
    code, printed = toy(*typed)
    assert code == 1, printed
    assert message in printed
    assert all(line.startswith("error: ") for line in printed.splitlines()), printed
    assert not (tmp_path / "runs").exists()
