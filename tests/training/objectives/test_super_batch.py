"""The choice of examples in training: what is trained on, resumed runs, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training.data.collator import ImageTextCollator
from modeling_siglip_ext.training.data.dataset import ImageTextDataset
from modeling_siglip_ext.training.data.pixels import normalized
from modeling_siglip_ext.training.data.reference_embeddings import ReferenceEmbeddings
from modeling_siglip_ext.training.data.samples import key_number
from modeling_siglip_ext.training.objectives.curation import CurationSettings, Judged, PairScores, select
from modeling_siglip_ext.training.objectives.super_batch import Curation
from modeling_siglip_ext.training.trainer import SiglipExtTrainer
from support.models import TINY


LENGTH = 12


def model_of(processor, seed: int, **changes) -> SiglipExtModel:
    torch.manual_seed(seed)
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    text = {**TINY, **tokens, "max_position_embeddings": LENGTH}
    vision = {**TINY, "image_size": 16, "patch_size": 4}
    model = SiglipExtModel(SiglipExtConfig(vision_config=vision, text_config=text, **changes))
    for parameter in model.parameters():  # embeddings of fresh models are nearly equal
        if parameter.ndim > 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


class Recorded(SiglipExtTrainer):
    """Keeps what was read and what the loss was computed from."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.read = dict(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _forward_inputs(self, inputs):
        if self.model.training:
            self.trained_on = [*getattr(self, "trained_on", []), inputs]
        return super()._forward_inputs(inputs)


@pytest.fixture
def build(rows, processor, arguments):
    def make(settings=None, reference=True, loss="sigmoid", **changes):
        args = arguments(**{"per_device_train_batch_size": 4, **changes})
        return Recorded(
            model=model_of(processor, 0, loss_type=loss),
            args=args,
            train_dataset=ImageTextDataset(rows, seed=0),
            data_collator=ImageTextCollator(processor, LENGTH, uint8=args.mini_batch_size is not None),
            processing_class=processor,
            curation=Curation(settings or CurationSettings(chunks=2), model_of(processor, 1) if reference else None),
        )

    return make


@torch.no_grad()
def judge(model: SiglipExtModel, batch: dict) -> Judged:
    outputs = model.eval()(batch["input_ids"], batch["pixel_values"], return_loss=False)
    return Judged(outputs.image_embeds, outputs.text_embeds, model.logit_scale, model.logit_bias)


@pytest.mark.parametrize("size", [None, 2])
def test_the_chosen_rows_are_trained_on(build, processor, size):
    trainer = build(max_steps=1, mini_batch_size=size)
    trainer.train()
    batch = trainer.read
    assert len(batch["input_ids"]) == 8
    if size is not None:
        batch["pixel_values"] = normalized(batch["pixel_values"], processor.image_processor)
    models = (1, judge(model_of(processor, 0), batch)), (-1, judge(model_of(processor, 1), batch))
    generator = torch.Generator().manual_seed(key_number("curation/42/1/0"))
    expected = select(PairScores(models), 4, CurationSettings(chunks=2), generator).sort().values
    seen = trainer.trained_on if size is None else trainer.trained_on[: 4 // size]
    assert torch.equal(torch.cat([part["input_ids"] for part in seen]), batch["input_ids"][expected])
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (entry["examples_seen"], entry["examples_drawn"]) == (4, 8)
    own = PairScores(models).own()
    assert entry["curation_score"] == pytest.approx(own.mean().item(), abs=1e-4)
    assert entry["curation_score_chosen"] == pytest.approx(own[expected].mean().item(), abs=1e-4)
    reference, fresh = trainer.curation.reference, dict(model_of(processor, 1).named_parameters())
    assert all(torch.equal(parameter, fresh[name]) for name, parameter in reference.named_parameters())


def test_an_epoch_counts_what_is_read_and_a_step_what_is_trained_on(build):
    trainer = build(max_steps=-1, num_train_epochs=2)
    trainer.train()
    assert trainer.state.global_step == 4  # 16 images, 8 a step
    assert [entry["examples_seen"] for entry in trainer.state.log_history if "loss" in entry] == [4, 8, 12, 16]


def test_a_resumed_run_is_the_uninterrupted_one(build, tmp_path):
    settings = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    build(**settings).train()
    folder = tmp_path / "run/checkpoint-3"
    whole = load_file(folder / "model.safetensors")
    build(**settings).train(str(tmp_path / "run/checkpoint-1"))
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_a_checkpoint_of_another_choice_is_refused(build, tmp_path):
    build(max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(ValueError, match=r"curation.ratio is 0.5 there and 0.75 here"):
        build(CurationSettings(ratio=0.75, chunks=2), max_steps=2).train(True)


@pytest.mark.parametrize("score", ["learnability", "easy_reference"])
def test_a_score_needs_its_reference(build, score):
    with pytest.raises(ValueError, match=f"curation.score={score} needs a reference model"):
        build(CurationSettings(score=score), reference=False)
    with pytest.raises(ValueError, match="hard_learner reads no reference model: leave it out"):
        build(CurationSettings(score="hard_learner"))
    build(CurationSettings(score="hard_learner"), reference=False, max_steps=1).train()


def test_embeddings_of_the_reference_come_with_the_batch(build):
    trainer = build(max_steps=1)
    trainer.curation = Curation(CurationSettings(), ReferenceEmbeddings(torch.empty(0), (), {}, 1.0, 0.0, "its hash"))
    assert trainer.curation.identity()["reference embeddings"] == "its hash"
    with pytest.raises(ValueError, match=r"the batch has no reference_embeds: .* ImageTextDataset\(reference="):
        trainer.train()


def test_what_is_refused(build):
    with pytest.raises(ValueError, match="curation scores pairs by the sigmoid loss, and this model has the softmax"):
        build(loss="softmax")
    with pytest.raises(ValueError, match="16 samples, fewer than one super-batch of 20"):
        build(CurationSettings(ratio=0.8)).train()
    with pytest.raises(ValueError, match="of what number leaves 4"):
        build(CurationSettings(ratio=0.7))
