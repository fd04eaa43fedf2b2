"""The command that data.prepare ends with composes to what was meant."""

import shlex
from pathlib import Path

import pytest

from data.prepare.jobs.following import training_command
from train.jobs.cli import compose, register_resolvers


@pytest.mark.parametrize("root", ["FACES", "../kept/kept.txt", "two words/it's = {x}, [1]", "tür/$HOME"])
def test_the_training_command_composes(root: str) -> None:
    register_resolvers()
    python, script, *arguments = shlex.split(training_command(Path(root), 14, 256))
    assert (python, script) == ("python", "train.py")
    config = compose(arguments)
    assert config.data.root == root
    assert config.data.val_images == 1
    assert config.data.size == 256


def test_enough_images_of_full_size_need_no_further_key() -> None:
    assert training_command(Path("FACES"), 321, 512) == "python train.py model=swinir_ffhq data.root=FACES"
    assert training_command(Path("FACES"), 1, 512) == ""
