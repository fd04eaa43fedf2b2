"""restore.py pipeline=diffbir as a user calls it: a first stage, a control network and Stable Diffusion, all tiny."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from yaml import safe_load

from models.diffusion.diffbir import DiffBIR
from models.diffusion.ircontrolnet import IRControlNet
from models.diffusion.sampling import drawn_from
from models.diffusion.schedule import NoiseSchedule
from models.diffusion.stable_diffusion import StableDiffusion, load
from models.files.families import full_state
from models.files.official import export
from models.swinir import SwinIR
from restoration.cli import GROUPS, configured, main
from restoration.diffbir import noise_of
from restoration.network import Network
from tests.models.diffusion.test_stable_diffusion import SETTINGS, control, pickled, write_folder
from tests.models.test_codeformer import tiny as codeformer
from tests.models.test_gfpgan import tiny as gfpgan
from tests.models.test_vqgan import tiny as autoencoder
from tests.restoration.test_run import picture
from tests.toy import ROOT, write_photographs
from train.jobs.typed import Typed

Cli = Callable[..., tuple[int, str]]
VERSIONS = {name: safe_load((ROOT / f"conf/version/{name}.yaml").read_text()) for name in ("v2", "v2.1")}
V2 = VERSIONS["v2"]
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def tiny_swinir() -> SwinIR:
    torch.manual_seed(4)
    network = SwinIR(
        img_size=8,
        in_chans=3,
        embed_dim=8,
        depths=[1],
        num_heads=[2],
        window_size=4,
        mlp_ratio=2.0,
        unshuffle=1,
        upscale=1,
        upsampler="",
        resi_connection="1conv",
        img_range=1.0,
        image_skip=False,
    )
    return network.eval()


def that_predicts_noise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A UNet's weights with a short way from its input to its output, beside all that the others add."""
    state = {key: value / 10 if key.endswith(".weight") and value.ndim > 1 else value for key, value in state.items()}
    signs = torch.tensor([1.0, -1.0]).repeat(32)  # x and -x in each of the last norm's groups, whose mean is then 0
    latents = torch.arange(64) // 2 % 4
    entry, out = torch.zeros(64, 4, 3, 3), torch.zeros(4, 64, 3, 3)
    entry[torch.arange(64), latents, 1, 1] = signs  # silu(x) - silu(-x) = x
    out[latents, torch.arange(64), 1, 1] = signs / 16
    skip = "up_blocks.1.resnets.1.conv_shortcut.weight"  # of the running tensor and conv_in's output
    shortcut = state[skip].clone()
    shortcut[:, 64:] += torch.eye(64)[..., None, None]
    return state | {"conv_in.weight": entry, "conv_out.weight": out, skip: shortcut}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd (predicts noise), sd_v (as drawn, which counts as v), control.pth, swinir.pth and vqgan.pth; they stay as they are."""
    folder = tmp_path_factory.mktemp("diffbir")
    write_folder(folder / "sd_v", prediction_type="v_prediction")
    shutil.copytree(folder / "sd_v", folder / "sd")
    save_file(that_predicts_noise(load_file(folder / "sd_v" / UNET_FILE)), folder / "sd" / UNET_FILE, {"format": "pt"})
    (folder / "sd/scheduler/scheduler_config.json").write_text(json.dumps({"prediction_type": "epsilon"}))
    torch.save(full_state(control()), folder / "control.pth")
    torch.save({"params": full_state(tiny_swinir())}, folder / "swinir.pth")
    torch.save({"params_ema": autoencoder().state_dict()}, folder / "vqgan.pth")
    return folder


@pytest.fixture
def restore(command: Cli, files: Path) -> Cli:
    """pipeline=diffbir with the files above, 2 steps and what is given; a key that is given again counts."""
    keys = {"stage1": files / "swinir.pth", "stage2": files / "control.pth", "sd": files / "sd"}
    common = [*(f"{key}={value}" for key, value in keys.items()), "input=in", "output=out", "steps=2", "device=cpu"]
    return lambda *arguments: command(main, "pipeline=diffbir", *common, *arguments)


def second_stage(files: Path, first: Tensor, name: str, **changes: Any) -> Tensor:
    settings = {"diffusion": load(files / "sd", prediction="eps"), **SETTINGS, "negative": V2["negative"], **changes}
    stage = DiffBIR(control=control(), **settings)
    return stage(first, drawn_from(noise_of(231, name)))


@torch.no_grad()
def test_a_folder_and_what_is_left_of_it(files: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in" / "deep", count=2, size=40)
    code, printed = restore()
    assert code == 0, printed
    assert printed.startswith("2 of 2 images restored into out, ")
    assert len(printed.splitlines()) == 1, "no library says anything of its own"
    made = [tmp_path / "out" / "deep" / name for name in ("00.png", "01.png")]
    before = [file.read_bytes() for file in made]
    first = tiny_swinir()(picture(photographs / "01.png")[None])
    expected = second_stage(files, first, "deep/01.png")[0]
    torch.testing.assert_close(picture(made[1]), expected.clamp(0, 1), rtol=0, atol=0.51 / 255)
    assert (expected - first[0]).abs().max() > 2 / 255, "the second stage did something"
    assert restore()[1].startswith("0 of 2 images restored into out; 2 were there already (overwrite=true")
    made[1].unlink()
    (tmp_path / "in" / "deep" / "00b.png").write_bytes((photographs / "00.png").read_bytes())
    assert restore()[1].startswith("2 of 3 images restored into out")
    assert [file.read_bytes() for file in made] == before, "its noise does not follow from what else was restored"
    assert (tmp_path / "out" / "deep" / "00b.png").read_bytes() != before[0], "another image has other noise"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sampler=ddim"],
        ["sampler=edm_dpm++_2m"],
        ["sampler=edm_dpm++_3m_sde"],
        ["version=v2.1", "sd={files}/sd_v", "steps=2"],
        ["prediction=v", "sd={files}/sd_v", "rescale_cfg=true"],
        ["prompt=blurry", "negative="],
        ["cfg=1", "seed=232"],
        ["cfg=7.5", "rescale_cfg=true"],
        ["strength=0.3", "start_point_type=cond", "noise_aug=100"],
        ["cldm_tiled=true", "cldm_tile_size=16", "cldm_tile_stride=8"],
        ["g_scale=0.1", "g_repeat=2"],
        ["g_scale=0.1", "g_space=rgb", "g_loss=w_mse", "g_t_start=900"],
        ["bf16=true"],
    ],
    ids=" ".join,
)
def test_every_setting_counts(
    arguments: list[str], files: Path, tmp_path: Path, restore: Cli, plain: tuple[Path, Tensor]
) -> None:
    photo, without = plain
    code, printed = restore(f"input={photo}", *(argument.format(files=files) for argument in arguments))
    assert code == 0, printed
    made = picture(tmp_path / "out" / "00.png")
    assert made.shape == without.shape
    assert not torch.equal(made, without)


@pytest.fixture(scope="module")
def plain(files: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A photograph and what is made of it with the settings as they are, to 8 bits."""
    photo = write_photographs(tmp_path_factory.mktemp("plain"), count=1, size=32) / "00.png"
    with torch.no_grad():
        made = second_stage(files, tiny_swinir()(picture(photo)[None]), "00.png")[0]
    return photo, (255 * made.clamp(0, 1)).round() / 255


def test_a_control_network_as_a_folder_of_diffusers(
    files: Path, tmp_path: Path, restore: Cli, plain: tuple[Path, Tensor]
) -> None:
    export(files / "control.pth", tmp_path / "control", "diffusers")
    assert restore(f"input={plain[0]}", "stage2=control")[0] == 0
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), plain[1], rtol=0, atol=1.01 / 255)


def test_stable_diffusion_in_pickles(files: Path, tmp_path: Path, restore: Cli, plain: tuple[Path, Tensor]) -> None:
    pickled(shutil.copytree(files / "sd", tmp_path / "sd"))
    code, printed = restore(f"input={plain[0]}", "sd=sd")
    assert (code, len(printed.splitlines())) == (0, 1), printed
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), plain[1], rtol=0, atol=1.01 / 255)


def test_the_settings_as_they_are_are_the_second_versions(tmp_path: Path, restore: Cli, plain: tuple[Path, Tensor]) -> None:
    photo, made = plain
    assert restore(f"input={photo}", "version=v1", "sampler=spaced", "cfg=4")[0] == 0
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), made, rtol=0, atol=1.01 / 255)
    v1, v2 = (configured(Typed.of(["pipeline=diffbir", f"version={each}", "--cfg=job"], GROUPS))[0] for each in ("v1", "v2"))
    assert v1 == v2
    assert (V2["steps"], VERSIONS["v2.1"]["steps"]) == (50, 10)


def test_prompts_are_the_published_ones() -> None:
    stored = json.loads((ROOT / "tests/golden/ircontrolnet/tokenizer.json").read_text())
    texts = {case["text"] for case in stored["inputs"].values()}
    assert {V2["negative"], VERSIONS["v2.1"]["prompt"], VERSIONS["v2.1"]["negative"]} <= texts


@torch.no_grad()
def test_the_settings_of_the_latest_version(files: Path, tmp_path: Path, restore: Cli, plain: tuple[Path, Tensor]) -> None:
    photo = plain[0]
    assert restore(f"input={photo}", "version=v2.1", f"sd={files / 'sd_v'}", "steps=3")[0] == 0
    settings = {key: VERSIONS["v2.1"][key] for key in ("sampler", "negative")}
    settings |= {"positive": VERSIONS["v2.1"]["prompt"], "scale": 6.0, "steps": 3}
    schedule = NoiseSchedule(prediction="v", zero_snr=True)
    stage = {"diffusion": load(files / "sd_v", prediction="v"), "schedule": schedule}
    made = second_stage(files, tiny_swinir()(picture(photo)[None]), "00.png", **settings, **stage)[0]
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), made.clamp(0, 1), rtol=0, atol=0.51 / 255)


def test_images_that_can_not_be_restored_stop_no_other(files: Path, tmp_path: Path, restore: Cli) -> None:
    photographs = write_photographs(tmp_path / "in", count=2, size=16)
    (photographs / "00.png").write_bytes(b"not a picture")
    code, printed = restore()
    assert code == 1
    assert "1 of 2 images restored into out" in printed
    assert "error: in/00.png" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("of", "method", "says"),
    [
        (IRControlNet, "forward", "error: in/00.png: the diffusion model's output at timestep 999 is not finite"),
        (StableDiffusion, "decode", "error: in/00.png: the output of stage2 is not finite"),
        (StableDiffusion, "forward", "error: the UNet's output on pure noise is not finite"),
    ],
    ids=["control", "vae", "unet"],
)
def test_nothing_is_written_where_values_are_not_finite(
    of: type, method: str, says: str, tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = getattr(of, method)

    def fails(*given: Any, **more: Any) -> Any:
        made = works(*given, **more)
        return [each * torch.nan for each in made] if isinstance(made, list | tuple) else made * torch.nan

    monkeypatch.setattr(of, method, fails)
    write_photographs(tmp_path / "in", count=1, size=16)
    code, printed = restore()
    assert code == 1
    assert says in printed
    assert not [*(tmp_path / "out").glob("*.png")]


def test_an_image_that_memory_does_not_hold(tmp_path: Path, restore: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photographs(tmp_path / "in", count=1, size=16)

    def out_of_memory(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(DiffBIR, "__call__", out_of_memory)
    code, printed = restore()
    assert code == 1
    assert "error: in/00.png: memory ran out on its 16x16 pixels: cldm_tiled=true, or bf16=true\n" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["sd=gone"], "gone does not exist: give Stable Diffusion 2.1-base"),
        (["sd="], "sd is not set: give sd=PATH, Stable Diffusion 2.1-base, a diffusers folder or the single file"),
        (["sd={files}/sd_v"], "its scheduler says prediction_type=v_prediction, but prediction=eps is asked for"),
        (["sd={here}/drawn"], "the UNet predicts v, not eps"),
        (["sd={here}/sd1"], "it is of Stable Diffusion 1 (text of width 768); take 2.1-base"),
        (["sd={here}/no_text"], "has no text_encoder/config.json"),
        (["sd={here}/no_words"], "needs a tokenizer, and a single-file checkpoint has none: give tokenizer=FOLDER"),
        (["stage2={files}/swinir.pth"], "swinir.pth holds SwinIR: give an IRControlNet"),
        (["stage1={files}/control.pth"], "control.pth holds DiffBIR's control network, which restores nothing by itself"),
        (["stage1={files}/vqgan.pth"], "vqgan.pth holds VQAutoEncoder, which restores no images: give a restorer"),
        (["stage2=gone.pth"], "gone.pth does not exist"),
        (["sampler=euler"], "sampler=euler: there are spaced, ddim, edm_dpm++_2m, edm_dpm++_3m_sde"),
        (["steps=1"], "steps=1: the spaced sampler takes 2 to 1000"),
        (["steps=many"], "steps='many': Input should be a valid integer"),
        (["cfg=nan"], "cfg=nan: Input should be a finite number"),
        (["version=v3"], "version=v3: there is no such version (there are v1, v2.1, v2)"),
        (["version=v2.1", "prediction=eps"], "prediction=eps with zero_snr=true"),
        (["start_point_type=image"], "start_point_type='image': Input should be 'noise' or 'cond'"),
        (["noise_aug=1000"], "noise_aug=1000: a timestep from 0 (none) to 999"),
        (["g_space=rgb"], "g_space does nothing by itself: add g_scale above 0"),
        (["g_scale=1", "g_t_start=400", "g_t_stop=300"], "guidance from g_t_start=400 to g_t_stop=300 meets none of 2 steps"),
        (["w=0.7"], "w does nothing: {files}/swinir.pth holds SwinIR, which takes no fidelity; leave w out"),
        (["cfg=1", "negative=blurry"], "negative does nothing with cfg=1, which is no guidance: give another cfg"),
        (["cfg=0", "prompt=sharp"], "prompt does nothing with cfg=0, which is the negative prompt alone"),
        (["cfg=1", "rescale_cfg=true"], "rescale_cfg does nothing with cfg=1: give cfg above 1"),
        (["strength=0", "noise_aug=9"], "noise_aug does nothing with strength=0: raise strength"),
        (["negative=", "tokenizer={files}"], "tokenizer does nothing with no prompt to read: leave tokenizer out"),
        (["cfg=1", "tokenizer={files}"], "tokenizer does nothing with no prompt to read: leave tokenizer out"),
        (["g_scale=1", "sampler=ddim"], "guidance with sampler=ddim: only sampler=spaced has it"),
        (["cldm_tile_size=16"], "cldm_tile_size does nothing by itself: add cldm_tiled=true"),
        (["cldm_tiled=true", "cldm_tile_size=24"], "cldm_tile_size=24: give a multiple of 16"),
        (["cldm_tiled=true", "cldm_tile_stride=520"], "cldm_tile_stride=520: give a multiple of 8 up to cldm_tile_size, 512"),
        (
            ["ckpt=x.pth"],
            "ckpt is of pipeline=elan_enhance, network, not of pipeline=diffbir: choose one of these, or leave ckpt out",
        ),
        (["pipeline=stablesr"], "pipeline=stablesr: there is no such pipeline (there are acvlab, cx, difface, diffbir"),
        (["promt=x"], "did you mean prompt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(arguments: list[str], says: str, files: Path, tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=2, size=16)
    place = arguments[0].removeprefix("sd={here}/")
    if place != arguments[0]:
        spoiled(files, tmp_path / place)
    code, printed = restore(*(argument.format(files=files, here=tmp_path) for argument in arguments))
    assert code == 1
    assert says.format(files=files) in printed
    assert len(printed.splitlines()) == 1, "it is said once, before any image"


def spoiled(files: Path, path: Path) -> None:
    """Stable Diffusion as a folder that something is wrong with, by its name."""
    shutil.copytree(files / "sd", path)
    if path.name == "drawn":
        shutil.copy(files / "sd_v" / UNET_FILE, path / UNET_FILE)
    elif path.name == "sd1":
        config = json.loads((path / "unet/config.json").read_text())
        (path / "unet/config.json").write_text(json.dumps(config | {"cross_attention_dim": 768}))
    else:
        shutil.rmtree(path / {"no_text": "text_encoder", "no_words": "tokenizer"}[path.name])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ckpt={files}/control.pth"], "give pipeline=diffbir stage1=FILE stage2={files}/control.pth sd=DIR"),
        (
            ["ckpt={files}/swinir.pth", "steps=5"],
            "steps is of pipeline=acvlab, cx, diffbir, …, not of pipeline=network: choose one of these, or leave steps out",
        ),
        (
            ["stage1={files}/swinir.pth"],
            "stage1 is of pipeline=acvlab, cx, difface, …, not of pipeline=network: choose one of these, or leave stage1 out",
        ),
    ],
)
def test_without_the_pipeline(arguments: list[str], says: str, files: Path, tmp_path: Path, command: Cli) -> None:
    write_photographs(tmp_path / "in", count=1, size=16)
    code, printed = command(main, *(each.format(files=files) for each in arguments), "input=in", "output=out")
    assert code == 1
    assert says.format(files=files) in printed
    assert len(printed.splitlines()) == 1


def first_stages(folder: Path) -> dict[str, Path]:
    """Pipeline -> a tiny network of the kind that its first stage is."""
    networks: dict[str, torch.nn.Module] = {"hh": codeformer(img_size=16, connect_list=[8, 16]), "acvlab": gfpgan(clean=True)}
    for name, network in networks.items():
        torch.save({"params_ema": full_state(network.eval())}, folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in networks}


@pytest.mark.parametrize("pipeline", ["diffbir_v1", "diffbir_v2", "diffbir_v2.1", "cx", "night_watch", "hh", "acvlab"])
def test_each_pipeline_is_its_stages_one_by_one(pipeline: str, files: Path, tmp_path: Path, restore: Cli) -> None:
    first = first_stages(tmp_path).get(pipeline, files / "swinir.pth")
    network = Network(ckpt=str(first)).load(torch.device("cpu"))
    size = {"hh": 16, "acvlab": 16}.get(pipeline, 24)
    photo = write_photographs(tmp_path / "in", count=1, size=size) / "00.png"
    is_v = pipeline == "diffbir_v2.1"
    sd = files / ("sd_v" if is_v else "sd")
    code, printed = restore(f"pipeline={pipeline}", f"stage1={first}", f"sd={sd}", "steps=3")
    assert code == 0, printed
    lq = picture(photo)[None]
    with torch.no_grad():
        made = network(lq, lq, ["00.png"])
    changes: dict[str, Any] = {"steps": 3}
    if is_v:
        published = VERSIONS["v2.1"]
        changes |= {"sampler": published["sampler"], "scale": 6.0, "diffusion": load(sd, prediction="v")}
        changes |= {"positive": published["prompt"], "negative": published["negative"]}
        changes |= {"schedule": NoiseSchedule(prediction="v", zero_snr=True)}
    expected = second_stage(files, made, "00.png", **changes)[0]
    torch.testing.assert_close(picture(tmp_path / "out" / "00.png"), expected.clamp(0, 1), rtol=0, atol=0.51 / 255)


def test_a_batch_has_the_noise_of_each_image(files: Path, tmp_path: Path, restore: Cli) -> None:
    write_photographs(tmp_path / "in", count=2, size=32)
    assert restore()[0] == 0
    for more in (["output=together"], ["output=guided", "g_scale=0.1"], ["output=guided_alone", "g_scale=0.1", "batch_size=1"]):
        assert restore("batch_size=2", *more)[0] == 0
    for name in ("00.png", "01.png"):
        alone, together, guided, guided_alone = (
            picture(tmp_path / folder / name) for folder in ("out", "together", "guided", "guided_alone")
        )
        torch.testing.assert_close(together, alone, rtol=0, atol=1.01 / 255)
        assert not torch.equal(guided, alone)
        torch.testing.assert_close(guided, guided_alone, rtol=0, atol=1.01 / 255)


def test_restoring_with_one_network_does_not_wait_for_diffusers() -> None:
    modules = ", ".join(f"restoration.{name}" for name in ("cli", "run", "network", "diffbir"))
    code = f"import sys, {modules}; print({{'diffusers', 'transformers'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_help_lists_every_key(command: Cli) -> None:
    code, printed = command(main, "pipeline=diffbir", "--help")
    assert code == 0
    keys = [key for key in configured(Typed.of(["pipeline=diffbir", "--cfg=job"], GROUPS))[0] if key != "pipeline"]
    assert len(keys) > 30
    assert [key for key in keys if f"\n  {key} " not in printed] == []
    assert all(f"\n  {name} " in printed for name in ("hh", "cx", "night_watch", "acvlab", "elan_enhance", "v2.1"))
