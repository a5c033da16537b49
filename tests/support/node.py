"""transformers.js, as npm installs it: once, in a cache folder outside of the repository."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


HERE = Path(__file__).resolve().parents[1] / "conversion" / "export" / "node"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "siglip-ext-tests"


def installed() -> Path:
    """The folder with the packages; skips the test where there is no node, or no way to get them."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    package = (HERE / "package.json").read_bytes()
    folder = CACHE / f"npm-{hashlib.sha256(package).hexdigest()[:12]}"
    if (folder / "complete").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_bytes(package)
    # its packages hold what the CPU needs; the script would fetch what a GPU does
    settings = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    command = ["npm", "install", "--no-audit", "--no-fund", "--fetch-retries=1"]
    result = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=600)
    if result.returncode:
        pytest.skip(f"npm cannot install transformers.js: {result.stderr.strip().splitlines()[:1]}")
    (folder / "complete").touch()
    return folder


def ask_node(ask: str, **about):
    """What `ask.cjs` answers."""
    packages = installed()
    with TemporaryDirectory() as folder:
        question, answer = Path(folder) / "question.json", Path(folder) / "answer.json"
        question.write_text(json.dumps({"ask": ask, **about}))
        command = ["node", HERE / "ask.cjs", packages, question, answer]
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        assert answer.is_file(), result.stderr
        return json.loads(answer.read_text())
