"""Objectives with parameters of their own: trained, chunked, saved and resumed beside the dual model."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from modeling_siglip_ext.training.objectives import check_shardable
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.model import ObjectiveModel, TrainedObjective
from modeling_siglip_ext.training.objectives.self_distillation import self_distillation


WEIGHT = 0.3


class Brightness(TrainedObjective):
    """The squared error of a linear map from the patches' mean to the image's mean; it counts its steps."""

    def __init__(self, width: int):
        super().__init__()
        self.map = nn.Linear(width, 1)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, core, outputs, batch):
        found = self.map(outputs.vision_model_output.last_hidden_state.mean(1))[:, 0]
        return (found - batch["pixel_values"].mean((1, 2, 3))).square().mean()

    def after_step(self, core):
        self.steps += 1


@pytest.fixture
def make(arguments, rows, processor):
    """A Trainer of a copy of a model, with the objective beside it."""
    torch.manual_seed(0)
    brightness = Brightness(32)

    def build(model, weight: float | None = WEIGHT, objective=brightness, **changes) -> SiglipExtTrainer:
        dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
        beside = {} if weight is None else {"brightness": (copy.deepcopy(objective), weight)}
        return SiglipExtTrainer(
            model=copy.deepcopy(model),
            args=arguments(**changes),
            train_dataset=dataset,
            eval_dataset=dataset,
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
            objectives=beside,
        )

    return build


@pytest.fixture(params=["our_model", "stock_model"])
def model(request):
    return request.getfixturevalue(request.param)


def step_gradients(trainer: SiglipExtTrainer) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of the first batch of one step and all gradients, in float64."""
    trainer.model.double()
    batch = next(iter(trainer.get_train_dataloader()))
    batch["pixel_values"] = batch["pixel_values"].double()
    loss = trainer.training_step(trainer.model, batch)
    return loss.item(), {name: parameter.grad for name, parameter in trainer.model.named_parameters()}


@pytest.mark.parametrize("size", [None, 1, 4])
def test_the_loss_and_its_gradients_are_the_weighted_sum(make, model, size):
    """In one batch or in chunks: against both parts differentiated by themselves."""
    trainer = make(model, mini_batch_size=size, per_device_train_batch_size=8)
    trainer.current_gradient_accumulation_steps = 1
    loss, found = step_gradients(trainer)

    plain = make(model, weight=None, per_device_train_batch_size=8)
    plain.current_gradient_accumulation_steps = 1
    contrastive, expected = step_gradients(plain)
    expected = {f"model.{name}": gradient for name, gradient in expected.items()}
    alone, brightness = copy.deepcopy(model).double(), copy.deepcopy(trainer.model.parts["brightness"])
    alone.zero_grad(), brightness.zero_grad()
    batch = next(iter(plain.get_train_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "pixel_values")}
    inputs["pixel_values"] = inputs["pixel_values"].double()
    value = WEIGHT * brightness(alone, alone(**inputs, return_loss=False), inputs)
    value.backward()
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            expected[f"model.{name}"] = expected[f"model.{name}"] + parameter.grad
    expected |= {f"parts.brightness.{name}": p.grad for name, p in brightness.named_parameters()}

    assert loss == pytest.approx(contrastive + value.item(), rel=1e-12)
    assert found.keys() == expected.keys()
    scale = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * scale, name


def test_logs_name_it_and_a_run_lowers_it(make, our_model):
    trainer = make(our_model, max_steps=30, learning_rate=1e-2)
    trainer.train()
    losses = [entry["loss_brightness"] for entry in trainer.state.log_history if "loss_brightness" in entry]
    assert len(losses) == 30
    assert losses[-1] < losses[0] / 2
    assert trainer.model.parts["brightness"].steps.item() == 30
    assert "eval_loss" in trainer.evaluate()


def test_what_is_saved_is_the_dual_model_alone(make, model, tmp_path):
    trainer = make(model, max_steps=2, save_strategy="steps", save_steps=1, ema_decay=0.9)
    trainer.train()
    trainer.save_model()
    stock = set(SiglipModel(AutoModel.from_pretrained(tmp_path / "run").config).state_dict())
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-1"):
        assert set(load_file(folder / "model.safetensors")) == stock
    assert not (tmp_path / "run/objectives.safetensors").exists()
    saved = load_file(tmp_path / "run/checkpoint-2/objectives.safetensors")
    assert saved.keys() == {"brightness.map.weight", "brightness.map.bias", "brightness.steps"}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda one: [one], "objectives must be a mapping .*, got a list"),
        (
            lambda one: {"mine": one},
            r"objectives\['mine'\] must be \(a TrainedObjective, its weight\), got Brightness",
        ),
        (lambda one: {"mine": (one, float("nan"))}, r"objectives\['mine'\] must have a weight .*, got nan"),
        (lambda one: {"m.ine": (one, 1.0)}, r"'m\.ine' is no name of a module"),
        (lambda one: {"keys": (one, 1.0)}, "'keys' is no name of a module"),
    ],
)
def test_what_are_no_objectives_is_named(our_model, arguments, rows, processor, wrong, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        SiglipExtTrainer(model=our_model, args=arguments(), objectives=wrong(Brightness(32)))


@pytest.mark.parametrize("size", [None, 4])
def test_a_resumed_run_is_the_uninterrupted_one(make, our_model, tmp_path, size):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "mini_batch_size": size}
    whole = make(our_model, **settings)
    whole.train()
    resumed = make(our_model, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    logged, again = (
        [entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)
    )
    assert again == logged


def test_a_checkpoint_of_other_objectives_is_refused(make, our_model, tmp_path):
    make(our_model, max_steps=1, save_strategy="steps", save_steps=1).train()
    checkpoint = str(tmp_path / "run/checkpoint-1")
    with pytest.raises(ValueError, match=r"weight of brightness is 0\.3 there and None here"):
        make(our_model, weight=None).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"weight of brightness is 0\.3 there and 7\.0 here"):
        make(our_model, weight=7.0).train(resume_from_checkpoint=checkpoint)
    other = Brightness(32)
    other.map = nn.Linear(32, 1, bias=False)
    with pytest.raises(ValueError, match=r"brightness\.map\.bias"):
        make(our_model, objective=other).train(resume_from_checkpoint=checkpoint)


def test_the_best_checkpoint_brings_its_objectives(make, our_model, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    each_step = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(our_model, max_steps=3, **each_step, **best)
    trainer.train()
    step = trainer.state.best_global_step
    assert step < 3, "a model that learns has its largest loss early"
    assert trainer.model.parts["brightness"].steps.item() == step


def test_what_cannot_be_sharded_is_refused_by_name(our_model, stock_model):
    def check(names: list[str], version: int = 2) -> None:
        check_shardable(ObjectiveModel(our_model, {name: parts[name] for name in names}), version)

    decoder = CaptionDecoder(CaptionDecoderConfig(20, 16, 32, 1, 2, encoder_hidden_size=32, max_length=6))
    distilled = self_distillation(stock_model, {"distillation": 1.0, "masking": 1.0})
    parts = {name: part for name, (part, _) in distilled.items()}
    parts |= {"brightness": Brightness(32), "captioning": Captioning(decoder)}
    check(["captioning"])
    with pytest.raises(ValueError, match=r"^distillation, masking, brightness: .*; use DDP$"):
        check(["distillation", "captioning", "masking", "brightness"])
    with pytest.raises(ValueError, match=r"^captioning: .* set version 2 in fsdp_config, or use DDP$"):
        check(["captioning"], version=1)


def test_it_looks_like_the_dual_model(our_model):
    model = ObjectiveModel(our_model, {"brightness": Brightness(32)})
    assert model.config is our_model.config
    assert model.get_base_model() is our_model
    assert not hasattr(model, "nothing_of_the_kind")


def test_without_objectives_nothing_is_wrapped(make, our_model):
    assert not isinstance(make(our_model, weight=None).model, ObjectiveModel)
