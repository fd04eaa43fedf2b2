"""The folders are leaves that meet only in conf/ and in train/."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"data", "degradations", "losses", "models", "train"}
HEAVY = {"hydra", "lightning", "omegaconf"}
FORBIDDEN = {
    "degradations": OURS | HEAVY,
    "models": (OURS - {"models"}) | HEAVY,
    "losses": (OURS - {"losses"}) | HEAVY,
    "data": (OURS - {"data"}) | {"hydra", "omegaconf"},
    "train": {"degradations"},
}
# the contracts of a batch, of a loss set and of a network that nobody trains, and `from models import official`
ALLOWED_IN_TRAIN = {"data.batch", "losses.weighted", "losses.frozen", "models.files.official", "models"}
MORE = {  # inference reads images without a FaceData, and its second stage is no network of conf/
    "restore.py": {"data.faces", "data.images", "data.sources", "models.diffusion.ircontrolnet"},
    "diffbir.py": {
        "models.diffusion.diffbir",
        "models.diffusion.schedule",
        "models.diffusion.ircontrolnet",
        "models.diffusion.sampling",
        "models.diffusion.stable_diffusion",
    },
}


def imported_modules(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("folder", sorted(FORBIDDEN))
def test_a_folder_imports_only_what_it_may(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) >= 4, f"{folder}: only {len(files)} files seen"
    for file in files:
        modules = imported_modules(file)
        allowed = {folder, "hydra"} if file.name == "__main__.py" else {folder}  # a command reads conf/
        bad = {name for name in modules if name.partition(".")[0] in FORBIDDEN[folder] - allowed}
        assert not bad, f"{file.relative_to(ROOT)} imports {sorted(bad)}"
        if folder == "train":
            allowed_here = ALLOWED_IN_TRAIN | MORE.get(file.name, set())
            other = {name for name in modules if name.partition(".")[0] in {"data", "losses", "models"}} - allowed_here
            assert not other, f"{file.relative_to(ROOT)} imports {sorted(other)}"


def test_lightning_is_known_to_the_data_module_only() -> None:
    users = {f.name for f in (ROOT / "data").glob("*.py") if any(m.startswith("lightning") for m in imported_modules(f))}
    assert users == {"module.py"}
