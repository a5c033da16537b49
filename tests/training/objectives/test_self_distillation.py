"""Distillation and masking beside the contrastive loss: in chunks, on processes, resumed, saved, refused."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from modeling_siglip_ext.training.data.collator import ExtendedCollator
from modeling_siglip_ext.training.objectives.masks import MaskSettings, PatchMasks
from modeling_siglip_ext.training.objectives.matching import MatchingSettings
from modeling_siglip_ext.training.objectives.model import ObjectiveModel
from modeling_siglip_ext.training.objectives.self_distillation import default_weights, self_distillation
from modeling_siglip_ext.training.objectives.views import Views, ViewSettings
from support.models import TINY_NAFLEX, TINY_TEXT, make_config


SETTINGS = MatchingSettings(momentum=0.9, hidden=16, bottleneck=8, prototypes=24)
WEIGHTS = {"distillation": 0.7, "masking": 0.4}


@pytest.fixture(params=["our_model", "stock_model"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def make(arguments, rows, processor):
    """A Trainer of a copy of a model with both objectives, with heads of one seed."""

    def build(model, starts_at: float = 0.0, weights=WEIGHTS, uint8: bool = False, **changes) -> SiglipExtTrainer:
        torch.manual_seed(3)
        model = copy.deepcopy(model)
        vision = model.config.vision_config
        additions = Views(ViewSettings.for_tower(vision, local_views=2)), PatchMasks(MaskSettings.for_tower(vision))
        return SiglipExtTrainer(
            model=model,
            args=arguments(**changes),
            train_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
            data_collator=ExtendedCollator(ImageTextCollator(processor, uint8=uint8), *additions),
            processing_class=processor,
            objectives=self_distillation(model, weights, SETTINGS, starts_at),
        )

    return build


def double(batch: dict) -> dict:
    return {
        name: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }


def first_step(trainer: SiglipExtTrainer) -> tuple[float, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Loss, gradients and what the teachers and centers become, in float64."""
    trainer.model.double()
    trainer.current_gradient_accumulation_steps = 1
    batch = double(trainer._forward_inputs(next(iter(trainer.get_train_dataloader()))))
    loss = trainer.training_step(trainer.model, batch)
    gradients = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.after_step()
    return loss.item(), gradients, trainer.model.parts.state_dict()


@pytest.mark.parametrize("size", [1, 4])
def test_chunks_are_the_whole(make, model, size):
    loss, expected, state = first_step(make(model))
    chunked_loss, found, chunked_state = first_step(make(model, mini_batch_size=size))
    assert chunked_loss == pytest.approx(loss, rel=1e-12)
    assert found.keys() == expected.keys()
    assert {"parts.masking.mask_token", "parts.distillation.matching.head.prototypes.weight"} <= found.keys()
    assert not any("teacher" in name for name in found)
    scale = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-12 * scale, name
    for name, value in state.items():
        torch.testing.assert_close(chunked_state[name], value, rtol=1e-12, atol=1e-12)


def looped_loss(student: torch.Tensor, teacher: torch.Tensor, head: nn.Module) -> float:
    """−Σ p log q of one student and one teacher vector, by the head that both have in the first step."""

    def logits(features):
        hidden = head.mlp(features)
        weight = head.prototypes.weight
        return hidden / hidden.norm() @ (weight / weight.norm(dim=1, keepdim=True)).t()

    p, q = (logits(teacher) / 0.04).softmax(0), (logits(student) / 0.1).log_softmax(0)
    return -sum((a * b).item() for a, b in zip(p, q))


@torch.no_grad()
def test_the_losses_are_their_definitions(make, model):
    """With features of the towers as they are used by hand, image by image and patch by patch."""
    trainer = make(model)
    batch = double(trainer._forward_inputs(next(iter(trainer.get_train_dataloader()))))
    batch["hidden_patches"][0] = torch.arange(8)
    everything = trainer.model.double().eval()
    losses = everything(**batch, objectives=True)["objective_losses"]

    tower, parts = model.double().eval().vision_model, everything.parts
    wanted = tower(pixel_values=batch["global_view"])
    images = range(len(batch["global_view"]))
    expected = 0.0
    for image in images:
        local = tower(pixel_values=batch["local_views"][image], interpolate_pos_encoding=True).pooler_output
        for view in local:
            expected += looped_loss(view, wanted.pooler_output[image], parts["distillation"].matching.head)
    assert losses["distillation"].item() == pytest.approx(expected / (len(images) * 2), rel=1e-12)

    expected = 0.0
    parts["masking"].mask_token.fill_(0.3)
    losses = everything(**batch, objectives=True)["objective_losses"]
    for image in images:
        embeddings = tower.embeddings
        patches = embeddings.patch_embedding(batch["global_view"][image : image + 1]).flatten(2).transpose(1, 2)
        places = batch["hidden_patches"][image].tolist()
        patches[:, places] = 0.3
        hidden = patches + embeddings.position_embedding.weight
        for layer in tower.encoder.layers:
            hidden = layer(hidden, None)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        found = tower.post_layernorm(hidden)[0]
        head = parts["masking"].matching.head
        of_image = [looped_loss(found[p], wanted.last_hidden_state[image, p], head) for p in places]
        expected += sum(of_image) / len(of_image)
    assert losses["masking"].item() == pytest.approx(expected / len(images), rel=1e-12)
    assert not tower.embeddings.patch_embedding._forward_hooks


@pytest.mark.parametrize(("size", "steps"), [(None, (1, 2, 3)), (4, (2,))])
def test_a_resumed_run_is_the_uninterrupted_one(make, our_model, tmp_path, size, steps):
    """From before, at and after the step where they join, whose teacher is the student of that step."""
    settings = {"starts_at": 0.5, "max_steps": 4, "save_strategy": "steps", "save_steps": 1, "mini_batch_size": size}
    whole = make(our_model, **settings)
    whole.train()
    for step in steps:
        resumed = make(our_model, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"run/checkpoint-{step}"))
        expected, found = whole.model.state_dict(), resumed.model.state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        for figure in ("loss", "loss_masking", "masking_teacher_entropy", "distillation_center_norm"):
            pick = [[log[figure] for log in t.state.log_history if figure in log] for t in (resumed, whole)]
            assert pick[0] == pick[1], figure
            assert len(pick[0]) == (4 if figure == "loss" else 2)
    # Until they join nothing of theirs moves; then the teacher begins as the student is, not as it was.
    start, before, after = (
        make(our_model, **settings).model.parts.state_dict(),
        *(load_file(tmp_path / f"run/checkpoint-{step}/objectives.safetensors") for step in (2, 3)),
    )
    assert all(torch.equal(before[name], start[name]) for name in start)
    name = "encoder.layers.0.mlp.fc1.weight"
    students = [load_file(tmp_path / f"run/checkpoint-{s}/model.safetensors")[f"vision_model.{name}"] for s in (2, 3)]
    teacher = after[f"distillation.teacher.average.{name}"]
    torch.testing.assert_close(teacher, students[0].lerp(students[1], 0.1), rtol=1e-6, atol=1e-8)


def test_a_run_that_is_made_longer_waits_again_and_begins_with_the_student_of_then(make, our_model, tmp_path):
    """And not with the teacher of before, which has stood still while the tower learned."""
    settings = {"starts_at": 0.5, "save_strategy": "steps", "save_steps": 1}
    make(our_model, max_steps=4, **settings).train()
    longer = make(our_model, max_steps=10, **settings)
    longer.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    assert len([log for log in longer.state.log_history if "loss_masking" in log and log["step"] > 4]) == 5
    name = "encoder.layers.0.mlp.fc1.weight"
    folders = [tmp_path / f"run/checkpoint-{step}" for step in (5, 6)]
    students = [load_file(folder / "model.safetensors")[f"vision_model.{name}"] for folder in folders]
    waiting, joined = (load_file(folder / "objectives.safetensors") for folder in folders)
    heads = [one["masking.matching.head.mlp.0.weight"] for one in (waiting, joined)]
    for (before, after), teacher in (
        (students, joined[f"distillation.teacher.average.{name}"]),
        (heads, joined["masking.matching.teacher.average.mlp.0.weight"]),
    ):
        torch.testing.assert_close(teacher, before.lerp(after, 0.1), rtol=1e-6, atol=1e-8)
    assert not waiting["masking.matching.center"].any()
    assert joined["masking.matching.center"].any()


def test_what_is_saved_is_the_dual_model_alone(make, model, tmp_path):
    trainer = make(model, max_steps=2, save_strategy="steps", save_steps=1, ema_decay=0.9)
    trainer.train()
    trainer.save_model()
    stock = set(SiglipModel(AutoModel.from_pretrained(tmp_path / "run").config).state_dict())
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-1"):
        assert set(load_file(folder / "model.safetensors")) == stock
    saved = load_file(tmp_path / "run/checkpoint-2/objectives.safetensors")
    assert {"distillation.matching.center", "masking.mask_token", "distillation.teacher.begun"} <= saved.keys()
    assert not any(name.startswith("masking.teacher") for name in saved), "the tower's teacher is saved once"
    grouped = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert (id(parameter) in grouped) is ("teacher" not in name), name
    assert len(trainer.average.average) == len(stock)


def test_bfloat16_stays_in_the_towers(make, our_model):
    """Of uint8 images; losses are near those in float32, and teachers and centers are float32."""
    runs = [make(our_model, max_steps=2, bf16=bf16, uint8=True) for bf16 in (False, True)]
    for trainer in runs:
        trainer.train()
    for name in WEIGHTS:
        plain, found = ([log[f"loss_{name}"] for log in t.state.log_history if "loss" in log] for t in runs)
        assert found == pytest.approx(plain, rel=0.05)
        assert found != plain
    state = runs[1].model.parts.state_dict()
    assert {value.dtype for name, value in state.items() if "begun" not in name} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        matching, features = runs[1].model.parts["masking"].matching, torch.randn(4, 32)
        assert matching.head(features).dtype == matching.teacher(features).dtype == torch.float32
        loss = matching(features[:, None].requires_grad_(), features, torch.full((4,), 0.25))
    assert loss.dtype == torch.float32


def test_each_can_train_alone(make, our_model):
    for name in WEIGHTS:
        trainer = make(our_model, weights={name: 1.0}, max_steps=1)
        trainer.train()
        assert f"loss_{name}" in trainer.state.log_history[0]
        assert f"{name}.teacher.begun" in trainer.model.parts.state_dict()


def test_the_teacher_has_the_adapter_that_the_trainer_leaves(our_model, rows, processor, arguments, tmp_path):
    """Of an adapter on all layers the one that is never called is taken away, after the teacher was copied."""
    our_model.save_pretrained(tmp_path / "base")
    base = SiglipExtModel.from_pretrained(tmp_path / "base")
    model, vision = get_peft_model(base, LoraConfig(target_modules="all-linear", r=2)), base.config.vision_config
    additions = Views(ViewSettings.for_tower(vision, local_views=2)), PatchMasks(MaskSettings.for_tower(vision))
    trainer = SiglipExtTrainer(
        model=model,
        args=arguments(max_steps=2),
        train_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
        data_collator=ExtendedCollator(ImageTextCollator(processor), *additions),
        processing_class=processor,
        objectives=self_distillation(base, WEIGHTS, SETTINGS, 0.5),
    )
    trainer.train()
    teacher, student = trainer.model.parts["distillation"].teacher.average, base.vision_model
    assert [name for name, _ in teacher.named_parameters()] == [name for name, _ in student.named_parameters()]
    moved = {name: (a - b).norm() for (name, a), b in zip(teacher.named_parameters(), student.parameters())}
    assert {"lora" in name for name, norm in moved.items() if norm > 0} == {True}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at all
def test_a_compiled_model_is_the_same(make, our_model):
    expected, found = make(our_model, max_steps=2), make(our_model, max_steps=2)
    found.model.compile(backend="eager")
    for trainer in (expected, found):
        trainer.train()
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_towers_that_cannot_learn_so_are_refused(make, our_model, processor):
    with pytest.raises(ValueError, match=r"distillation .*locked"):
        make(our_model, lock_towers=["vision"])
    naflex = SiglipExtModel(SiglipExtConfig(vision_config=TINY_NAFLEX, text_config=TINY_TEXT))
    with pytest.raises(ValueError, match="NaFlex"):
        self_distillation(naflex)
    fixed = SiglipExtModel(make_config(vision={"position_embedding_type": "sincos2d"}))
    with pytest.raises(ValueError, match="learned positions"):
        self_distillation(fixed)
    assert set(self_distillation(fixed, {"masking": 1.0}, SETTINGS)) == {"masking"}
    with pytest.raises(ValueError, match="maskin"):
        self_distillation(our_model, {"maskin": 1.0})
    with pytest.raises(ValueError, match="starts_at"):
        self_distillation(our_model, starts_at=80)


def test_weights_follow_the_size():
    assert default_weights(768) == {"distillation": 0.25, "masking": 0.0625}
    assert default_weights(1152) == {"distillation": 1.0, "masking": 0.25}
    assert [default_weights(width)["distillation"] for width in (32, 1024, 1536, 4096)] == [0.25, 0.5, 0.5, 0.5]


def test_objectives_that_have_not_joined_are_not_there(our_model):
    objectives = self_distillation(our_model, None, SETTINGS, starts_at=0.5)
    model = ObjectiveModel(our_model, {name: objective for name, (objective, _) in objectives.items()})
    assert model.active == ()
    model.activate(0.49)
    assert model.active == ()
    assert not model.parts["masking"].matching.teacher.begun
    model.activate(0.5)
    assert model.active == ("distillation", "masking")
    assert model.parts["masking"].matching.teacher.begun


def test_views_are_drawn_only_for_the_steps_that_need_them(make, our_model, monkeypatch):
    drawn, draw = [], Views.__call__
    monkeypatch.setattr(Views, "__call__", lambda self, examples: drawn.append(len(examples)) or draw(self, examples))
    trainer = make(our_model, starts_at=0.75, max_steps=12)
    trainer.train()
    assert len([log for log in trainer.state.log_history if "loss_masking" in log]) == 3
    assert 3 <= len(drawn) <= 6


def test_a_batch_without_views_is_an_error_that_names_them(our_model, processor):
    objectives = self_distillation(our_model, {"distillation": 1.0}, SETTINGS)
    with pytest.raises(ValueError, match=r"global_view|local_views"):
        objectives["distillation"][0](our_model, {}, {})
