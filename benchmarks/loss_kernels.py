"""What the Triton kernels of the losses take on a GPU, by its assembler: registers, shared memory, spills.

    python benchmarks/loss_kernels.py [--output FILE]     # no GPU needed, but the package triton

Each kernel is compiled for sm_80 (A100) and sm_90 (H100), for tiles of bfloat16 and float32.
"""

import argparse
import re
import subprocess
import tempfile
import warnings
from pathlib import Path

import triton
from report import RESULTS, store
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeling_siglip_ext.losses import triton_tiles


CAPABILITIES = 80, 90
DTYPES = "bf16", "fp32"
INTEGERS = "stride", "rows", "columns", "offset"
ALIGNED = "stride", "rows", "columns"  # multiples of 16, as batches and widths mostly are
KERNELS = {
    "sigmoid": (triton_tiles._sigmoid_kernel, triton_tiles.WARPS, {"EVEN": True, "DERIVATIVE": True}),
    "log-sum-exp": (triton_tiles._log_sum_exp_kernel, 4, {}),
    "softmax": (triton_tiles._softmax_kernel, triton_tiles.WARPS, {"EVEN": True, "WEIGHTED": False}),
}


def compiled(kernel, warps: int, flags: dict, same_ids: bool, dtype: str, capability: int):
    sizes = {"ROWS": triton_tiles.BLOCK[0], "COLUMNS": triton_tiles.COLUMNS}
    if kernel is triton_tiles._log_sum_exp_kernel:
        sizes["COLUMNS"] = triton_tiles.BLOCK[1]
    constants = {
        name: value for name, value in {"SAME_IDS": same_ids, **flags, **sizes}.items() if name in kernel.arg_names
    }
    types = {"tile": f"*{dtype}", **dict.fromkeys(INTEGERS, "i32"), **dict.fromkeys(constants, "constexpr")}
    types |= dict.fromkeys(("row_ids", "column_ids"), "*i64" if same_ids else f"*{dtype}")
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    aligned = [i for i, (name, kind) in enumerate(signature.items()) if kind.startswith("*") or name in ALIGNED]
    source = ASTSource(
        kernel,
        signature,
        {(kernel.arg_names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def resources(binary: bytes) -> dict[str, int]:
    """Registers and bytes of stack, which is where registers are spilled, of a thread; shared memory of a program."""
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = {name: int(re.search(rf"\b{name}:(\d+)", said.stdout)[1]) for name in ("REG", "STACK", "SHARED", "LOCAL")}
    return {"registers": found["REG"], "spilled": found["STACK"] + found["LOCAL"], "shared": found["SHARED"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "kernels.json")
    path = parser.parse_args().output
    warnings.filterwarnings("ignore", module="triton")  # of what a later version will do by default
    found = {}
    print("| kernel | positives | tile | GPU | registers | shared bytes | spilled |\n|---|---|---|---|---|---|---|")
    for name, (kernel, warps, flags) in KERNELS.items():
        for same_ids in (False, True):
            for dtype in DTYPES:
                for capability in CAPABILITIES:
                    built = compiled(kernel, warps, flags, same_ids, dtype, capability)
                    taken = resources(built.asm["cubin"]) | {"ptx": len(built.asm["ptx"])}
                    where = "by ids" if same_ids else "diagonal", dtype, f"sm_{capability}"
                    found[", ".join((name, *where))] = taken
                    numbers = (str(taken[kind]) for kind in ("registers", "shared", "spilled"))
                    print("| " + " | ".join((name, *where, *numbers)) + " |", flush=True)
    store(path, found)


if __name__ == "__main__":
    main()
