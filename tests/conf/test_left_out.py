"""Every group and key of conf/train.yaml left out, null, or something else: a run, or one sentence with the way out."""

from collections.abc import Callable

import pytest

from train.conf import groups, own_keys
from train.jobs import cli as command_line

Cli = Callable[..., tuple[int, str]]
OPTIONAL = {"adversary", "logger", "model"}  # of experiment=demo: it trains without them
NODES = [name for name, value in own_keys().items() if isinstance(value, dict)]


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is accepted ends at once, with code 0."""
    monkeypatch.setattr(command_line, "train", lambda config: print("accepted", sorted(config["logger"])))


def one_sentence(printed: str) -> str:
    lines = printed.splitlines()
    assert lines, "nothing was said"
    assert all(line.startswith("error: ") for line in lines), printed
    assert len({line.removeprefix("error: ").partition(":")[0] for line in lines}) <= 2, printed  # seed, and data.seed
    return printed


@pytest.mark.parametrize("form", ["~{}", "{}=null", "{}=7"])
@pytest.mark.parametrize("name", sorted({*groups(), *own_keys()} - {"experiment"}))
def test_it_works_or_is_refused(cli: Cli, name: str, form: str) -> None:
    code, printed = cli("experiment=demo", form.format(name))
    if (form != "{}=7" and name in OPTIONAL) or f"{form.format(name)}" in ("ema_decay=null", "seed=7", "name=7"):
        assert code == 0, printed
        assert "accepted" in printed
    else:
        assert code == 1, printed
        assert name in one_sentence(printed) or "nothing to train: choose model=NAME" in printed


@pytest.mark.parametrize("value", ["[]", "[nowhere]", "{a:1}", "''"])
@pytest.mark.parametrize("name", ["optimizer", "guard"])
def test_other_forms_of_a_value(cli: Cli, name: str, value: str) -> None:
    code, printed = cli("experiment=demo", f"{name}={value}")
    assert code == 1, printed
    assert name in one_sentence(printed)


def test_the_lists_are_whole() -> None:
    assert len(groups()) == 13
    assert {"checkpoint", "guard", "validation", "init", "weights"} <= {*NODES}


def test_a_run_without_loggers_keeps_its_csv(cli: Cli) -> None:
    assert cli("experiment=demo", "logger=null") == (0, "accepted []\n")
    assert cli("experiment=demo", "~logger.tensorboard") == (0, "accepted []\n")
    code, printed = cli("experiment=demo", "logger.tensorboard=null")
    assert code == 1
    assert "leave it out with ~logger.tensorboard, or choose logger=csv" in one_sentence(printed)


@pytest.mark.parametrize("key", ["trainer.num_nodes", "trainer.val_check_interval", "init.required", "weights.dir"])
def test_a_key_that_every_run_has(cli: Cli, key: str) -> None:
    code, printed = cli("experiment=demo", f"~{key}")
    assert code == 1, printed
    assert key.removesuffix("._target_") in one_sentence(printed)


@pytest.mark.parametrize("name", ["network", "augmentation", "optimizer", "trainer", "checkpoint", "guard", "validation"])
def test_a_node_without_its_class(cli: Cli, name: str) -> None:
    code, printed = cli("experiment=demo", f"{name}._target_=null")
    assert code == 1, printed
    assert all(name in line for line in one_sentence(printed).splitlines()), printed


def test_a_group_is_left_out_with_the_keys_that_a_model_sets_in_it(cli: Cli) -> None:
    """HGGT's ELAN sets its discriminator's optimizer; without the discriminator nothing of it is there."""
    plain = ["model=elan_enhance", "data.root=DF2K", "task=regression", "loss=l1"]
    code, printed = cli(*plain)
    assert code == 1
    assert "or leave adversary out (~adversary)" in one_sentence(printed)
    for way_out in ("~adversary", "adversary=null"):
        assert cli(*plain, way_out)[0] == 0, way_out
    code, printed = cli("model=elan_enhance", "data.root=DF2K", "~adversary")
    assert code == 1
    assert "task.adversary: this task needs adversary, of which there is none: choose one: adversary=" in one_sentence(printed)


def test_the_keys_of_a_group_are_kept_where_another_is_chosen(cli: Cli) -> None:
    code, printed = cli("experiment=demo", "optimizer=adamw", "optimizer.lr=-1")
    assert code == 1
    assert printed == "error: optimizer.lr=-1: Input should be greater than 0\n"
