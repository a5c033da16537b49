"""The gradient cache: the gradients of one big batch, with randomness, scaling, locked parts and checkpointing."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, sigmoid_loss, softmax_loss
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.components.grad_cache import cached_backward, check_chunkable, split_batch
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


ROWS = 12


@pytest.fixture
def batch(processor) -> dict:
    generator = torch.Generator().manual_seed(0)
    return {
        "pixel_values": torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64),
        "input_ids": torch.randint(2, len(processor.tokenizer), (ROWS, 12), generator=generator),
    }


@pytest.fixture(params=["our_model", "stock_model"])
def model(request):
    model = request.getfixturevalue(request.param).double().train()
    with torch.no_grad():  # so that negatives count
        model.logit_scale.fill_(1.0)
        model.logit_bias.fill_(0.0)
    return model


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def whole_batch(model: nn.Module, batch: dict, loss, weight: float = 1.0) -> tuple[torch.Tensor, dict]:
    outputs = model(**batch, return_loss=False)
    value = loss(outputs.image_embeds, outputs.text_embeds, model.logit_scale, model.logit_bias)
    (value * weight).backward()
    return value.detach(), gradients(model)


def assert_same(found: dict, expected: dict, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    # Some gradients are zero but for rounding, such as a key's bias under softmax.
    floor = 1e-3 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp(min=floor)
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("size", [1, 5, ROWS])
@pytest.mark.parametrize("implementation", ["eager", "tiled"])
@pytest.mark.parametrize("kind", [sigmoid_loss, softmax_loss])
def test_gradients_are_those_of_the_whole_batch(model, batch, kind, implementation, size):
    loss = partial(kind, implementation=implementation)
    value, expected = whole_batch(model, batch, loss, weight=0.25)
    step = cached_backward(model, model, split_batch(batch, size), loss, weight=0.25)
    assert_same(gradients(model), expected)
    assert step.loss.item() == pytest.approx(value.item(), rel=1e-14)
    assert step.image_embeds.shape == step.text_embeds.shape == (ROWS, 32)


def test_float32(our_model, batch):
    batch["pixel_values"] = batch["pixel_values"].float()
    our_model.train()
    _, expected = whole_batch(our_model, batch, sigmoid_loss)
    cached_backward(our_model, our_model, split_batch(batch, 4), sigmoid_loss)
    assert_same(gradients(our_model), expected, 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_replayed(processor, our_model, batch, checkpointing):
    """The same masks in both forwards: gradients equal those of one graph over the same chunks from the same seed."""
    config = copy.deepcopy(our_model.config)
    config.text_config.attention_dropout = config.vision_config.attention_dropout = 0.3
    model = SiglipExtModel(config).double().train()
    model.set_attn_implementation("eager")
    if checkpointing:
        model.gradient_checkpointing_enable()
    chunks = split_batch(batch, 4)

    def in_one_graph() -> dict:
        outputs = [model(**chunk, return_loss=False) for chunk in chunks]
        images, texts = (torch.cat([getattr(o, name) for o in outputs]) for name in ("image_embeds", "text_embeds"))
        sigmoid_loss(images, texts, model.logit_scale, model.logit_bias).backward()
        return gradients(model)

    torch.manual_seed(5)
    expected = in_one_graph()
    after = torch.rand(1)
    other = in_one_graph()
    name = "text_model.head.weight"
    assert not torch.allclose(other[name], expected[name]), "dropout must matter for the comparison to mean anything"
    torch.manual_seed(5)
    cached_backward(model, model, chunks, sigmoid_loss)
    assert_same(gradients(model), expected)
    assert torch.equal(torch.rand(1), after), "a step must leave the random state where one forward leaves it"


def test_what_is_locked_gets_no_gradient(model, batch):
    model.vision_model.requires_grad_(False)
    model.logit_bias.requires_grad_(False)
    _, expected = whole_batch(model, batch, sigmoid_loss)
    cached_backward(model, model, split_batch(batch, 4), sigmoid_loss)
    found = gradients(model)
    assert_same(found, expected)
    assert not any(name.startswith("vision_model") or name == "logit_bias" for name in found)


def test_gradient_scaling(model, batch):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    _, expected = whole_batch(model, batch, sigmoid_loss)
    cached_backward(
        model,
        model,
        split_batch(batch, 4),
        sigmoid_loss,
        backward=lambda surrogate: scaler.scale(surrogate).backward(),
    )
    assert_same({name: gradient / 2**10 for name, gradient in gradients(model).items()}, expected)


def test_gradients_of_bfloat16_embeddings_are_not_rounded(our_model, batch):
    model = our_model.bfloat16().train()
    seen = []

    def loss(images, *others):
        seen.append(images.dtype)
        return sigmoid_loss(images, *others)

    cached_backward(model, model, split_batch(batch, 4), loss)
    assert seen == [torch.float32]
    assert model.text_model.head.weight.grad.dtype == torch.bfloat16


def test_batch_norm_is_refused():
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    text = {
        "vocab_size": 9,
        "hidden_size": 16,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = SiglipExtModel(SiglipExtConfig(vision_config=config, text_config=text))
    with pytest.raises(ValueError, match=r"mini_batch_size: vision_model\..*normalises over the batch"):
        check_chunkable(model.train())
    model.vision_model.eval()
    check_chunkable(model)


def test_different_numbers_are_refused(batch):
    with pytest.raises(ValueError, match="12 images and 11 texts"):
        split_batch(batch | {"input_ids": batch["input_ids"][:11]}, 4)


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}])
def test_the_trainer_trains_the_same_model(our_model, arguments, rows, processor, changes):
    """uint8 images in, four steps, with and without the cache."""
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
    trained = {}
    for size in (None, 2):
        model = copy.deepcopy(our_model).double()
        collator = ImageTextCollator(processor, uint8=size is not None)
        args = arguments(mini_batch_size=size, max_grad_norm=1.0, **changes)
        trainer = SiglipExtTrainer(
            model=model, args=args, train_dataset=dataset, data_collator=collator, processing_class=processor
        )
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        trained[size] = dict(model.named_parameters()), [(e["loss"], e["positive_logit"]) for e in logs]
    plain, cached = trained.values()
    for name, parameter in plain[0].items():
        assert (parameter - cached[0][name]).abs().max() <= 1e-11, name
    assert len(cached[1]) == 4
    assert cached[1] == [pytest.approx(pair, rel=1e-6) for pair in plain[1]]


def test_mini_batch_size_must_divide(arguments):
    with pytest.raises(ValueError, match="mini_batch_size=3 must divide per_device_train_batch_size=8"):
        arguments(mini_batch_size=3)


def test_the_batch_is_let_go(stock_model, arguments, rows, processor):
    """Trainer keeps the batch until it has the next one; two raw batches would not fit."""
    assert isinstance(stock_model, SiglipModel)
    trainer = SiglipExtTrainer(
        model=stock_model,
        args=arguments(mini_batch_size=2),
        train_dataset=ImageTextDataset(rows, image_processor=processor.image_processor),
        data_collator=ImageTextCollator(processor, uint8=True),
        processing_class=processor,
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["pixel_values"].dtype == torch.uint8
    trainer.training_step(stock_model, batch)
    assert batch["pixel_values"].numel() == 0
