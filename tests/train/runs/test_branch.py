"""Runs that go on from another run's state: what they take over, what is theirs, and what is refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.toy import TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.jobs.arguments import continued
from train.runs.curves import read_rows
from train.tasks.state import with_moments

Cli = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "data=folder", *TINY_NETWORK, *TINY_DATA, *TINY_RUN, "schedule=constant", "validation.lpips=null"]
RUN += ["logger=csv", "trainer=cpu", "name=w1"]
# A discriminator of a few weights; its learning rate follows optimizer.lr.
ADVERSARIAL = ["task=adversarial", "loss=l1_lpips_gan", "~loss.terms.lpips", "adversary=unet_sn"]
ADVERSARIAL += ["adversary.discriminators.image.network.num_feat=4"]


@pytest.fixture
def w1(cli: Cli, tmp_path: Path) -> Path:
    """Two updates, both saved."""
    root = f"data.root={write_photographs(tmp_path / 'photographs')}"
    code, printed = cli(*RUN, root, "checkpoint.every_n_steps=1")
    assert code == 0, printed
    return tmp_path / "runs/w1"


def state(run: Path) -> dict[str, torch.Tensor]:
    """Weights, average and moments."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    moments = [each["state"] for each in checkpoint["optimizer_states"]]
    found = {
        f"{n}.{number}.{key}": value
        for n, each in enumerate(moments)
        for number, of in each.items()
        for key, value in of.items()
    }
    return checkpoint["state_dict"] | found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def rates(run: Path) -> dict[str, float]:
    return {row["step"]: float(row["lr"]) for row in read_rows(run / "metrics.csv") if row["lr"]}


def contents(run: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.rglob("*")) if path.is_file()}


def test_another_run_goes_on_from_its_state_and_leaves_it_alone(cli: Cli, tmp_path: Path, w1: Path) -> None:
    (w1 / "checkpoints/step_0000003.tmp").write_bytes(b"as a run that trains would just be writing")
    before = contents(w1)
    code, printed = cli("resume=runs/w1", "name=w2", "trainer.max_steps=4")
    assert code == 0, printed
    assert "continues from runs/w1/checkpoints/step_0000002.ckpt, ends at update 4; writes to runs/w2" in printed
    assert "what differs from that run:\n  trainer.max_steps: 2 -> 4\n" in printed
    assert contents(w1) == before
    assert [row["step"] for row in read_rows(tmp_path / "runs/w2/metrics.csv")] == ["3", "4", "4"]
    assert (tmp_path / "runs/w2/checkpoints/best.ckpt").exists(), "the best of its own"
    assert json.loads((tmp_path / "runs/w2/began_from.json").read_text()).keys() == {"runs/w1"}
    (w1 / "checkpoints/step_0000003.tmp").unlink()
    code, printed = cli("resume=runs/w1", "trainer.max_steps=4")
    assert code == 0, printed
    assert same(state(w1), state(tmp_path / "runs/w2")), "as it would have gone on itself"
    code, printed = cli("resume=runs/w1", "name=w2", "trainer.max_steps=5")
    assert code == 0, printed
    assert "continues from runs/w2/checkpoints/step_0000004.ckpt" in printed, "given again, it goes on with what it has"


@pytest.mark.parametrize("schedule", [["schedule=onecycle"], ["schedule=multistep", "schedule.milestones=[1,3]"]], ids=str)
def test_the_learning_rate_is_as_if_it_had_always_been_so(cli: Cli, tmp_path: Path, w1: Path, schedule: list[str]) -> None:
    changed = ["trainer.max_steps=4", "optimizer.lr=1e-5", *schedule]
    code, printed = cli("resume=runs/w1", "name=w2", *changed)
    assert code == 0, printed
    assert "\n  optimizer.lr: 0.001 -> 1e-05\n" in printed
    code, printed = cli("resume=runs/w1/checkpoints/step_0000001.ckpt", "name=w3", *changed)
    assert code == 0, printed
    code, printed = cli(*RUN, f"data.root={tmp_path / 'photographs'}", *changed, "name=fresh")
    assert code == 0, printed
    fresh = rates(tmp_path / "runs/fresh")
    assert max(fresh.values()) <= 1e-5
    assert rates(tmp_path / "runs/w3") == {step: fresh[step] for step in "234"}
    assert rates(tmp_path / "runs/w2") == {step: fresh[step] for step in "34"}
    assert rates(w1) == {"1": 1e-3, "2": 1e-3}


def test_other_data_another_batch_another_loss_and_an_average_that_was_not_there(cli: Cli, tmp_path: Path, w1: Path) -> None:
    code, printed = cli("resume=runs/w1", "name=w2", "trainer.max_steps=3", "ema_decay=null", "loss=mse", "data.batch_size=1")
    assert code == 0, printed
    assert "effective batch (data.batch_size x devices x trainer.accumulate_grad_batches): 2 -> 1" in printed
    saved = torch.load(tmp_path / "runs/w2/checkpoints/last.ckpt", weights_only=True)
    assert saved["FaceData"] == {"samples": 5}, "it reads on where the other run was"
    assert not any(name.startswith("ema.") for name in saved["state_dict"])
    code, printed = cli("resume=runs/w2", "name=w3", "trainer.max_steps=4", "ema_decay=0.5")
    assert code == 0, printed
    before, now = saved["state_dict"], state(tmp_path / "runs/w3")
    name = next(name.removeprefix("network.") for name in before if name.startswith("network.") and before[name].ndim == 4)
    expected = torch.lerp(before[f"network.{name}"], now[f"network.{name}"], 0.5)
    assert torch.allclose(now[f"ema.average.{name}"], expected), "it begins as the network"


def test_discriminators_go_on_too(cli: Cli, tmp_path: Path) -> None:
    run = [*RUN, *ADVERSARIAL, f"data.root={write_photographs(tmp_path / 'photographs')}"]
    for arguments in (run, ["resume=runs/w1", "name=w2", "trainer.max_steps=3"], [*run, "trainer.max_steps=3"]):
        code, printed = cli(*arguments)
        assert code == 0, printed
    assert same(state(tmp_path / "runs/w1"), state(tmp_path / "runs/w2"))
    code, printed = cli("resume=runs/w1", "name=w3", "trainer.max_steps=4", "optimizer.lr=1e-6")
    assert code == 0, printed
    assert "\n  adversary.discriminators.image.optimizer.lr: 0.001 -> 1e-06\n" in printed
    saved = torch.load(tmp_path / "runs/w3/checkpoints/last.ckpt", weights_only=True)
    assert [each["param_groups"][0]["lr"] for each in saved["optimizer_states"]] == [1e-6, 1e-6]
    code, printed = cli("resume=runs/w1", "name=w4", "trainer.max_steps=4", "adversary.discriminators.image.network.num_feat=8")
    assert code == 1
    assert "another configuration: adversary.discriminators.image.network.num_feat: 4 -> 8" in printed


def test_what_would_make_the_state_meaningless_is_refused(cli: Cli, tmp_path: Path, w1: Path) -> None:
    for typed, expected in (
        (
            "network.window_size=2",
            "was written with another configuration: network.window_size: 4 -> 2. Set these keys as they",
        ),
        ("optimizer=adamw", "optimizer._target_: torch.optim.Adam -> torch.optim.AdamW"),
        ("trainer.max_steps=2", "resume=runs/w1 is at update 2 already: give a trainer.max_steps above it, now 2"),
        ("resume=runs/none", "resume=runs/none: no such file; give auto, never, a run's folder or the path of a checkpoint"),
        ("resume=photographs", "resume=photographs lies in no run's folder"),
    ):
        code, printed = cli("resume=runs/w1", "name=w2", "trainer.max_steps=4", *[typed])
        assert code == 1, printed
        assert expected in printed
        assert not (tmp_path / "runs/w2").exists()
    root = f"data.root={tmp_path / 'photographs'}"
    assert cli(*RUN, root, "name=w2", "seed=1")[0] == 0
    code, printed = cli("resume=runs/w1", "name=w2", "seed=1", "trainer.max_steps=4")
    assert code == 1
    assert "runs/w2 holds a run already, and runs/w1/checkpoints/step_0000002.ckpt is of one with another" in printed
    moments = {"param_groups": [{"params": [0]}], "state": {}}
    with pytest.raises(ValueError, match="did not name what its optimizer trains"):
        with_moments(moments, moments)


def test_a_renamed_run_goes_on_by_its_folder_alone(cli: Cli, tmp_path: Path, w1: Path) -> None:
    w1.rename(tmp_path / "runs/renamed")
    code, printed = cli("resume=runs/renamed", "trainer.max_steps=3")
    assert code == 0, printed
    assert "continues from runs/renamed/checkpoints/step_0000002.ckpt, ends at update 3; writes to runs/renamed" in printed
    code, printed = cli("resume=runs/renamed")
    assert code == 0, printed
    assert "runs/renamed is finished: 3 of trainer.max_steps=3 updates are done" in printed
    assert yaml.safe_load((tmp_path / "runs/renamed/config.yaml").read_text())["name"] == "renamed"


def test_what_is_shown_and_saved_changes_nothing_and_may_differ(cli: Cli, tmp_path: Path, w1: Path) -> None:
    """A validation draws by itself: after one, training goes on as without it."""
    often = ["trainer.max_steps=4", "trainer.val_check_interval=1", "validation.pictures=0", "data.val_batch_size=2"]
    code, printed = cli("resume=runs/w1", *often, "checkpoint.keep=1")
    assert code == 0, printed
    seldom = ["trainer.max_steps=4", "trainer.val_check_interval=4", "trainer.log_every_n_steps=3", "name=whole"]
    assert cli(*RUN, f"data.root={tmp_path / 'photographs'}", *seldom)[0] == 0
    assert same(state(w1), state(tmp_path / "runs/whole"))
    rows = read_rows(w1 / "metrics.csv")
    assert [row["step"] for row in rows if row["val/psnr"]] == ["2", "3", "4"]
    assert [row["step"] for row in read_rows(tmp_path / "runs/whole/metrics.csv") if row["train/loss"]] == ["3", "4"]


def folder_of(tmp_path: Path, *typed: str) -> None:
    folder = tmp_path / "runs/w1"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"arguments": list(typed)}))


def test_what_was_typed_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path, "experiment=demo", "name=old", "optimizer.lr=1e-3", "resume=runs/w0", "seed=1")
    kept = ["experiment=demo", "seed=1"]
    given = ["resume=runs/w1", "optimizer.lr=1e-5"]
    assert continued([*given, "name=w2"]) == [*kept, *given, "name=w2"]
    assert continued(given) == [*kept, "name='w1'", *given]
    assert continued(["-m", "resume=runs/w1", "optimizer.lr=1,2"]) == [
        "-m",
        *kept,
        "name='w1'",
        "resume=runs/w1",
        "optimizer.lr=1,2",
    ]
    (tmp_path / "runs/w1/checkpoints").mkdir()
    (tmp_path / "runs/w1/checkpoints/last.ckpt").touch()
    file = ["resume=runs/w1/checkpoints/last.ckpt", "optimizer.lr=1e-5"]
    assert continued(file) == [*kept, "name='w1'", *file]
    for whole in (["model=swinir_ffhq", *given], ["resume=auto"], ["resume=never", "experiment=demo"], ["--version"]):
        assert continued(whole) == whole


def test_another_choice_of_a_group_leaves_out_what_it_has_no_place_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    typed = ["schedule.milestones=[1]", "trainer.max_steps=9", "data.root=x", "~loss.terms.lpips", "+loss.terms.l1.weight=2"]
    folder_of(tmp_path, "model=swinir_ffhq", "schedule=multistep", "loss=mse_lpips", *typed)
    given = ["resume=runs/w1", "name=w2", "schedule=cosine", "trainer=ddp", "loss=mse"]
    assert continued(given) == ["model=swinir_ffhq", "data.root=x", "+loss.terms.l1.weight=2", "trainer.max_steps=9", *given]
