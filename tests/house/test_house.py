"""The house rules: which room may look at which, and that rooms are not imported under their folder names."""

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "modeling_siglip_ext"
# what each room may import, besides itself
ALLOWED = {
    PACKAGE: set(),
    "evaluation": {PACKAGE},
    "training": {PACKAGE, "evaluation"},
    "conversion": {PACKAGE},
    "model_cards": set(),
}


def room_of(module: str) -> str | None:
    """The room that a dotted module name leads into, None for other packages."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return parts[0] if parts[0] in ALLOWED else None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else PACKAGE


def imported_modules(path: Path, room: str) -> set[str]:
    """Absolute names of all modules that a file imports, at any depth of its code."""
    package = [PACKAGE] if room == PACKAGE else [PACKAGE, room]
    package += path.relative_to(REPOSITORY / room).parent.parts
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def forbidden_imports(path: Path, room: str) -> set[str]:
    rooms = {name: room_of(name) for name in imported_modules(path, room)}
    # `from modeling_siglip_ext import x` names the package and the member: only members decide for other rooms
    return {
        name for name, other in rooms.items() if other is not None and other != room and other not in ALLOWED[room]
    }


@pytest.mark.parametrize("room", ALLOWED)
def test_no_room_imports_against_the_arrows(room):
    files = sorted((REPOSITORY / room).rglob("*.py"))
    assert files
    assert {str(path): bad for path in files if (bad := forbidden_imports(path, room))} == {}


def test_the_arrow_test_sees_an_offender(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "REPOSITORY", tmp_path)
    offender = tmp_path / "evaluation" / "deep" / "offender.py"
    offender.parent.mkdir(parents=True)
    offender.write_text("def f():\n    from ...training.trainer import X\n")
    assert forbidden_imports(offender, "evaluation") == {
        "modeling_siglip_ext.training.trainer",
        "modeling_siglip_ext.training.trainer.X",
    }
    offender.write_text("from modeling_siglip_ext import conversion, SiglipExtModel\n")
    assert forbidden_imports(offender, "evaluation") == {"modeling_siglip_ext.conversion"}


@pytest.mark.parametrize("room", ["training", "conversion", "evaluation"])
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
    installed = {".".join(parts if parts[0] == PACKAGE else (PACKAGE, *parts)) for parts in packages}
    assert set(settings["options"]["packages"].split()) == installed
