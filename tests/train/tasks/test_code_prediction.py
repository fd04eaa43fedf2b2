"""CodeFormer's stages at toy size: hand-over, what is frozen, phases, the codebook's health, kills, and two ranks."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses.codebook import Codebook, CodeCrossEntropy, CodeFeature
from tests.toy import write_photographs
from tests.train.runs.kills import Attempt, differences, explain, kill_and_finish, reference
from tests.train.runs.victim import Moment
from train.jobs import stages
from train.jobs.cli import compose
from train.runs.curves import read_rows
from train.tasks.calling import check_arguments
from train.tasks.code_prediction import CodePrediction, CodePredictionTask, Phase
from train.tasks.codebook import CodebookUse, perplexity
from train.trust import build

Command = Callable[..., tuple[int, str]]

AUTOENCODER = [
    *("network.img_size=32", "network.nf=32", "network.ch_mult=[1,2]", "network.res_blocks=1", "network.attn_resolutions=[16]"),
    *("network.codebook_size=16", "network.emb_dim=8"),
]
TRANSFORMER = ["network.dim_embd=16", "network.n_head=2", "network.n_layers=1", "network.connect_list=[32]"]
DISCRIMINATOR = ["adversary.discriminators.image.network.ndf=4", "adversary.discriminators.image.network.n_layers=1"]
RUN = [
    *("data.size=32", "data.val_size=32", "data.val_images=2", "data.batch_size=2", "data.num_workers=0"),
    *(
        "trainer.max_steps=3",
        "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1",
        "trainer.accumulate_grad_batches=1",
    ),
    *("trainer.accumulate_grad_batches=1", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu"),
    *("validation.lpips=null", "checkpoint.every_n_steps=2"),
]
OF_STAGE = {
    "stage1": ["~loss.terms.lpips", "loss.terms.gan.adaptive_at=generator.blocks.9.weight", "adversary.start_step=1"],
    "stage2": TRANSFORMER,
    "stage3": ["~loss.terms.lpips", "loss.terms.gan.adaptive_at=fuse_convs_dict.32.shift.2.weight", "adversary.start_step=1"],
}
OF_STAGE["stage1"] += DISCRIMINATOR
OF_STAGE["stage3"] += [*DISCRIMINATOR, *TRANSFORMER]


def arguments(stage: str, photographs: Path) -> list[str]:
    return [*AUTOENCODER, *RUN, *OF_STAGE[stage], f"data.root={photographs}"]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def part(run: Path, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in last(run)["state_dict"].items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/chain/stage1|stage2|stage3 in a folder, made by one command (whose processes are this one), and photographs/."""
    folder = tmp_path_factory.mktemp("chain")
    write_photographs(folder / "photographs", size=32)
    assert chain(folder) == 0
    return folder


def chain(folder: Path, *more: str) -> int:
    from train.runs import run
    from train.runs.building import make_trainer

    each = [f"{stage}.{argument}" for stage in OF_STAGE for argument in OF_STAGE[stage]]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        patched.setattr(
            sys, "argv", ["stages", "codeformer", "name=chain", "data.root=photographs", *AUTOENCODER, *RUN, *each, *more]
        )
        patched.setattr(stages, "launch", lambda config, _ranks: run.run(config, make_trainer(config)))
        try:
            stages.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def test_each_stage_begins_with_what_the_ones_before_left(trained: Path) -> None:
    first, second, third = (trained / "runs" / "chain" / stage for stage in ("stage1", "stage2", "stage3"))
    for run in (first, second, third):
        assert last(run)["global_step"] == 3
    of_first = part(first, "ema.average.")
    for run in (second, third):
        network = part(run, "network.")
        frozen = [key for key in network if key.startswith(("quantize.", "generator."))]
        assert frozen
        assert all(torch.equal(network[key], of_first[key]) for key in frozen)
        moved = [key for key in network if key.startswith("encoder.") and not torch.equal(network[key], of_first[key])]
        assert moved, "the encoder is trained"
    for key, value in part(second, "network.").items():
        if key.startswith("fuse_convs_dict."):  # stage II leaves them alone, stage III trains them from there
            assert torch.equal(value, part(second, "ema.average.")[key])
    fused = [key for key in part(third, "network.") if key.startswith("fuse_convs_dict.") and key.endswith("weight")]
    assert all(not torch.equal(part(third, "network.")[key], part(second, "ema.average.")[key]) for key in fused)
    (of_third,) = (last(third)["optimizer_states"][1]["state"][0]["step"],)
    assert of_third == 2, "the discriminator has trained in updates 2 and 3"
    assert (first / "codebook.png").is_file()
    rows = read_rows(second / "metrics.csv")
    assert 0 <= float(rows[-1]["val/code_accuracy"]) <= 1
    assert read_rows(first / "metrics.csv")[0]["codebook/perplexity"]


def test_the_same_command_passes_over_finished_stages(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*") if path.is_file()}
    assert chain(trained) == 0
    assert capsys.readouterr().out.count("is finished") == 3
    assert {path: path.stat().st_mtime_ns for path in (trained / "runs").rglob("*") if path.is_file()} == before


def test_stages_checks_all_before_the_first_begins(command: Command, tmp_path: Path) -> None:
    code, printed = command(stages.main, "codeformer", "data.root=photographs", "stage3.optimizer.lrr=1")
    assert code == 1
    assert "optimizer.lrr" in printed
    assert not (tmp_path / "runs").exists()
    code, printed = command(stages.main, "codeformer", "stage2.trainer.max_steps=0")
    assert code == 1
    assert "error: stage2: trainer.max_steps=0" in printed


def test_a_released_edition_alternates_images_and_codes(trained: Path, command: Command) -> None:
    """codeformer_official_stage3 on two LQs, its phases shortened; the discriminator rests where there is no image."""
    from train.jobs.cli import main

    phases = {"image": 1, "stronger": 2, "codes": 3}
    code, printed = command(
        main,
        "experiment=codeformer_official_stage3",
        *(f"codes.phases.{name}.until_step={step}" for name, step in phases.items()),
        *("codes.phases.both.image_every=5", f"init.stage1={trained}/runs/chain/stage1"),
        *(f"init.stage2={trained}/runs/chain/stage2", *arguments("stage3", trained / "photographs")),
        *("trainer.max_steps=5", "adversary.start_step=0", "name=official"),
    )
    assert code == 0, printed
    run = Path("runs/official")
    rows = [row for row in read_rows(run / "metrics.csv") if row["train/loss"]]
    assert [bool(row["train/l1"]) for row in rows] == [True, True, False, False, True]
    assert [bool(row["train/image.gan"]) for row in rows] == [True, True, False, False, True]
    assert all(row["train/code"] and row["train/feature"] for row in rows)
    assert last(run)["optimizer_states"][1]["state"][0]["step"] == 3


def test_dtbfr_moves_encoder_and_transformer_alone(trained: Path, command: Command) -> None:
    """On pairs; its teacher is what it begins from."""
    from train.jobs.cli import main

    start, photographs = trained / "runs" / "chain" / "stage3", trained / "photographs"
    code, printed = command(
        main,
        *("experiment=aiialab_codeformer_dtbfr", f"init.ckpt={start}", f"data.target_root={photographs}", "name=dtbfr"),
        *arguments("stage2", photographs),
    )
    assert code == 0, printed
    before, after = part(start, "ema.average."), part(Path("runs/dtbfr"), "network.")
    moved = {key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert moved == {"encoder", "position_emb", "feat_emb", "ft_layers", "idx_pred_layer"}


def test_the_official_phases() -> None:
    """RECIPES, codeformer_stage3: update 120000 itself is on codes alone."""
    nodes = compose(["experiment=codeformer_official_stage3"]).codes.phases
    phases = [build(node) for node in nodes.values()]

    def w(update: int) -> float | None:
        return next(phase for phase in phases if phase.until_step is None or update <= phase.until_step).fidelity(update)

    assert {update: w(update) for update in (1, 40_000, 40_001, 80_000)} == {1: 1, 40_000: 1, 40_001: 1.3, 80_000: 1.3}
    assert [w(update) for update in (80_001, 120_000, 120_001, 120_014, 120_016, 149_999)] == [None] * 6
    assert [w(update) for update in (120_015, 120_030, 150_000)] == [1.3] * 3


STAGE2 = ["model=codeformer_stage2", *AUTOENCODER, *RUN, *TRANSFORMER, "data.root=photographs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "init.stage1 is not set, and this recipe starts from trained weights: give init.stage1=PATH"),
        (["init.stage1=nowhere"], "nowhere does not exist"),
        (["init.stage1=CHAIN/stage2"], "holds a codeformer network where vqgan is wanted"),
        (["init.stage1=CHAIN/stage1", "network.codebook_size=8"], "does not fit CodeFormer"),
        (["init.stage1=CHAIN/stage1", "init.stage2=x"], "init.stage2: there is no such key; did you mean init.stage1?"),
        (
            ["init.stage1=CHAIN/stage1", "+codebook.restart=true"],
            "Task does not read it: choose task=autoencoding",
        ),
        (["init.stage1=CHAIN/stage1", "init.required=false", "init.ckpt=null"], "another codebook than the network"),
        (["init.stage1=CHAIN/stage1", "codes.phases.codes.until_step=5"], "the last until_step is null"),
        (["init.stage1=CHAIN/stage1", "codes.teacher=OTHER"], "another codebook than the network"),
    ],
)
def test_a_wrong_start_is_refused_before_data_is_read(
    trained: Path, command: Command, tmp_path: Path, given: list[str], message: str
) -> None:
    from train.jobs.cli import main

    runs = trained / "runs" / "chain"
    if "another" in message:
        saved = last(runs / "stage1")
        saved["state_dict"]["ema.average.quantize.embedding.weight"][3, 2] += 1e-3
        torch.save(saved, tmp_path / "other.ckpt")
    given = [each.replace("CHAIN", str(runs)).replace("OTHER", str(tmp_path / "other.ckpt")) for each in given]
    code, printed = command(main, *STAGE2, *given)  # photographs/ does not exist here
    assert code == 1
    assert message in printed
    assert "Traceback" not in printed


def test_all_files_that_a_stage_starts_from_are_asked_for_at_once(command: Command) -> None:
    from train.jobs.cli import main

    code, printed = command(main, "model=codeformer_stage3", "data.root=nowhere")
    assert code == 1
    assert [line.partition(" is not set")[0] for line in printed.splitlines()] == ["error: init.stage1", "error: init.stage2"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["network=codeformer"], "CodeFormer needs w, adain, which this task does not give it"),
        (["task=codes"], "this task needs codes, of which there is none"),
        (["+init.stage1=x"], "nothing reads the key init.stage1"),
    ],
)
def test_other_models_say_what_they_lack(command: Command, given: list[str], message: str) -> None:
    from train.jobs.cli import main

    code, printed = command(main, "model=swinir_ffhq", "data.root=nowhere", *given)
    assert code == 1
    assert message in printed
    assert printed.count("error:") == 1


def test_a_task_of_codes_is_for_codeformer() -> None:
    with pytest.raises(ValueError, match="Identity takes no adain, code_only, w: this task is for network=codeformer"):
        check_arguments(nn.Identity(), CodePredictionTask.calls_with)


def test_a_longer_stage_one_leaves_no_stage_two_behind(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made from the shorter one is not passed over in silence."""
    shutil.copytree(trained, tmp_path / "copy")
    errors: list[str] = []
    monkeypatch.setattr("train.jobs.stages.fail", lambda message: errors.append(message) or sys.exit(1))
    for _ in range(2):  # the second finds stage1 finished too
        assert chain(tmp_path / "copy", "stage1.trainer.max_steps=4") == 1
        assert "stage2: runs/chain/stage2 is finished, but was made from what stage1 had before" in errors.pop()
    assert chain(tmp_path / "copy", "stage1.trainer.max_steps=4", "stage2.resume=never", "stage3.resume=never") == 0


def test_stage_three_wants_a_discriminator(trained: Path, command: Command) -> None:
    from train.jobs.cli import main

    runs = trained / "runs" / "chain"
    code, printed = command(
        main,
        *("model=codeformer_stage3", f"init.stage1={runs}/stage1", f"init.stage2={runs}/stage2"),
        *arguments("stage3", trained / "photographs"),
        f"adversary.discriminators.image.ckpt={runs}/stage2",
    )
    assert code == 1
    assert "has no 'discriminator image' weights" in printed
    assert "give the discriminator's own file, or a run with one" in printed


def test_another_teacher_is_refused_when_a_run_goes_on(trained: Path, command: Command, tmp_path: Path) -> None:
    from train.jobs.cli import main

    saved = last(trained / "runs" / "chain" / "stage1")
    torch.save(saved, tmp_path / "teacher.ckpt")
    given = [*STAGE2, "init.stage1=teacher.ckpt", f"data.root={trained / 'photographs'}"]
    assert command(main, *given)[0] == 0
    saved["state_dict"]["ema.average.encoder.blocks.0.weight"] *= 1.01
    torch.save(saved, tmp_path / "teacher.ckpt")
    code, printed = command(main, *given, "trainer.max_steps=4")
    assert code == 1
    assert "codes.teacher=teacher.ckpt holds other weights than when this run began" in printed


def test_phases_follow_each_other(trained: Path) -> None:
    teacher = str(trained / "runs" / "chain" / "stage1")
    for ends in ([5, 5, None], [5, None, None], [5], []):
        phases = {str(n): Phase(until_step=end, w=None) for n, end in enumerate(ends)}
        with pytest.raises(ValueError, match="each must end later"):
            CodePrediction(teacher=teacher, family="vqgan", phases=phases, w=0, adain=False)


def test_perplexity_counts_codes_in_use() -> None:
    assert perplexity(torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])).item() == pytest.approx(4)
    assert perplexity(torch.tensor([18, 0])).item() == pytest.approx(1)
    assert perplexity(torch.tensor([3, 1])).item() == pytest.approx(1.7548, abs=1e-4)  # 4 / 3 ** 0.75


def test_dead_codes_are_counted_and_begin_anew() -> None:
    use = CodebookUse(dead_after_steps=2, restart=True)
    use.register(4)
    for update in (1, 2, 3):
        for accumulated in ([0, 0], [1, 1]):
            use.add(torch.tensor(accumulated))
        values = use.count(update)
    assert values["perplexity"].item() == pytest.approx(2)
    assert values["dead"] == 2
    assert use.uses.tolist() == [2, 2, 0, 0]
    books = [nn.Embedding(4, 2), nn.Embedding(4, 2)]
    optimizer = torch.optim.Adam(books[0].parameters())
    books[0].weight.square().sum().backward()
    optimizer.step()
    kept = books[0].weight[:2].clone()
    latent = torch.arange(8.0).view(1, 2, 2, 2)
    assert use.revive(books, optimizer, latent, 3, seed=0) == 2
    assert torch.equal(books[0].weight[:2], kept)
    assert torch.equal(books[0].weight[2:], books[1].weight[2:])
    assert {tuple(row) for row in books[0].weight[2:].tolist()} <= {(n, n + 4) for n in range(4)}  # latents of one place
    state = optimizer.state[books[0].weight]
    assert state["exp_avg"][2:].eq(0).all()
    assert state["exp_avg"][:2].ne(0).all()
    assert use.revive(books, optimizer, latent, 4, seed=0) == 0, "they count as used"


def test_terms_on_codes() -> None:
    latent, quantized = torch.tensor([1.0, 3.0]).requires_grad_(), torch.tensor([0.0, 1.0]).requires_grad_()
    loss = Codebook(weight=1.0, codebook_weight=1.0, commitment_weight=0.25)(latent, quantized)
    assert loss.item() == pytest.approx(1.25 * 2.5)
    loss.backward()
    assert latent.grad is not None
    assert quantized.grad is not None
    assert latent.grad.tolist() == [0.25, 0.5]  # 0.25 * 2 * difference / 2
    assert quantized.grad.tolist() == [-1, -2]
    assert CodeFeature(weight=1.0)(latent, quantized).item() == pytest.approx(2.5)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    entropy = CodeCrossEntropy(weight=0.5)(logits, torch.tensor([[[0, 1]]]))
    assert entropy.item() == pytest.approx((0.126928 + 0.693147) / 2, abs=1e-5)


STAGE1 = [
    "model=codeformer_stage1",
    "network.codebook_size=300",
    "codebook.restart=true",
    "codebook.dead_after_steps=1",
    "name=run",
]
STAGE1 += ["trainer.max_steps=8", "trainer.val_check_interval=4", "checkpoint.every_n_steps=3", "trainer.log_every_n_steps=2"]
MOMENTS = [Moment("save", 2), Moment("discriminators", 4, rank=1), Moment("optimizer", 5)]


@pytest.mark.slow
def test_stage_one_on_two_ranks_killed_again_and_again_equals_not_killed(tmp_path: Path) -> None:
    photographs = write_photographs(tmp_path / "photographs", size=32)
    own = [*arguments("stage1", photographs), *STAGE1, "data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]
    whole, _ = reference(tmp_path / "whole", own)
    killed = kill_and_finish(tmp_path / "killed", own, MOMENTS)
    assert len(killed.kinds) == len(MOMENTS), killed.moments
    assert not explain(differences(whole, tmp_path / "killed" / "runs" / "run"))
    restarted = [float(row["codebook/restarted"]) for row in read_rows(whole / "metrics.csv") if row["codebook/restarted"]]
    assert len(restarted) == 4, "in updates 2, 4, 6 and 8"
    assert sum(restarted) > 0, "512 places don't take 300 codes"


@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_two_ranks_are_one_with_twice_the_batch(trained: Path, tmp_path: Path, stage: str) -> None:
    """To float32's error: without the discriminator, whose batch norm sees a rank's own images."""
    runs = trained / "runs" / "chain"
    own = [f"model=codeformer_{stage}", f"init.stage1={runs}/stage1", *arguments(stage, trained / "photographs"), "name=run"]
    own += [f"init.stage2={runs}/stage2", "adversary.start_step=9"] if stage == "stage3" else []
    own += ["optimizer.eps=1", "optimizer.lr=0.1"]  # updates in proportion to gradients: with Adam's own eps noise counts
    shared = ["data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp"]
    for folder, more in (("one", []), ("two", shared)):
        attempt = Attempt(tmp_path / folder, [*own, *more])
        assert attempt.wait() == 0, attempt.printed
    one, two = (part(tmp_path / folder / "runs" / "run", "network.") for folder in ("one", "two"))
    before = part(runs / {"stage2": "stage1", "stage3": "stage2"}[stage], "ema.average.")
    moved = (one["encoder.blocks.0.weight"] - before["encoder.blocks.0.weight"]).abs().max().item()
    assert moved > 1e-3
    apart = {key: (one[key] - two[key]).abs().max().item() for key in one}
    assert max(apart.values()) < 1e-3 * moved, (moved, sorted(apart.items(), key=lambda item: -item[1])[:3])
