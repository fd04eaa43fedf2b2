"""Names that can't be written are told before the first image is touched; all others come through, and whole."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

import data.prepare.jobs.names
import data.prepare.pack
from data.columns.codes import CodeFile
from data.columns.codes import read as read_codes
from data.columns.components import COLUMNS, read
from data.images import decode
from data.prepare.jobs import work
from data.prepare.jobs.files import write_csv
from data.prepare.jobs.names import check_files
from data.prepare.latents import files_of
from data.prepare.pack import pack
from data.sources.files import ImageFolder
from data.sources.opening import open_images
from data.sources.shown import in_cell, of_cell
from tests.data.prepare.conftest import textured

LATIN = os.fsdecode(b"latin\xe9.png")
SEPARATED = "line\u2028separated.png"
BROKEN = "two\nlines.png"
ESCAPES = "\x1b[31mred.png"
FORMULA = "=cmd|' ' !A0.png"


@pytest.fixture
def images(tmp_path):
    """Two pictures of plain names; a function that adds others."""
    root = tmp_path / "images"
    root.mkdir()

    def add(*names):
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(textured(24, 20, number)).save(root / name, format="PNG")
        return root

    add("a.png", "sub/b.png")
    return add


@pytest.fixture
def _nothing_is_begun(monkeypatch):
    def run(**_):
        raise AssertionError("the work began")

    for command in ("pack", "resize", "align", "filtering", "latents"):
        monkeypatch.setattr(f"data.prepare.{command}.run", run)


@pytest.mark.usefixtures("_nothing_is_begun")
@pytest.mark.parametrize(
    ("command", "names", "says"),
    [
        (
            ("pack", "to=lmdb"),
            [LATIN],
            r"1 names can't stand in an LMDB, the first is latin\\udce9\.png \(they are not UTF-8\)",
        ),
        (
            ("pack", "to=parquet"),
            [LATIN],
            r"1 names can't stand in parquet, the first is latin\\udce9\.png \(they are not UTF-8\)",
        ),
        (
            ("pack",),
            [BROKEN, SEPARATED, ESCAPES, "tab\t.png"],
            r"4 names can't stand in an LMDB, the first is \\x1b\[31mred\.png, line\\u2028separated\.png, tab\\t\.png and 1 "
            r"more \(they hold line breaks or control characters\): rename these files",
        ),
        (("pack",), ["d" * 200 + "/" + "d" * 200 + "/" + "k" * 120 + ".png"], r"they are longer than 511 bytes"),
        (("pack", "encode=png"), ["x" * 251 + ".jpg", "x" * 251 + ".bmp"], r"2 names .*\(they would be longer than 255 bytes"),
        (("resize",), ["ü" * 125 + ".jpg", "ü" * 125 + ".bmp"], r"2 names can't stand in .*small, .*longer than 255 bytes"),
        (
            ("resize",),
            ["c.png/d.png", "c.jpg"],
            r"1 names can't stand in .*small, the first is c\.jpg \(they would also be .*folders",
        ),
        (("align",), ["x" * 250 + ".png"], r"1 names can't stand in .*small, .*longer than 255 bytes"),
        (("filter",), [BROKEN], r"1 names can't stand in a list of paths, the first is two\\nlines\.png"),
    ],
)
def test_they_are_judged_before_the_work(command, names, says, prepare, images, tmp_path):
    root = images(*names)
    code, text = prepare(command[0], f"root={root}", f"out={tmp_path / 'small'}", *command[1:])
    assert code == 1
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    with pytest.raises(ValueError, match=says):
        raise ValueError(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"], "nothing was written"


def test_latents_are_written_into_out_whatever_an_archive_or_a_list_calls_its_images(tmp_path):
    """out / "../x" and out / "/x" are not in out."""
    names = ["a.png", "../../x.png", "/etc/x.png"]
    files = files_of(names, names)
    assert list(files.values()) == ["00000000.safetensors", "00000001.safetensors", "00000002.safetensors"]
    check_files(files, tmp_path)
    with pytest.raises(
        ValueError, match=r"2 names can't stand in .*, the first is \.\./\.\./x\.png, /etc/x\.png \(they lead out of it\)"
    ):
        check_files({name: name for name in names}, tmp_path)


def test_codes_know_images_of_any_name(tmp_path):
    names, codes = [LATIN, BROKEN, SEPARATED, FORMULA], np.zeros((4, 2, 2), np.int16)
    (tmp_path / "codes.safetensors").write_bytes(
        CodeFile(names, codes, codes, np.zeros((4, 2), np.int64), 64, "teacher").packed()
    )
    assert read_codes(str(tmp_path / "codes.safetensors")).names == names


def test_files_of_latents_are_judged_by_their_own_names(tmp_path):
    check_files(files_of(["x" * 243 + ".png"], []), tmp_path)
    with pytest.raises(ValueError, match=r"they would be longer than 255 bytes"):
        check_files(files_of(["x" * 244 + ".png"], []), tmp_path)
    check_files(files_of(None, ["x" * 300]), tmp_path)


def test_upper_and_lower_case_where_they_are_the_same(tmp_path, monkeypatch):
    names = {"A.jpg": "A.png", "a.jpg": "a.png", "b.jpg": "b.png"}
    check_files(names, tmp_path / "not" / "there")
    monkeypatch.setattr(data.prepare.jobs.names, "takes_case_for_same", lambda folder: folder == tmp_path)
    with pytest.raises(
        ValueError, match=r"2 names can't stand in .*there, the first is A\.jpg, a\.jpg \(they differ by case alone\)"
    ):
        check_files(names, tmp_path / "not" / "there")


def test_long_names_come_through(prepare, images, tmp_path):
    """What is written beside a file until it is whole had a longer name than the file."""
    root = images("x" * 245 + ".png", "ü" * 125 + ".jpg")
    code, text = prepare("resize", f"root={root}", f"out={tmp_path / 'small'}", "size=16", "workers=1")
    assert (code, text.splitlines()[0]) == (0, f"4 of 4 images are at 16 px in {tmp_path / 'small'}, 0 not usable")
    assert len(ImageFolder(root=str(tmp_path / "small"))) == 4
    assert pack(root=root, out=tmp_path / "all.lmdb", encode="bmp", workers=1) == 0
    assert len(open_images(root=str(tmp_path / "all.lmdb"))) == 4


@pytest.mark.parametrize(("to", "names"), [("tar", [LATIN, BROKEN, SEPARATED, ESCAPES]), ("parquet", [BROKEN, SEPARATED])])
def test_what_a_store_can_hold_it_takes(to, names, images, tmp_path):
    root = images(*names)
    assert pack(root=root, out=tmp_path / "store", to=to, workers=1) == 0
    store, folder = open_images(root=str(tmp_path / "store")), ImageFolder(root=str(root))
    assert [store.read(number) for number in range(len(store))] == [folder.read(number) for number in range(len(folder))]
    if to == "tar":
        assert store.paths == folder.paths


@pytest.mark.parametrize(
    ("to", "damage", "says"),
    [
        ("lmdb", lambda result: (result / "meta_info.txt").write_text("a.png (24,20,3) 1\n"), "1 images are in it, not the 2"),
        (
            "lmdb",
            lambda result: (result / "meta_info.txt").write_text("a.png (24,20,3) 1\nb.png (2,2,3) 1\n"),
            "under other names",
        ),
        ("tar", lambda result: (result / "000000.tar").write_bytes(b""), r"000000\.tar can't be read as a tar file"),
        ("parquet", lambda result: next(result.iterdir()).write_bytes(b"PAR1"), r"parquet can't be read"),
    ],
)
def test_a_store_that_is_not_whole_is_not_called_so(to, damage, says, images, tmp_path, monkeypatch):
    root, store = images(), data.prepare.pack.STORES[to]

    def write(packed, result, shard_mb):
        store.write(packed, result, shard_mb)
        damage(result)

    monkeypatch.setitem(data.prepare.pack.STORES, to, store._replace(write=write))
    with pytest.raises(ValueError, match=rf"result was written and is not whole: .*{says}"):
        pack(root=root, out=tmp_path / "store", to=to, workers=1)
    assert not (tmp_path / "store").exists()
    monkeypatch.undo()
    assert pack(root=root, out=tmp_path / "store", to=to, workers=1) == 0, "the same command makes it anew"
    source = open_images(root=str(tmp_path / "store"))
    np.testing.assert_array_equal(decode(source.read(0), ""), textured(24, 20, 0))


# what strangers' names do on a terminal and in a table


@pytest.mark.parametrize(
    "text", [FORMULA, "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "''@a", "a=b.png", "'a.png", "", "5", "ü.png"]
)
def test_a_cell_is_no_formula_and_comes_back(text):
    cell = in_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert of_cell(cell) == text
    assert cell in (text, f"'{text}")


def test_tables_hold_names_as_texts_and_numbers_as_numbers(tmp_path):
    write_csv(tmp_path / "a.csv", ("path", "turned"), [{"path": FORMULA, "turned": -1.5}])
    assert list(csv.reader((tmp_path / "a.csv").open()))[1] == [f"'{FORMULA}", "-1.5"]


def test_components_of_an_image_whose_name_is_a_formula(tmp_path):
    write_csv(tmp_path / "c.csv", COLUMNS, [dict(zip(COLUMNS, [FORMULA, 512, *[100.0] * 9], strict=True))])
    assert read(str(tmp_path / "c.csv")).names == [FORMULA]


def test_names_are_printed_on_one_line(capsys):
    done = work.Work({}, {"a": {"error": f"{ESCAPES} is 8x8"}, "b": {"error": f"{BROKEN} is 8x8"}}, [])
    assert done.unusable() == 2
    assert capsys.readouterr().err == "not used: \\x1b[31mred.png is 8x8\nnot used: two\\nlines.png is 8x8\n"


def test_check_prints_names_on_one_line(prepare, images, tmp_path):
    root = images(ESCAPES)
    code, text = prepare("check", f"root={root}", f"out={tmp_path / 'c'}", "kinds=small", "workers=1")
    assert code == 1
    assert "\\x1b[31mred.png: small: 20x24" in text
    assert "\x1b" not in text
