"""A column of one's own: one file and one line of configuration. Short keys: what a user sets, and where it goes."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from data.columns.column import Column, Setting
from data.order import Draws
from data.reading import Picture
from data.sources.files import ImageFolder
from tests.data.samples import training_faces
from train.jobs.config import ConfigError, check
from train.tasks.regression import RegressionTask
from train.trust import build

CONF = Path(__file__).parents[3] / "conf"


class Ages(Column):
    """The age of each face, of a JSON file by name; a mirror image has the same."""

    tensor = "age"

    def bind(self, setting: Setting) -> None:
        ages = json.loads(Path(self.path).read_text())
        try:
            self.ages = [ages[Path(setting.source.name(index)).name] for index in range(len(setting.source))]
        except KeyError as error:
            raise ValueError(f"{self.given} lacks {error}") from None

    def of(self, picture: Picture, draws: Draws) -> torch.Tensor:
        return torch.tensor(self.ages[picture.index])


class AgeAwareTask(RegressionTask):
    """One that trains on it: it names the column."""

    reads = frozenset({"age"})


LINE = "{_target_: tests.data.columns.test_column.Ages, key: data.columns.age.path, path: FILE}"


def config(folder, *overrides):
    own = ["model=swinir_ffhq", "data=folder", f"data.root={folder}", "data.size=16", "data.num_workers=0", "trainer=cpu"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("train", overrides=[*own, *overrides]))


@pytest.fixture
def ages(folder, tmp_path):
    """A file of ages: picture number n is 10 + n years old."""
    file = tmp_path / "ages.json"
    file.write_text(json.dumps({f"img_{number}.png": 10.0 + number for number in range(7)}))
    return file


def test_a_further_column_is_a_line_of_configuration(folder, ages):
    own = [f"+data.columns.age={LINE.replace('FILE', str(ages))}"]
    with pytest.raises(ConfigError, match=r"ages\.json: RegressionTask trains without: set data\.columns\.age\.path=null"):
        config(folder, *own)
    own.append("task._target_=tests.data.columns.test_column.AgeAwareTask")
    data = build(config(folder, *own)["data"])
    assert list(data.columns) == ["age"], "those without a path are left out"
    batch = next(iter(data.train_dataloader()))
    numbers = [next(data.faces.order.at(position)[0]) for position in batch["position"].tolist()]
    assert batch["age"].tolist() == [10.0 + number for number in numbers]
    assert "age" not in next(iter(data.val_dataloader()))
    ages.write_text('{"img_0.png": 1.0}')
    with pytest.raises(ValueError, match=r"data\.columns\.age\.path=.*ages\.json lacks 'img_1\.png'"):
        build(config(folder, *own)["data"])


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_an_image_that_stands_in_brings_its_own(folder, ages, shade):
    (folder / "img_2.png").write_bytes(b"gone")
    samples = training_faces(
        ImageFolder(root=str(folder)), shade, columns=[Ages(key="data.age", path=str(ages))], on_error="skip", hflip_prob=0.5
    )
    stood_in = 0
    for position in range(14):
        sample = samples[position]
        indices = list(samples.order.at(position)[0])
        assert sample["age"] == 10.0 + indices[sample["unreadable"]]
        stood_in += sample["unreadable"]
    assert stood_in == 2, "each pass has it once"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.codes=3"], "data.codes=3: Input should be a valid string; as a text it takes two quotes: 'data.codes=\"3\"'"),
        (["data.latents=[a]"], "data.latents=['a']: Input should be a valid string"),
        (["data.size=0", "data.val_size=8"], "data.size=0: Input should be greater than or equal to 1"),
        (["data.hflip_prob=2"], "data.hflip_prob=2: Input should be less than or equal to 1"),
        (["+data.sise=8"], "data.sise=8: data.module.FaceData has no sise; did you mean data.size?"),
        (
            ["data/source=shards", "+data.source.membr=a"],
            "data.source.membr='a': data.sources.archives.Shards has no membr; did you mean data.source.member?",
        ),
    ],
)
def test_a_mistake_is_told_once_and_under_the_key_that_was_set(folder, overrides, said):
    with pytest.raises(ConfigError) as refused:
        config(folder, *overrides)
    assert str(refused.value) == said
