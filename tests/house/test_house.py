"""The house rules: which room, folder and file may look at which, how large they get, and how rooms are imported.

Imports are read from the files, at any depth of their code. One inside a function runs later and closes no circle for
Python, and one for type checkers alone never runs; both count all the same, for whoever wants to understand one of the
files must read the other. Only what is listed below with its reason is excepted.
"""

import ast
import configparser
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "modeling_siglip_ext"
RUNTIME = "siglip_ext_runtime"  # installed by itself, because it runs without torch
ALONE = {PACKAGE, RUNTIME}
# what each room may import, besides itself
ALLOWED = {
    PACKAGE: {RUNTIME},
    RUNTIME: set(),
    "evaluation": {PACKAGE, RUNTIME},
    "training": {PACKAGE, "evaluation"},
    "conversion": {PACKAGE, RUNTIME, "evaluation"},  # figures of an export, in one file
    "serving": {PACKAGE},
    "model_cards": set(),
}
BENEATH_FORMATS = (  # of conversion: what the folder of a format may use
    *("errors", "name_map", "containers", "resize", "plan", "checkpoint", "transfer"),
    *("model_folder", "released"),
)
# Inside a room: its folders, and files that other folders stand on. Each may import itself and what is listed. The
# other files at the top of a room are "top"; its `__init__` and `__main__`, "door", may import all of the room and be
# imported from other rooms only.
ARROWS = {
    PACKAGE: {
        "gpu": set(),
        "losses": {"gpu"},
        "losses.xla": {"losses"},
        "top": {"gpu", "losses"},
        "captioning": {"top", "losses"},
        "hub": {"top"},
    },
    "evaluation": {
        "metrics": set(),
        "prompts": set(),
        "pictures": set(),
        "known_benchmarks": set(),
        "data": {"metrics", "prompts", "known_benchmarks"},
        "top": {"metrics", "prompts", "pictures", "known_benchmarks", "data"},
        "commands": {"metrics", "prompts", "pictures", "known_benchmarks", "data", "top"},
    },
    "training": {
        "data": set(),
        "data.emoji": {"data"},
        "data.scenes": {"data", "data.emoji"},
        "components.towers": set(),
        "optimizers": {"components.towers"},
        "components.schedule": set(),
        "components.argument_checks": set(),
        "arguments": {"optimizers", "components.towers", "components.schedule", "components.argument_checks"},
        "components": {"data", "components.towers", "components.schedule", "arguments"},
        "objectives": {"components", "components.towers", "arguments", "data"},
        "top": {
            *("data", "components", "components.towers", "components.schedule", "arguments", "optimizers"),
            "objectives",
        },
        "recipes": set(),
        "run": {
            *("data", "data.emoji", "data.scenes", "components", "components.towers", "arguments", "optimizers"),
            *("objectives", "recipes", "top"),
        },
        "studies": {
            *("data", "data.emoji", "data.scenes", "components", "components.schedule", "objectives", "optimizers"),
        },
    },
    "conversion": {
        "errors": set(),
        "name_map": set(),
        "containers": {"errors"},
        "resize": {"errors"},
        "plan": {"errors", "name_map", "containers", "resize"},
        "checkpoint": {"containers", "plan"},
        "transfer": {"errors", "name_map", "containers", "plan"},
        "model_folder": {"errors", "name_map", "containers", "plan", "checkpoint", "transfer"},
        "big_vision.names": {"errors", "name_map", "containers", "resize"},
        "big_vision.config": {"errors", "containers", "plan", "checkpoint", "big_vision.names"},
        "released": {"errors", "plan", "checkpoint", "model_folder", "big_vision.config"},
        "big_vision": {*BENEATH_FORMATS, "big_vision.names", "big_vision.config"},
        "open_clip": {*BENEATH_FORMATS},
        "export": {*BENEATH_FORMATS},
        "top": {*BENEATH_FORMATS, "big_vision", "open_clip"},
        "commands": {
            *(*BENEATH_FORMATS, "big_vision", "big_vision.names", "big_vision.config", "open_clip", "export", "top"),
        },
    },
    "serving": {"top": set()},
    "model_cards": {},
    RUNTIME: {},
}
# Against the arrows, and only inside functions: (room, from, to): why.
LATE_ARROWS = {
    (PACKAGE, "losses", "losses.xla"): "torch_xla is imported on meeting an XLA tensor, and only then",
    ("training", "arguments", "components"): "the XLA version's checks are asked for on meeting an XLA device",
}
# Imports inside functions that may close a circle of files: (importer, imported): why.
LATE_CIRCLES: dict[tuple[str, str], str] = {}
MOST_ENTRIES = {"training": 12, "conversion": 18, "evaluation": 12}
MOST_LINES, LONGER_FILES = 500, {f"{PACKAGE}/{PACKAGE}.py": 720}
MOST_METHODS = 20


# ---- reading the imports


def room_of(module: str) -> str | None:
    """The room that a dotted module name leads into, None for other packages."""
    parts = module.split(".")
    if parts[0] != PACKAGE:  # among them the runtime
        return parts[0] if parts[0] in ALLOWED else None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else PACKAGE


def files_of(root: Path, room: str) -> list[Path]:
    return sorted((root / room).rglob("*.py"))


def module_of(root: Path, path: Path) -> str:
    """The dotted name under which a file of a room is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    parts = parts if parts[0] in ALONE else (PACKAGE, *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_statements(root: Path, path: Path) -> Iterator[tuple[list[str], bool]]:
    """For each name that a file imports: what it may be, most precise first, and whether it is imported late."""
    package = module_of(root, path).split(".")
    if path.name != "__init__.py":
        package.pop()

    def within(node: ast.AST, late: bool) -> Iterator[tuple[list[str], bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (([alias.name], late) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else []
                base = ".".join(base + ([child.module] if child.module else []))
                yield from (([f"{base}.{alias.name}", base], late) for alias in child.names)
            yield from within(child, late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return within(ast.parse(path.read_text(encoding="utf-8")), late=False)


def import_graph(root: Path) -> dict[str, dict[str, bool]]:
    """For each module of the rooms the modules of the rooms that it imports, and whether it does so only late."""
    modules = {module_of(root, path): path for room in ALLOWED for path in files_of(root, room)}
    graph: dict[str, dict[str, bool]] = {}
    for module, path in modules.items():
        found = graph[module] = {}
        for candidates, late in import_statements(root, path):
            imported = next((name for name in candidates if name in modules), None)
            if imported is not None:
                found[imported] = late and found.get(imported, True)
    return graph


# ---- the rules


def forbidden_imports(root: Path, path: Path, room: str) -> set[str]:
    """What a file imports of rooms that its own may not look into."""
    # `from modeling_siglip_ext import x` names the package and the member: only members decide for other rooms
    names = {name for candidates, _ in import_statements(root, path) for name in candidates}
    return {name for name in names if room_of(name) not in {None, room, *ALLOWED[room]}}


def circle(root: Path) -> list[str]:
    """Modules of which each is imported by the next, the first being the last; none if there is no circle."""
    graph = {
        module: {name for name, late in imports.items() if not (late and (module, name) in LATE_CIRCLES)}
        for module, imports in import_graph(root).items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def part_of(module: str, room: str) -> str:
    """The part of a room in its table of arrows that a module belongs to."""
    base = room if room in ALONE else f"{PACKAGE}.{room}"
    own = module.removeprefix(base).removeprefix(".")
    if own in ("", "__main__"):
        return "door"
    listed = [part for part in ARROWS[room] if own == part or own.startswith(f"{part}.")]
    return max(listed, key=len, default="top")


def against_the_arrows(root: Path) -> list[str]:
    """Imports inside a room that its table does not allow."""
    found = []
    for module, imports in import_graph(root).items():
        room = room_of(module)
        start = part_of(module, room)
        for imported, late in imports.items():
            end = part_of(imported, room) if room_of(imported) == room else None
            if end is None or start in (end, "door") or end in ARROWS[room][start]:
                continue
            if not (late and (room, start, end) in LATE_ARROWS):
                found.append(f"{module} imports {imported}: {start} -> {end}")
    return found


def methods(path: Path, name: str) -> list[str]:
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    body = next(node for node in classes if node.name == name).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# ---- the rules are kept


@pytest.mark.parametrize("room", ALLOWED)
def test_no_room_imports_against_the_arrows(room):
    files = files_of(REPOSITORY, room)
    assert files
    assert {str(path): bad for path in files if (bad := forbidden_imports(REPOSITORY, path, room))} == {}


def test_no_circle_among_all_modules():
    found = circle(REPOSITORY)
    assert not found, " <- ".join(found)


def test_folders_import_along_the_arrows():
    found = against_the_arrows(REPOSITORY)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("room", ARROWS)
def test_every_folder_is_in_the_table_whose_arrows_point_one_way(room):
    table = ARROWS[room]
    assert set().union(*table.values()) <= set(table)
    TopologicalSorter(table).prepare()  # raises an error that shows the circle
    packages = {path.parent for path in (REPOSITORY / room).rglob("__init__.py")} - {REPOSITORY / room}
    assert {
        path.name for path in packages if part_of(module_of(REPOSITORY, path / "__init__.py"), room) == "top"
    } == set()


@pytest.mark.parametrize(("room", "most"), MOST_ENTRIES.items())
def test_a_room_can_be_overlooked(room, most):
    entries = [path.name for path in (REPOSITORY / room).iterdir() if path.name != "__pycache__"]
    assert len(entries) <= most, sorted(entries)


def test_no_file_is_too_long():
    lines = {
        str(path.relative_to(REPOSITORY)): len(path.read_text(encoding="utf-8").splitlines())
        for room in ALLOWED
        for path in files_of(REPOSITORY, room)
    }
    assert {path: count for path, count in lines.items() if count > LONGER_FILES.get(path, MOST_LINES)} == {}


def test_the_trainer_has_few_methods():
    found = methods(REPOSITORY / "training" / "trainer.py", "SiglipExtTrainer")
    assert found
    assert len(found) <= MOST_METHODS, found


# ---- an offender is seen


@pytest.fixture
def small_house(tmp_path):
    """A tree with the folders of the rooms, in which all is well."""
    contents = {
        f"{PACKAGE}/__init__.py": "from .stock import native\n",
        f"{PACKAGE}/stock.py": "native = 1\n",
        f"{PACKAGE}/losses/__init__.py": "from .contrastive import loss\n",
        f"{PACKAGE}/losses/contrastive.py": "def loss():\n    from .xla import tiled\n",
        f"{PACKAGE}/losses/xla/__init__.py": "",
        f"{PACKAGE}/losses/xla/tiled.py": "from ..tiles import rows\n",
        f"{PACKAGE}/losses/tiles.py": "rows = 1\n",
        "training/__init__.py": "from .trainer import Trainer\n",
        "training/trainer.py": "from modeling_siglip_ext import native\nfrom .data import pixels\n",
        "training/data/__init__.py": "",
        "training/data/pixels.py": "import modeling_siglip_ext.stock\n",
        "training/run/__init__.py": "",
        "training/run/train.py": "from ..trainer import Trainer\n",
        "conversion/errors.py": "",
        "evaluation/session.py": "",
        "model_cards/__init__.py": "",
    }
    for name, text in contents.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def add(root: Path, name: str, line: str) -> None:
    path = root / name
    path.write_text(path.read_text() + line + "\n")


def test_a_house_in_order_passes(small_house):
    assert circle(small_house) == []
    assert against_the_arrows(small_house) == []
    assert import_graph(small_house)["modeling_siglip_ext.training.trainer"] == {
        "modeling_siglip_ext": False,
        "modeling_siglip_ext.training.data.pixels": False,
    }


@pytest.mark.parametrize(
    "line",
    [
        "from ..run.train import train",
        "from ..run import train",
        "from modeling_siglip_ext.training.run import train",
        "import modeling_siglip_ext.training.run.train as other",
        "def later():\n    from ..run.train import train",
        "class Late:\n    def later(self):\n        from ..run import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..run.train import train",
    ],
)
def test_an_import_that_closes_a_circle_is_seen(small_house, line):
    add(small_house, "training/data/pixels.py", line)
    assert {name.rpartition(".")[2] for name in circle(small_house)} == {"pixels", "train", "trainer"}
    assert against_the_arrows(small_house) == [
        "modeling_siglip_ext.training.data.pixels imports modeling_siglip_ext.training.run.train: data -> run"
    ]


def test_a_late_circle_passes_only_if_listed_and_late(small_house, monkeypatch):
    modules = "modeling_siglip_ext.training.data.pixels", "modeling_siglip_ext.training.trainer"
    add(small_house, "training/data/pixels.py", "def later():\n    from ..trainer import Trainer")
    assert circle(small_house)
    monkeypatch.setitem(LATE_CIRCLES, modules, "for this test")
    assert circle(small_house) == []
    add(small_house, "training/data/pixels.py", "from ..trainer import Trainer")
    assert circle(small_house)


@pytest.mark.parametrize(
    ("name", "line", "arrow"),
    [
        ("training/trainer.py", "from .run.train import train", "top -> run"),
        ("training/data/pixels.py", "from .. import Trainer", "data -> door"),
        ("modeling_siglip_ext/stock.py", "from . import native", "top -> door"),
        ("modeling_siglip_ext/losses/tiles.py", "from ..stock import native", "losses -> top"),
        ("modeling_siglip_ext/losses/tiles.py", "from .xla import tiled", "losses -> losses.xla"),  # not late
    ],
)
def test_an_import_against_the_arrows_is_seen(small_house, name, line, arrow):
    add(small_house, name, line)
    assert [found.rpartition(": ")[2] for found in against_the_arrows(small_house)] == [arrow]


def test_the_arrow_test_sees_an_offender(tmp_path):
    offender = tmp_path / "evaluation" / "deep" / "offender.py"
    offender.parent.mkdir(parents=True)
    offender.write_text("def f():\n    from ...training.trainer import X\n")
    assert forbidden_imports(tmp_path, offender, "evaluation") == {
        "modeling_siglip_ext.training.trainer",
        "modeling_siglip_ext.training.trainer.X",
    }
    offender.write_text("from modeling_siglip_ext import conversion, SiglipExtModel\n")
    assert forbidden_imports(tmp_path, offender, "evaluation") == {"modeling_siglip_ext.conversion"}


# ---- how rooms are installed and imported


@pytest.mark.parametrize("room", ["training", "conversion", "evaluation", "serving"])
def test_a_bare_import_of_a_room_says_what_to_do(room):
    result = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"modeling_siglip_ext.{room}" in result.stderr
    assert "pip install" in result.stderr


def test_every_package_folder_is_listed_in_setup_cfg():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg")
    folders = {path.parent for room in ALLOWED for path in (REPOSITORY / room).rglob("__init__.py")}
    packages = [folder.relative_to(REPOSITORY).parts for folder in folders]
    installed = {".".join(parts if parts[0] in ALONE else (PACKAGE, *parts)) for parts in packages}
    assert set(settings["options"]["packages"].split()) == installed
