"""Step time and state of the optimisers at the size of SigLIP B/16-224, against torch's fused AdamW.

    python benchmarks/optimizers.py              # one thread and all, about two minutes
    python benchmarks/optimizers.py --threads 1
    python benchmarks/optimizers.py scaling_vit_adafactor --without-numba    # the step as tensor operations

Times are medians of 10 alternating pairs with 95 % intervals (`timing.py`). All parameters have random gradients; the
groups are those of training, with weight decay on kernels. Results are kept in benchmarks/results/optimizers.json; the
table beside it is drawn from that.
"""

import argparse
import platform
import sys
from dataclasses import asdict

import torch
from report import RESULTS, publish, store, stored, table
from timing import alternate

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training.optimizers import OPTIMIZERS, build_optimizer
from modeling_siglip_ext.training.optimizers.parameter_groups import GroupSettings, kernel_names, parameter_groups


PEER = "adamw"


def measure(name: str, threads: int, rounds: int) -> dict:
    """Time of a step and size of the state of one optimiser, both as a multiple of torch's fused AdamW."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = SiglipExtModel(SiglipExtConfig())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    settings = GroupSettings(1e-6, 1e-4, "big_vision", {}, {}, None)
    optimizers = {
        key: build_optimizer(key, parameter_groups(model, kernel_names(model), settings)) for key in (name, PEER)
    }
    ratio = alternate(optimizers[name].step, optimizers[PEER].step, rounds=rounds)
    sizes = {key: state_bytes(optimizer) for key, optimizer in optimizers.items()}
    return {
        **asdict(ratio),
        "text": str(ratio),
        "state": sizes[name] / sizes[PEER],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values)


def cells(key: str, one: dict) -> list[str]:
    seconds = [f"{one[side]:.3f}" for side in ("seconds_a", "seconds_b")]
    return [*key.rsplit(" ", 1), one["text"], *seconds, f"{one['state']:.3f}"]


def render(results: dict[str, dict]) -> list[str]:
    one = next(iter(results.values()))
    return [
        "# Optimisers at the size of B/16-224",
        "",
        "A step and the state, as multiples of torch's fused AdamW; medians of alternating pairs, 95 % intervals.",
        "",
        *table(
            ("optimiser", "threads:", "step:", "seconds:", "AdamW's seconds:", "state:"),
            [cells(key, one) for key, one in sorted(results.items())],
        ),
        "",
        f"{one['parameters'] / 1e6:.1f} million parameters, float32, CPU ({one['machine']}), torch {one['torch']}.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in OPTIMIZERS if name != PEER]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all unless given")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, torch.get_num_threads()}))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--without-numba", action="store_true", help="as where it is not installed")
    arguments = parser.parse_args()
    if arguments.without_numba:
        sys.modules["numba"] = None
    kept = RESULTS / "optimizers.json"
    results = stored(kept)
    for name in arguments.names or names:
        for threads in arguments.threads:
            label = f"{name}, without numba" if arguments.without_numba else name
            results[f"{label} {threads}"] = one = measure(name, threads, arguments.rounds)
            print(label, threads, one["text"], f"state {one['state']:.3f}", flush=True)
            store(kept, results)
    publish(kept.with_suffix(".md"), render(results))


if __name__ == "__main__":
    main()
