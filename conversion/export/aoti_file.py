"""One tower to a package of AOTInductor: machine code for this kind of CPU and this torch, with the weights in it.

The file says what it takes, because the code itself reads whatever memory it is given.
"""

import json
from pathlib import Path

import torch

from siglip_ext_runtime.backends import ABOUT

from ..errors import CheckpointError
from .onnx_file import TowerFile, program_of, quiet
from .towers import Tower


# As many threads as torch has where it runs, no instructions but those that torch says this CPU has (not every torch
# can be told), and no headers compiled for a second use, which takes twice the time and never comes.
SETTINGS = {"cpp.dynamic_threads": True, "cpp.march": "", "aot_inductor.precompile_headers": False}


def write_aoti(tower: Tower, folder: Path, limits: dict[str, int]) -> TowerFile:
    """Write `<tower>.pt2`.

    Args:
        limits: the most that each free dimension may be.

    Raises:
        CheckpointError: torch cannot trace the tower, or the compiler does not compile it.
    """
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.utils import fresh_cache

    types = {name: str(example.dtype).removeprefix("torch.") for name, example in tower.inputs.items()}
    shapes = {
        name: [tower.free.get(name, {}).get(place, size) for place, size in enumerate(example.shape)]
        for name, example in tower.inputs.items()
    }
    about = {"types": types, "shapes": shapes, "limits": limits, "outputs": tower.outputs}
    known = {name: value for name, value in SETTINGS.items() if name in config.get_config_copy()}
    path = folder / f"{tower.name}.pt2"
    with quiet(), torch.no_grad():
        program = program_of(tower, limits, "AOTInductor")
        try:
            with fresh_cache(dir=str(folder)):  # its drafts hold the weights
                settings = {**known, "aot_inductor.metadata": {ABOUT: json.dumps(about)}}
                aoti_compile_and_package(program, package_path=str(path), inductor_configs=settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"torch cannot compile this {tower.name}: {reason}") from error
    return TowerFile(tower.name, path)
