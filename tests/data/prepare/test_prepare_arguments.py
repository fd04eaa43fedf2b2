"""What a person types, and what the program answers."""

import inspect
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from data.prepare.__main__ import COMMANDS
from data.prepare.jobs.arguments import BadArguments, bind, main, usage


def sample(
    *,
    root: Path,
    size: Annotated[int, Ge(16)] = 512,
    kinds: tuple[Literal["small", "grey"], ...] = ("small",),
    largest: bool = False,
    limit: float | None = None,
    workers: int = 0,
) -> int:
    """Say something.

    More about it.

    Args:
        root: folder of images,
            subfolders too
        size: side in pixels: of a crop
    """
    return 0


def test_arguments_become_what_the_signature_says():
    bound = bind("sample", sample, ["root=~/a=b", "size=64", "kinds=grey,small", "largest=true", "limit=0.5"])
    expected = {"root": Path.home() / "a=b", "size": 64, "kinds": ("grey", "small"), "largest": True, "limit": 0.5}
    assert bound == expected
    assert bind("sample", sample, ["root=x"]) == {"root": Path("x")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["root=x", "sice=64"], r"sice: sample has no such key; did you mean size\?"),
        (["root=x", "size=abc"], "size=abc: should be a valid integer"),
        (["root=x", "size=8"], "size=8: should be greater than or equal to 16"),
        (["root=x", "kinds=small,gray"], "kinds=small,gray: should be 'small' or 'grey'"),
        (["root=x", "largest=perhaps"], "largest=perhaps: should be a valid boolean"),
        (["root=x", "root=y"], "root: given twice"),
        (["root=x", "--size"], "--size: arguments are key=value"),
        (["size=64"], "root= is needed: folder of images, subfolders too"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(BadArguments, match=said):
        bind("sample", sample, arguments)


def test_all_mistakes_are_named_together():
    with pytest.raises(BadArguments) as error:
        bind("sample", sample, ["sise=64", "limit=low"])
    lines = str(error.value).splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["sise", "limit=low", "root= is needed"]
    assert lines[3] == "python -m data.prepare sample --help shows every key"


def test_usage_is_made_of_signature_and_docstring():
    text = usage("sample", sample)
    assert text.startswith("python -m data.prepare sample root=… [key=value …]\n\nSay something.\n\nMore about it.\n")
    assert "  root=PATH  (needed)\n      folder of images, subfolders too\n" in text
    assert "  size=INTEGER  (default 512)\n      side in pixels: of a crop\n" in text
    assert "  kinds=small|grey, any of them with commas  (default small)" in text
    assert "  largest=true|false  (default false)" in text
    assert "  limit=NUMBER  (default none)" in text
    assert "  workers=INTEGER  (default 0)" in text


def test_every_key_of_every_command_is_described(prepare):
    code, text = prepare("--help")
    assert code == 0
    assert len(COMMANDS) >= 4
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        shown = prepare(name, "--help")
        assert shown[0] == 0
        lines = shown[1].splitlines()
        keys = [at for at, line in enumerate(lines) if line.startswith("  ") and line[2:3] != " " and "=" in line]
        assert len(keys) == len(inspect.signature(command).parameters), name
        assert all(lines[at + 1].startswith("      ") for at in keys), name


def test_commands(prepare):
    assert prepare("alin", "root=x") == (
        2,
        f"error: alin: there is no such command (there are {', '.join(COMMANDS)}); did you mean align?\n",
    )
    code, text = prepare()
    assert code == 2
    assert text.startswith("python -m data.prepare COMMAND key=value …")


def test_errors_have_no_traceback(prepare, tmp_path):
    code, text = prepare("resize", f"root={tmp_path / 'none'}", f"out={tmp_path / 'out'}")
    assert code == 1
    assert text.startswith(f"error: {tmp_path / 'none'} does not exist")
    assert "Traceback" not in text
    code, text = prepare("resize", f"root={tmp_path}", f"out={tmp_path / 'small'}")
    assert code == 1
    assert f"out={tmp_path / 'small'} lies in root={tmp_path}: give a folder outside of it" in text


def test_a_full_disk_has_a_way_out(capsys):
    def full() -> int:
        raise OSError(28, "No space left on device", "out/a.png")

    assert main({"full": full}, ["full"]) == 1
    said = "error: [Errno 28] No space left on device: 'out/a.png': what was written is whole; free space and give the same "
    assert capsys.readouterr().err == f"{said}command again to go on\n"
