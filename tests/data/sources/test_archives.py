"""Lists, archives, shards and LMDBs give the same bytes as the folder they were made of, in any process."""

import io
import tarfile
import zipfile

import lmdb
import numpy as np
import pytest
from torch.utils.data import DataLoader

from data.images import decode
from data.sources.archives import Shards, TarImages, ZipImages, expand_braces, sample_of
from data.sources.files import FileList, ImageFolder
from data.sources.lmdb_images import LmdbImages
from data.sources.opening import open_images
from data.sources.source import Named, Part, Source
from tests.data.conftest import textured
from tests.data.samples import face_data


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, contents in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(contents)
            archive.addfile(member, io.BytesIO(contents))
    return path


def write_lmdb(root, files):
    root.mkdir()
    with lmdb.open(str(root), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for name, contents in files.items():
            transaction.put(name.rpartition(".")[0].encode(), contents)
    (root / "meta_info.txt").write_text("".join(f"{name} (24,20,3) 1\n" for name in files))
    return root


def make(kind, folder):
    """The root of a store of that kind with the folder's images, and other files that are no images."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    root = folder.parent / f"faces.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(root, "w") as archive:
            for number, (name, contents) in enumerate(reversed(files.items())):
                archive.writestr(name, contents, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED][number % 2])
            archive.writestr("notes.txt", "no image")
            archive.writestr("__MACOSX/._img_0.png", "no image")
    elif kind == "tar":
        write_tar(root, dict(reversed(files.items())) | {"notes.txt": b"no image"})
    elif kind == "lmdb":
        write_lmdb(root, files)
    elif kind == "txt":
        root.write_text("# faces\n\n" + "\n".join(f"faces/{name}" for name in files))
    else:
        root.mkdir()
        for number, names in enumerate((list(files)[:3], list(files)[3:])):
            samples = [(name, files[name]) for name in names]
            texts = [(name.replace("png", "json"), b"{}") for name in names]
            write_tar(root / f"{number:06}.tar", dict(sorted(samples + texts)))
    return root


CLASSES = {"txt": FileList, "zip": ZipImages, "tar": TarImages, "lmdb": LmdbImages, "shards": Shards}


class Bytes:
    """What a source reads, for a DataLoader."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source.name(index), self.source.read(index)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_store_reads_what_the_folder_reads(kind, folder):
    source, images = open_images(root=str(make(kind, folder))), ImageFolder(root=str(folder))
    assert type(source) is CLASSES[kind]
    assert isinstance(source, Source)
    assert isinstance(source, Named)
    assert len(source) == len(images) == 7
    expected = [images.read(index) for index in range(7)]
    assert [source.read(index) for index in range(7)] == expected
    assert [source.paths[index].rpartition("/")[2] for index in range(7)] == images.paths
    assert source.name(2).endswith("/img_2.png")
    for context, workers in (("fork", 1), ("fork", 2), ("spawn", 1)):
        if context == "fork" or kind == "lmdb":  # the only one that keeps something open
            loader = DataLoader(Bytes(source), batch_size=None, num_workers=workers, multiprocessing_context=context)
            assert [contents for _, contents in loader] == expected
    assert source.read(3) == expected[3], "still fine in this process"
    np.testing.assert_array_equal(decode(source.read(2), "img_2.png"), textured(24, 20, 2))


def test_a_part_of_a_store(folder):
    part = Part(whole=open_images(root=str(make("zip", folder))), start=5, stop=7)
    assert part.read(1) == (folder / "img_6.png").read_bytes()
    np.testing.assert_array_equal(decode(part.read(1), "img_6.png"), textured(24, 20, 6))


@pytest.mark.parametrize("kind", CLASSES)
def test_the_first_of_a_store_are_those_of_the_folder(kind, folder, shade):
    roots = [face_data(root, shade, source=open_images, first=3).faces for root in (make(kind, folder), folder)]
    assert [len(faces.images.source) for faces in roots] == [3, 3]
    for position in range(6):
        one, other = (faces[position]["hq"] for faces in roots)
        np.testing.assert_array_equal(one, other)


def test_two_sources_of_one_lmdb(folder):
    root = make("lmdb", folder)
    one, two = LmdbImages(root=str(root)), LmdbImages(root=f"{root}/")
    assert one.read(0) == two.read(0)
    np.testing.assert_array_equal(decode(two.read(0), "img_0.png"), textured(24, 20, 0))


def test_list_relative_to_another_folder(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    listing = tmp_path / "elsewhere" / "some.txt"
    listing.write_text(f"img_3.png\r\n{folder}/img_1.png\n")
    source = FileList(root=str(listing), relative_to=str(folder))
    assert [source.read(index) for index in (0, 1)] == [(folder / f"img_{n}.png").read_bytes() for n in (3, 1)]


def test_shards_in_braces_and_members(folder, tmp_path):
    assert expand_braces("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert sample_of("a.b/c.seg.png") == ("a.b/c", "seg.png")
    root = make("shards", folder)
    assert len(open_images(root=f"{root}/{{000000..000001}}.tar")) == 7
    assert len(Shards(root=str(root / "000000.tar"), member=None)) == 3
    second = Shards(root=str(root / "000001.tar"), member=None)
    np.testing.assert_array_equal(decode(second.read(0), "img_3.png"), textured(24, 20, 3))
    twice = write_tar(tmp_path / "twice.tar", {"0.jpg": b"face", "0.mask.png": b"mask"})
    with pytest.raises(ValueError, match=r"sample 0 of .*twice\.tar holds 0\.jpg and 0\.mask\.png: .*data\.source\.member="):
        Shards(root=str(twice), member=None)
    source = Shards(root=str(twice), member="jpg")
    assert (len(source), source.read(0)) == (1, b"face")
    with pytest.raises(ValueError, match=r"1 of 3 shards don't exist: .*000002\.tar; correct data\.root"):
        Shards(root=f"{root}/{{000000..000002}}.tar", member=None)


def test_what_a_root_may_be(folder, tmp_path):
    assert type(open_images(root=str(folder))) is ImageFolder
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        open_images(root=str(tmp_path / "nowhere"))
    with pytest.raises(
        ValueError, match=r"img_0\.png is a file: give the folder .*, a \.txt that lists them, or a \.zip, \.tar"
    ):
        open_images(root=str(folder / "img_0.png"))


# errors


@pytest.mark.parametrize("kind", ["zip", "tar", "shards"])
def test_a_cut_off_archive_is_named(kind, folder):
    root = make(kind, folder)
    file = root / "000000.tar" if kind == "shards" else root
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(ValueError, match=rf"{file.name} can't be read as a (zip|tar) file.*is it whole\?"):
        open_images(root=str(root))


@pytest.mark.parametrize("kind", ["zip", "tar", "lmdb"])
def test_an_archive_that_changes_under_a_run(kind, folder):
    root = make(kind, folder)
    source = open_images(root=str(root))
    if kind == "lmdb":
        source.paths.append("img_9.png")
        with pytest.raises(OSError, match=r"faces\.lmdb has no key img_9, which its meta_info\.txt lists"):
            source.read(7)
        return
    root.write_bytes(root.read_bytes()[:900])
    with pytest.raises(OSError, match=rf"faces\.{kind} ends before byte \d+"):
        source.read(6 if kind == "tar" else 0)


def test_damage_in_a_zip_is_noticed(folder):
    root = make("zip", folder)
    source = ZipImages(root=str(root))
    whole = bytearray(root.read_bytes())
    whole[source.places[6][0] + 200] ^= 255  # stored: only the checksum can tell
    root.write_bytes(bytes(whole))
    with pytest.raises(OSError, match="the checksum is another"):
        source.read(6)


def test_compressed_tar(folder, tmp_path):
    with tarfile.open(tmp_path / "faces.tar", "w:gz") as archive:
        archive.add(folder / "img_0.png")
    with pytest.raises(ValueError, match=r"without compression .* Pack a \.tar\.gz again as \.tar"):
        open_images(root=str(tmp_path / "faces.tar"))


def test_no_image_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.txt", "")
    write_tar(tmp_path / "a.tar", {"notes.txt": b""})
    (tmp_path / "a.txt").write_text("# nothing\n")
    for name in ("a.zip", "a.tar"):
        with pytest.raises(ValueError, match=rf"{name} holds no image: files that end in \.bmp"):
            open_images(root=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"a\.txt lists no image: give one path a line"):
        open_images(root=str(tmp_path / "a.txt"))


def test_list_errors(folder, tmp_path):
    listing = tmp_path / "list.txt"
    listing.write_text("faces/img_0.png\n" + "".join(f"faces/gone_{number}.png\n" for number in range(5)))
    with pytest.raises(ValueError, match=r"lists 6 files, 5 of which don't exist .*gone_0\.png, .*gone_2\.png and 2 more"):
        FileList(root=str(listing), relative_to=None)
    listing.write_bytes((folder / "img_0.png").read_bytes())
    with pytest.raises(ValueError, match=r"list\.txt is no text file"):
        FileList(root=str(listing), relative_to=None)


def test_lmdb_errors(folder, tmp_path):
    with pytest.raises(ValueError, match=r"faces has no data\.mdb, .* python -m data\.prepare pack"):
        LmdbImages(root=str(folder))
    root = make("lmdb", folder)
    (root / "meta_info.txt").write_text("img_9.png (1,1,3) 1\n")
    with pytest.raises(ValueError, match=r"has no key img_9.*: copy or pack the LMDB again"):
        LmdbImages(root=str(root))
    damaged = tmp_path / "damaged.lmdb"
    damaged.mkdir()
    (damaged / "data.mdb").write_bytes(bytes(np.arange(20000) % 251))
    (damaged / "meta_info.txt").write_text("img_0.png (24,20,3) 1\n")
    with pytest.raises(ValueError, match=r"damaged\.lmdb can't be read as an LMDB: .*copy or pack the LMDB again"):
        LmdbImages(root=str(damaged))


def test_a_tar_with_links_and_members_twice_is_what_unpacking_leaves(tmp_path):
    """Links are what they lead to, hard and symbolic, forward ones and chains; of a name that comes again the last counts."""
    with tarfile.open(tmp_path / "faces.tar", "w") as archive:

        def add(name, contents=b"", kind=tarfile.REGTYPE, target=""):
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(contents), kind, target
            archive.addfile(member, io.BytesIO(contents))

        add("./a/one.png", b"first")
        add("a/two.png", b"second")
        add("b/hard.png", kind=tarfile.LNKTYPE, target="./a/two.png")
        add("b/soft.png", kind=tarfile.SYMTYPE, target="../b/chain.png")
        add("b/chain.png", kind=tarfile.SYMTYPE, target="../a/two.png")
        add("a/one.png", b"appended")
        add("elsewhere.txt", kind=tarfile.SYMTYPE, target="/etc/passwd")
    wanted = {"a/one.png": b"appended", "a/two.png": b"second", "b/chain.png": b"second", "b/hard.png": b"second"}
    wanted |= {"b/soft.png": b"second"}
    with tarfile.open(tmp_path / "faces.tar") as archive:
        archive.extractall(tmp_path / "unpacked", [each for each in archive if each.name.endswith("png")], filter="data")
    assert {path: (tmp_path / "unpacked" / path).read_bytes() for path in wanted} == wanted
    source = open_images(root=str(tmp_path / "faces.tar"))
    assert {path: source.read(number) for number, path in enumerate(source.paths)} == wanted
    shards = Shards(root=str(tmp_path / "faces.tar"), member=None)
    assert {path: shards.read(number) for number, path in enumerate(shards.paths)} == wanted


@pytest.mark.parametrize("target", ["../nowhere.png", "b/two.png", "/etc/one.png"])
def test_a_link_out_of_a_tar_is_named(tmp_path, target):
    write_tar(tmp_path / "faces.tar", {"one.png": b"x"})
    with tarfile.open(tmp_path / "faces.tar", "a") as archive:
        for name, leads in (("two.png", target), ("b/two.png", "../two.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, leads
            archive.addfile(member)
    with pytest.raises(ValueError, match=r"links to what is not in it.*\(two.png, b/two.png\): pack it again with tar --deref"):
        open_images(root=str(tmp_path / "faces.tar"))


def test_a_zip_with_a_member_twice_has_its_last(tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        archive.writestr("one.png", b"first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("one.png", b"last")
    source = open_images(root=str(tmp_path / "faces.zip"))
    assert [source.read(index) for index in range(len(source))] == [b"last"]


def test_a_listed_file_may_begin_with_the_sign_of_a_comment(tmp_path):
    for name in ("#1.png", "two.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "list.txt").write_text("# two faces\n#1.png\ntwo.png\n#two.png\n")
    source = open_images(root=str(tmp_path / "list.txt"))
    assert [source.read(index) for index in range(len(source))] == [b"#1.png", b"two.png"]
