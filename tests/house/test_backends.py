"""No code of the package names a device's backend, so that whatever `torch.accelerator` finds can serve.

A new accelerator (TorchTPU brings `tpu` and `tpu_dist`) works where code asks for "the accelerator" and "the default
backend"; a name in the code would leave it out without a word. Comments and docstrings may name what they like.
"""

import ast
import re
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("modeling_siglip_ext", "evaluation", "training", "conversion", "model_cards")
NAMED = re.compile(r"(?<![a-z])(nccl|gloo|cuda)(?![a-z])", re.IGNORECASE)
ALLOWED = {  # a file: why it must name one
    "modeling_siglip_ext/gpu.py": "kernels of CUDA's libraries that torch does not choose by itself",
    "modeling_siglip_ext/losses/tiles.py": "Triton's kernels, and products with another dtype",
}


def docstrings(tree: ast.AST) -> set[ast.expr]:
    """Strings that stand as statements: docstrings of all kinds."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def words(node: ast.AST) -> list[str]:
    """What a node of the code names: strings, variables, attributes, imports, arguments."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    fields = ("id", "attr", "arg", "name", "module", "asname")
    return [value for field in fields if isinstance(value := getattr(node, field, None), str)]


def named_backends(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = docstrings(tree)
    return [
        f"line {getattr(node, 'lineno', 0)}: {word}"
        for node in ast.walk(tree)
        if not (isinstance(node, ast.Constant) and node in prose)
        for word in words(node)
        if NAMED.search(word)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_no_code_names_a_backend(room):
    files = [path for path in (REPOSITORY / room).rglob("*.py") if str(path.relative_to(REPOSITORY)) not in ALLOWED]
    assert files
    assert {str(path.relative_to(REPOSITORY)): found for path in files if (found := named_backends(path))} == {}


def test_the_backend_test_sees_offenders(tmp_path):
    path = tmp_path / "offender.py"
    for line in (
        'dist.init_process_group("nccl")',
        "torch.cuda.synchronize()",
        'device = f"cuda:{rank}"',
        'model.to(device="cuda")',
        "import torch.cuda",
        "from torch.cuda import amp",
        'run(help="default: cuda")',
    ):
        path.write_text(f"def f():\n    {line}\n")
        assert named_backends(path), line
    path.write_text('"""Works on cuda."""\n\n\ndef f():\n    """With gloo, too."""\n    return 1  # nccl\n')
    assert named_backends(path) == []


def imported_at_once(path: Path) -> set[str]:
    """Last and first names of the modules that a file imports when it is imported itself."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            names |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_torch_xla_is_imported_late(room):
    """Only by modules in folders and files called xla, which others import on meeting an XLA tensor."""
    files = [path for path in (REPOSITORY / room).rglob("*.py") if "xla" not in (path.stem, path.parent.name)]
    assert files
    assert {str(path): found for path in files if (found := imported_at_once(path) & {"torch_xla", "xla"})} == {}


@pytest.mark.parametrize("line", ["import torch_xla.runtime", "from ..losses.xla.tiled import f", "from . import xla"])
def test_the_late_import_test_sees_offenders(tmp_path, line):
    path = tmp_path / "offender.py"
    path.write_text(f"{line}\n")
    assert imported_at_once(path) & {"torch_xla", "xla"}
    path.write_text(f"def f():\n    {line}\n")
    assert not imported_at_once(path) & {"torch_xla", "xla"}
