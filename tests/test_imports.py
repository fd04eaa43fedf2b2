"""Who may import whom: data runs through the rooms in one direction, and no files import each other in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"hydra", "lightning", "omegaconf"}

# Room -> the other rooms and single modules of ours that it may import, and which heavy packages. A file lies in the room of
# the longest name that its own begins with. A __main__.py is a command, and may know more than its room.
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "degradations": (set(), set()),
    "degradations.__main__": ({"degradations", "train"}, {"hydra", "omegaconf"}),
    "losses": (set(), set()),
    "models": (set(), set()),
    "models.diffusion": ({"models", "models.files"}, set()),
    "models.files": ({"models", "models.diffusion"}, set()),
    "data": ({"data.sources", "data.columns"}, {"lightning"}),
    "data.sources": (set(), set()),
    "data.columns": (
        {
            "data.sources",
            *(f"data.{each}" for each in ("augmentation", "batch", "cutting", "duplicates", "images", "order", "reading")),
        },
        set(),
    ),
    "data.prepare": ({"data", "data.sources", "data.columns", "data.prepare.jobs"}, set()),
    "data.prepare.__main__": ({"data.prepare", "data.prepare.jobs", "models.files", "models.diffusion"}, set()),
    "data.prepare.jobs": ({"data", "data.sources"}, set()),
    "train": ({"data.sources.shown"}, {"lightning"}),  # the ground floor: train/*.py
    "train.tasks": (
        {"train", "data.batch", "data.writing", "losses.weighted", "losses.frozen", "models.files", "models.diffusion"},
        {"lightning"},
    ),
    "train.runs": ({"train", "train.tasks", "data.images", "data.sheet", "data.writing"}, HEAVY),
    "train.jobs": ({"train", "train.tasks", "train.runs", "data.writing", "data.sources.shown"}, HEAVY),
    "restoration": (
        {"models", "models.files", "models.diffusion", "data", "data.sources", "train", "train.jobs.config"},
        set(),
    ),
    "evaluation": ({"models", "models.files", "losses", "data", "data.sources"}, set()),
    "evaluation.cli": (
        {"evaluation", "models.files", "data", "data.sources", "restoration", "train", "train.jobs.config", "train.jobs.typed"},
        {"hydra", "omegaconf"},
    ),
    "restoration.cli": ({"restoration", "train", "train.jobs.config", "train.jobs.typed"}, {"hydra", "omegaconf"}),
}
ROOMS = {room for room in MAY_IMPORT if "." not in room}
INNER = MAY_IMPORT.keys() - ROOMS  # rooms within rooms, which a room's own files import only where the table says so
COMMANDS = {  # python -m NAME
    "models.official": "models.files",
    "models.weights": "models.files",
    "train.stages": "train.jobs",
    "restoration.sheet": "restoration.cli",
}
CONSOLE = "train.console"  # what a command does first, wherever it lies


def modules() -> dict[str, Path]:
    """Dotted name -> file, of all that is ours."""
    files = [file for room in ROOMS for file in (ROOT / room).rglob("*.py")]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


MODULES = modules()
FOLDERS = {name.rpartition(".")[0] for name in MODULES} - {""}  # packages, by the same names; most have no __init__.py


def imported(file: Path) -> set[str]:
    """Names of modules and packages, also of those that a function imports, that only a type checker does, or that a string
    names, as in get_object("models.swinir.SwinIR"): a string that is one such name and nothing else."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} is a relative import, which hides its room"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = whole & (MODULES.keys() | FOLDERS)
            names |= ours | ({node.module} if whole - ours else set())
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said = node.value if node.value in MODULES else node.value.rpartition(".")[0]
            names |= {said} & MODULES.keys() if "." in said else set()
    return names


def room_of(module: str) -> str:
    return max((inner for inner in INNER if f"{module}.".startswith(f"{inner}.")), key=len, default=module.split(".")[0])


def allowed(module: str, name: str) -> bool:
    if name == CONSOLE:
        return 'if __name__ == "__main__":' in MODULES[module].read_text(encoding="utf-8")
    room, top = room_of(module), name.split(".")[0]
    ours, heavy = MAY_IMPORT[room]
    if top in HEAVY:
        return top in heavy
    if top not in ROOMS:
        return True
    if room_of(name) == room or room_of(name) == COMMANDS.get(module):
        return True
    return room_of(name) in ours or name in ours


def test_a_room_imports_only_what_it_may() -> None:
    assert len(MODULES) > 130, f"only {len(MODULES)} files seen"
    pairs = ((module, name) for module, file in MODULES.items() for name in imported(file))
    bad = [f"{module} imports {name}" for module, name in pairs if not allowed(module, name)]
    assert bad == []


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            together = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(together) > 1:
                found.append(sorted(together))

    for module in edges:
        if module not in index:
            visit(module)
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    edges = {module: (imported(file) & MODULES.keys()) - {module} for module, file in MODULES.items()}
    assert sum(map(len, edges.values())) > 300
    assert circles(edges) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("models.swinir", "models.files.official"),
        ("models.swinir", "models.diffusion.tiles"),
        ("train.tasks.task", "train.runs.checkpoint"),
        ("train.runs.run", "train.jobs.cli"),
        ("train.ranks", "train.tasks.task"),
        ("restoration.run", "train.tasks.task"),
        ("restoration.run", "train.jobs.launch"),
        ("restoration.run", "losses.weighted"),
        ("data.faces", "data.prepare.jobs.work"),
        ("data.sources.archives", "data.images"),
        ("data.columns.codes", "data.faces"),
        ("data.prepare.jobs.work", "data.prepare.align"),
        ("data.faces", "train.ranks"),
        ("data.faces", "hydra"),
        ("losses.pixel", "models.vgg"),
        ("degradations.operators.blur", "data.batch"),
        ("models.vqgan", "lightning"),
        ("train.ranks", "train.tasks"),  # from train import tasks
        ("data.faces", "data.prepare"),
        ("data.prepare.codes", "models.files.official"),
        ("restoration.run", "hydra"),
        ("restoration.run", "train.console"),
        ("train.jobs.cli", "train.console"),
    ],
)
def test_a_wrong_direction_is_seen(module: str, name: str) -> None:
    assert not allowed(module, name)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("import train.tasks.task as t", {"train.tasks.task"}),
        ("from train import tasks, ranks", {"train.tasks", "train.ranks"}),
        ("from train.ranks import say", {"train.ranks"}),
        ("def f():\n    from models.files import official", {"models.files.official"}),
        ("get_object('models.swinir.SwinIR')", {"models.swinir"}),
        ("import_module('models.swinir')", {"models.swinir"}),
        ("say('see models.swinir.SwinIR')", set()),
    ],
)
def test_every_way_to_import_is_seen(line: str, names: set[str], tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(line)
    assert imported(file) == names


def test_a_relative_import_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    for line in ("from . import task", "from .task import RestorationTask"):
        file.write_text(line)
        with pytest.raises(AssertionError, match="is a relative import"):
            imported(file)


def test_lightning_is_known_to_the_data_module_only() -> None:
    users = {file.name for file in (ROOT / "data").glob("*.py") if any(name.startswith("lightning") for name in imported(file))}
    assert users == {"module.py"}


def test_no_room_is_crowded() -> None:
    """A newcomer must find a line in ten seconds."""
    folders = {file.parent for file in MODULES.values()}
    assert len(folders) > 12
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > 18} == {}
