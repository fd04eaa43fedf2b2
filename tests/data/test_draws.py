"""No two samples of a run share their draws: not on two ranks, not in two passes over the data, not in two data workers."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data.order
from data.order import draws
from degradations.operators.noise import GaussianNoise
from degradations.pipeline import Pipeline
from tests.data.samples import face_data

IMAGES, SIDE, SIZE = 3, 1000, 4
PASSES, RANKS = 16, 2


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures whose pixels say where they are: a crop tells its place and whether it was mirrored."""
    folder = tmp_path_factory.mktemp("maps")
    rows, columns = np.indices((SIDE, SIDE))
    low, high = rows % 256, rows // 256 * 16 + columns // 256
    picture = np.stack([low, high, columns % 256], axis=-1).astype(np.uint8)
    for number in range(IMAGES + 1):
        Image.fromarray(picture).save(folder / f"{number}.png", compress_level=1)
    return folder


class Told(Pipeline):
    """A degradation whose LQ is what was drawn: the first values are its parameters."""

    def apply(self, hq: torch.Tensor, parameters: dict[str, Any]) -> dict[str, torch.Tensor]:
        lq = torch.zeros(hq.shape, dtype=torch.float64)
        for number, value in enumerate(value for each in parameters.values() for value in each.values()):
            lq.view(-1)[number] = value
        return {"lq": lq}


def samples(maps: Path, rank: int, workers: int) -> Iterator[dict[str, torch.Tensor]]:
    """What one rank trains on, one sample at a time and without end."""
    faces = face_data(
        maps,
        Told(operators={"noise": GaussianNoise(sigma_255=(0, 15), grey_prob=0)}, quantize=False, hq_too=[], device="cpu"),
        size=SIZE,
        batch_size=1,
        num_workers=workers,
        keep_decoded=True,
        val_size=SIZE,
        val_images=1,
        seed=0,
    )
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    faces.trainer = SimpleNamespace(  # type: ignore[assignment] # what FaceData asks of a Trainer
        global_rank=rank, world_size=RANKS, global_step=0, accumulate_grad_batches=1, strategy=strategy
    )
    for batch in faces.train_dataloader():
        yield {key: value[0] for key, value in batch.items()}


def drawn(sample: dict[str, torch.Tensor]) -> tuple[tuple[int, int], bool, tuple[float, ...]]:
    """Corner of the crop, whether it was mirrored, and the degradation's parameters."""
    red, green, blue = (sample["hq"] * 255).round().int()
    rows, columns = green // 16 * 256 + red, green % 16 * 256 + blue
    return (
        (int(rows[0, 0]), int(columns.min())),
        bool(columns[0, 0] > columns[0, 1]),
        tuple(sample["lq"].flatten()[:3].tolist()),
    )


def of_all_ranks(maps: Path, workers: int) -> list[list[Any]]:
    """For each rank its draws over PASSES passes of the whole run."""
    count = IMAGES * PASSES // RANKS
    return [[drawn(sample) for sample in islice(samples(maps, rank, workers), count)] for rank in range(RANKS)]


def assert_all_different(ranks: list[list[Any]]) -> None:
    every = [each for rank in ranks for each in rank]
    assert len(every) == IMAGES * PASSES
    for name, values in zip(("crop", "degradation"), ([each[part] for each in every] for part in (0, 2)), strict=True):
        assert len(set(values)) == len(every), f"two samples share their {name}"
    flips = [[each[1] for each in rank] for rank in ranks]  # one bit each: they must differ as a whole
    assert flips[0] != flips[1], "the ranks mirror alike"
    in_order = [flip for step in zip(*flips, strict=True) for flip in step]
    passes = [tuple(in_order[start : start + IMAGES]) for start in range(0, len(in_order), IMAGES)]
    assert len(set(passes)) > 2, "the passes mirror alike"
    assert 0.25 < sum(in_order) / len(in_order) < 0.75


@pytest.mark.parametrize("workers", [0, 2])
def test_rank_equal_and_epoch_equal_draws_are_impossible(maps: Path, workers: int) -> None:
    assert_all_different(of_all_ranks(maps, workers))


def test_the_draws_are_those_of_one_rank_alone(maps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = of_all_ranks(maps, 0)
    monkeypatch.setitem(globals(), "RANKS", 1)
    (alone,) = of_all_ranks(maps, 0)
    assert [each for step in zip(*shared, strict=True) for each in step] == alone


WRONG = {
    "every rank draws alike": lambda position: position // RANKS,
    "every pass draws alike": lambda position: position % IMAGES,
    "every sample draws alike": lambda position: 0,
}


@pytest.mark.parametrize("place", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("part", ["crop", "flip", "degradation"])
def test_a_trainer_that_seeds_alike_would_be_found(
    place: Callable[[int], int], part: str, maps: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above asserts does fail for the bugs that it is about."""
    if part == "degradation":
        whole = Pipeline.sample
        monkeypatch.setattr(Pipeline, "sample", lambda self, seed, position, size: whole(self, seed, place(position), size))
    else:
        stream = f"data.{part}"
        monkeypatch.setattr(
            data.order, "draws", lambda seed, position, name: draws(seed, place(position) if name == stream else position, name)
        )
    expected = "mirror alike" if part == "flip" else f"share their {part}"
    with pytest.raises(AssertionError, match=expected):
        assert_all_different(of_all_ranks(maps, 0))


def test_streams_are_apart() -> None:
    """Crop and flip of one position, and one stream at neighbouring positions and seeds."""
    values = {draws(seed, position, name).random() for seed in (0, 1) for position in range(50) for name in ("a", "b")}
    assert len(values) == 200
