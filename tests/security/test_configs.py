"""A configuration that a stranger made: it builds what it may and nothing else, tells Hydra nothing, and learns no secret."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.toy import ROOT, TINY_DATA, TINY_NETWORK, TINY_RUN, write_photographs
from train.errors import fail
from train.trust import NotAllowed, build, named

Cli = Callable[..., tuple[int, str]]
Command = Callable[..., tuple[int, str]]

RUN = ["experiment=demo", "trainer=cpu", *TINY_RUN, *TINY_NETWORK, *TINY_DATA, "validation.lpips=null", "schedule=constant"]
REFUSED = [
    *("torch.load", "pandas.read_pickle", "pathlib.Path.touch", "os.system", "builtins.eval", "subprocess.Popen"),
    *("hydra.utils.get_object", "hydra.utils.call", "functools.partial", "torch.nn.Identity", "torch.utils.data.DataLoader"),
    # through a free package to what it only uses, or to its functions
    *("torch.optim.lr_scheduler.partial", "train.trust.importlib.import_module", "train.jobs.launch.subprocess.Popen"),
    *("data.prepare.jobs.files.write_text", "models.files.official.export", "albumentations.load", "albumentations.from_dict"),
    *("models.swinir.SwinIR.__init__", "models.swinir.SwinIR.__class__", "lightning.pytorch.loggers.WandbLogger"),
    *("tests.toy.train", "benchmarks.kill_test.main", "runs.theirs.Evil"),
]


@pytest.fixture(autouse=True)
def _nothing_opted_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACEWRIGHT_TARGETS", raising=False)


@pytest.mark.parametrize("name", REFUSED)
def test_names_that_no_configuration_builds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "theirs").mkdir(parents=True)
    (tmp_path / "runs" / "theirs" / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\nclass Evil: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((NotAllowed, ImportError)) as refusal:
        build({"a": [{"_target_": name}]})
    assert not (tmp_path / "imported").exists()
    if refusal.type is NotAllowed:
        assert f"set FACEWRIGHT_TARGETS={name} in the environment" in str(refusal.value)


FREE = ["torch.optim.AdamW", "torch.optim.lr_scheduler.MultiStepLR", "lightning.Trainer", "albumentations.HorizontalFlip"]
FREE += ["lightning.pytorch.strategies.DDPStrategy", "models.swinir.SwinIR", "models.files.weights.pretrained"]
FREE += ["data.sources.opening.open_images", "train.tasks.schedules.OneCycle"]


def test_names_that_every_configuration_builds() -> None:
    assert all(named(name).__name__ == name.rpartition(".")[2] for name in FREE)


def test_conf_names_nothing_that_is_refused() -> None:
    names = {
        node["_target_"]
        for file in (ROOT / "conf").rglob("*.yaml")
        for node in nodes(yaml.safe_load(file.read_text()))
        if not node["_target_"].startswith(("bitsandbytes.", "hydra_plugins."))  # not installed; Hydra's own
    }
    assert len(names) > 80
    assert all(callable(named(name)) for name in names)


def nodes(tree: object) -> list[dict[str, str]]:
    children = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return ([tree] if isinstance(tree, dict) and "_target_" in tree else []) + [n for child in children for n in nodes(child)]


def test_a_package_is_allowed_by_its_name_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirlosses.py").write_text("class L2: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(NotAllowed, match=r"set FACEWRIGHT_TARGETS=theirlosses\.L2 in the environment"):
        named("theirlosses.L2")
    assert "theirlosses" not in sys.modules, "judged before it is imported"
    monkeypatch.setenv("FACEWRIGHT_TARGETS", "other,theirlosses.L2")
    assert named("theirlosses.L2")
    with pytest.raises(NotAllowed):
        named("theirlosses.L2x")


TORCH_LOAD = "+logger.x={_target_: torch.load, f: bad.pt, weights_only: false}"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([TORCH_LOAD], "logger.x._target_='torch.load' is not built"),
        (["+logger.x={_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, a: owned}}"], "'pathlib.Path.touch' is not"),
        (["task._target_=os.mkdir"], "task._target_='os.mkdir' is not built"),
        (["network._target_=subprocess.run"], "network._target_='subprocess.run' is not built"),
        (["+data.source={_target_: os.mkdir, path: owned}"], "'os.mkdir' is not built"),
        (["+degradation.operators.b={_target_: os.mkdir, path: owned}"], "'os.mkdir' is not built"),
    ],
)
def test_train(cli: Cli, tmp_path: Path, typed: list[str], said: str) -> None:
    code, printed = cli(*RUN, *typed)
    assert code == 1
    assert said in printed
    assert printed.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_restore(command: Command, tmp_path: Path) -> None:
    from restoration.cli import main

    folder = tmp_path / "theirs" / "pipeline"
    folder.mkdir(parents=True)
    write_photographs(tmp_path / "in", count=1)
    for text, said in (
        ("pipeline: {a: {_target_: os.mkdir, path: owned}}", "pipeline.a._target_='os.mkdir' is not built"),
        ("pipeline: {a: {_target_: restoration.network.Network, ckpt: {_target_: os.mkdir, path: owned}}}", "'os.mkdir'"),
        ("d: {_target_: os.mkdir, path: owned}\npipeline: {a: {_target_: restoration.network.Network, ckpt: x}}", "'os.mkdir'"),
    ):
        (folder / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
        code, printed = command(main, "--config-dir", "theirs", "pipeline=mine", "input=in", "output=out")
        assert code == 1
        assert said in printed
        assert not (tmp_path / "owned").exists()


def test_preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from degradations.__main__ import main

    monkeypatch.chdir(tmp_path)
    photo = write_photographs(tmp_path / "in", count=1) / "00.png"
    with pytest.raises(ValueError, match="a configuration may build classes of this project"):
        main(["preview", f"image={photo}", "+degradation.operators.x={_target_: os.mkdir, path: owned}"])
    assert not (tmp_path / "owned").exists()


def theirs(tmp_path: Path, text: str) -> str:
    """--config-dir of a folder with experiment=theirs."""
    file = tmp_path / "theirs" / "experiment" / "theirs.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# @package _global_\ndefaults:\n  - override /model: swinir_ffhq\nname: theirs\n{text}\n")
    return f"--config-dir={tmp_path / 'theirs'}"


OF_HYDRA = {
    "callbacks": "hydra: {callbacks: {x: {_target_: pathlib.Path, _args_: [owned]}}}",
    "job_logging": "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: owned}}}}",
    "output_subdir": "hydra: {output_subdir: owned}",
    "run": "hydra: {run: {dir: owned}}",
    "sweep": "hydra: {sweep: {dir: owned}}",
    "job.env_set": "hydra: {job: {env_set: {FACEWRIGHT_TARGETS: os}}}",
    "launcher": "hydra: {launcher: {setup: [touch owned]}}",
    "mode": "hydra: {mode: MULTIRUN}",
}


@pytest.mark.parametrize("part", OF_HYDRA)
def test_a_configuration_tells_hydra_nothing(part: str, cli: Cli, tmp_path: Path) -> None:
    folder = theirs(tmp_path, OF_HYDRA[part])
    launcher = ["hydra/launcher=slurm"] if part == "launcher" else []
    if not launcher:
        code, printed = cli(folder, "experiment=theirs", "network.depths=7")
        assert code == 1
        assert "network.depths=7" in printed, "a single run does nothing that stands there"
    for sweep in (["experiment=theirs", "seed=1,2"], ["experiment=demo,theirs"]):
        code, printed = cli("-m", folder, *launcher, *sweep)
        assert code == 1
        assert f"error: hydra.{part} is set by a file of --config-dir" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


def test_a_sweep_takes_a_folder_of_configurations(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli("-m", theirs(tmp_path, ""), "experiment=theirs", "seed=1,2", "network.depths=7")
    assert code == 1
    assert "2 of 2 jobs failed: seed=1, seed=2" in printed
    assert "network.depths=7" in printed


@pytest.mark.parametrize("option", ["--config-name=evil", "-cn", "--config-path=x", "--experimental-rerun=x", "--conf"])
def test_options_that_would_let_hydra_run_something(option: str, cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(theirs(tmp_path, ""), option, "experiment=theirs")
    assert code == 1
    assert printed == f"error: {option}: there is no such option (python train.py --help lists what there is)\n"


ANOTHER = "give yours another name"


def test_a_folder_of_configurations_replaces_none_of_ours(cli: Cli, command: Command, tmp_path: Path) -> None:
    from restoration.cli import main

    folder = theirs(tmp_path, "")
    (tmp_path / "theirs" / "train.yaml").write_text("hydra: {run: {dir: owned}}\n")
    for code, printed in (cli(folder, "experiment=theirs"), command(main, folder, "ckpt=x", "input=y")):
        assert code == 1
        assert printed == f"error: {tmp_path}/theirs/train.yaml: conf/ has train.yaml too, and that is read: {ANOTHER}\n"


def test_a_run_folder_widens_nothing(cli: Cli, tmp_path: Path) -> None:
    """What was typed there may be options, Hydra's keys and names; the variable is the user's alone."""
    run = tmp_path / "runs" / "theirs"
    run.mkdir(parents=True)
    typed = ["experiment=demo", "--multirun", "hydra.run.dir=owned", "+hydra.job.env_set.FACEWRIGHT_TARGETS=torch", TORCH_LOAD]
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "theirs", "arguments": typed}))
    code, printed = cli("resume=runs/theirs")
    assert code == 1
    assert printed.startswith("error: logger.x._target_='torch.load' is not built")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]


SECRETS = ["${oc.env:SECRET}", "${oc.env:SECRET,none}", "${oc.decode:${oc.env:SECRET}}", "\\\\${oc.env:SECRET}"]


@pytest.mark.parametrize("secret", SECRETS)
def test_the_environment_stays_in_the_environment(
    secret: str, cli: Cli, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restoration.cli import main

    monkeypatch.setenv("SECRET", "hunter2")
    folder = theirs(tmp_path, f'data: {{root: "{secret}"}}')
    pipeline = tmp_path / "theirs" / "pipeline"
    pipeline.mkdir()
    text = f'pipeline: {{a: {{_target_: restoration.network.Network, ckpt: "{secret}"}}}}'
    (pipeline / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    for code, printed in (
        cli(folder, "experiment=theirs"),
        cli(folder, "experiment=theirs", "--cfg", "job"),
        command(main, folder, "pipeline=mine", f"input={tmp_path}", "output=out"),
        command(main, folder, "pipeline=mine", f"input={tmp_path}", "output=out", "--cfg", "job"),
    ):
        assert "hunter2" not in printed
        assert "Traceback" not in printed
        if secret in SECRETS[:3]:
            assert code == 1
            assert "${oc.env:SECRET}: a configuration reads variables that begin with FACEWRIGHT_ alone" in printed


def test_our_own_variables_are_read(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACEWRIGHT_WEIGHTS", "elsewhere")
    monkeypatch.setenv("SLURM_NNODES", "3")
    code, printed = cli("experiment=demo", "trainer=slurm", "--cfg", "job")
    assert code == 0, printed
    composed = yaml.safe_load(printed)
    assert composed["weights"]["dir"] == "elsewhere"
    assert composed["trainer"]["num_nodes"] == 3


def test_a_refusal_is_quick() -> None:
    """What is judged here needs neither torch nor Hydra."""
    heavy = "import sys, train.trust; print({'torch', 'hydra', 'lightning', 'omegaconf'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


LAUGH = "a: &a [x, x, x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
BOMBS = {
    "nested anchors": (LAUGH, r"holds more than 100,000 values or 100 levels: no configuration does"),
    "merged anchors": ("a: &a {k: 1}\nb: &b {<<: *b}\n", r"has the alias \*b: write out what it stands for"),
    "an anchor in itself": ("a: &a [*a]\n", r"has the alias \*a: write out what it stands for"),
    "depth": ("a: " + "[" * 5000, "holds more than 100,000 values or 100 levels"),
    "many values": ("a: [" + "1," * 100_001 + "]", "holds more than 100,000 values"),
    "size": ("# " + "x" * 2**20, "no configuration has more than 1,048,576"),
    "no YAML": ("a: [", r"is no YAML: while parsing"),
    "no text": ("a: \x00", r"is no YAML: "),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_yaml_that_would_fill_the_memory(kind: str, cli: Cli, command: Command, tmp_path: Path) -> None:
    from restoration.cli import main

    text, said = BOMBS[kind]
    folder = theirs(tmp_path, "")
    file = tmp_path / "theirs" / "experiment" / "theirs.yaml"
    file.write_text(text)
    for code, printed in (cli(folder, "experiment=theirs"), command(main, folder, "ckpt=x", "input=y")):
        assert code == 1
        assert re.match(rf"error: {file} .*{said}", printed), printed
        assert len(printed.splitlines()) == 1


def test_aliases_that_are_small_may_stand_in_a_configuration(cli: Cli, tmp_path: Path) -> None:
    code, printed = cli(theirs(tmp_path, "network: {depths: &n [1, 1], num_heads: *n}"), "experiment=theirs", "--cfg", "job")
    assert code == 0, printed
    assert yaml.safe_load(printed)["network"]["num_heads"] == [1, 1]


OF_NO_RUN = {
    "an alias": ("a: &a 1\narguments: [*a]\n", r"has the alias \*a: write out what it stands for"),
    "a bomb": (LAUGH, r"has the alias \*a"),
    "a list": ("[1, 2]\n", "is no configuration of a run: it holds no keys"),
    "half a reference": ("a: '${'\n", "is no configuration of a run: "),
    "arguments that are none": ("arguments: {a: 1}\n", "does not say what was typed"),
    "numbers": ("arguments: [1, 2]\n", "does not say what was typed"),
}


@pytest.mark.parametrize("kind", OF_NO_RUN)
def test_a_config_that_no_run_wrote(kind: str, cli: Cli, tmp_path: Path) -> None:
    text, said = OF_NO_RUN[kind]
    (tmp_path / "runs" / "theirs").mkdir(parents=True)
    (tmp_path / "runs" / "theirs" / "config.yaml").write_text(text)
    code, printed = cli("resume=runs/theirs")
    assert code == 1
    assert re.search(said, printed), printed
    assert printed.startswith("error: ")
    assert len(printed.splitlines()) == 1


def test_a_run_brings_no_folder_of_configurations_that_replaces_ours(cli: Cli, tmp_path: Path) -> None:
    theirs(tmp_path, "")
    (tmp_path / "theirs" / "train.yaml").write_text("name: x\n")
    (tmp_path / "runs" / "a").mkdir(parents=True)
    typed = [f"hydra.searchpath=['file://{tmp_path / 'theirs'}']", "experiment=theirs"]
    (tmp_path / "runs" / "a" / "config.yaml").write_text(yaml.safe_dump({"arguments": typed}))
    code, printed = cli("resume=runs/a")
    assert code == 1
    assert f"conf/ has train.yaml too, and that is read: {ANOTHER}" in printed


def test_a_message_moves_no_cursor(cli: Cli, capfd: pytest.CaptureFixture[str]) -> None:
    code, printed = cli("experiment=demo", "data=folder", "data.root=a\x1b[2J\x07\u202eb")
    assert code == 1
    assert r"a\x1b[2J\x07\u202eb" in printed
    for message in ("one\x1b]0;title\x07\ntwo\r\x08\udcff", "Traceback (most recent call last):\n  at \x1b[2J"):
        with pytest.raises(SystemExit):
            fail(message)
        assert all(each.isprintable() for each in capfd.readouterr().err.splitlines())
