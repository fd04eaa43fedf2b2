"""Runs that are killed, asked to end, or fail on one rank: what is left goes on, and in the end nothing differs."""

import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from data.order import image_at
from tests.toy import ROOT, write_photographs
from tests.train.runs.kills import (
    UPDATES,
    VARIANTS,
    Attempt,
    Variant,
    checkpoint,
    differences,
    draw_moments,
    explain,
    kill_and_finish,
    reference,
    wait_until_gone,
)
from tests.train.runs.test_loggers import offline_rows
from tests.train.runs.victim import KINDS, Moment, lines
from train.runs.curves import read_rows
from train.runs.pictures import PICTURE

pytestmark = pytest.mark.slow
ONE, TWO = VARIANTS[0], VARIANTS[2]
SEED = 0  # of the moments: another one is another test that must pass
KILLS: list[list[str]] = []  # kinds of those that happened, a list for each run; the first three tests make 8 runs


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs") / "faces")


class Wholes(dict[Variant, tuple[Path, float]]):
    """For each variant the run left alone, and how many seconds its training took; done when first asked for."""

    def __init__(self, folder: Path, photographs: Path) -> None:
        super().__init__()
        self.folder, self.photographs = folder, photographs

    def __missing__(self, variant: Variant) -> tuple[Path, float]:
        self[variant] = reference(self.folder / str(variant), variant.command(self.photographs))
        return self[variant]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Wholes:
    return Wholes(tmp_path_factory.mktemp("wholes"), photographs)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_killed_again_and_again_equals_not_killed(variant: Variant, wholes: Wholes, photographs: Path, tmp_path: Path) -> None:
    whole, seconds = wholes[variant]
    rng = random.Random(f"{SEED} {variant}")
    drawn = draw_moments(rng, 5, variant.ranks)
    if variant.adversarial:
        drawn = sorted([*drawn, Moment("discriminators", 5, rng.randrange(variant.ranks))], key=lambda moment: moment.update)
    moments = [rng.uniform(0, seconds / 4), *drawn]
    print(f"SEED={SEED}: {', '.join(map(str, moments))}")
    killed = kill_and_finish(tmp_path, variant.command(photographs), moments)
    assert len(killed.kinds) >= 5, killed.moments
    KILLS.append(killed.kinds)
    assert not explain(differences(whole, tmp_path / "runs" / "run"))


@pytest.mark.parametrize("phases", [[*KINDS["mid-validation"], *KINDS["mid-save"]][:-1], ["not tidied"]])
def test_killed_in_its_last_save(phases: list[str], wholes: Wholes, photographs: Path, tmp_path: Path) -> None:
    """There is no later one to set right what this one left. After the last two of them it goes on as finished."""
    killed = kill_and_finish(tmp_path, ONE.command(photographs), [Moment(phase, UPDATES - 1) for phase in phases])
    KILLS.append(killed.kinds)
    assert [moment.rpartition(" ")[2] for moment in killed.moments] == [str(UPDATES)] * len(phases), killed.moments
    assert not explain(differences(wholes[ONE][0], tmp_path / "runs" / "run"))


@pytest.mark.parametrize("variant", [VARIANTS[1], VARIANTS[2]], ids=str)
def test_the_command_itself_killed_from_outside(variant: Variant, wholes: Wholes, photographs: Path, tmp_path: Path) -> None:
    """With 2 ranks the launching process alone is killed: the ranks must end by themselves."""
    whole, seconds = wholes[variant]
    moment = random.Random(f"{SEED} {variant}").uniform(0, seconds / 4)
    print(f"SEED={SEED}: {moment}")
    killed = kill_and_finish(tmp_path, variant.command(photographs), [moment], cold=True)
    assert killed.kinds == ["any time"]
    assert killed.outlived_s < 2
    KILLS.append(killed.kinds)
    assert not explain(differences(whole, tmp_path / "runs" / "run"))


def test_there_were_enough_kills_of_every_kind() -> None:
    if len(KILLS) < 8:
        pytest.skip("counts what the tests above did, and not all of them were run")
    count = Counter(kind for kinds in KILLS for kind in kinds)
    assert count.total() >= 20
    assert all(count[kind] >= 4 for kind in ("mid-step", "mid-save", "mid-validation")), count


def test_differences_finds_each_part(wholes: Wholes, photographs: Path, tmp_path: Path) -> None:
    """What says that nothing differs must be able to say otherwise: another seed differs in everything."""
    whole, _ = wholes[ONE]
    other, _ = reference(tmp_path, ONE.command(photographs, "seed=1"))
    assert all(differences(whole, other).values())
    assert not explain(differences(whole, whole))


@pytest.mark.parametrize("variant", [ONE, TWO], ids=str)
def test_the_best_are_those_of_the_validations(variant: Variant, wholes: Wholes) -> None:
    """Also where a checkpoint was due anyway, as at update 12."""
    whole, _ = wholes[variant]
    psnr = {int(row["step"]): float(row["val/psnr"]) for row in read_rows(whole / "metrics.csv") if row["val/psnr"]}
    assert sorted(psnr) == [4, 8, 12, 14]
    best = sorted(psnr, key=lambda step: -psnr[step])[:2]
    assert 12 in best
    assert [step for _, step in checkpoint(whole)["callbacks"]["Checkpoints"]["best"]] == best
    folder = whole / "checkpoints"
    assert (folder / "best.ckpt").samefile(folder / f"step_{best[0]:07d}.ckpt")


def test_ranks_end_when_their_launcher_is_killed_at_once(tmp_path: Path) -> None:
    """They have not yet got to ask the kernel for it."""
    code = "from train.jobs.launch import launch; launch({'trainer': {'num_nodes': 1}}, 2)"
    launcher = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        cwd=tmp_path,
        start_new_session=True,
    )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    while len(started := children.read_text().split()) < 2:
        time.sleep(0.001)
    launcher.kill()
    launcher.wait()
    assert wait_until_gone(tmp_path) < 5, f"{started} went on to import torch"


def test_a_data_worker_ends_whose_process_was_killed_before_torch_looks_out_for_it(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from torch.utils.data import DataLoader
from data.module import one_thread

def init(worker):
    parent = os.getppid()
    os.kill(parent, signal.SIGKILL)
    while os.getppid() == parent:
        time.sleep(0.001)
    one_thread(worker)

next(iter(DataLoader([0], num_workers=1, worker_init_fn=init)))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == -signal.SIGKILL
    assert wait_until_gone(tmp_path) < 5


def test_wandb_shows_one_curve(photographs: Path, tmp_path: Path) -> None:
    """What a killed attempt sent, the next one sends anew from metrics.csv, times.csv and samples/; seconds may differ."""
    command = ONE.command(photographs, "logger=wandb")
    whole, _ = reference(tmp_path / "whole", command)
    kill_and_finish(tmp_path / "killed", command, [Moment("log", 2), Moment("half a file", 8), Moment("end", 0)])
    sent = [
        [
            ((name, row["_step"]), PICTURE if name == PICTURE else value)
            for row in offline_rows(run)
            for name, value in row.items()
            if not name.startswith("_")
        ]
        for run in (whole, tmp_path / "killed/runs/run")
    ]
    assert all(len(dict(each)) == len(each) for each in sent), "a value stands twice"
    one, other = ({place: None if place[0].startswith("time/") else value for place, value in each} for each in sent)
    assert one == other
    assert {name for name, _ in one} > {"train/loss", "lr", "val/psnr", "time/data_wait_s", PICTURE}


# --- asked to end ---


@pytest.mark.parametrize("variant", [ONE, VARIANTS[3]], ids=str)
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_saves_the_last_finished_update_and_the_command_goes_on(
    variant: Variant,
    name: str,
    code: int,
    wholes: Wholes,
    photographs: Path,
    tmp_path: Path,
) -> None:
    whole, _ = wholes[variant]
    command = variant.command(photographs)
    moment = Moment("step", 1, rank=variant.ranks - 1, victim="launcher" if variant.ranks > 1 else "self", deed=name)
    attempt = Attempt(tmp_path, command, moment=moment, record=tmp_path)
    assert attempt.wait() == code, attempt.printed
    sentence = "everything up to update (\\d+) is saved; the same command, without resume=never, goes on from there"
    said = re.findall(f"{name}: {sentence}", attempt.printed)
    assert len(said) == 1, attempt.printed
    assert "Traceback" not in attempt.printed
    assert "error" not in attempt.printed
    begun = [lines(tmp_path / f"rank_{rank}.jsonl")[-1]["step"] for rank in range(variant.ranks)]
    assert begun == [int(said[0]) - 1] * variant.ranks, "no rank began another update"
    assert checkpoint(tmp_path / "runs" / "run")["global_step"] == int(said[0])
    again = Attempt(tmp_path, command)
    assert again.wait() == 0, again.printed
    assert f"continues from runs/run/checkpoints/step_{int(said[0]):07d}.ckpt" in again.printed
    parts = differences(whole, tmp_path / "runs" / "run")
    assert not explain(parts)


def test_a_signal_to_one_rank_ends_all(photographs: Path, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, TWO.command(photographs), moment=Moment("step", 1, rank=1, deed="SIGTERM"))
    assert attempt.wait() == 75, attempt.printed
    assert "SIGTERM: everything up to update 2 is saved" in attempt.printed


# --- one rank fails ---


@pytest.mark.parametrize("phase", ["step", "validation", "save"])
@pytest.mark.parametrize("deed", ["ValueError", "RuntimeError"])
def test_one_rank_that_fails_ends_the_command_with_its_error(phase: str, deed: str, photographs: Path, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, TWO.command(photographs), moment=Moment(phase, 1, rank=1, deed=deed))
    assert attempt.wait() == 1
    assert time.time() - (tmp_path / "struck.jsonl").stat().st_mtime < 45
    wait_until_gone(tmp_path)
    errors = [line for line in attempt.printed.splitlines() if "rror" in line]
    assert errors == (["error: injected"] if deed == "ValueError" else ["RuntimeError: injected"]), attempt.printed
    assert attempt.printed.count("Traceback") == (deed == "RuntimeError")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named(rank: int, photographs: Path, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, TWO.command(photographs), moment=Moment("backward", 1, rank=rank))
    assert attempt.wait() == 1
    assert time.time() - (tmp_path / "struck.jsonl").stat().st_mtime < 45
    errors = [line for line in attempt.printed.splitlines() if "rror" in line]
    assert errors == [f"error: rank {rank} was killed by SIGKILL (SIGKILL is often the machine's memory running out)"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_one_rank_cannot_read(workers: int, tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "faces")
    broken = photographs / f"{image_at(1, 4, 0):02d}.png"  # rank 1 reads position 1 first
    broken.write_bytes(b"no picture")
    began = time.monotonic()
    attempt = Attempt(tmp_path, Variant(2, workers, 1, False).command(photographs))
    assert attempt.wait() == 1
    assert time.monotonic() - began < 45
    errors = [line for line in attempt.printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, attempt.printed
    assert str(broken) in errors[0]
    assert "Traceback" not in attempt.printed
    wait_until_gone(tmp_path)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_nan_on_one_rank_skips_the_update_on_both(accumulate: int, photographs: Path, tmp_path: Path) -> None:
    """And after a kill the count of skipped updates goes on too."""
    variant, poison = Variant(2, 0, accumulate, accumulate == 2), (1, 5)
    attempt = Attempt(tmp_path / "whole", variant.command(photographs), poison=poison, record=tmp_path / "whole")
    assert attempt.wait() == 0, attempt.printed
    assert "update 6 is skipped (1 in a row): not finite: charbonnier on rank 1\n" in attempt.printed
    weights = [
        {line["step"]: line["weights"] for line in lines(tmp_path / "whole" / f"rank_{rank}.jsonl")} for rank in range(2)
    ]
    assert weights[0] == weights[1]
    assert weights[0][5] == weights[0][6], "weights and EMA are as they were"
    assert len(set(weights[0].values())) == 13, "every other update changed them"
    killed = tmp_path / "killed"
    for moment in (Moment("optimizer", 7), None):
        attempt = Attempt(killed, variant.command(photographs), poison=poison, moment=moment)
        assert bool(attempt.wait()) == bool(moment), attempt.printed
    assert checkpoint(killed / "runs/run")["callbacks"]["NonFiniteGuard"] == {"in_a_row": 0, "skipped": 1}
    assert not explain(differences(tmp_path / "whole/runs/run", killed / "runs/run"))


# --- another number of ranks ---


def samples(folder: Path, ranks: int) -> list[tuple[int, dict[str, Any]]]:
    """Update and sample of everything trained on, in the order of the global batch."""
    by_rank = [lines(folder / f"rank_{rank}.jsonl") for rank in range(ranks)]
    assert len({len(each) for each in by_rank}) == 1
    return [(line["step"], sample) for batches in zip(*by_rank, strict=True) for line in batches for sample in line["samples"]]


@pytest.mark.parametrize("adversarial", [False, True])
def test_saved_on_2_ranks_and_resumed_on_1(adversarial: bool, photographs: Path, tmp_path: Path) -> None:
    """And back to 2, and with accumulation: the same samples under the same draws in the same order.

    Not with accumulation where a discriminator has spectral norm: each forward pass moves its power iteration on.
    """
    common = ["network.drop_path_rate=0", "schedule=constant"]  # a rank's stochastic depth follows its own batch
    whole, parts, told = tmp_path / "whole", tmp_path / "parts", []
    attempt = Attempt(whole, Variant(1, 0, 1, adversarial).command(photographs, *common), record=whole)
    assert attempt.wait() == 0, attempt.printed
    layouts = [(Variant(2, 0, 1, False), 4), (Variant(1, 0, 1, False), 7), (Variant(2, 0, 1, False), 9)]
    layouts += [(Variant(1, 0, 2, False), 14)]
    if adversarial:
        layouts = [(Variant(1, 0, 1, True), 4), (Variant(2, 0, 1, True), 14)]
    for number, (variant, last) in enumerate(layouts):
        command = variant.command(photographs, *common, f"trainer.max_steps={last}")
        command += ["data.batch_size=1"] * (variant.accumulate > 1)
        record = parts / str(number)
        record.mkdir(parents=True)
        attempt = Attempt(parts, command, record=record)
        assert attempt.wait() == 0, attempt.printed
        assert "effective batch 2 = " in attempt.printed
        told += samples(record, variant.ranks)
    alone = samples(whole, 1)
    assert [sample["position"] for _, sample in alone] == list(range(28))
    assert told == alone
    one, other = checkpoint(whole / "runs/run"), checkpoint(parts / "runs/run")
    assert one["FaceData"] == other["FaceData"] == {"samples": 28}
    assert other["global_step"] == 14
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(
            other["state_dict"][name], value, atol=1e-4, rtol=1e-4
        )  # seen: 3.6e-5, where Adam divides by little
    curves = [
        {row["step"]: float(row["val/psnr"]) for row in read_rows(each / "runs/run/metrics.csv") if row["val/psnr"]}
        for each in (whole, parts)
    ]
    assert {step: value for step, value in curves[1].items() if step in curves[0]} == pytest.approx(curves[0], abs=1e-2)
