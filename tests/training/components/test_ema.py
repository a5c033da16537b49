"""The averaged weights: the rule, and that Trainer saves, resumes, evaluates and ends with them."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components.ema import WeightAverage
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


def make_trainer(model, args, rows, processor) -> SiglipExtTrainer:
    dataset = ImageTextDataset(rows)
    return SiglipExtTrainer(
        model=model, args=args, train_dataset=dataset, eval_dataset=dataset, data_collator=ImageTextCollator(processor)
    )


class Weights(TrainerCallback):
    """Remembers one weight after every optimiser step."""

    def __init__(self, parameter):
        self.parameter, self.seen = parameter, []

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.seen.append(self.parameter.detach().double().numpy().copy())


def average(start: np.ndarray, weights: list[np.ndarray], decay: float) -> np.ndarray:
    for step, weight in enumerate(weights):
        now = min(decay, (1 + step) / (10 + step))
        start = now * start + (1 - now) * weight
    return start


def test_the_model_ends_with_the_average(our_model, arguments, rows, processor):
    name = "text_model.head.weight"
    parameter = our_model.get_parameter(name)
    start = parameter.detach().double().numpy().copy()
    args = arguments(
        ema_decay=0.25, max_steps=5, eval_strategy="steps", eval_steps=5, save_strategy="steps", save_steps=5
    )
    trainer = make_trainer(our_model, args, rows, processor)
    weights = Weights(parameter)
    trainer.add_callback(weights)
    trainer.train()
    expected = average(start, weights.seen, 0.25)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-6)
    saved = load_file(f"{args.output_dir}/checkpoint-5/model.safetensors")[name].numpy()
    np.testing.assert_array_equal(saved, weights.seen[-1].astype(np.float32), "a checkpoint resumes from raw weights")
    during = trainer.state.log_history[-2]["eval_loss"]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(during, rel=1e-6)


def test_resume(our_model, arguments, rows, processor):
    initial = copy.deepcopy(our_model.state_dict())
    args = arguments(ema_decay=0.5, max_steps=6, save_strategy="steps", save_steps=3)
    make_trainer(our_model, args, rows, processor).train()
    expected = copy.deepcopy(our_model.state_dict())
    our_model.load_state_dict(initial)
    trainer = make_trainer(our_model, args, rows, processor)
    trainer.train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-3")
    for name, value in our_model.state_dict().items():
        assert torch.equal(value, expected[name]), name

    args = arguments(max_steps=6, save_strategy="steps", save_steps=3)
    with pytest.raises(ValueError, match=r"ema_decay is 0\.5 there and None here"):
        make_trainer(our_model, args, rows, processor).train(resume_from_checkpoint=f"{args.output_dir}/checkpoint-3")


def test_half_precision_is_averaged_in_float32():
    model = torch.nn.Linear(4, 4).bfloat16()
    ema = WeightAverage(model, 0.999)
    assert all(value.dtype == torch.float32 for value in ema.average.values())
    ema.copy_to_model()
    assert model.weight.dtype == torch.bfloat16
