"""Objectives: weighted and summed; the contrastive one is the loss that the config names, in every way it runs."""

import pytest
import torch
from transformers.modeling_outputs import ModelOutput

from modeling_siglip_ext import SiglipExtModel, sigmoid_loss, softmax_loss
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset, SiglipExtTrainer
from modeling_siglip_ext.training.objectives import Weighted, weighted_sum
from modeling_siglip_ext.training.objectives.contrastive import Contrastive


def test_objectives_are_weighted_and_summed():
    outputs, inputs = ModelOutput(a=torch.tensor(3.0)), {"b": 5}
    objectives = [
        Weighted(lambda outputs, inputs: outputs["a"], 0.5),
        Weighted(lambda outputs, inputs: outputs["a"] * inputs["b"], 2.0),
    ]
    assert weighted_sum(objectives, outputs, inputs).item() == 31.5
    assert weighted_sum(objectives[:1], outputs, inputs).item() == 1.5


@pytest.mark.parametrize("kind", ["stock_model", "sigmoid", "softmax"])
@pytest.mark.parametrize("size", [None, 2])
def test_the_config_names_the_loss(request, our_model, arguments, rows, processor, kind, size):
    """In a step, whole or in chunks, in evaluation, and in the card."""
    if kind == "stock_model":
        model = request.getfixturevalue(kind)
    else:
        config = our_model.config
        config.loss_type = kind
        model = SiglipExtModel(config)
    expected = softmax_loss if kind == "softmax" else sigmoid_loss
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
    trainer = SiglipExtTrainer(
        model=model,
        args=arguments(mini_batch_size=size, per_device_train_batch_size=16, max_steps=1, learning_rate=0.0),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=ImageTextCollator(processor),
        processing_class=processor,
    )
    trainer.train()
    with torch.no_grad():
        outputs = model.eval()(
            **processor(images=list(rows["image"]), text=list(rows["caption"]), return_tensors="pt")
        )
    loss = expected(outputs.image_embeds, outputs.text_embeds, model.logit_scale, model.logit_bias).item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    assert trainer.trained().loss == ("softmax" if kind == "softmax" else "sigmoid")


def test_the_model_of_now_counts(our_model, stock_model):
    """Trainer puts another model in its place: FSDP's, or a new one of model_init."""
    models = [our_model]
    objective = Contrastive(lambda: models[-1])
    assert objective.forward_options == {"return_loss": True}
    models.append(stock_model)
    assert objective.forward_options == {}
