"""The command `python -m degradations preview`, as a user types it."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from degradations.__main__ import main
from degradations.preview import described


@pytest.fixture
def portrait(tmp_path):
    Image.fromarray(data.astronaut()[:256, 96:352]).save(tmp_path / "portrait.png")
    return tmp_path / "portrait.png"


def test_a_sheet_and_its_parameters(portrait, tmp_path, capsys):
    out = tmp_path / "sheets" / "one.png"
    main(["preview", f"image={portrait}", "degradation=diffbir", "n=3", "tile=64", f"out={out}", "seed=5"])
    assert capsys.readouterr().out == f"{out} ({Image.open(out).width}x{Image.open(out).height}), {out.with_suffix('.json')}\n"
    listed = json.loads(out.with_suffix(".json").read_text())
    assert listed["degradation"] == "diffbir"
    assert [set(drawn) for drawn in listed["parameters"]] == [{"blur", "downsample", "noise", "jpeg", "resize_back"}] * 3
    sheet = np.asarray(Image.open(out))
    assert sheet.shape[1] == 2 * 288 + 8  # four tiles in two columns of the text's width
    tiles = [sheet[top : top + 64, left : left + 64] for top in (8, 8 + (sheet.shape[0] - 8) // 2) for left in (8, 296)]
    spread = [np.abs(np.diff(tile.astype(int), axis=0)).mean() for tile in tiles]
    assert min(spread) > 0
    means = data.astronaut()[:256, 96:352].reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(tiles[0], means, atol=1)  # the HQ
    assert len({tile.tobytes() for tile in tiles}) == 4


def test_listed_parameters_give_the_same_sheet_again(portrait, tmp_path):
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    main(["preview", f"image={portrait}", "n=2", "seed=3", f"out={first}"])
    main(["preview", f"image={portrait}", f"parameters={first.with_suffix('.json')}", f"out={again}"])
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))


def test_keys_of_the_degradation_pass_through(portrait, tmp_path):
    out = tmp_path / "one.png"
    main(["preview", f"image={portrait}", "n=2", f"out={out}", "degradation.operators.blur.sigma_px=[3,3]"])
    drawn = json.loads(out.with_suffix(".json").read_text())["parameters"]
    assert {each["blur"]["sigma_x_px"] for each in drawn} == {3.0}


def test_what_stands_under_a_tile():
    drawn = {
        "blur": {"sigma_x_px": 1.23456, "kernel_size_px": 41},
        "noise": {"way": "grey", "grey": {"one": {"sigma_255": 3.0, "field_seed": 7}}, "colour": {"one": {"sigma_255": 9.0}}},
        "shift": {"done": 0, "red_255": 3.0},
        "turn": {"done": 1, "red_255": 3.0},
    }
    lines = ["blur: sigma_x_px 1.23, kernel_size_px 41", "noise: grey", "  one: sigma_255 3", "turn: red_255 3"]
    assert described(drawn) == lines


def test_branches_are_named(portrait, tmp_path):
    out = tmp_path / "two.png"
    main(["preview", f"image={portrait}", "degradation=codeformer_stage3", "n=1", "tile=64", f"out={out}"])
    assert set(json.loads(out.with_suffix(".json").read_text())["parameters"][0]) == {"lq", "lq_large"}
    assert Image.open(out).width == 2 * 288 + 8  # HQ and two LQs: two columns


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give a command"),
        (["preview"], "image is not set"),
        (["preview", "image=gone.png"], r"image=gone\.png does not exist"),
        (["preview", "imag=x.png"], "'imag=x.png' is not understood: did you mean image=?"),
        (["preview", "image={portrait}", "n=0"], "n=0 is out of range: give a whole number of at least 1"),
        (["preview", "image={portrait}", "degradation=nothing"], "(?s)degradation=nothing: .*challenge"),
        (["preview", "image={portrait}", "parameters=gone.json"], r"parameters=gone\.json can't be read"),
        (["preview", "image={portrait}", "degradation.operators.blur.sigmapx=3"], "(?s)sigmapx"),
        (["preview", "image={text}"], r"can't be read as an image"),
        (["preview", "image={portrait}", "out=sheet"], "out=sheet is no name of a picture: give one that ends with .png"),
        (["preview", "image={portrait}", "out=sheet.json"], "out=sheet.json is no name of a picture"),
        (
            ["preview", "image={portrait}", "degradation=codeformer_stage3", "parameters={listed}"],
            "listed.json are of degradation=gfpgan, not codeformer_stage3: give degradation=gfpgan too",
        ),
    ],
)
def test_mistakes(portrait, tmp_path, arguments, says):
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "listed.json").write_text(json.dumps({"degradation": "gfpgan", "parameters": [{}]}))
    names = {"portrait": portrait, "text": tmp_path / "text.png", "listed": tmp_path / "listed.json"}
    with pytest.raises(ValueError, match=says):
        main([argument.format(**names) for argument in arguments])


def test_help_is_no_error(capsys):
    main(["--help"])
    assert "python -m degradations preview image=PHOTO" in capsys.readouterr().out
