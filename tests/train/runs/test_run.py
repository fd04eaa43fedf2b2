"""Runs as a user starts them: what they leave behind, going on, starting over, and bad input. In this process, for speed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.files import official
from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.runs.curves import read_rows
from train.runs.differences import differing_keys

Cli = Callable[..., tuple[int, str]]

# Two updates of a tiny network on a folder of six pictures.
RUN = [
    "experiment=demo",
    "data=folder",
    *TINY_NETWORK,
    *TINY_DATA,
    *TINY_RUN,
    "schedule=constant",
    "name=run",
    "validation.lpips=null",
]


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photographs")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


class WithPrior(nn.Module):
    """A network with a prior, which it names itself."""

    prior = "faces"

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.entry, self.faces = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)
        self.faces.requires_grad_(False)

    def forward(self, lq: Tensor) -> Tensor:
        return self.faces(self.entry(lq))


def test_the_weights_of_a_prior_go_where_the_network_says(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    torch.save(nn.Conv2d(4, 3, 1).state_dict(), tmp_path / "prior.pth")
    run = [each for each in RUN if not each.startswith("network.")] + [f"data.root={photographs}", "+init.prior=prior.pth"]
    own = ["~network", "+network._target_=tests.train.runs.test_run.WithPrior", "+network.width=4"]
    code, printed = cli(*run, *own)
    assert code == 0, printed
    prior, trained = official.read(tmp_path / "prior.pth").state, weights(tmp_path / "runs" / "run")
    for where in ("network.", "ema.average."):
        assert all(torch.equal(trained[f"{where}faces.{key}"], value) for key, value in prior.items())
    code, printed = cli(*run, *TINY_NETWORK, "name=other")
    assert code == 1
    assert "init.prior=prior.pth: models.swinir.SwinIR has no prior within: choose network=gfpgan, or give init" in printed


@pytest.mark.usefixtures("draws_curves")
def test_a_run_leaves_what_it_promises(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    code, printed = cli(*RUN, f"data.root={photographs}", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1")
    assert code == 0, printed
    run = tmp_path / "runs" / "run"
    assert "effective batch 4 = 2 a device x 1 devices x 2 accumulated" in printed
    for file in (
        "config.yaml",
        "metrics.csv",
        "curves.png",
        "summary.json",
        "checkpoints/last.ckpt",
        "samples/step_0000002.png",
    ):
        assert (run / file).is_file()
        assert f"runs/run/{file}" in printed
    assert list((run / "tensorboard").glob("events.*"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 2
    assert {"psnr", "psnr_lq", "ssim", "ssim_lq"} < set(summary["val"])
    assert summary["val"]["lpips"] is None
    assert summary["val"]["lpips_missing"] == "validation.lpips=null"
    rows = read_rows(run / "metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2"]
    assert [row["step"] for row in rows if row["val/psnr"]] == ["1", "2"], "counted in updates, not in batches"
    assert all(row["train/charbonnier"] and row["lr"] for row in rows if row["train/loss"])
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["config"]["network"]["embed_dim"] == 8
    assert checkpoint["FaceData"] == {"samples": 2 * 4}
    names = set(checkpoint["state_dict"])
    assert {name.removeprefix("network.") for name in names if name.startswith("network.")} == {
        name.removeprefix("ema.average.") for name in names if name.startswith("ema.")
    }
    moved = [
        n
        for n in names
        if n.startswith("network.")
        and not torch.equal(checkpoint["state_dict"][n], checkpoint["state_dict"][f"ema.average.{n[8:]}"])
    ]
    assert moved, "the average is not the network itself"


def test_two_attempts_equal_one(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    # with stochastic depth: its draws must not depend on where a run was stopped either
    root = ["network.drop_path_rate=0.5", "network.depths=[2,2]", f"data.root={photographs}"]
    assert cli(*RUN, *root, "trainer.max_steps=4")[0] == 0
    whole, rows = weights(tmp_path / "runs/run"), read_rows(tmp_path / "runs/run/metrics.csv")
    (tmp_path / "runs").rename(tmp_path / "whole")
    assert cli(*RUN, *root, "trainer.max_steps=2")[0] == 0
    code, printed = cli(*RUN, *root, "trainer.max_steps=4")
    assert code == 0
    assert "continues from runs/run/checkpoints/step_0000002.ckpt" in printed
    parts = weights(tmp_path / "runs/run")
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert read_rows(tmp_path / "runs/run/metrics.csv") == rows
    (tmp_path / "runs/run/summary.json").unlink()  # as if it had died between the last update and the summary
    assert cli(*RUN, *root, "trainer.max_steps=4")[0] == 0
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["step"] == 4
    code, printed = cli(*RUN, *root, "trainer.max_steps=4")
    assert code == 0
    assert "runs/run is finished: 4 of trainer.max_steps=4 updates are done" in printed


def test_another_configuration_in_the_same_folder_is_refused(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    root = f"data.root={photographs}"
    assert cli(*RUN, root)[0] == 0
    before = weights(tmp_path / "runs/run")
    code, printed = cli(*RUN, root, "optimizer.lr=2e-3", "trainer.max_steps=3")
    assert code == 1
    assert "runs/run holds a run with another configuration: optimizer.lr: 0.001 -> 0.002" in printed
    assert "name=…" in printed
    assert "resume=never" in printed
    code, printed = cli(*RUN, root, "optimizer.lr=2e-3", "resume=never")
    assert code == 0, printed
    assert "the run before is kept as runs/run.old1" in printed
    kept = weights(tmp_path / "runs/run.old1")
    assert all(torch.equal(kept[name], before[name]) for name in before), "nothing is lost"


def test_keys_that_differ_are_named_with_both_values() -> None:
    before = {"seed": 1, "resume": "auto", "data": {"root": "a", "batch_size": 4}, "loss": {"terms": {}}}
    now = {"seed": 1, "resume": "never", "data": {"root": "b", "batch_size": 2, "size": 8}, "loss": {"terms": {}}}
    assert differing_keys(before, now) == ["data.root: a -> b", "data.size: absent -> 8"]
    assert differing_keys(before, now, may_differ=("data",)) == ["resume: auto -> never"]


def test_an_export_starts_another_run(cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ["network.image_skip=false", "network.upsampler=nearest+conv"]
    root = f"data.root={photographs}"
    assert cli(*RUN, *plain, root)[0] == 0
    official.main(["export", "runs/run", "--format", "official", "--output", "weights.pth"])
    code, printed = cli(*RUN, *plain, root, "name=again", "init.ckpt=weights.pth", "optimizer.lr=1e-30")
    assert code == 0, printed
    first, second = weights(tmp_path / "runs/run"), weights(tmp_path / "runs/again")
    for name in (name for name in first if name.startswith("ema.average.")):
        assert torch.allclose(second["network." + name.removeprefix("ema.average.")], first[name], atol=1e-7), name
    code, printed = cli(*RUN, root, "name=third", "init.ckpt=weights.pth")  # another head
    assert code == 1
    assert "weights.pth" in printed


def poison(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """The Charbonnier term is NaN on those of its calls, counted from 1 over all attempts."""
    from losses.pixel import Charbonnier

    whole, calls = Charbonnier.forward, 0

    def forward(self: Charbonnier, restored: torch.Tensor, hq: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return whole(self, restored, hq) * (float("nan") if when(calls) else 1)

    monkeypatch.setattr(Charbonnier, "forward", forward)


def test_an_update_that_is_not_finite_is_skipped(
    cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["checkpoint.every_n_steps=1", "checkpoint.keep=9", "optimizer=adamw", "optimizer.weight_decay=0.1"]
    poison(monkeypatch, lambda call: call == 3)
    code, printed = cli(*RUN, f"data.root={photographs}", "trainer.max_steps=4", *steps)
    assert code == 0, printed
    assert "update 3 is skipped (1 in a row): not finite: charbonnier" in printed
    assert "1 updates were skipped" in printed
    states = [
        torch.load(tmp_path / f"runs/run/checkpoints/step_000000{n}.ckpt", weights_only=True)["state_dict"] for n in (2, 3, 4)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), "weights and EMA, decay included"
    assert any(not torch.equal(states[1][name], states[2][name]) for name in states[0])
    assert [row["train/loss"] for row in read_rows(tmp_path / "runs/run/metrics.csv") if row["train/loss"]][2] == "nan"
    assert json.loads((tmp_path / "runs/run/summary.json").read_text())["updates_skipped"] == 1


def test_several_in_a_row_go_back_once(cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = ["trainer.max_steps=6", "checkpoint.every_n_steps=2", "guard.max_in_a_row=2"]
    assert cli(*RUN, f"data.root={photographs}", *steps)[0] == 0
    whole, rows = weights(tmp_path / "runs/run"), read_rows(tmp_path / "runs/run/metrics.csv")
    (tmp_path / "runs").rename(tmp_path / "whole")
    poison(monkeypatch, lambda call: call in (4, 5))  # a fault of the machine: it doesn't come again
    code, printed = cli(*RUN, f"data.root={photographs}", *steps)
    assert code == 0, printed
    assert (
        "2 updates in a row were not finite (the last one: charbonnier): going back to the last good checkpoint, once"
        in printed
    )
    assert "step_0000004.ckpt is later than" in printed, "written between the two"
    assert "is kept as step_0000004.ckpt.aside1" in printed
    assert "continues from runs/run/checkpoints/step_0000002.ckpt" in printed
    again = weights(tmp_path / "runs/run")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert read_rows(tmp_path / "runs/run/metrics.csv") == rows


def test_a_loss_that_stays_not_finite_ends_the_run(
    cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, lambda call: call > 3)
    steps = ["trainer.max_steps=9", "checkpoint.every_n_steps=2", "guard.max_in_a_row=2"]
    code, printed = cli(*RUN, f"data.root={photographs}", *steps)
    assert code == 1
    assert "also after going back to the last good checkpoint: lower optimizer.lr (now 0.001)" in printed
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "runs/run").values())
    poison(monkeypatch, lambda call: True)
    code, printed = cli(*RUN, f"data.root={photographs}", "name=never")  # shorter than guard.max_in_a_row
    assert code == 1
    assert "not one update was finite; there is no checkpoint to go back to: lower optimizer.lr" in printed


@pytest.mark.filterwarnings("ignore:data.on_error=skip passes over")
def test_unreadable_images(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    whole = (photographs / "01.png").read_bytes()
    (photographs / "01.png").write_bytes(whole[: len(whole) // 2])
    code, printed = cli(*RUN, f"data.root={photographs}", "trainer.max_steps=4")
    assert code == 1
    assert "01.png" in printed
    code, printed = cli(
        *RUN, f"data.root={photographs}", "trainer.max_steps=4", "data.on_error=skip"
    )  # the way out, typed next
    assert code == 0, printed
    count = json.loads((tmp_path / "runs/run/summary.json").read_text())["unreadable_passed_over"]
    assert count >= 1, "8 samples of 4 images see each one"
    assert f"data.on_error=skip passed over an unreadable file {count} times" in printed


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("data.size=128", r"is 80x80, smaller than data.size=128"),
        ("data.val_images=6", "data.val_images=6 leaves nothing to train on"),
        ("data.root=empty", "no image"),
        ("data.root=missing", "missing does not exist"),
        ("network.num_heads=[3,3]", "3 does not divide network.embed_dim=8"),
    ],
)
def test_bad_input_is_one_clear_error(cli: Cli, tmp_path: Path, photographs: Path, change: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    code, printed = cli(*RUN, f"data.root={photographs}", change)
    assert code == 1
    assert expected in printed
    assert "Traceback" not in printed


def test_lpips_trains_and_validates_from_a_named_file(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    backbone = torchvision.models.alexnet(weights=None).features.state_dict(prefix="features.")
    (tmp_path / "weights").mkdir()
    torch.save(backbone, tmp_path / "weights/alexnet-owt-7be5be79.pth")
    torch.save(backbone, tmp_path / "mine.pth")
    lpips = ["loss=mse_lpips", "loss.terms.lpips.net=alex", "loss.terms.lpips.backbone.file=mine.pth"]
    run = [argument for argument in RUN if argument != "validation.lpips=null"]
    code, printed = cli(*run, *lpips, f"data.root={photographs}")
    assert code == 0, printed
    summary = json.loads((tmp_path / "runs/run/summary.json").read_text())
    assert summary["val"]["lpips"] > 0
    assert summary["val"]["lpips_lq"] > 0
    rows = read_rows(tmp_path / "runs/run/metrics.csv")
    assert float(rows[0]["train/lpips"]) > 0
    assert float(rows[0]["train/loss"]) == pytest.approx(float(rows[0]["train/mse"]) + 0.01 * float(rows[0]["train/lpips"]))
    checkpoint = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"network", "ema"}, "no loss network is saved"


def test_validation_at_the_end_when_the_interval_is_longer(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    code, printed = cli(*RUN, f"data.root={photographs}", "trainer.val_check_interval=100")
    assert code == 0, printed
    validated = json.loads((tmp_path / "runs/run/summary.json").read_text())["val"]
    (row,) = (row for row in read_rows(tmp_path / "runs/run/metrics.csv") if row["val/psnr"])
    for name in ("psnr", "psnr_lq", "ssim", "ssim_lq"):
        assert validated[name] == pytest.approx(float(row[f"val/{name}"]), rel=1e-6)
    assert 10.0 < validated["psnr"] < 50.0
    assert (tmp_path / "runs/run/samples/step_0000002.png").exists()


def test_an_attempt_that_failed_does_not_bind_the_next(cli: Cli, photographs: Path) -> None:
    code, printed = cli(*RUN, f"data.root={photographs}", "data.size=128")
    assert code == 1
    assert "set data.size to 80 or less" in printed
    code, printed = cli(*RUN, f"data.root={photographs}", "data.size=80")
    assert code == 0, printed


def test_a_checkpoint_that_cannot_be_continued_is_named(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    root = f"data.root={photographs}"
    assert cli(*RUN, root)[0] == 0
    last = tmp_path / "runs/run/checkpoints/last.ckpt"
    code, printed = cli(*RUN, root, f"resume={last}", "name=other", "network.embed_dim=16")
    assert code == 1
    assert "last.ckpt was written with another configuration: network.embed_dim: 8 -> 16" in printed
    code, printed = cli(*RUN, root, f"resume={photographs / '00.png'}", "name=other")
    assert code == 1
    assert "00.png is not a whole checkpoint of a run" in printed
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])  # step_0000002.ckpt is the same file
    rows = (tmp_path / "runs/run/metrics.csv").read_text()
    code, printed = cli(*RUN, root, "trainer.max_steps=3")
    assert code == 1
    assert "runs/run/checkpoints/step_0000002.ckpt is broken (its SHA-256 is not the one beside it" in printed
    for _ in range(2):  # it is asked again, not started over
        assert "no checkpoint in runs/run/checkpoints is whole" in printed
        assert "resume=never" in printed
        code, printed = cli(*RUN, root, "trainer.max_steps=3")
        assert code == 1
    assert (tmp_path / "runs/run/checkpoints/step_0000002.ckpt.broken1").stat().st_size == len(whole) // 2
    assert (tmp_path / "runs/run/metrics.csv").read_text() == rows
    code, printed = cli(*RUN, root, "trainer.max_steps=3", "resume=never")
    assert code == 0, printed
    assert (tmp_path / "runs/run.old1/checkpoints/step_0000002.ckpt.broken1").exists(), "nothing is lost"


def test_another_effective_batch_is_refused_and_the_same_in_other_parts_goes_on(
    cli: Cli, tmp_path: Path, photographs: Path
) -> None:
    root = f"data.root={photographs}"
    assert cli(*RUN, root)[0] == 0
    code, printed = cli(*RUN, root, "data.batch_size=4", "trainer.max_steps=3")
    assert code == 1
    assert "effective batch (data.batch_size x devices x trainer.accumulate_grad_batches): 2 -> 4" in printed
    code, printed = cli(*RUN, root, "data.batch_size=1", "trainer.accumulate_grad_batches=2", "trainer.max_steps=4")
    assert code == 0, printed
    assert "continues from runs/run/checkpoints/step_0000002.ckpt" in printed
    rows = read_rows(tmp_path / "runs/run/metrics.csv")
    assert [row["step"] for row in rows if row["train/loss"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["val/psnr"]] == ["2", "4"]
    assert [float(row["lr"]) for row in rows if row["train/loss"]] == pytest.approx([1e-3] * 4)
    checkpoint = torch.load(tmp_path / "runs/run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["FaceData"] == {"samples": 8}


def test_stochastic_depth_draws_by_sample(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    """Not by batch: a batch of 2 and 2 batches of 1 drop the same branches, as 1 and 2 ranks do."""
    root = ["network.drop_path_rate=0.5", "network.depths=[2,2]", f"data.root={photographs}", "loss=l1"]
    assert cli(*RUN, *root)[0] == 0
    assert cli(*RUN, *root, "data.batch_size=1", "trainer.accumulate_grad_batches=2", "name=parts")[0] == 0
    assert cli(*RUN, *root, "network.drop_path_rate=0.0", "name=never")[0] == 0
    one, parts, never = (weights(tmp_path / "runs" / name) for name in ("run", "parts", "never"))
    assert all(torch.allclose(one[name], parts[name], atol=1e-5) for name in one)
    assert any(not torch.allclose(one[name], never[name], atol=1e-4) for name in one), "they do matter"


def test_going_back_to_an_earlier_checkpoint(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    """resume=PATH goes on from there; the same command again goes on from where that came to."""
    run = [*RUN, f"data.root={photographs}", "checkpoint.every_n_steps=1", "checkpoint.keep=9", "trainer.max_steps=4"]
    folder = tmp_path / "runs/run/checkpoints"
    assert cli(*run)[0] == 0
    whole = weights(tmp_path / "runs/run")
    back = "resume=runs/run/checkpoints/step_0000002.ckpt"
    code, printed = cli(*run, back)
    assert code == 0, printed
    assert "continues from runs/run/checkpoints/step_0000002.ckpt" in printed
    assert {"step_0000003.ckpt.aside1", "step_0000004.ckpt.aside1"} <= {path.name for path in folder.iterdir()}
    assert all(torch.equal(weights(tmp_path / "runs/run")[name], whole[name]) for name in whole)
    (folder / "step_0000002.ckpt").unlink()  # as checkpoint.keep would
    code, printed = cli(*run, back)
    assert code == 0, printed
    assert "runs/run is finished" in printed
    (folder / "step_0000001.ckpt").write_bytes(b"no")
    code, printed = cli(*run, "resume=runs/run/checkpoints/step_0000001.ckpt")
    assert code == 1
    assert "resume=runs/run/checkpoints/step_0000001.ckpt is broken: its SHA-256" in printed


def test_a_job_that_slurm_starts_again_goes_on(
    cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resume=never was obeyed the first time."""
    run = [*RUN, f"data.root={photographs}", "resume=never"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert cli(*run)[0] == 0
    code, printed = cli(*run, "trainer.max_steps=3")
    assert code == 0, printed
    assert "continues from runs/run/checkpoints/step_0000002.ckpt" in printed
    assert not (tmp_path / "runs/run.old1").exists()
    monkeypatch.setenv("SLURM_JOB_ID", "8")  # another job is another first time
    code, printed = cli(*run)
    assert code == 0, printed
    assert "the run before is kept as runs/run.old1" in printed


def test_one_process_at_a_time(cli: Cli, tmp_path: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.runs.rundir.LOCK_WAIT_S", 0.1)
    (tmp_path / "runs").mkdir()
    holder = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from train.runs.rundir import lock;"
        "f = lock(Path('runs/run')); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holder, str(ROOT)], cwd=tmp_path, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    code, printed = cli(*RUN, f"data.root={photographs}")
    assert code == 1
    assert f"runs/run is being trained by process {other.pid} on " in printed
    other.kill()
    other.wait()
    code, printed = cli(*RUN, f"data.root={photographs}")
    assert code == 0, printed


def test_a_checkpoint_of_another_size_names_the_keys_that_fit(cli: Cli, tmp_path: Path, photographs: Path) -> None:
    run = [*RUN, f"data.root={photographs}"]
    assert cli(*run)[0] == 0
    other = [
        *run,
        "init.ckpt=runs/run",
        "name=other",
        "network.embed_dim=16",
        "network.depths=[1,1,1]",
        "network.num_heads=[2,2,2]",
    ]
    code, printed = cli(*other)
    assert code == 1
    fits = "it fits with network.embed_dim=8 network.depths=[1,1] network.num_heads=[2,2]\n"
    assert printed.endswith(fits), printed
    code, printed = cli(*other, *fits.split()[3:])
    assert code == 0, printed
