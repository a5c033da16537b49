"""One tower to a package of AOTInductor: machine code for this kind of CPU and this torch, with the weights in it.

The package says what it takes and gives, which the code itself does not.
"""

import json
from pathlib import Path

import torch

from siglip_ext_runtime.backends import ABOUT

from ..errors import CheckpointError
from .onnx_file import TowerFile, program_of, quiet
from .towers import Tower


SETTINGS = {
    "cpp.dynamic_threads": True,  # as many as torch has where it runs
    "cpp.march": "",  # no instructions but those that torch says this CPU has; an older torch cannot be told
    "aot_inductor.check_lowerbound": False,  # which it takes for 2, and 1 is judged
    "aot_inductor.precompile_headers": False,  # for a second use, which does not come
}


def write_aoti(tower: Tower, folder: Path, limits: dict[str, int]) -> TowerFile:
    """Write `<tower>.pt2`.

    Args:
        limits: the most that each free dimension may be, and the number of tokens.

    Raises:
        CheckpointError: torch cannot trace the tower, or the compiler does not compile it.
    """
    from torch._inductor import aoti_compile_and_package, config
    from torch._inductor.utils import fresh_cache

    types = {name: str(example.dtype).removeprefix("torch.") for name, example in tower.inputs.items()}
    about = {"types": types, "vocabulary": limits["vocabulary"], "outputs": tower.outputs}
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
