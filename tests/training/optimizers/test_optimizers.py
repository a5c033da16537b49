"""The optimisers against big_vision's own steps, naive numpy, themselves after a resume, and over two processes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.arguments import SiglipExtTrainingArguments
from modeling_siglip_ext.training.optimizers import (
    OPTIMIZERS,
    AdamWBf16,
    ScalingViTAdafactor,
    build_optimizer,
    momentum,
    scaling_vit_adafactor,
)
from modeling_siglip_ext.training.optimizers.scaling_vit_adafactor import factored_dims
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.processes import run_worker


FIXTURES = Path(__file__).parents[2] / "fixtures" / "optimizers"
WORKER = Path(__file__).with_name("optimizer_worker.py")


def clipped(fixture, step: int, names: list[str], config: dict) -> dict[str, torch.Tensor]:
    """A fixture's gradients, clipped as big_vision does: by the norm itself, torch's clip_grad_norm_ adds 1e-6."""
    grads = {name: torch.from_numpy(fixture[f"step{step}/grad/{name}"]) for name in names}
    norm = torch.stack([grad.double().square().sum() for grad in grads.values()]).sum().sqrt()
    return {name: grad * (config["grad_clip_norm"] / norm).clamp(max=1).float() for name, grad in grads.items()}


def steps_of(optimizer, parameters: dict, fixture, config: dict):
    """Feed a fixture's gradients, clipped; yields the number of each step after it was made."""
    for step, factor in enumerate(fixture["lr"]):
        for name, grad in clipped(fixture, step, list(parameters), config).items():
            parameters[name].grad = grad.to(parameters[name].dtype)
        for group in optimizer.param_groups:
            group["lr"] = config["lr"] * float(factor)
        optimizer.step()
        yield step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["compiled loops", "in blocks", "together"])
@pytest.mark.parametrize(
    ("name", "kind"), [("scaling_vit_adafactor", ScalingViTAdafactor), ("adam_bf16_momentum", AdamWBf16)]
)
def test_the_steps_of_big_vision(name, kind, way, dtype, monkeypatch):
    """Eight steps, each parameter to 1e-6 by norm (measured: 1.5e-7).

    Single elements cannot be pinned closer than the fixture's own float32 rounded: where a first moment lies within a
    last bit of the middle between two bfloat16 numbers, it may go to the other one. That puts one element off by
    1.0e-6 of the largest in float32, and another one by 1.3e-6 in float64; see the test below.
    """
    if way == "in blocks":
        monkeypatch.setattr(scaling_vit_adafactor, "imported_kernels", lambda: None)
    fixture = np.load(FIXTURES / f"{name}.npz")
    config = json.loads((FIXTURES / f"{name}.json").read_text())["config"]
    names = [key.removeprefix("init/") for key in fixture.files if key.startswith("init/")]
    parameters = {name: torch.nn.Parameter(torch.from_numpy(fixture[f"init/{name}"]).to(dtype)) for name in names}
    decay = {name: config["wd"] / config["lr"] if name.endswith("/kernel") else 0.0 for name in names}
    groups = [{"params": [parameter], "weight_decay": decay[name]} for name, parameter in parameters.items()]
    optimizer = kind(groups, foreach=way == "together")
    for step in steps_of(optimizer, parameters, fixture, config):
        for name, parameter in parameters.items():
            expected = torch.from_numpy(fixture[f"step{step}/param/{name}"]).to(dtype)
            error = parameter.detach() - expected
            assert error.norm() <= 1e-6 * expected.norm(), (step, name)
            assert (error.abs() > 1e-6 * expected.abs().max()).sum() <= 1, (step, name)
            assert error.abs().max() <= 2e-6 * expected.abs().max(), (step, name)


def adafactor_moments(grads: list[np.ndarray], factored: bool) -> Iterator[np.ndarray]:
    """First moments of ScalingViT-Adafactor for a matrix, in float64 numpy, before they become bfloat16."""
    first, square, rows, columns = (np.zeros(1) for _ in range(4))
    for step, grad in enumerate(grads, start=1):
        beta2 = min(0.95, 1 - step**-0.8)
        rows = beta2 * rows + (1 - beta2) * (grad**2).mean(1, keepdims=True)
        columns = beta2 * columns + (1 - beta2) * (grad**2).mean(0, keepdims=True)
        square = beta2 * square + (1 - beta2) * grad**2
        estimate = rows * columns / columns.mean() if factored else square
        update = 0.1 * grad / np.sqrt(estimate) + bfloat16(first * 0.8984375)
        first = bfloat16(update)
        yield update


def bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).float().bfloat16().double().numpy()


def adafactor(weight: np.ndarray, grads: list[np.ndarray], lr: float, factored: bool) -> np.ndarray:
    """ScalingViT-Adafactor in float64 numpy for a matrix, but for the bfloat16 of the first moment."""
    for update in adafactor_moments(grads, factored):
        weight = weight - lr * (update + 0.1 * weight)
    return weight


@pytest.mark.parametrize(("name", "place"), [("table/embedding", (64, 2)), ("dense/kernel", (46, 16))])
def test_where_the_fixture_rounds_to_the_other_neighbour(name, place):
    """The elements that are off by more than the rest: at some step the exact moment lies within a last bit of float32
    of the middle between two bfloat16 numbers, so that float32 may round it either way."""
    fixture = np.load(FIXTURES / "scaling_vit_adafactor.npz")
    config = json.loads((FIXTURES / "scaling_vit_adafactor.json").read_text())["config"]
    names = [key.removeprefix("init/") for key in fixture.files if key.startswith("init/")]
    grads = [clipped(fixture, step, names, config)[name].double().numpy() for step in range(8)]
    gaps = []
    for moment in adafactor_moments(grads, factored=True):
        mantissa, _ = np.frexp(np.abs(moment))
        gaps.append(np.abs(mantissa * 2**8 % 1 - 0.5) * 2**16)  # times 2**8 bfloat16 are whole, 2**24 float32
    gaps = np.stack(gaps).min(0)  # in last bits of float32
    assert gaps[place] < 1
    assert np.median(gaps) > 100


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(6, 14),
    st.integers(0, 2**31),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_matrices_of_any_shape_in_blocks_of_any_size(rows, columns, block, seed, dtype):
    """In float64 by tensor operations, in float32 by compiled loops."""
    generator = np.random.default_rng(seed)
    start, *grads = generator.standard_normal((4, rows, columns))
    expected = adafactor(start, grads, 0.01, factored=min(rows, columns) >= 32)
    parameter = torch.nn.Parameter(torch.from_numpy(start).to(dtype, copy=True))
    optimizer = ScalingViTAdafactor([parameter], lr=0.01, weight_decay=0.1)
    before = momentum.BLOCK
    momentum.BLOCK = 2**block
    try:
        for grad in grads:
            parameter.grad = torch.from_numpy(grad).to(dtype)
            optimizer.step()
    finally:
        momentum.BLOCK = before
    # a step of 0.01 times a moment that may be rounded the other way
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(parameter.detach().numpy() - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 4, 40), (2, 0)),  # an attention kernel of big_vision: the heads are left whole
        ((768, 768), (0, 1)),
        ((32, 31), None),
        ((768, 3, 16, 16), None),
        ((768, 3, 32, 32), (3, 0)),
        ((768,), None),
        ((), None),
    ],
)
def test_which_sides_are_factored(shape, expected):
    assert factored_dims(shape, 32) == expected


def test_lion_against_numpy():
    generator = np.random.default_rng(0)
    weight, *grads = generator.standard_normal((6, 8, 5))
    parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    optimizer = build_optimizer("lion", [{"params": [parameter], "lr": 0.01, "weight_decay": 0.1}])
    first = np.zeros_like(weight)
    for grad in grads:
        parameter.grad = torch.from_numpy(grad)
        optimizer.step()
        update = np.sign(0.9 * first + 0.1 * grad)
        first = 0.99 * first + 0.01 * grad
        weight = weight - 0.01 * (update + 0.1 * weight)
    np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("convention", ["torch", "big_vision"])
def test_weight_decay_of_every_optimizer(our_model, arguments, name, convention):
    """Without gradients a step is weight decay alone: lr × wd, or without the peak rate, on kernels only."""
    args = arguments(
        optim=name,
        learning_rate=1e-2,
        weight_decay=0.5,
        weight_decay_convention=convention,
        lr_scheduler_type="linear",
        warmup_steps=2,
    )
    trainer = SiglipExtTrainer(model=our_model.double(), args=args)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    before = {name: parameter.detach().clone() for name, parameter in our_model.named_parameters()}
    for _ in range(4):
        for parameter in our_model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    peak = 0.5 if convention == "big_vision" else 0.5 * 1e-2
    kept = np.prod([1 - peak * factor for factor in (0.0, 0.5, 1.0, 0.5)])
    decayed = set(trainer.get_decay_parameter_names(our_model))
    for key, parameter in our_model.named_parameters():
        expected = before[key] * (kept if key in decayed else 1.0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0, msg=key)


@pytest.mark.parametrize("kind", [ScalingViTAdafactor, AdamWBf16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_state_goes_on_bit_for_bit(kind, dtype, tmp_path):
    """torch would bring moments back in the precision of the parameter."""

    def train(parameters, optimizer, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
            optimizer.step()

    torch.manual_seed(0)
    start = [torch.randn(shape).to(dtype) for shape in ((40, 36), (5, 7), (9,), ())]
    ours, other = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    whole = kind(ours, lr=0.01)
    train(ours, whole, range(3))
    torch.save(whole.state_dict(), tmp_path / "optimizer.pt")
    for parameter, source in zip(other, ours):
        parameter.data.copy_(source)
    train(ours, whole, range(3, 6))
    resumed = kind(other, lr=0.01)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(other, resumed, range(3, 6))
    for one, two in zip(ours, other):
        assert torch.equal(one, two)
        for key, value in whole.state[one].items():
            assert resumed.state[two][key].dtype == value.dtype
            assert torch.equal(resumed.state[two][key], value)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_is_the_uninterrupted_one(stock_model, our_model, arguments, rows, processor, tmp_path, name):
    start = {key: value.clone() for key, value in our_model.state_dict().items()}

    def train(output: str, **resume) -> dict[str, torch.Tensor]:
        our_model.load_state_dict(start)
        args = arguments(
            optim=name,
            output_dir=str(tmp_path / output),
            learning_rate=1e-3,
            max_steps=6,
            save_strategy="steps",
            save_steps=3,
        )
        trainer = SiglipExtTrainer(
            model=our_model,
            args=args,
            train_dataset=ImageTextDataset(rows),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )
        trainer.train(**resume)
        return {key: value.clone() for key, value in our_model.state_dict().items()}

    uninterrupted = train("run")
    resumed = train("run", resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    for key, value in uninterrupted.items():
        assert torch.equal(resumed[key], value), key
        assert not torch.equal(value, start[key]) or not value.is_floating_point(), key


def test_the_state_is_a_quarter_of_adamws():
    """At the widths of B/16: tokens, positions, patches, a layer's matrices and vectors."""
    shapes = [(32000, 768), (196, 768), (768, 3, 16, 16), (3072, 768), (768, 3072), (2304, 768), (768,), ()]
    sizes = {}
    for name in ("scaling_vit_adafactor", "adamw"):
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = build_optimizer(name, [{"params": parameters, "lr": 1e-3}])
        optimizer.step()
        values = [value for state in optimizer.state.values() for value in state.values()]
        sizes[name] = sum(value.numel() * value.element_size() for value in values)
    assert sizes["scaling_vit_adafactor"] <= 0.30 * sizes["adamw"]


def test_names(tmp_path):
    with pytest.raises(ValueError, match="adafactr"):
        SiglipExtTrainingArguments(output_dir=str(tmp_path), optim="adafactr")
    with pytest.raises(ValueError, match="choose from scaling_vit_adafactor, adamw"):
        build_optimizer("adafactr", [])


def test_lion_without_its_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"siglip-ext\[lion\]"):
        SiglipExtTrainingArguments(output_dir=str(tmp_path), optim="lion")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_sharded_steps_are_those_of_one_process(processes, tmp_path):
    run_worker(WORKER, tmp_path, processes=processes)
    assert (tmp_path / "equal").read_text() == "adamw_bf16 scaling_vit_adafactor"
