"""Adapters: what is trained is saved, and means the same in stock classes, plain PEFT and plain transformers."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, SiglipModel

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from modeling_siglip_ext.training.components.adapters import load_bare


@pytest.fixture
def base(our_model, processor, tmp_path) -> str:
    our_model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def make(arguments, rows, processor):
    def build(model, **changes) -> SiglipExtTrainer:
        return SiglipExtTrainer(
            model=model,
            args=arguments(**{"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 2, **changes}),
            train_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
            eval_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )

    return build


@pytest.fixture
def logits(processor, rows):
    def compute(model) -> torch.Tensor:
        inputs = processor(images=list(rows["image"]), text=list(rows["caption"]), return_tensors="pt")
        with torch.no_grad():
            return model.eval()(**inputs).logits_per_image

    return compute


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


ALL = {"target_modules": "all-linear", "modules_to_save": ["logit_scale", "logit_bias"]}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (SiglipExtModel, ALL),
        (SiglipModel, ALL),
        (SiglipModel, {"target_modules": ["fc1"], "bias": "all"}),
        *(
            pytest.param(SiglipExtModel, settings, marks=pytest.mark.slow)
            for settings in (
                {"target_modules": ["q_proj", "out_proj"], "modules_to_save": ["logit_scale"]},
                {"target_modules": r".*\.out_proj", "exclude_modules": r"text_model\..*"},
            )
        ),
    ],
    ids=["all", "all-stock", "biases", "suffixes", "pattern"],
)
def test_trained_with_either_class_loaded_with_either(kind, settings, base, make, logits, tmp_path):
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(r=2, **settings))
    before = model.base_model.model.logit_scale.item(), model.base_model.model.logit_bias.item()
    trainer = make(model)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    model.save_pretrained(tmp_path / "by_hand")
    expected = logits(model)
    assert not torch.allclose(expected, logits(kind.from_pretrained(base)), atol=1e-3)
    for name, old in zip(("logit_scale", "logit_bias"), before):
        trained = getattr(model.base_model.model, name).item() != old
        assert trained == (name in settings.get("modules_to_save", ()))
    folders = [tmp_path / "adapter", tmp_path / "by_hand", Path(trainer.args.output_dir) / "checkpoint-4"]
    for folder, loaded in zip(folders, (SiglipExtModel, SiglipModel, SiglipModel)):
        again = PeftModel.from_pretrained(loaded.from_pretrained(base), str(folder))
        assert_same(logits(again), expected)
        assert_same(logits(again.merge_and_unload()), expected)
    assert_same(logits(AutoModel.from_pretrained(tmp_path / "adapter")), expected)
    assert AutoProcessor.from_pretrained(tmp_path / "adapter").tokenizer.model_input_names == ["input_ids"]
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert_same(logits(SiglipModel.from_pretrained(tmp_path / "merged")), expected)


def test_without_the_trainer_all_linear_means_the_same_in_both_classes(base, logits, processor, rows, tmp_path):
    model = get_peft_model(SiglipExtModel.from_pretrained(base), LoraConfig(r=2, target_modules="all-linear"))
    inputs = processor(images=list(rows["image"]), text=list(rows["caption"]), return_tensors="pt")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model.train()(**inputs).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapter")
    stock = PeftModel.from_pretrained(SiglipModel.from_pretrained(base), str(tmp_path / "adapter"))
    assert_same(logits(stock), logits(model))
    assert_same(logits(stock.merge_and_unload()), logits(model))


def added(model, settings):
    """An adapter by transformers itself, without PEFT's wrapper."""
    model.add_adapter(settings)
    return model


@pytest.mark.parametrize("kind", [SiglipExtModel, SiglipModel])
@pytest.mark.parametrize("adapt", [get_peft_model, added])
def test_resumed_with_its_temperature(kind, adapt, base, make):
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["logit_scale", "logit_bias"])

    def trainer(**changes) -> SiglipExtTrainer:
        torch.manual_seed(0)
        return make(adapt(kind.from_pretrained(base), settings), **changes)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-2")
    for (name, old), (_, new) in zip(whole.model.named_parameters(), resumed.model.named_parameters()):
        assert torch.equal(old, new), name


def test_an_added_adapter_is_loaded_whole_or_not_at_all(base, tmp_path):
    written, asked = (added(SiglipModel.from_pretrained(base), LoraConfig(r=2, target_modules=names))
                      for names in (["q_proj"], ["q_proj", "fc1"]))  # fmt: skip
    written.save_pretrained(tmp_path / "adapter")
    load_bare(written, tmp_path / "adapter")
    with pytest.raises(RuntimeError, match=r"lacks what is trained here, e\.g\. .*fc1"):
        load_bare(asked, tmp_path / "adapter")


@pytest.mark.parametrize("adapt", [get_peft_model, added])
def test_the_best_adapter_is_loaded_at_the_end(adapt, base, make, tmp_path):
    settings = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["logit_scale", "logit_bias"])
    # the loss falls, so that the largest is the first
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make(adapt(SiglipModel.from_pretrained(base), settings), eval_strategy="steps", eval_steps=2, **best)
    trainer.train()
    assert trainer.state.best_global_step == 2
    trainer.save_model(str(tmp_path / "best"))
    first, kept = (
        load_file(Path(folder) / "adapter_model.safetensors")
        for folder in (trainer.state.best_model_checkpoint, tmp_path / "best")
    )
    assert first.keys() == kept.keys()
    assert all(torch.equal(first[name], kept[name]) for name in first)


def test_an_adapter_on_what_was_never_saved_is_refused(our_model, make):
    model = get_peft_model(our_model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="never saved"):
        make(model)
    make(model, save_strategy="no").train()
