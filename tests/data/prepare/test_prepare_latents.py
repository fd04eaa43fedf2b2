"""Latents made before training: the same as those computed on the fly, and refused where they would not be."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from data.columns.latents import Latents
from data.cutting import center_crop
from data.images import to_tensor
from data.prepare.__main__ import COMMANDS
from data.prepare.jobs.arguments import main
from data.sources.files import ImageFolder
from models.diffusion.stable_diffusion import VAE, load, load_autoencoder
from tests.data.samples import DRAWS, bound, picture
from tests.models.diffusion.test_stable_diffusion import official_state, toy, write_folder
from tests.toy import write_photographs

SIZE = 64


def prepare(*arguments):
    """The command in this process: its exit code."""
    return main(COMMANDS, ["latents", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """latents/ of photographs/, five of 80x80 and one that is too small, by the autoencoder of sd/."""
    folder = tmp_path_factory.mktemp("made")
    write_photographs(folder / "photographs", count=5, size=80)
    small = folder / "photographs" / "small.png"
    Image.new("RGB", (40, 40)).save(small)
    write_folder(folder / "sd")
    paths = [f"root={folder}/photographs", f"out={folder}/latents", f"stable_diffusion={folder}/sd"]
    assert prepare(*paths, f"size={SIZE}", "workers=1") == 1
    small.unlink()
    return folder / "latents"


def latents(made, source=None, size=SIZE):
    source = source or ImageFolder(root=str(made.parent / "photographs"))
    return bound(Latents(key="data.latents", path=str(made)), source, size=size)


def photo(made, number):
    return center_crop(np.asarray(Image.open(made.parent / "photographs" / f"{number:02d}.png")), SIZE)


def test_they_are_what_the_autoencoder_gives(made):
    of = latents(made)
    for number in (0, 4):
        with torch.no_grad():
            wanted = load(made.parent / "sd", prediction="eps").moments(to_tensor(photo(made, number))[None])[0]
        assert torch.equal(of.of(picture(number, photo(made, number)), DRAWS), wanted)
        assert wanted.shape == (8, 8, 8)


def test_a_copy_at_the_training_size_has_the_same(made, tmp_path):
    (tmp_path / "packed").mkdir()
    for number in (1, 3):
        Image.fromarray(photo(made, number)).save(tmp_path / "packed" / f"{number:02d}.bmp")
    packed = latents(made, source=ImageFolder(root=str(tmp_path / "packed")))
    assert torch.equal(packed.of(picture(1, photo(made, 3)), DRAWS), latents(made).of(picture(3, photo(made, 3)), DRAWS))


def test_what_does_not_fit_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match=r"is of images at 64 px, and data.size=128: make another one"):
        latents(made, size=128)
    with pytest.raises(ValueError, match=r"is of other pixels than it: run python -m data.prepare latents"):
        latents(made).of(picture(0, photo(made, 1)), DRAWS)
    write_photographs(tmp_path / "more", count=7)
    with pytest.raises(ValueError, match=r"other images than the 7 of data.root: 2 are not in it \(05.png, 06.png\)"):
        latents(made, source=ImageFolder(root=str(tmp_path / "more")))
    (tmp_path / "photographs").symlink_to(made.parent / "photographs")
    broken = shutil.copytree(made, tmp_path / "latents")
    (broken / "02.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"02.safetensors, the latent of it, can't be read"):
        latents(broken).of(picture(2, photo(broken, 2)), DRAWS)
    (broken / "latents.json").unlink()
    with pytest.raises(
        ValueError, match=r"has no latents.json that can be read .* run python -m data.prepare latents to its end"
    ):
        latents(broken)


def test_an_image_that_was_too_small_has_none(made):
    assert sorted(path.name for path in made.glob("*.safetensors")) == [f"{number:02d}.safetensors" for number in range(5)]
    assert json.loads((made / "latents.json").read_text())["files"][5] == "small.safetensors"


def test_an_autoencoder_alone_is_read(tmp_path):
    state = official_state()
    torch.save({"state_dict": {key: value for key, value in state.items() if key.startswith(VAE)}}, tmp_path / "vae.ckpt")
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(load_autoencoder(tmp_path / "vae.ckpt").moments(image), toy().moments(image))
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        load_autoencoder(tmp_path / "gone")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other.ckpt holds no autoencoder of Stable Diffusion"):
        load_autoencoder(tmp_path / "other.ckpt")


def test_a_wrong_size_is_refused_at_once(capsys):
    assert prepare("root=x", "out=y", "stable_diffusion=z", "size=100") == 1
    assert "size=100: the training takes multiples of 64" in capsys.readouterr().err
