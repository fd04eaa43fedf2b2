"""Pretrained weights: found, fetched over a bad line, verified, and never taken for what they are not."""

import fcntl
import hashlib
import io
import os
import pickle
import re
import resource
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from models.files import weights
from models.vgg import VGG19Features

BYTES = bytes(range(256)) * 4096  # 1 MiB


def checkpoint(state: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


WEIGHTS = checkpoint({"0.weight": torch.arange(1000.0), "0.bias": torch.ones(3)})


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


class Server(ThreadingHTTPServer):
    """Answers with BYTES, or with WEIGHTS.

    /cut ends every answer after 300 kB, /plain knows no ranges, /page sends a web page, /busy answers at the third time,
    /endless states no length and ends after 2000 bytes, /shifted sends another range than was asked for.
    """

    requests: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        requests: list[str] = self.server.requests  # type: ignore[attr-defined]
        requests.append(f"{self.path} {start}")
        if self.path == "/gone" or (self.path == "/busy" and len(requests) < 3):
            self.send_error(404 if self.path == "/gone" else 503)
            return
        whole = WEIGHTS if self.path in ("/weights", "/endless") else BYTES
        if self.path == "/plain":
            start = 0
        if start >= len(whole):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(whole)}")
            self.end_headers()
            return
        body = b"<!DOCTYPE html><p>Virus scan warning" if self.path == "/page" else whole[start:]
        self.send_response(206 if start else 200)
        if start:
            sent = start - 1 if self.path == "/shifted" else start
            self.send_header("Content-Range", f"bytes {sent}-{len(whole) - 1}/{len(whole)}")
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: {"/cut": 300_000, "/endless": 2000}.get(self.path, len(body))])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.requests = []
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.files.weights.time.sleep", lambda _: None)
    monkeypatch.delenv("FACEWRIGHT_WEIGHTS", raising=False)


def entry(server: Server, path: str, sha256: str | None = hashlib.sha256(BYTES).hexdigest(), **changes: Any) -> weights.Entry:
    url = f"http://127.0.0.1:{server.server_port}{path}"
    made = {"name": "toy", "file": "toy.bin", "url": url, "sha256": sha256, "licence": "MIT", "used_by": "tests"}
    return weights.Entry(**{**made, **changes})


@pytest.mark.parametrize(("path", "requests"), [("/whole", 1), ("/cut", 4), ("/plain", 1), ("/busy", 3)])
def test_fetch(server: Server, tmp_path: Path, path: str, requests: int) -> None:
    said = weights.fetch(entry(server, path), tmp_path / "new")
    assert (tmp_path / "new/toy.bin").read_bytes() == BYTES
    assert said == f"{tmp_path}/new/toy.bin: 1,048,576 bytes, right; licence: MIT"
    assert len(server.requests) == requests
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["toy.bin"]
    assert weights.fetch(entry(server, path), tmp_path / "new").endswith("is here already: right")
    assert len(server.requests) == requests


def test_a_fetch_that_was_killed_goes_on(server: Server, tmp_path: Path) -> None:
    for path in ("/whole", "/plain"):
        (tmp_path / "toy.bin.part").write_bytes(BYTES[:1000] if path == "/whole" else b"of another time")
        weights.fetch(entry(server, path), tmp_path)
        assert (tmp_path / "toy.bin").read_bytes() == BYTES
        (tmp_path / "toy.bin").unlink()
    assert server.requests == ["/whole 1000", "/plain 15"]


@pytest.mark.parametrize(
    ("path", "part", "requests"),
    [
        ("/whole", BYTES, ["/whole 1048576"]),  # all of it is there
        ("/whole", BYTES + b"more", ["/whole 1048580", "/whole 0"]),  # of a longer file
        ("/shifted", BYTES[:1000], ["/shifted 1000", "/shifted 0"]),
    ],
)
def test_a_part_that_the_server_does_not_go_on_from(
    server: Server, tmp_path: Path, path: str, part: bytes, requests: list[str]
) -> None:
    (tmp_path / "toy.bin.part").write_bytes(part)
    weights.fetch(entry(server, path), tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == BYTES
    assert server.requests == requests


def test_a_full_disk_is_said_and_what_is_there_counts(server: Server, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(
            OSError, match=r"toy.bin.part could not be written beyond 500,000 bytes \(File too large\): make room"
        ):
            weights.fetch(entry(server, "/whole"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir()] == ["toy.bin.part"]
    weights.fetch(entry(server, "/whole"), tmp_path)
    assert (tmp_path / "toy.bin").read_bytes() == BYTES
    assert server.requests == ["/whole 0", "/whole 500000"]


def test_two_processes_do_not_write_one_part(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "toy.bin.part").open("ab") as file:
        file.write(BYTES[:1000])
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another process is fetching .*toy.bin: wait for it"):
            weights.fetch(entry(server, "/whole"), tmp_path)
    assert (tmp_path / "toy.bin.part").read_bytes() == BYTES[:1000]
    assert server.requests == []


@pytest.mark.parametrize("how", ["link", "dangling", "hard link", "pipe", "folder"])
def test_nothing_is_written_elsewhere(server: Server, tmp_path: Path, how: str) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "weights"
    folder.mkdir()
    if how in ("link", "hard link"):
        outside.write_text("mine")
    part = folder / "toy.bin.part"
    if how == "hard link":
        part.hardlink_to(outside)
    elif how == "pipe":
        os.mkfifo(part)
    elif how == "folder":
        part.mkdir()
    else:
        part.symlink_to(outside)
    with pytest.raises(ValueError, match=r"toy\.bin\.part is a link or no file, so that what is downloaded would go elsewhere"):
        weights.fetch(entry(server, "/whole"), folder)
    assert (outside.read_text() if outside.exists() else None) == ("mine" if how in ("link", "hard link") else None)
    assert server.requests == []
    part.rmdir() if how == "folder" else part.unlink()  # as the sentence says
    (folder / "toy.bin").symlink_to(tmp_path / "nowhere")  # a name that leads nowhere is replaced, and not followed
    weights.fetch(entry(server, "/whole"), folder)
    assert (folder / "toy.bin").read_bytes() == BYTES
    assert not (tmp_path / "nowhere").exists()


def test_without_a_hash_it_must_open(server: Server, tmp_path: Path) -> None:
    said = weights.fetch(entry(server, "/weights", sha256=None, file="toy.pth"), tmp_path)
    assert (tmp_path / "toy.pth").read_bytes() == WEIGHTS
    assert "bytes, opens, 2 tensors; its publisher states no hash; licence: MIT" in said
    (tmp_path / "toy.pth").unlink()
    (tmp_path / "toy.pth.part").write_bytes(b"x" * 1000)  # of another file
    with pytest.raises(ValueError, match=r"/weights gave another file: wrong: it is truncated or not a checkpoint"):
        weights.fetch(entry(server, "/weights", sha256=None, file="toy.pth"), tmp_path)
    with pytest.raises(ValueError, match=r"/endless gave another file: wrong: it is truncated or not a checkpoint"):
        weights.fetch(entry(server, "/endless", sha256=None, file="toy.pth"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_the_file_never_gets_its_name(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gave another file: wrong: its SHA-256 is fbbab289… and not 12345678"):
        weights.fetch(entry(server, "/whole", sha256="12345678"), tmp_path)
    with pytest.raises(ValueError, match=r"it is a web page; remove .* It was removed; or get it by hand from http://page"):
        weights.fetch(entry(server, "/page", sha256=None, page="http://page"), tmp_path)
    with pytest.raises(OSError, match=r"/gone: 404 Not Found: look at the address in .*catalog.yaml"):
        weights.fetch(entry(server, "/gone"), tmp_path)
    with pytest.raises(ValueError, match=r"toy has no address for programs: get toy.bin from http://page and put it at"):
        weights.fetch(entry(server, "/whole", url=None, page="http://page"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match=r"/nobody: .*Connection refused.*, 5 times$"):
        weights.fetch(entry(server, "/whole", url="http://127.0.0.1:1/nobody"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "toy.bin.part").write_bytes(BYTES[:1000])
    with pytest.raises(OSError, match=r"5 times; .*toy.bin.part keeps 1,000 bytes, and the same command goes on from there"):
        weights.fetch(entry(server, "/whole", url="http://127.0.0.1:1/nobody"), tmp_path)


def test_the_catalog() -> None:
    entries = weights.catalog()
    assert len(entries) == 30
    assert all(each.url or each.page for each in entries.values())
    for each in entries.values():
        assert each.url is None or each.url.endswith(f"/{each.file}")
        assert each.sha256 is None or re.fullmatch("[0-9a-f]{64}", each.sha256)
        if "download.pytorch.org" in (each.url or ""):  # its file names end with the first digits
            assert each.sha256
            assert each.file.endswith(f"-{each.sha256[:8]}.pth")
    assert sum(each.sha256 is not None for each in entries.values()) == 10
    page = (weights.CATALOG.parent.parent / "docs" / "weights.md").read_text()
    assert [each.name for each in entries.values() if f"`{each.name}`" not in page or each.file not in page] == []


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> Path:
    """A catalog of two files of a small network, in a folder of their own."""
    url = f"http://127.0.0.1:{server.server_port}"
    of = {"licence": "MIT", "used_by": "loss=toy", "sha256": None}
    text = yaml.safe_dump(
        {
            "toy": {**of, "file": "toy.pth", "url": f"{url}/weights"},
            "framed": {**of, "file": "framed.ckpt", "url": f"{url}/gone"},
        },
        sort_keys=False,
    )
    (tmp_path / "catalog.yaml").write_text(text)
    monkeypatch.setattr(weights, "CATALOG", tmp_path / "catalog.yaml")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder


def network(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.Dropout(0.5))


def load(into: nn.Module, name: str = "toy", file: str | None = None, prefix: str = "") -> nn.Module:
    return weights.pretrained(network=into, name=name, folder="weights", file=file, prefix=prefix)


def test_pretrained(toy: Path) -> None:
    trained = network(1)
    torch.save({"params": trained.state_dict()}, toy / "toy.pth")
    loaded = load(network(2))
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), trained.state_dict().values(), strict=True))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.weights_from == "weights/toy.pth"
    assert load(network(2), file=str(toy / "toy.pth")).weights_from == str(toy / "toy.pth")


def test_missing_weights_come_with_the_command(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"weights/toy.pth does not exist \(toy: loss=toy\): fetch it with "
        r"`python -m models.weights fetch toy`, or name a copy",
    ):
        load(network())
    with pytest.raises(FileNotFoundError, match=r"`python -m models.weights fetch toy --dir elsewhere`"):
        weights.find(name="toy", folder="elsewhere")
    monkeypatch.setenv("FACEWRIGHT_WEIGHTS", "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"fetch toy`"):
        weights.find(name="toy", folder="elsewhere")
    with pytest.raises(FileNotFoundError, match=r"mine.pth, given as the weights toy, does not exist"):
        load(network(), file="mine.pth")
    with pytest.raises(ValueError, match=r"no weights are named tay; did you mean toy\?"):
        load(network(), name="tay")


def test_weights_of_something_else_are_refused(toy: Path) -> None:
    state = network(1).state_dict()
    for wrong, says in (
        (
            network(1, width=4).state_dict(),
            r"toy.pth: .*2 mismatched \(0.weight: file float32 \(4, 2\), network float32",
        ),
        (
            {"0.weight": state["0.weight"]},
            r"toy.pth does not fit Sequential: . keys match, 1 missing \(0.bias\): is it the file toy.pth",
        ),
        (
            {**state, "1.weight": torch.ones(1)},
            r"toy.pth does not fit Sequential: . keys match, 1 unexpected \(1.weight\): is it the file toy.pth",
        ),
        ({**state, "0.bias": torch.tensor([1, float("nan"), 0])}, r"toy.pth holds values that are not finite, in 0.bias"),
    ):
        torch.save(wrong, toy / "toy.pth")
        untouched = network(5)
        with pytest.raises(ValueError, match=says):
            load(untouched)
        assert not hasattr(untouched, "weights_from")
    (toy / "toy.pth").write_bytes((toy / "toy.pth").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"toy.pth is truncated or not a checkpoint"):
        load(network())


def test_keys_without_a_use_are_named(toy: Path) -> None:
    """As torchvision's VGG19, whose classifier our features leave out."""
    trained = VGG19Features(layers=["conv1_2"]).state_dict()
    torch.save({**trained, "classifier.0.bias": torch.ones(2)}, toy / "toy.pth")
    network = VGG19Features(layers=["conv1_2"])
    with pytest.raises(ValueError, match=r"4 keys match, 1 unexpected \(classifier.0.bias\)"):
        load(network)
    weights.pretrained(network=network, name="toy", folder="weights", file=None, unused=["classifier."])
    assert torch.equal(network.state_dict()["features.2.bias"], trained["features.2.bias"])


def test_a_lightning_file_of_a_training(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As AdaFace's: the network's keys have a prefix, a head lies beside them, and objects of the framework all around."""
    parsing = ModuleType("pytorch_lightning.utilities.parsing")

    class AttributeDict(dict[str, Any]):
        pass

    AttributeDict.__module__, AttributeDict.__qualname__ = parsing.__name__, "AttributeDict"
    parsing.AttributeDict = AttributeDict  # type: ignore[attr-defined]
    trained = network(1).state_dict()
    kept = {f"model.{key}": value for key, value in trained.items()} | {"head.kernel": torch.ones(2)}
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.utilities", parsing.__name__):
            patch.setitem(sys.modules, name, parsing)
        content = {"state_dict": kept, "hyper_parameters": AttributeDict(lr=0.1), "callbacks": {AttributeDict: {"best": 1}}}
        torch.save(content, toy / "framed.ckpt")
        torch.save({**content, "extra": Payload(toy / "executed")}, toy / "toy.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(toy / "framed.ckpt", weights_only=True)
    loaded = load(network(2), name="framed", prefix="model.")
    assert torch.equal(loaded.state_dict()["0.weight"], trained["0.weight"])
    with pytest.raises(ValueError, match=r"framed.ckpt has no keys that begin with net.: is it the file framed.ckpt\?"):
        load(network(2), name="framed", prefix="net.")
    with pytest.raises(ValueError, match=r"toy.pth is refused: as a pickle it would run code"):
        load(network(2), prefix="model.")
    assert not (toy / "executed").exists()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | str, str]:
    code: int | str = 0
    try:
        weights.main(list(arguments))
    except SystemExit as ended:
        code = ended.code or 0
    captured = capsys.readouterr()
    return code, captured.out


def test_the_command(toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "list")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[2:]] == [["toy", "toy.pth", "no"], ["framed", "framed.ckpt", "no"]]
    assert run(capsys, "verify") == (0, "")
    code, out = run(capsys, "verify", "toy")
    assert (code, out) == (1, "toy: weights/toy.pth: missing\n")
    code, out = run(capsys, "fetch", "toy")
    assert code == 0
    assert out.startswith("weights/toy.pth: ")
    assert out.endswith(" bytes, opens, 2 tensors; its publisher states no hash; licence: MIT\n")
    assert "weights/toy.pth is here already: opens, 2 tensors" in run(capsys, "fetch", "toy")[1]
    os.truncate(toy / "toy.pth", 2000)
    assert "weights/toy.pth is here, but wrong: weights/toy.pth is truncated" in str(run(capsys, "fetch", "toy")[0])
    code, out = run(capsys, "verify")
    assert code == 1
    assert "toy: weights/toy.pth: wrong: weights/toy.pth is truncated or not a checkpoint" in out
    torch.save(network().state_dict(), toy / "toy.pth")
    assert run(capsys, "verify") == (0, "toy: weights/toy.pth: opens, 2 tensors; its publisher states no hash\n")
    code, _ = run(capsys, "fetch", "framed")
    assert str(code).startswith("python -m models.weights: http://127.0.0.1")
    assert "404" in str(code)
    assert (
        run(capsys, "fetch", "nothing")[0] == "python -m models.weights: no weights are named nothing (there are toy, framed)"
    )


def test_verify_compares_the_hash(server: Server, tmp_path: Path) -> None:
    (tmp_path / "toy.bin").write_bytes(BYTES)
    assert weights.verdict(entry(server, "/whole"), tmp_path / "toy.bin") == (True, "right")
    (tmp_path / "toy.bin").write_bytes(BYTES[:-1])
    good, words = weights.verdict(entry(server, "/whole", sha256="fbbab289"), tmp_path / "toy.bin")
    assert not good
    assert words.endswith("and not fbbab289; remove it and fetch it again")
