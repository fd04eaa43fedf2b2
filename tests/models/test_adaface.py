"""AdaFace on files in the official form, and the order of its colours."""

from pathlib import Path

import torch

from models.adaface import AdaFace
from models.files.weights import pretrained


def test_an_official_file_loads(tmp_path: Path) -> None:
    """Lightning's: `model.` before every key, the margin's `head.` beside them."""
    torch.manual_seed(0)
    trained = AdaFace(layers=18, mode="ir").eval()
    state = {f"model.{key}": value for key, value in trained.state_dict().items()} | {"head.kernel": torch.ones(512, 3)}
    file = tmp_path / "adaface.ckpt"
    torch.save({"epoch": 1, "pytorch-lightning_version": "1.4.4", "state_dict": state}, file)
    loaded = pretrained(
        network=AdaFace(layers=18, mode="ir"), name="adaface_ir18", folder=str(tmp_path), file=str(file), prefix="model."
    )
    assert not loaded.training
    face = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        embedding, norm = loaded(face)
        assert torch.equal(embedding, trained(face)[0])
        swapped = loaded(face.flip(1))[0]
    assert (embedding * swapped).sum() < 0.999, "red and blue are not alike to it"
    assert norm.shape == (1, 1)
