"""Parameter groups and locked towers, against the update rules written out in numpy."""

import math

import numpy as np
import pytest
import torch
from transformers import BertConfig, Dinov2Config

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components.towers import lock_towers
from modeling_siglip_ext.training.optimizers.parameter_groups import GroupSettings, kernel_names, parameter_groups
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


def by_name(model, **changes) -> dict[str, tuple[float, float]]:
    """(lr, weight_decay) of every trained parameter."""
    settings = {
        "learning_rate": 1.0,
        "weight_decay": 0.5,
        "convention": "torch",
        "lr_factors": {},
        "weight_decays": {},
        "layer_decay": None,
        **changes,
    }
    groups = parameter_groups(model, kernel_names(model), GroupSettings(**settings))
    places = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(places) == sum(len(group["params"]) for group in groups)
    return {name: places[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_towers_have_their_own_rate_and_decay(our_model):
    found = by_name(our_model, lr_factors={"vision": 0.1}, weight_decays={"vision": 0.0})
    assert found["vision_model.encoder.layers.0.mlp.fc1.weight"] == (0.1, 0.0)
    assert found["vision_model.head.probe"] == (0.1, 0.0)
    assert found["text_model.encoder.layers.0.mlp.fc1.weight"] == (1.0, 0.5)
    assert found["text_model.encoder.layers.0.mlp.fc1.bias"] == (1.0, 0.0)
    assert found["logit_scale"] == found["logit_bias"] == (1.0, 0.0)


def test_the_loss_head_has_its_own_rate_and_is_not_what_logs_show(our_model):
    found = by_name(our_model, lr_factors={"head": 5.0})
    assert found["logit_scale"] == found["logit_bias"] == (5.0, 0.0)
    assert {lr for name, (lr, _) in found.items() if "_model." in name} == {1.0}
    settings = GroupSettings(1.0, 0.5, "torch", {"head": 5.0}, {}, None)
    assert [group["lr"] for group in parameter_groups(our_model, kernel_names(our_model), settings)] == [1.0, 1.0, 5.0]


def test_layer_decay(our_model):
    found = {name: lr for name, (lr, _) in by_name(our_model, layer_decay=0.5).items()}
    for tower in ("vision", "text"):
        assert found[f"{tower}_model.embeddings.position_embedding.weight"] == 0.125
        assert found[f"{tower}_model.encoder.layers.0.layer_norm1.bias"] == 0.25
        assert found[f"{tower}_model.encoder.layers.1.self_attn.q_proj.weight"] == 0.5
    assert found["vision_model.post_layernorm.weight"] == found["vision_model.head.mlp.fc1.weight"] == 1.0
    assert found["text_model.head.weight"] == found["logit_scale"] == 1.0


@pytest.fixture
def lit_model() -> SiglipExtModel:
    width = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = Dinov2Config(**width, image_size=16, patch_size=8, mlp_ratio=2, hidden_dropout_prob=0.5)
    text = BertConfig(**width, vocab_size=300, max_position_embeddings=12)
    return SiglipExtModel(
        SiglipExtConfig(
            vision_config=vision,
            text_config=text,
            vision_pooling="first",
            text_pooling="first",
            text_projection_size=16,
        )
    )


def test_layers_of_other_models(lit_model):
    found = {name: lr for name, (lr, _) in by_name(lit_model, layer_decay=0.5).items()}
    assert found["vision_model.embeddings.patch_embeddings.projection.weight"] == 0.125
    assert found["text_model.embeddings.word_embeddings.weight"] == 0.125
    assert {lr for name, lr in found.items() if "text_model.encoder.layer.1." in name} == {0.5}
    assert {lr for name, lr in found.items() if ".layer.0." in name or ".layers.0." in name} == {0.25}
    assert found["text_adapter.projection.weight"] == 1.0


def adamw(weight, gradients, lr, decay, schedule, convention):
    """AdamW in numpy; `schedule` goes from 0 to 1."""
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for step, (gradient, factor) in enumerate(zip(gradients, schedule), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        update = lr * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        shrink = decay if convention == "big_vision" else lr * decay
        weight = weight - factor * (update + shrink * weight)
    return weight


@pytest.mark.parametrize("convention", ["torch", "big_vision"])
def test_weight_decay_conventions(our_model, arguments, rows, processor, convention):
    """Four steps of the Trainer's optimiser and schedule on given gradients."""
    settings = {
        "weight_decay": 0.02,
        "weight_decay_convention": convention,
        "vision_lr_factor": 0.5,
        "warmup_steps": 2,
    }
    args = arguments(learning_rate=3e-3, lr_scheduler_type="linear", **settings)
    trainer = SiglipExtTrainer(model=our_model.double(), args=args)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    generator, cases = np.random.default_rng(0), {}
    for name, lr, decay in (
        ("vision_model.encoder.layers.0.mlp.fc1.weight", 1.5e-3, 0.02),
        ("text_model.encoder.layers.0.mlp.fc1.weight", 3e-3, 0.02),
        ("text_model.embeddings.token_embedding.weight", 3e-3, 0.0),
    ):
        parameter = our_model.get_parameter(name)
        gradients = [generator.standard_normal(parameter.shape) for _ in range(4)]
        schedule = [0.0, 0.5, 1.0, 0.5]
        expected = adamw(parameter.detach().numpy().copy(), gradients, lr, decay, schedule, convention)
        cases[name] = parameter, gradients, expected
    for step in range(4):
        for parameter, gradients, _ in cases.values():
            parameter.grad = torch.from_numpy(gradients[step])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    for parameter, _, expected in cases.values():
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def test_the_logged_rate_is_the_peak_one(our_model, arguments, rows, processor):
    dataset = ImageTextDataset(rows)
    factors = {"vision_lr_factor": 0.1, "head_lr_factor": 5.0, "layer_decay": 0.5}
    args = arguments(max_steps=1, lr_scheduler_type="constant", **factors)
    trainer = SiglipExtTrainer(
        model=our_model, args=args, train_dataset=dataset, data_collator=ImageTextCollator(processor)
    )
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 2e-3


@pytest.mark.parametrize("fixture", ["our_model", "stock_model", "lit_model"])
def test_a_locked_tower(request, arguments, rows, processor, fixture):
    model = request.getfixturevalue(fixture)
    args = arguments(lock_towers=["vision"], weight_decay=0.1, max_steps=3)
    seen = []
    trainer = SiglipExtTrainer(
        model=model, args=args, train_dataset=ImageTextDataset(rows), data_collator=ImageTextCollator(processor)
    )
    model.vision_model.register_forward_hook(lambda module, *_: seen.append(module.training))
    model.text_model.register_forward_hook(lambda module, *_: seen.append(module.training))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.train()
    assert seen == [False, True] * 3, "no dropout in the locked tower, training in the other"
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("vision_model."), name
        assert (parameter in trainer.optimizer.state) != name.startswith("vision_model."), name


def test_everything_locked_is_refused(our_model):
    with pytest.raises(ValueError, match="nothing to train"):
        lock_towers(our_model, ["vision", "text"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lock_towers": ["image"]}, "lock_towers: 'image' is no tower; choose from vision, text"),
        ({"lock_towers": ["vision"], "vision_lr_factor": 0.1}, "unset vision_lr_factor"),
        ({"lock_towers": ["text"], "text_weight_decay": 0.0}, "unset text_weight_decay"),
        ({"weight_decay_convention": "jax"}, "choose from torch, big_vision"),
        ({"vision_lr_factor": 0.0}, "use lock_towers"),
        ({"layer_decay": -1.0}, "layer_decay must be positive"),
        ({"ema_decay": 2.0}, "ema_decay must be between 0 and 1"),
        ({"max_steps": 3, "max_examples": 80}, "set one of them"),
        ({"max_steps": -1, "max_examples": 7}, "less than one global batch of 8"),
        ({"warmup_examples": 8, "warmup_steps": 5}, "set one of them"),
    ],
)
def test_contradictions(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(**changes)


def test_lengths_in_examples(arguments):
    args = arguments(max_steps=-1, max_examples=170, warmup_examples=33, gradient_accumulation_steps=2)
    assert args.max_steps == math.floor(170 / 16)
    assert args.warmup_steps == math.ceil(33 / 16)


def test_training_needs_whole_batches(our_model, arguments, rows, processor):
    def trainer(**changes):
        return SiglipExtTrainer(
            model=our_model,
            args=arguments(**changes),
            train_dataset=ImageTextDataset(rows),
            eval_dataset=ImageTextDataset(rows),
            data_collator=ImageTextCollator(processor),
        )

    with pytest.raises(ValueError, match="16 samples, fewer than one batch of 17"):
        trainer(per_device_train_batch_size=17).train()
    with pytest.raises(ValueError, match="false negatives"):
        trainer(dataloader_drop_last=False).train()
    assert "eval_loss" in trainer(dataloader_drop_last=False).evaluate()
