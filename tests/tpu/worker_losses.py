"""The losses on XLA:CPU devices against one torch process. Usage: worker_losses.py one|spmd|threads"""

import itertools
import sys
import threading

import cases
import pytest
import torch
import torch_xla
import torch_xla.core.xla_model as xm
import torch_xla.debug.metrics as met
import torch_xla.runtime as xr

from modeling_siglip_ext.losses.xla import devices as xla
from modeling_siglip_ext.losses.xla import tiled as xla_losses


TOLERANCE = 1e-6
TOGETHER = threading.Barrier(4)


def check(case: str, got: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = TOLERANCE) -> None:
    errors = cases.errors(got, expected)
    assert max(errors.values()) <= tolerance, f"{case}: {errors}"
    print(f"{case}: {max(errors.values()):.1e}", flush=True)


def check_nothing_went_through_the_host() -> None:
    fallbacks = [name for name in met.counter_names() if name.startswith("aten::")]
    assert not fallbacks, f"operators that XLA lacks: {fallbacks}"


def one() -> None:
    device = torch_xla.device()
    for rows in (8, 512):  # many runs of the loop, and one
        xla_losses.ROWS = rows
        for (name, ids, expected), implementation in itertools.product(cases.cases(), ("eager", "tiled")):
            arguments = [argument.to(device) for argument in cases.batch()]
            options = {"implementation": implementation, "pair_ids": None if ids is None else ids.to(device)}
            got = cases.value_and_gradients(cases.LOSSES[name], arguments, **options)
            check(f"one {name} ids {ids is not None} {implementation} {rows} rows", got, expected)
    locked_towers(device)
    bfloat16(device)
    check_nothing_went_through_the_host()
    for name in cases.LOSSES:
        small, large = (graph(name, pairs, device) for pairs in (1024, 16384))
        counts = cases.instructions(small), cases.instructions(large)
        print(f"{name} instructions: {counts[0]} for 1,024 pairs, {counts[1]} for 16,384", flush=True)
        assert abs(counts[1] - counts[0]) <= 0.1 * counts[0]
        assert cases.largest_array(large) == xla_losses.ROWS * 16384, "more than one run's logits at a time"


def graph(name: str, pairs: int, device: torch.device) -> str:
    """The graph of a loss and its gradients, which is not run."""
    arguments = [argument.to(device) for argument in cases.batch(pairs, width=64)]
    outputs = cases.value_and_gradients(cases.LOSSES[name], arguments, implementation="tiled")
    return torch_xla._XLAC._get_xla_tensors_hlo(outputs)


def locked_towers(device: torch.device) -> None:
    """Only some gradients are wanted, or none."""
    for name, needs in itertools.product(cases.LOSSES, itertools.product((False, True), repeat=3)):
        results = []
        for arguments in (cases.batch(), [argument.to(device) for argument in cases.batch()]):
            for argument, need in zip(arguments, needs):
                argument.requires_grad_(need)
            value = cases.LOSSES[name](*arguments, implementation="tiled")
            if any(needs):
                value.backward()
            results.append([value.detach(), *(x.grad for x, need in zip(arguments, needs) if need)])
        check(f"one {name} gradients {needs}", results[1], [tensor.double() for tensor in results[0]])


def bfloat16(device: torch.device) -> None:
    """Embeddings in bfloat16: the float64 loss of the rounded embeddings, but for the rounding of the gradients."""
    for name in cases.LOSSES:
        rounded = [argument.bfloat16() for argument in cases.batch()[:2]] + cases.batch()[2:]
        expected = cases.value_and_gradients(cases.LOSSES[name], [x.double() for x in rounded], implementation="eager")
        got = cases.value_and_gradients(cases.LOSSES[name], [x.to(device) for x in rounded], implementation="tiled")
        assert got[0].dtype == torch.float32
        assert got[1].dtype == torch.bfloat16
        check(f"one {name} bfloat16 value", got[:1], expected[:1])
        check(f"one {name} bfloat16", got, expected, tolerance=2**-8)


def spmd() -> None:
    from modeling_siglip_ext.training.components.xla import shard_batch, use_spmd

    use_spmd()
    device, xla_losses.ROWS = torch_xla.device(), 8
    for (name, ids, expected), implementation in itertools.product(cases.cases(), ("eager", "tiled")):
        images, texts, *head = (argument.to(device) for argument in cases.batch())
        rows = shard_batch({"images": images, "texts": texts} | ({} if ids is None else {"ids": ids.to(device)}))
        for tensor in rows.values():
            assert torch_xla._XLAC._get_xla_sharding_spec(tensor).startswith("{devices=[4"), "rows were not spread"
        options = {"implementation": implementation, "pair_ids": rows.get("ids")}
        got = cases.value_and_gradients(cases.LOSSES[name], [images, texts, *head], **options)
        check(f"spmd {name} ids {ids is not None} {implementation}", got, expected)
    check_nothing_went_through_the_host()


def threads() -> None:
    torch_xla.launch(on_one_of_several)


def permuted(value: torch.Tensor, pairs: list[list[int]]) -> torch.Tensor:
    """In place of the instruction, which aborts on XLA:CPU: gather, and take what the pairs say."""
    sources = {target: source for source, target in pairs}
    return xla.XlaDevices().all_gather(value[None])[sources[xr.global_ordinal()]]


def on_one_of_several(index: int) -> None:
    device, xla_losses.ROWS = torch_xla.device(), 8
    rank, world = xr.global_ordinal(), xr.world_size()
    assert world == 4
    devices, xm.collective_permute = xla.XlaDevices(), permuted
    pairs = cases.PAIRS // world
    own = slice(rank * pairs, (rank + 1) * pairs)
    ways = [("eager", "gather"), ("tiled", "gather"), ("tiled", "ring")]
    for (name, ids, expected), (implementation, distribution) in itertools.product(cases.cases(), ways):
        images, texts, *head = (argument.to(device) for argument in cases.batch())
        options = {"implementation": implementation, "distribution": distribution}
        options["pair_ids"] = None if ids is None else ids[own].to(device)
        got = cases.value_and_gradients(cases.LOSSES[name], [images[own], texts[own], *head], **options)
        value, *gradients = got
        everybody = [devices.all_gather(tensor) for tensor in (value[None], *gradients)]
        # the means over the devices, as accelerate takes them: of a row's gradient only its own device has a part
        value, images, texts, *head = everybody
        got = [value.mean(), images / world, texts / world, *(number.mean()[None] for number in head)]
        TOGETHER.wait()  # so that they compile side by side and come to the collectives at about the same time
        torch_xla.sync()
        check(f"rank {rank} {name} ids {ids is not None} {implementation} {distribution}", got, expected)
    check_nothing_went_through_the_host()
    weights(rank, device)


def weights(rank: int, device: torch.device) -> None:
    """The Trainer's check before the first step: one device with weights of its own stops all of them."""
    from modeling_siglip_ext.training.components.xla import check_equal_weights

    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6).view(2, 3))
        layer.bias.zero_()
    TOGETHER.wait()
    check_equal_weights(layer.to(device))
    with torch.no_grad():
        layer.bias[1] += rank == 2
    TOGETHER.wait()
    with pytest.raises(RuntimeError, match=r"^bias differs between the devices"):
        check_equal_weights(layer)
    print(f"rank {rank} refuses other weights", flush=True)


if __name__ == "__main__":
    {"one": one, "spmd": spmd, "threads": threads}[sys.argv[1]]()
    print("all agree")
