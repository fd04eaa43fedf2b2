"""Data that a stranger made: nothing out of its folder is read or asked for, and nothing small becomes large in memory."""

import resource
import socket
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.images import UnreadableImage
from data.reading import read_image
from data.sources.archives import ZipImages
from data.sources.cards import belongs
from data.sources.files import ImageFolder
from data.sources.hub import hugging_face, open_file
from data.sources.opening import open_images
from data.sources.shown import first_few, printable
from tests.data.sources.test_hub import OPTIONS

HEADS = {
    "a pattern upwards": "configs:\n- config_name: default\n  data_files: '../../private/*.png'\n",
    "a list": "configs:\n- config_name: default\n  data_files: ['*.png', '../../private/*.png']\n",
    "a split": "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: ['../../private/*.png']\n",
    "a second subset": "configs:\n- config_name: a\n  data_files: '*.png'\n- config_name: b\n  data_files: /etc/*\n",
    "a folder": "configs:\n- config_name: default\n  data_dir: ../../private\n",
    "an address": "configs:\n- config_name: default\n  data_files: 'http://127.0.0.1:9/a.png'\n",
    "a file system of fsspec": "configs:\n- config_name: default\n  data_files: 'reference://a.png'\n",
    "a scheme without slashes": "configs:\n- config_name: default\n  data_files: 'file:/etc/a.png'\n",
    "a chain": "configs:\n- config_name: default\n  data_files: 'zip://a.png::../../private/a.zip'\n",
}
LAUGH = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of one picture, and a private picture beside its parent."""
    for place in ("private", "from/stranger"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / place / "a.png")
    return tmp_path / "from" / "stranger"


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a request went out")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.mark.usefixtures("_no_network")
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("name", ["README.md", ".huggingface.yaml"])
def test_a_local_data_set_names_its_own_files_alone(kind: str, name: str, root: Path) -> None:
    (root / name).write_text(f"---\n{HEADS[kind]}---\nMy data.\n" if name == "README.md" else HEADS[kind])
    with pytest.raises(ValueError, match=rf"{name} names files out of the folder \(.*\): correct its data_files"):
        hugging_face(root=str(root), **OPTIONS)
    if name == "README.md":
        parquet = pa.table({"image": pa.array([{"bytes": (root / "a.png").read_bytes(), "path": "a.png"}])})
        pq.write_table(parquet, root / "train.parquet")
        with pytest.raises(ValueError, match="names files out of the folder"):
            open_images(root=str(root))


def test_a_head_that_says_what_it_may(root: Path) -> None:
    (root / "more").mkdir()
    (root / "a.png").rename(root / "more" / "b.png")
    (root / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: 'more/*.png'\n---\n")
    assert len(hugging_face(root=str(root), **OPTIONS)) == 1


def test_a_head_that_would_fill_the_memory(root: Path) -> None:
    (root / "README.md").write_text(f"---\n{LAUGH}configs:\n- data_files: *z\n---\n")
    with pytest.raises(ValueError, match=r"README\.md has YAML aliases"):
        hugging_face(root=str(root), **OPTIONS)


def test_whose_files_are_read(root: Path) -> None:
    within, beside = str(root / "a.png"), str(root / ".." / ".." / "private" / "a.png")
    assert [belongs(file, str(root)) for file in (within, beside, f"file://{within}", "https://host/a.png")] == [
        True,
        *[False] * 3,
    ]
    of_hub = {
        "hf://datasets/someone/faces@1a2b/train/a.parquet": True,
        "https://host/a.parquet": True,
        "hf://datasets/someone/private@1a2b/a.parquet": False,
        "/home/me/private/a.png": False,
        "file:///home/me/private/a.png": False,
        "zip://a.png::https://host/a.zip": False,
    }
    assert {file: belongs(file, "someone/faces") for file in of_hub} == of_hub


def test_a_local_name_is_no_address(root: Path) -> None:
    odd = root / "a::http:b.png"
    odd.write_bytes(b"contents")
    with open_file(str(odd)) as file:
        assert file.read() == b"contents"


@pytest.fixture
def _little_memory():
    """200 MB more than now."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2 * 10**8, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def zip_of_zeros(file: Path, size: int) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("zeros.png", "w", force_zip64=False) as member:
            for _ in range(size // 2**20):
                member.write(bytes(2**20))
        archive.writestr("a.png", b"a" * 1000)
    return file


@pytest.mark.usefixtures("_little_memory")
def test_a_small_zip_of_a_large_file(tmp_path: Path) -> None:
    bomb = zip_of_zeros(tmp_path / "bomb.zip", 300 * 2**20)
    assert bomb.stat().st_size < 320_000
    with pytest.raises(ValueError, match=r"bomb\.zip holds files that unpack to more than 50 times .* \(zeros\.png\): take"):
        open_images(root=str(bomb))


def test_a_zip_whose_file_is_larger_than_it_says(tmp_path: Path) -> None:
    file = zip_of_zeros(tmp_path / "liar.zip", 2**24)
    contents = file.read_bytes()
    entry = contents.index(b"PK\x01\x02")  # of zeros.png in the zip's own list
    file.write_bytes(contents[: entry + 24] + struct.pack("<I", 1000) + contents[entry + 28 :])
    source = ZipImages(root=str(file))
    assert source.places[1][2] == 1000
    with pytest.raises(OSError, match=r"liar\.zip is damaged after byte 0: its size or the checksum is another"):
        source.read(1)


@pytest.mark.usefixtures("_little_memory")
def test_sizes_that_are_only_said(tmp_path: Path) -> None:
    """A tar's headers of a file, of a long name and of attributes, of 8 TB each."""
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        (tmp_path / "a.tar").write_bytes(header("a.png", 2**43, kind) + bytes(2048))
        with pytest.raises(ValueError, match=r"a\.tar can't be read as a tar file"):
            open_images(root=str(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_a_tar_that_leads_back_to_itself(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(header("a.png", 0) + header("b.png", -512, kind) + bytes(2048))
    with pytest.raises(
        ValueError, match=r"a\.tar can't be read as a tar file .*the size of what begins at byte 512 is below 0"
    ):
        open_images(root=str(tmp_path / "a.tar"))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """512 bytes before a file in a tar, with a size that GNU's way of writing numbers allows."""
    member = tarfile.TarInfo(name)
    member.type = kind
    made = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    made[124:136] = (size & (2**96 - 1) | 2**95).to_bytes(12, "big")
    made[148:156] = b" " * 8  # the sum is made with blanks in its place
    made[148:156] = f"{sum(made):06o}\0 ".encode()
    return bytes(made)


def test_a_small_parquet_of_large_files(tmp_path: Path) -> None:
    rows = pa.array([{"bytes": bytes(2**26 + 1), "path": "0.png"}])
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"a\.parquet unpacks to more than 50 times its size"):
        open_images(root=str(tmp_path / "a.parquet"))


def test_a_linked_folder_without_end(root: Path) -> None:
    (root / "deep").mkdir()
    for number in range(20):
        (root / "deep" / f"x{number}").symlink_to(root)
        (root / f"x{number}").symlink_to(root / "deep")
    (root / "all").symlink_to("/")
    assert ImageFolder(root=str(root)).paths == ["a.png"]


def test_names_move_no_cursor(root: Path) -> None:
    assert printable("a\x1b[2Jb\rc\u2028d\udce9 é 顔.png") == "a\\x1b[2Jb\\rc\\u2028d\\udce9 é 顔.png"
    assert first_few(["a\x1b]0;title\x07.png"]) == "a\\x1b]0;title\\x07.png"
    (root / "list.txt").write_text("\x1b[31mgone.png\n")
    with pytest.raises(ValueError, match=r"\(looked|\\x1b\[31mgone\.png") as failed:
        open_images(root=str(root / "list.txt"))
    assert "\x1b" not in str(failed.value)
    assert np.array(Image.open(root / "a.png")).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "lmdb", "hf"])
def test_messages_on_an_image_move_no_cursor(kind: str, root: Path) -> None:
    """A name that clears the screen, in each kind of source, when its file is no image."""
    (root / "a.png").unlink()
    (root / "\x1b[2Ja.png").write_bytes(b"no image")
    store = root.parent / f"store.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(store, "w") as archive:
            archive.write(root / "\x1b[2Ja.png", "\x1b[2Ja.png")
    elif kind == "tar":
        with tarfile.open(store, "w") as archive:
            archive.add(root, "faces")
    elif kind == "lmdb":
        store.mkdir()
        with lmdb.open(str(store), map_size=2**20) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"\x1b[2Ja", b"no image")
        (store / "meta_info.txt").write_text("\x1b[2Ja.png (1,1,3) 1\n", encoding="utf-8")
    source = (
        hugging_face(root=str(root), **OPTIONS) if kind == "hf" else open_images(root=str(store if store.exists() else root))
    )
    with pytest.raises(UnreadableImage, match=r"\\x1b\[2Ja\.png can't be read as an image") as failed:
        read_image(source, 0)
    assert str(failed.value).isprintable()
