"""IRControlNet's training at toy size, on a Stable Diffusion whose UNet tells noise as the real one does."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from losses.denoising import Denoising
from models.diffusion.diffbir import DiffBIR
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.schedule import NoiseSchedule
from models.diffusion.stable_diffusion import load
from models.diffusion.tiny import tell_noise
from models.elan import ELAN
from models.files import official
from models.files.first_stage import FirstStage
from models.files.official import build as build_network
from tests.models.diffusion.test_stable_diffusion import CONTROL as TINY
from tests.models.diffusion.test_stable_diffusion import toy, write_folder
from tests.models.test_codeformer import tiny as codeformer
from tests.models.test_gfpgan import tiny as gfpgan
from tests.parity.cases import Case, folders
from tests.parity.families import ircontrolnet as golden
from tests.toy import TINY_NETWORK, write_photographs
from tests.train.runs.kills import Attempt, differences, explain, kill_and_finish, reference
from tests.train.runs.victim import Moment
from train.jobs.cli import compose
from train.jobs.config import check
from train.runs.curves import read_rows
from train.tasks.control import ControlTask
from train.tasks.diffusion import Diffusion
from train.tasks.draws import SampleDraws
from train.trust import build

Command = Callable[..., tuple[int, str]]

CONTROL = [
    *("network.model_channels=64", "network.channel_mult=[1,2]", "network.num_res_blocks=1", "network.context_dim=64"),
    *("network.attention_resolutions=[1]", "network.gradient_checkpointing=false"),
]
RUN = [
    *("data.size=32", "data.val_size=32", "data.val_images=2", "data.batch_size=2", "data.num_workers=0"),
    *(
        "trainer.max_steps=3",
        "trainer.val_check_interval=3",
        "trainer.log_every_n_steps=1",
        "trainer.accumulate_grad_batches=1",
    ),
    *("trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.precision=32-true", "optimizer.lr=1e-3"),
    *("validation.lpips=null", "checkpoint.every_n_steps=2", "diffusion.sampler.steps=2", "name=run"),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs/, sd/ (a diffusers folder) and stage1 (runs/stage1, a SwinIR of two updates)."""
    folder = tmp_path_factory.mktemp("given")
    write_photographs(folder / "photographs", size=48)
    backbone = copy.deepcopy(toy())  # which other tests have too
    tell_noise(backbone)
    write_folder(folder / "sd", diffusion=backbone)
    from train.jobs.cli import main

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        own = [*TINY_NETWORK, "data.root=photographs", "data.size=32", "data.val_images=2", "data.num_workers=0", "name=stage1"]
        own += ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu", "validation.lpips=null"]
        patched.setattr("sys.argv", ["train.py", "model=swinir_ffhq", *own, "trainer.enable_progress_bar=false"])
        main()
    return folder


def arguments(given: Path, *more: str) -> list[str]:
    start = [f"init.stable_diffusion={given}/sd", f"init.stage1={given}/runs/stage1", f"data.root={given}/photographs"]
    return ["model=ircontrolnet_ffhq", *CONTROL, *RUN, *start, *more]


def last(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def networks(run: Path, prefix: str = "network.") -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in last(run)["state_dict"].items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def run(given: Path) -> Path:
    """runs/run of three updates, made by the command."""
    from train.jobs.cli import main

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(given)
        patched.setattr("sys.argv", ["train.py", *arguments(given, "ema_decay=0.5")])
        main()
    return given / "runs" / "run"


def test_it_trains_the_control_network_alone(given: Path, run: Path) -> None:
    saved = last(run)
    assert {key.rpartition(".input_blocks")[0] for key in saved["state_dict"] if ".input_blocks" in key} == {
        "network",
        "ema.average",
    }
    assert {key.partition(".")[0] for key in saved["state_dict"]} == {"network", "ema"}
    unet, state = load(given / "sd", prediction="eps").unet, networks(run)
    begun = control()
    begun.copy_encoder(unet)
    assert state.keys() == begun.state_dict().keys()
    moved = {key for key, value in begun.state_dict().items() if not torch.equal(value, state[key])}
    assert moved == state.keys(), "the zero convolutions from the first update on, and the rest behind them"
    assert all(torch.isfinite(value).all() for value in state.values())
    rows = read_rows(run / "metrics.csv")
    losses = [float(row["train/denoising"]) for row in rows if row["train/denoising"]]
    assert len(losses) == 3
    assert rows[-1]["val/psnr"]
    assert (run / "samples" / "step_0000003.png").is_file()


def control(**changes: Any) -> IRControlNet:
    return IRControlNet(**{**TINY, "num_head_channels": 64, "context_dim": 64, **changes})


def test_what_is_frozen_stays_as_it_was(given: Path) -> None:
    """By value, through updates and validations; and no optimizer, state dict or mode of the task reaches it."""
    task = task_of(given)
    backbone, stage1 = task.diffusion.backbone, task.diffusion.stage1
    before = [value.clone() for each in (backbone, stage1) for value in each.state_dict().values()]
    trained = {id(p) for p in task.parameters()}
    assert trained == {id(p) for p in task.network.parameters()}
    task.train()
    assert not any(module.training for each in (backbone, stage1) for module in each.modules())
    optimizer = torch.optim.Adam(task.parameters(), lr=1)
    for _ in range(2):
        made = task.run_network(batch())
        F.mse_loss(made["predicted"], made["target"]).backward()
        optimizer.step()
    task.restore(batch()["lq"])
    after = [value for each in (backbone, stage1) for value in each.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for each in (backbone, stage1) for p in each.parameters())
    assert task.to(torch.bfloat16).diffusion.backbone.unet.dtype == torch.bfloat16, "it follows the task"


def task_of(given: Path, *more: str) -> ControlTask:
    """As train/runs/run.py makes it, for steps without a trainer."""
    config = check(compose(arguments(given, *more)))
    torch.manual_seed(0)
    task: ControlTask = build(config["task"])
    task.config, task.positions = config, [4, 5]
    return task


def batch(count: int = 2) -> Any:
    images = torch.rand(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"hq": images[0], "lq": images[1]}


def test_draws_follow_from_seed_and_position_alone() -> None:
    like = torch.empty(4, 4, 3, 2)

    def drawn(seed: int, positions: list[int]) -> list[Tensor]:
        draws = SampleDraws(seed, positions)
        return [draws(like[: len(positions)]), draws.timesteps(1000), draws(like[: len(positions)])]

    whole = drawn(1, [8, 9, 10, 11])
    halves = [drawn(1, [8, 9]), drawn(1, [10, 11])]
    assert all(torch.equal(a, torch.cat(parts)) for a, *parts in zip(whole, *halves, strict=True))
    for other in (drawn(2, [8, 9, 10, 11]), drawn(1, [9, 10, 11, 12])):
        assert all(not torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    assert whole[0].unique().numel() == whole[0].numel(), "no sample has another's noise"
    timesteps = SampleDraws(0, range(20_000)).timesteps(1000).float()
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    assert timesteps.mean().item() == pytest.approx(499.5, abs=6)  # three deviations of the mean


CASES = [path for folder in folders() if (path := folder / "ircontrolnet" / "cldm_tiny.json").is_file()]


class Named:
    """The draws of a golden case, in the order in which the task asks for them."""

    def __init__(self, case: Case) -> None:
        self.case, self.noises = case, iter(["gt_posterior_noise", "noise"])

    def timesteps(self, _count: int) -> Tensor:
        return golden.given(self.case, "t")

    def __call__(self, like: Tensor) -> Tensor:
        noise = golden.given(self.case, next(self.noises))
        assert noise.shape == like.shape
        return noise


@pytest.mark.skipif(not CASES, reason="PARITY_DIR has no case of a training loss")
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_the_published_one(prediction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(CASES[0])
    network, backbone = golden.both_of(case)
    text = backbone.text(case.facts["inputs"]["text"]["value"])
    first: Any = torch.nn.Identity()  # the case begins at the first stage's restoration
    diffusion = Diffusion(
        backbone=backbone,
        noise=NoiseSchedule(prediction=prediction, zero_snr=prediction == "v"),
        stage1=first,
        sampler=DiffBIR,  # type: ignore[arg-type]
        noise_aug=0,
        precision="32-true",
        channels_last=False,
    )
    monkeypatch.setattr(backbone, "text", lambda _prompts: text)
    given = diffusion.examples(golden.drawn(case, "gt_image"), golden.drawn(case, "cond_image"), Named(case))
    with torch.no_grad():
        loss = Denoising(weight=1.0)(diffusion.predict(network, given), given.target)
    wanted = case.facts["scalars"][f"p_losses_{prediction}"]
    assert loss.item() == pytest.approx(wanted, rel=case.facts["tolerance"]["loss_rtol"])


def test_noise_on_the_condition_is_drawn_for_each_sample_and_leaves_the_rest_as_it_was(given: Path) -> None:
    """As v2.1 is trained: at timesteps below 200."""
    images, seen = batch(), []
    without, task = task_of(given), task_of(given, "diffusion.noise_aug=200")
    for each in (without, task):
        made = each.diffusion.examples(images["hq"], images["lq"], SampleDraws(0, [4, 5]))
        seen.append(made)
    assert all(torch.equal(getattr(seen[0], name), getattr(seen[1], name)) for name in ("noisy", "timesteps", "target"))
    draws = SampleDraws(0, [4, 5])
    draws(seen[0].noisy), draws.timesteps(1000), draws(seen[0].noisy)
    timesteps, noise = draws.timesteps(200), draws(seen[0].noisy)
    assert len(set(timesteps.tolist())) == 2
    torch.testing.assert_close(seen[1].condition, task.diffusion.noise.noised(seen[0].condition, timesteps, noise))


def test_the_mean_square_by_hand() -> None:
    assert Denoising(weight=1.0)(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0])).item() == pytest.approx(2.5)


def test_the_condition_is_what_the_first_stage_makes_of_lq(given: Path) -> None:
    task, images = task_of(given), batch()
    made = task.diffusion.examples(images["hq"], images["lq"], SampleDraws(0, [4, 5]))
    first = build_network(given / "runs" / "stage1")
    with torch.no_grad():
        condition = task.diffusion.backbone.mode(task.diffusion.backbone.moments(first(images["lq"])))
    assert torch.equal(made.condition, condition)
    other = task.diffusion.examples(images["hq"], images["hq"], SampleDraws(0, [4, 5]))
    assert torch.equal(other.noisy, made.noisy)
    assert not torch.equal(other.condition, made.condition)


@pytest.mark.parametrize("kind", ["codeformer", "gfpgan"])
def test_any_restorer_is_a_first_stage(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    network = codeformer() if kind == "codeformer" else gfpgan(clean=True)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "official.pth")
    lq, options = torch.rand(2, 3, 16, 16), {"w": 0.3, "adain": True} if kind == "codeformer" else {}
    with torch.no_grad():
        made = FirstStage(path=str(tmp_path / "official.pth"), w=0.3, adain=True).eval()(lq)
        assert torch.equal(made, build_network(tmp_path / "official.pth")(lq, **options).restored)


@pytest.mark.parametrize("option", ["network.gradient_checkpointing=true", "channels_last"])
def test_options_of_memory_leave_the_gradients_as_they_are(given: Path, option: str) -> None:
    gradients = []
    for more in ([], [option]):
        task = task_of(given, f"diffusion.channels_last={'channels_last' in more}", *(set(more) - {"channels_last"}))
        task.configure_model()
        torch.manual_seed(1)
        for value in (*task.network.zero_convs.parameters(), *task.network.middle_block_out.parameters()):
            torch.nn.init.normal_(value, std=0.1)
        task.train()
        made = task.run_network(batch())
        F.mse_loss(made["predicted"], made["target"]).backward()
        gradients.append([p.grad for p in task.network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert task.diffusion.backbone.unet.up_blocks[0].gradient_checkpointing == ("checkpointing" in option)
    for weight in (task.network.middle_block[0].in_layers[2].weight, task.diffusion.backbone.unet.conv_in.weight):  # type: ignore[index]
        assert weight.is_contiguous(memory_format=torch.channels_last) == (option == "channels_last")


def test_bf16_keeps_the_frozen_weights_in_it(given: Path) -> None:
    task = task_of(given, "trainer.precision=bf16-mixed")
    assert {p.dtype for p in task.diffusion.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for each in (task.network, task.diffusion.stage1) for p in each.parameters()} == {torch.float32}
    whole = task_of(given).run_network(batch())
    with torch.autocast("cpu", torch.bfloat16):
        made = task.run_network(batch())
    F.mse_loss(made["predicted"], made["target"]).backward()
    assert made["predicted"].dtype == torch.float32
    assert (made["predicted"] - whole["predicted"]).norm() < 0.03 * whole["predicted"].norm()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in task.network.parameters())


def test_validation_has_the_same_noise_each_time(given: Path) -> None:
    task, lq = task_of(given), batch()["lq"]
    first = task.restore(lq)
    torch.manual_seed(7)
    assert torch.equal(task.restore(lq), first)
    task.positions = [5]
    torch.testing.assert_close(task.restore(lq[1:]), first[1:], atol=1e-5, rtol=0)  # by itself as in a batch
    task.positions = [6]
    assert (task.restore(lq[1:]) - first[1:]).abs().max() > 1e-2


def test_the_official_file_of_a_run(given: Path, run: Path, command: Command, tmp_path: Path) -> None:
    """Written, strictly read, and the start of a fine-tuning as CX's."""
    from train.jobs.cli import main

    code, printed = command(
        official.main, "export", str(run), "--format", "official", "--which", "network", "--output", "v1_face.pth"
    )
    assert code == 0, printed
    state = torch.load(tmp_path / "v1_face.pth", weights_only=True)
    control().load_state_dict(state, strict=True)
    assert all(torch.equal(state[key], value) for key, value in networks(run).items())
    fine = ["experiment=cx", *arguments(given)[1:], "init.ckpt=v1_face.pth", "optimizer.lr=1e-9", "trainer.max_steps=1"]
    code, printed = command(main, *fine)
    assert code == 0, printed
    moved = [(value - state[key]).abs().max().item() for key, value in networks(Path("runs/run")).items()]
    assert 0 < max(moved) < 1e-7


def test_a_run_restores(given: Path, run: Path, command: Command) -> None:
    from restoration.cli import main

    starts = [f"stage1={given}/runs/stage1", f"stage2={run}", f"sd={given}/sd", "steps=2", "cfg=1", "device=cpu"]
    code, printed = command(main, "pipeline=diffbir", *starts, f"input={given}/photographs/00.png", "output=out")
    assert code == 0, printed
    assert Path("out/00.png").is_file()


def test_another_first_stage_is_refused_when_a_run_goes_on(given: Path, command: Command, tmp_path: Path) -> None:
    from train.jobs.cli import main

    saved = last(given / "runs" / "stage1")
    torch.save(saved, tmp_path / "stage1.ckpt")
    assert command(main, *arguments(given, "init.stage1=stage1.ckpt"))[0] == 0
    saved["state_dict"]["network.conv_last.bias"] += 1e-3
    torch.save(saved, tmp_path / "stage1.ckpt")
    code, printed = command(main, *arguments(given, "init.stage1=stage1.ckpt", "trainer.max_steps=4"))
    assert code == 1
    assert "init.stable_diffusion or init.stage1 holds other weights than when this run began" in printed
    sd = shutil.copytree(given / "sd", tmp_path / "sd")
    own = arguments(given, "init.stable_diffusion=sd", "name=another")
    assert command(main, *own)[0] == 0
    (file,) = (sd / "text_encoder").glob("*.safetensors")
    (key,) = (key for key in load_file(file) if key.endswith("final_layer_norm.bias"))
    save_file(load_file(file) | {key: load_file(file)[key] + 1e-3}, file, {"format": "pt"})
    code, printed = command(main, *own, "trainer.max_steps=4")
    assert code == 1
    assert "init.stable_diffusion or init.stage1 holds other weights than when this run began" in printed


HUGE = 3e38  # finite, as weights must be; what is computed with it is not


def spoiled(given: Path, folder: Path, what: str) -> list[str]:
    """Arguments that name a copy of what the toy runs start from, with one thing wrong."""
    if what in ("stage1 overflows", "stage1 x2"):
        if what == "stage1 overflows":
            saved = last(given / "runs" / "stage1")
            saved["state_dict"]["network.conv_last.weight"][0] = HUGE
            torch.save(saved, folder / "bad.ckpt")
        else:
            arguments = {"m_elan": 2, "c_elan": 15, "n_share": 0, "r_expand": 2, "window_sizes": [4, 8, 16]}
            torch.save(ELAN(scale=2, **arguments).state_dict(), folder / "bad.ckpt")
        return ["init.stage1=bad.ckpt"]
    if what == "control overflows":
        state = control().state_dict()
        state["middle_block.0.in_layers.2.bias"][0] = HUGE
        torch.save(state, folder / "bad.ckpt")
        return ["init.ckpt=bad.ckpt"]
    sd = shutil.copytree(given / "sd", folder / "sd")
    if what == "no text encoder":
        shutil.rmtree(sd / "text_encoder")
    elif what in ("encoder overflows", "decoder overflows"):
        file = sd / "vae" / "diffusion_pytorch_model.safetensors"
        bias = f"{what.partition(' ')[0]}.conv_in.bias"
        save_file(load_file(file) | {bias: torch.full((32,), HUGE)}, file, {"format": "pt"})
    elif what == "predicts v":
        file = sd / "unet" / "diffusion_pytorch_model.safetensors"
        save_file(load_file(file) | {"conv_out.weight": torch.randn(4, 64, 3, 3)}, file, {"format": "pt"})
    else:
        changes = {"SD 1.5": {"cross_attention_dim": 768}, "2.1 at 768": {"sample_size": 96}}[what]
        file = sd / "unet" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return ["init.stable_diffusion=sd"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            ["init.stable_diffusion=null"],
            "init.stable_diffusion is not set, and this recipe starts from trained weights: give init.stable_diffusion=PATH",
        ),
        (["init.stage1=null"], "init.stage1 is not set, and this recipe starts from trained weights: give init.stage1=PATH"),
        (["init.stable_diffusion=nowhere"], "nowhere does not exist: give Stable Diffusion 2.1-base"),
        (["init.stage1=nowhere"], "nowhere does not exist"),
        ("SD 1.5", "sd is not Stable Diffusion 2.1-base: it is of Stable Diffusion 1 (text of width 768); take 2.1-base"),
        ("2.1 at 768", "its UNet is made for images of 768 (Stable Diffusion 2.1, which predicts v); take 2.1-base"),
        ("no text encoder", "sd has no text_encoder/config.json"),
        ("predicts v", "the UNet predicts v, not eps (its output on pure noise has a cosine of"),
        ("encoder overflows", "a latent of init.stable_diffusion is not finite: check its weights"),
        ("decoder overflows", "an image of init.stable_diffusion's autoencoder is not finite: check its weights"),
        ("control overflows", "a residual of the control network (init.ckpt) is not finite: check its weights"),
        ("stage1 overflows", "a restoration of stage1=bad.ckpt is not finite: check its weights"),
        ("stage1 x2", "stage1=bad.ckpt makes (64, 64) of (32, 32): give a restorer that keeps the size"),
        (["init.stage1=RUN"], "holds IRControlNet, which restores no images: give a restorer"),
        (["data.size=40"], "data.size=40: the latents of IRControlNet need a multiple of 16, such as data.size=32"),
        (["network.hint_channels=3"], "network.hint_channels=3: the condition is a latent"),
        (["network.num_head_channels=32"], "attention heads of [64] channels, here num_head_channels=32"),
        (["diffusion.precision=narrow"], "diffusion.precision='narrow'"),
        (["network.context_dim=32"], "the UNet is of another form than the control network: 4 keys differ"),
        (["diffusion.noise.prediction=v"], "its scheduler says prediction_type=epsilon, but prediction=v is asked for"),
        (["diffusion.noise.zero_snr=true"], "prediction=eps with zero_snr=true"),
        (["diffusion.sampler.steps=1"], "steps=1: the spaced sampler takes 2 to 1000"),
        (["diffusion.sampler.sampler=euler"], "sampler=euler: there are spaced, ddim"),
        (["loss=mse"], "loss.terms.mse needs ['restored'], but ControlTask offers only ['hq', 'lq', 'predicted', 'target']"),
        (
            ["task=regression"],
            "diffusion: train.tasks.regression.RegressionTask does not read it: choose task=control",
        ),
        (
            ["task=regression", "~diffusion", "init.stage1=null", "init.stable_diffusion=null", "loss=mse"],
            "IRControlNet needs latent",
        ),
    ],
)
def test_a_wrong_start_is_refused_before_data_is_read(
    given: Path,
    run: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[str] | str,
    message: str,
) -> None:
    from data.faces import TrainingFaces
    from train.jobs.cli import main

    monkeypatch.setattr(TrainingFaces, "__getitem__", lambda *_: pytest.fail("data was read"))
    more = spoiled(given, tmp_path, wrong) if isinstance(wrong, str) else [each.replace("RUN", str(run)) for each in wrong]
    code, printed = command(main, *arguments(given, *more))
    assert code == 1
    assert message in printed
    assert printed.count("error:") == 1
    assert "Traceback" not in printed


def test_another_network_is_not_for_this_task(given: Path, command: Command) -> None:
    from train.jobs.cli import main

    code, printed = command(main, "model=ircontrolnet_ffhq", "network=swinir_tiny", *arguments(given)[-3:])
    assert code == 1
    assert "SwinIR controls no diffusion model: task=control is for network=ircontrolnet" in printed


def test_a_latent_that_is_not_finite_is_named(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(given)
    monkeypatch.setattr(task.diffusion.backbone, "moments", lambda image: image.new_full((2, 8, 4, 4), torch.inf))
    task.run_network(batch())
    assert {name: bool(found) for name, found in task.nonfinite.items()} == {
        "the latent of HQ": True,
        "the condition latent": True,
    }


MOMENTS = [Moment("save", 2), Moment("backward", 3, rank=1), Moment("validation", 4)]


@pytest.mark.slow
def test_two_ranks_killed_again_and_again_equal_not_killed(given: Path, tmp_path: Path) -> None:
    own = arguments(
        given, "data.batch_size=1", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=5", "ema_decay=0.9"
    )
    whole, _ = reference(tmp_path / "whole", own)
    killed = kill_and_finish(tmp_path / "killed", own, MOMENTS)
    assert len(killed.kinds) == len(MOMENTS), killed.moments
    assert not explain(differences(whole, tmp_path / "killed" / "runs" / "run"))


def test_two_ranks_are_one_with_twice_the_batch(given: Path, tmp_path: Path) -> None:
    """To float32's error, in weights and in what the validation measures; with DDP and with FSDP."""
    own = arguments(
        given, "optimizer.eps=1", "optimizer.lr=0.1"
    )  # in proportion to gradients: with Adam's own eps noise counts
    shared = ["data.batch_size=1", "trainer.devices=2"]
    ways = {"one": [], "ddp": [*shared, "trainer.strategy=ddp"], "fsdp": ["trainer=fsdp", *shared]}
    for folder, more in ways.items():
        attempt = Attempt(tmp_path / folder, [*own, *more])
        assert attempt.wait() == 0, attempt.printed
    one, *others = (tmp_path / folder / "runs" / "run" for folder in ways)
    moved = networks(one)["middle_block_out.0.weight"].abs().max().item()
    assert moved > 1e-5
    for two in others:
        apart = {key: (value - networks(two)[key]).abs().max().item() for key, value in networks(one).items()}
        assert max(apart.values()) < 1e-3 * moved, (moved, sorted(apart.items(), key=lambda item: -item[1])[:3])
        psnr = [float(read_rows(run / "metrics.csv")[-1]["val/psnr"]) for run in (one, two)]
        assert psnr[0] == pytest.approx(psnr[1], abs=1e-3)
