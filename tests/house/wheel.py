"""Build the wheel, install it beside the dependencies already here, and use it from outside the repository.

Run by `make wheel-test`. An editable install finds every file of the repository; only the wheel shows whether the
mapped packages and their data files were packed.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path


REPOSITORY = Path(__file__).resolve().parents[2]

USE_IT = """
import importlib.util, pathlib, sys
import modeling_siglip_ext
from modeling_siglip_ext import conversion, evaluation, losses, serving, training
from modeling_siglip_ext.training.data.emoji import load_emoji

location = pathlib.Path(modeling_siglip_ext.__file__)
assert "site-packages" in location.parts and pathlib.Path(sys.argv[1]) not in location.parents[2:], location
assert pathlib.Path(training.__file__).parent.parent == location.parent
assert importlib.util.find_spec("training") is None, "the rooms must not be installed under generic names"
assert load_emoji("test").num_rows == 502
tower = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
config = modeling_siglip_ext.SiglipExtConfig(
    text_config=dict(tower, vocab_size=99), vision_config=dict(tower, image_size=32)
)
modeling_siglip_ext.SiglipExtModel(config)
print("wheel: imports, data files and a model work outside the repository")
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run(sys.executable, "-m", "build", "--quiet", "--wheel", "--outdir", str(folder / "dist"), str(REPOSITORY))
        (wheel,) = (folder / "dist").glob("*.whl")
        # torch and the others are gigabytes: the new environment reads those of this one, but not its editable install
        venv.create(folder / "venv", with_pip=False)
        python = folder / "venv" / "bin" / "python"
        (here,) = {Path(entry) for entry in sys.path if Path(entry).name == "site-packages"}
        target = subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
        run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, str(wheel))
        run(str(python), "-c", USE_IT, str(REPOSITORY), cwd=folder, env={**os.environ, "PYTHONPATH": str(here)})
        entry_points = (Path(target) / "bin").glob("siglip-ext-*")
        assert {path.name for path in entry_points} >= {"siglip-ext-train"}, "the command lines are missing"


def run(*command: str, **kwargs) -> None:
    subprocess.run(command, check=True, **kwargs)


if __name__ == "__main__":
    main()
