"""Smoke runs: what a recipe is stays, and every recipe runs from end to end on the bundled emoji."""

import json
import math

import pytest
import torch
from transformers import AutoModel, get_scheduler

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.training.__main__ import main
from modeling_siglip_ext.training.run.recipe import bundled_recipes, parse_recipe, read_recipe
from modeling_siglip_ext.training.run.smoke import shrunk


KEPT = (
    "optim", "learning_rate", "adam_beta1", "adam_beta2", "weight_decay", "weight_decay_convention", "max_grad_norm",
    "lr_scheduler_type", "lock_towers", "vision_lr_factor", "layer_decay", "ema_decay",
)  # fmt: skip
# recipe: optimiser, learning rate, weight decay and its convention, global batch, examples, from the papers
PUBLISHED = {
    "siglip_b16": ("scaling_vit_adafactor", 1e-3, 1e-4, "big_vision", 32 * 1024, 9e9),
    "siglit_b8_1day": ("lion", 1e-4, 1e-7, "big_vision", 4 * 8192, 65_000 * 32_768),
    "siglit_g14_2days": ("scaling_vit_adafactor", 1e-3, 1e-4, "big_vision", 4 * 5120, 107_000 * 20_480),
    "msiglip_b16": ("scaling_vit_adafactor", 1e-3, 1e-4, "big_vision", 32 * 1024, 9e9),
    "resolution": ("scaling_vit_adafactor", 1e-5, 0.0, "torch", 32 * 1024, 5e9),
    "siglip2_b16": ("adamw_bf16", 1e-3, 1e-4, "big_vision", 32 * 1024, 4e10),
    "siglip2_b16_384": ("adamw_bf16", 6.362e-6, 6.362e-7, "big_vision", 32 * 1024, 2e9),
    "siglip2_naflex": ("adamw_bf16", 2.447e-5, 2.447e-6, "big_vision", 32 * 1024, 1.5e10),
    "siglip2_b16_curated": ("adamw_bf16", 1e-5, 0.0, "torch", 32 * 1024, 4e9),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_numbers(name, tmp_path):
    optim, rate, decay, convention, batch, examples = PUBLISHED[name]
    recipe = parse_recipe(name, ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"])
    args, given = recipe.training, recipe.given
    assert (args.optim, args.learning_rate, args.weight_decay) == (optim, rate, decay)
    assert args.weight_decay_convention == convention
    assert args.adam_beta2 == 0.95
    assert args.max_grad_norm == 1.0
    processes = 4 if name.startswith("siglit") else 32
    assert args.per_device_train_batch_size * processes == batch
    assert given.get("max_examples", (given.get("max_steps") or 0) * batch) == examples


def test_a_higher_resolution_takes_the_last_twentieth_of_the_cosine(tmp_path):
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"]
    first, last = (parse_recipe(name, words).training for name in ("siglip2_b16", "siglip2_b16_384"))
    batch, processes = first.per_device_train_batch_size, 32
    whole, warm_up = (examples // (batch * processes) for examples in (first.max_examples, first.warmup_examples))
    rates = []
    for args, total, begins in ((first, whole, warm_up), (last, last.max_examples // (batch * processes), 0)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
        schedule = get_scheduler(args.lr_scheduler_type, optimizer, begins, total, args.lr_scheduler_kwargs)
        rate = schedule.lr_lambdas[0]
        steps = range(0, total // 20 if args is first else total, 1000)
        start = math.ceil(0.95 * whole) if args is first else 0
        rates.append([args.learning_rate * rate(start + step) for step in steps])
    assert rates[1] == pytest.approx(rates[0][: len(rates[1])], rel=1e-2, abs=1e-9)
    assert last.weight_decay / first.weight_decay == pytest.approx(rates[0][0] / first.learning_rate, rel=1e-3)


def test_naflex_takes_the_last_tenth_of_the_cosine(tmp_path):
    recipe = parse_recipe("siglip2_naflex", ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"])
    args, steps = recipe.training, 1000
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, 0, steps, args.lr_scheduler_kwargs)
    for step in range(steps):
        cosine = 1e-3 * (1 + math.cos(math.pi * (0.9 + 0.1 * step / steps))) / 2
        assert schedule.get_last_lr()[0] == pytest.approx(cosine, rel=1e-2)
        if step == 0:  # the weight decay is a share of the schedule, as the learning rate is
            assert args.weight_decay / 1e-4 == pytest.approx(cosine / 1e-3, rel=1e-3)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("name", bundled_recipes())
def test_what_a_smoke_run_keeps(name, tmp_path):
    whole = parse_recipe(name, ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false"])
    small = parse_recipe(name, ["--output_dir", str(tmp_path)], change=shrunk)
    for field in KEPT:
        assert getattr(small.training, field) == getattr(whole.training, field), field
    for field in ("loss_type", "logit_scale_init", "logit_bias_init"):
        assert getattr(small.model, field) == getattr(whole.model, field), field
    assert (small.training.mini_batch_size is None) == (whole.training.mini_batch_size is None)
    assert (small.training.mini_batch_tokens is None) == (whole.training.mini_batch_tokens is None)
    assert (small.training.halve_batches_at is None) == (whole.training.halve_batches_at is None)
    assert (small.data.naflex_lengths is None) == (whole.data.naflex_lengths is None)
    assert small.objectives.weights() == whole.objectives.weights()
    assert small.data.dataset == "emoji"
    assert small.training.max_steps == 12
    warmup = read_recipe(name).get("warmup_examples", read_recipe(name).get("warmup_steps", 0))
    assert (small.training.warmup_steps > 0) == (float(warmup) > 0)
    assert small.training.get_warmup_steps(12) <= 2
    bottleneck = (whole.model.text_config or {}).get("token_embedding_size")
    assert ((small.model.text_config or {}).get("token_embedding_size") is None) == (bottleneck is None)


def test_a_smoke_run_can_be_overridden(tmp_path):
    recipe = parse_recipe("siglip_b16", ["--output_dir", str(tmp_path), "--max_steps", "3"], change=shrunk)
    assert recipe.training.max_steps == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", bundled_recipes())
def test_every_recipe_runs(name, tmp_path):
    assert main([name, "--smoke", "--output_dir", str(tmp_path / "out")]) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 12
    loader = SiglipExtModel if name.startswith(("siglit", "msiglip")) else AutoModel
    assert loader.from_pretrained(tmp_path / "out").num_parameters() < 200_000


@pytest.mark.slow
def test_the_same_command_gives_the_same_numbers(tmp_path):
    weights, losses = [], []
    for name in ("one", "two"):
        main(["siglip_b16", "--smoke", "--output_dir", str(tmp_path / name)])
        state = json.loads((tmp_path / name / "trainer_state.json").read_text())
        losses.append([(entry["loss"], entry["grad_norm"]) for entry in state["log_history"] if "loss" in entry])
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
        torch.rand(3)  # the state of the global generator does not matter
    assert len(losses[0]) == 12
    assert losses[0] == losses[1]
    assert weights[0] == weights[1]
