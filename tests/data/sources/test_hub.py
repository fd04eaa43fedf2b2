"""Hugging Face data sets: local folders, and parquet over HTTP, in the order of (seed, position)."""

import io
import pickle
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from PIL import Image
from torch.utils.data import DataLoader

import data.sources.hub
from data.images import decode
from data.order import PositionSampler
from data.sources.files import ImageFolder
from data.sources.hub import ArrowImages, FileImages, ParquetImages, hugging_face
from data.sources.opening import open_images
from data.sources.source import Blocked, Part, Source
from tests.data.samples import face_data, training_faces, validation_faces
from train.jobs.cli import compose
from train.jobs.config import check

OPTIONS = {"subset": None, "split": "train", "column": "image", "revision": None, "groups_mixed": 1}


def picture(number):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURES = [picture(number) for number in range(17)]


@pytest.fixture
def parquet(tmp_path):
    """17 rows in two files, row groups of 4."""
    root = tmp_path / "set"
    root.mkdir()
    for number, rows in enumerate((range(10), range(10, 17))):
        images = pa.array([{"bytes": PICTURES[row], "path": f"{row}.png"} for row in rows])
        table = pa.table({"image": images, "raw": [PICTURES[row] for row in rows], "label": list(rows)})
        pq.write_table(table, root / f"train-0000{number}-of-00002.parquet", row_group_size=4)
    return root


class Ranges(BaseHTTPRequestHandler):
    """Files of a folder, with ranges; counts the bytes sent, and fails as often as it is asked to."""

    def do_HEAD(self):
        self.answer(b"")

    def do_GET(self):
        self.answer((self.server.folder / self.path[1:]).read_bytes())

    def answer(self, contents):
        file = self.server.folder / self.path[1:]
        if self.server.failures > 0 and contents:
            self.server.failures -= 1
            self.send_error(503)
            return
        if not file.is_file():
            self.send_error(404)
            return
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if contents and asked:
            contents = contents[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{file.stat().st_size}")
        else:
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(contents) or file.stat().st_size))
        self.server.sent += len(contents)  # before the client can go on
        self.end_headers()
        self.wfile.write(contents)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(parquet):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    server.folder, server.sent, server.failures = parquet, 0, 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def addresses(server):
    return [f"http://127.0.0.1:{server.server_port}/train-0000{number}-of-00002.parquet" for number in (0, 1)]


def samples(source, shade, count, start=0, workers=0):
    dataset = training_faces(source, shade, crop="random", hflip_prob=0.5, seed=4)
    order = PositionSampler(start=start, batch_size=2, rank=0, world=1)
    batches = islice(DataLoader(dataset, batch_sampler=order, num_workers=workers), count)
    return [lq for batch in batches for lq in batch["lq"].numpy()]


def test_a_local_folder_of_parquet(parquet):
    source = open_images(root=str(parquet))
    assert type(source) is ParquetImages
    assert isinstance(source, Source)
    assert source.blocks == (14, 3), "groups of 4, 4, 2, 4 and 3 rows, mixed by four"
    assert [source.read(index) for index in range(17)] == PICTURES
    pixels = np.random.default_rng(12).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(source.read(12), "row 12"), pixels)
    assert source.name(12).endswith("train-00001-of-00002.parquet (row 12)")
    raw = hugging_face(root=str(parquet / "train-00001-of-00002.parquet"), **(OPTIONS | {"column": "raw"}))
    assert (len(raw), raw.blocks, raw.read(6)) == (7, (4, 3), PICTURES[16])


def test_the_first_rows_alone_are_trained_on(parquet, shade):
    """Row groups of 4, 4, 2 | 4, 3: of 9 rows the third group is cut in two."""
    faces = face_data(parquet, shade, source=partial(hugging_face, **OPTIONS), first=9).faces
    assert faces.images.blocks == (4, 4, 1)
    assert sorted(faces.order.image_at(position) for position in range(9)) == list(range(9))
    assert faces.images.source.read(8) == PICTURES[8]


def test_arrow_and_image_folders(tmp_path):
    import datasets

    rows = {"image": [{"bytes": contents, "path": None} for contents in PICTURES]}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "arrow")
    source = open_images(root=str(tmp_path / "arrow"))
    assert type(source) is ArrowImages
    assert [source.read(index) for index in range(17)] == PICTURES
    assert not isinstance(source, Blocked)
    assert pickle.loads(pickle.dumps(source)).read(3) == PICTURES[3]

    (tmp_path / "images" / "train").mkdir(parents=True)
    for number in range(3):
        (tmp_path / "images" / "train" / f"{number}.png").write_bytes(PICTURES[number])
    source = hugging_face(root=str(tmp_path / "images"), **OPTIONS)
    assert type(source) is FileImages
    assert [source.read(index) for index in range(3)] == PICTURES[:3]


def test_a_data_set_saved_with_its_splits(tmp_path):
    """As save_to_disk writes a DatasetDict, and as a clone from the hub lies: a folder for each split, or all in data."""
    import datasets

    rows = {"image": [{"bytes": contents, "path": None} for contents in PICTURES]}
    whole = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(tmp_path / "saved")
    source = open_images(root=str(tmp_path / "saved"))
    assert [source.read(index) for index in range(len(source))] == PICTURES
    (tmp_path / "clone" / "data").mkdir(parents=True)
    whole.to_parquet(tmp_path / "clone" / "data" / "train-00000-of-00001.parquet")
    source = open_images(root=str(tmp_path / "clone"))
    assert [source.read(index) for index in range(len(source))] == PICTURES
    (tmp_path / "clone" / "face.png").write_bytes(PICTURES[0])
    assert type(open_images(root=str(tmp_path / "clone"))) is ImageFolder, "images come first"
    datasets.DatasetDict({"validation": whole}).save_to_disk(tmp_path / "other")
    with pytest.raises(ValueError, match=r"no split train, only validation: give data/source=hf data\.source\.split=NAME"):
        open_images(root=str(tmp_path / "other"))
    given = ["model=swinir_ffhq", f"data.root={tmp_path}/other", "trainer.precision=32-true"]
    config = compose([*given, "data/source=hf", "data.source.split=validation"])
    assert len(instantiate(check(config)["data"]["source"])(root=f"{tmp_path}/other")) == len(PICTURES)


def test_streaming_gives_the_samples_of_the_local_files(server, parquet, shade):
    def remote():
        return ParquetImages(files=addresses(server), column="image", groups_mixed=1)

    local = hugging_face(root=str(parquet), **OPTIONS)
    expected = samples(local, shade, 17)
    for workers in (0, 1, 2):
        np.testing.assert_array_equal(samples(remote(), shade, 17, workers=workers), expected)
    np.testing.assert_array_equal(samples(remote(), shade, 12, start=10), expected[10:], "a run that goes on")


def test_streaming_fetches_only_the_row_groups_it_needs(server):
    source = ParquetImages(files=addresses(server), column="image", groups_mixed=1)
    needed = [
        sum(group.column(each).total_compressed_size for each in (0, 1))  # bytes and path of the images
        for group in (source.footers[0].row_group(number) for number in (0, 1))
    ]
    server.sent = 0
    assert [source.read(index) for index in range(4)] == PICTURES[:4]
    assert server.sent == needed[0]
    source.read(4)
    source.read(5)
    assert server.sent == sum(needed)
    source.read(2)
    assert server.sent == sum(needed) + needed[0], "one row group is kept"


def test_the_fixed_set_streams_too(server, shade):
    whole = ParquetImages(files=addresses(server), column="image", groups_mixed=1)
    fixed = validation_faces(
        Part(whole=whole, start=14, stop=17),
        shade,
        degradations_per_image=1,
        size=None,
        seed=0,
    )
    photo = np.asarray(Image.open(io.BytesIO(PICTURES[15])))
    np.testing.assert_array_equal((fixed[1]["hq"] * 255).round(), photo.transpose(2, 0, 1))
    assert Part(whole=whole, start=0, stop=14).blocks == (4, 4, 2, 4)


def test_a_server_that_fails_for_a_while(server, monkeypatch):
    pauses = []
    monkeypatch.setattr(data.sources.hub.time, "sleep", pauses.append)
    source = ParquetImages(files=addresses(server), column="image", groups_mixed=1)
    server.failures = 2
    assert source.read(0) == PICTURES[0]
    assert pauses == [1, 4]
    server.failures = 99
    with pytest.raises(OSError, match=r"http://127.*parquet can't be read: .*503"):
        source.read(16)


# errors


def test_columns_are_named(parquet):
    with pytest.raises(
        ValueError, match=r"parquet has no column photo: its columns are image, raw, label; .*data\.source\.column="
    ):
        hugging_face(root=str(parquet), **(OPTIONS | {"column": "photo"}))
    with pytest.raises(
        ValueError, match=r"column label of .* holds int64, which is no image: its columns are image, raw, label"
    ):
        hugging_face(root=str(parquet), **(OPTIONS | {"column": "label"}))


def test_what_is_no_data_set(parquet, tmp_path, monkeypatch):
    import datasets

    with pytest.raises(ValueError, match=r"set has no split test, only train: give data/source=hf data\.source\.split=NAME"):
        hugging_face(root=str(parquet), **(OPTIONS | {"split": "test"}))
    with pytest.raises(ValueError, match=r"set can't be opened as a Hugging Face data set: BuilderConfig 'big' not found"):
        hugging_face(root=str(parquet), **(OPTIONS | {"subset": "big"}))
    (tmp_path / "cut.parquet").write_bytes((parquet / "train-00000-of-00002.parquet").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut\.parquet can't be read: .*; is data\.root right, and the file whole\?"):
        hugging_face(root=str(tmp_path / "cut.parquet"), **OPTIONS)
    with pytest.raises(ValueError, match=r"gone\.parquet can't be read"):
        hugging_face(root=str(tmp_path / "gone.parquet"), **OPTIONS)

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'someone/faces' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(ValueError, match=r"someone/faces can't be opened as a Hugging Face data set: Couldn't reach"):
        hugging_face(root="someone/faces", **OPTIONS)


def test_a_row_without_an_image(tmp_path):
    rows = pa.array([{"bytes": None, "path": "a.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(OSError, match="the row holds no image, or only the path of one"):
        hugging_face(root=str(tmp_path / "a.parquet"), **OPTIONS).read(0)
