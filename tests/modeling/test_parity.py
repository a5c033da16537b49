"""The fixed-resolution model against stock `SiglipModel` with the same random weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, native_config


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights of a trained model's kind: biases, norms and positions away from their initial constants."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name == "logit_scale":
                parameter.fill_(2.0)
            elif parameter.ndim > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.1 * noise + ("norm" in name and name.endswith("weight")))


def both_models(
    config: SiglipExtConfig, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[SiglipModel, SiglipExtModel]:
    stock = SiglipModel(native_config(config))
    ours = SiglipExtModel(config)
    randomise(stock, seed)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return stock.eval().to(dtype), ours.eval().to(dtype)


def inputs_for(config: SiglipExtConfig, batch: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text, size = config.text_config, config.vision_config.image_size
    return {
        "input_ids": torch.randint(text.vocab_size, (batch, text.max_position_embeddings), generator=generator),
        "pixel_values": torch.randn(batch, 3, size, size, generator=generator),
    }


def assert_same_model(config: SiglipExtConfig, batch: int, seed: int, dtype: torch.dtype) -> None:
    stock, ours = both_models(config, seed, dtype)
    inputs = inputs_for(config, batch, seed)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    theirs, logits = stock(**inputs, return_loss=True), ours(**inputs, return_loss=False)
    with_loss = ours(**inputs, return_loss=True)

    def worst(a, b):
        return (a - b).abs().max().item()

    assert worst(theirs.image_embeds, logits.image_embeds) <= 1e-6
    assert worst(theirs.text_embeds, logits.text_embeds) <= 1e-6
    assert worst(theirs.logits_per_image, logits.logits_per_image) <= 1e-5
    assert worst(theirs.logits_per_text, logits.logits_per_text) <= 1e-5
    assert abs(theirs.loss - with_loss.loss) <= 1e-6 * abs(theirs.loss)

    theirs.loss.backward()
    with_loss.loss.backward()
    expected = {name: p.grad for name, p in stock.named_parameters()}
    overall = torch.stack([g.norm() for g in expected.values()]).norm()
    for name, parameter in ours.named_parameters():
        error = (parameter.grad - expected[name]).norm()
        assert error <= 1e-5 * max(expected[name].norm(), 1e-3 * overall), name


@settings(max_examples=20, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_dim=st.sampled_from([4, 8, 12]),
    depths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    mlp=st.integers(1, 70),
    patch_size=st.integers(1, 9),
    grid=st.integers(1, 4),
    remainder=st.integers(0, 1),
    length=st.integers(1, 9),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_small_shapes(heads, head_dim, depths, mlp, patch_size, grid, remainder, length, batch, seed):
    tower = {"hidden_size": heads * head_dim, "intermediate_size": mlp, "num_attention_heads": heads}
    image_size = patch_size * grid + min(remainder, patch_size - 1)  # patch 14 at 384 px leaves a border too
    config = SiglipExtConfig(
        vision_config={
            **tower, "num_hidden_layers": depths[0], "image_size": image_size, "patch_size": patch_size,
        },
        text_config={
            **tower, "num_hidden_layers": depths[1], "vocab_size": 50, "max_position_embeddings": length,
        },
    )  # fmt: skip
    # in float64: a loss of 0.03 or a gradient near zero is ill-conditioned in float32, in either implementation
    assert_same_model(config, batch, seed, torch.float64)


def test_a_small_shape_in_float32(tiny_config):
    assert_same_model(tiny_config, batch=6, seed=0, dtype=torch.float32)


@pytest.mark.slow
def test_base_shape():
    assert_same_model(SiglipExtConfig(), batch=4, seed=0, dtype=torch.float32)


def test_state_dict_has_the_stock_keys_and_shapes(tiny_config):
    for config in (tiny_config, SiglipExtConfig()):
        with torch.device("meta"):
            stock, ours = SiglipModel(native_config(config)), SiglipExtModel(config)
        shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (stock, ours)]
        assert shapes[0] == shapes[1]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_backends_agree(tiny_config, implementation):
    _, reference = both_models(tiny_config, 1)
    inputs = inputs_for(tiny_config, 3, 1)
    expected = reference(**inputs)
    reference.set_attn_implementation(implementation)
    assert reference.vision_model.config._attn_implementation == implementation
    torch.testing.assert_close(reference(**inputs).image_embeds, expected.image_embeds, atol=1e-6, rtol=0)


# torch's fault, not ours: on a CPU with torch 2.9 a stock model with flex attention dies of a broken heap.
@pytest.mark.skipif(torch.__version__.startswith("2.9."), reason="torch 2.9's flex attention gives NaN on a CPU")
def test_flex_attention_agrees(tiny_config):
    tiny_config.vision_config.hidden_size = tiny_config.text_config.hidden_size = (
        32  # heads of 16: flex wants powers of 2
    )
    _, model = both_models(tiny_config, 1)
    inputs = inputs_for(tiny_config, 3, 1)
    with torch.no_grad():
        expected = model(**inputs).image_embeds
        model.set_attn_implementation("flex_attention")
        torch.testing.assert_close(model(**inputs).image_embeds, expected, atol=1e-6, rtol=0)


def test_interpolated_positions_equal_stock(tiny_config):
    stock, ours = both_models(tiny_config, 2)
    pixels = torch.randn(2, 3, 48, 40)
    expected = stock.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
    actual = ours.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


def test_hidden_states_and_attentions_equal_stock(tiny_config):
    stock, ours = both_models(tiny_config, 3)
    for model in (stock, ours):
        model.set_attn_implementation("eager")
    pixels = inputs_for(tiny_config, 2, 3)["pixel_values"]
    expected, actual = (
        m.vision_model(pixels, output_hidden_states=True, output_attentions=True) for m in (stock, ours)
    )
    assert len(actual.hidden_states) == len(expected.hidden_states) == 3
    assert len(actual.attentions) == len(expected.attentions) == 2
    for mine, theirs in zip(actual.hidden_states + actual.attentions, expected.hidden_states + expected.attentions):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_gradient_checkpointing_changes_nothing(tiny_config):
    _, model = both_models(tiny_config, 4)
    inputs = inputs_for(tiny_config, 3, 4)
    model.train()

    def gradients():
        model.zero_grad()
        model(**inputs).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.vision_model.encoder.layers[0].gradient_checkpointing
    for a, b in zip(plain, gradients()):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-6)


def test_train_mode_gives_the_loss_and_eval_mode_the_logits(tiny_config):
    model = SiglipExtModel(tiny_config)
    inputs = inputs_for(tiny_config, 3, 0)
    training = model.train()(**inputs)
    assert training.loss is not None
    assert training.logits_per_image is None, "with a loss the matrix of all pairs must not be built"
    assert model(**inputs, return_loss=False).logits_per_image.shape == (3, 3)
    evaluating = model.eval()(input_ids=inputs["input_ids"][:2], pixel_values=inputs["pixel_values"])
    assert evaluating.loss is None
    assert evaluating.logits_per_image.shape == (3, 2)
    with pytest.raises(ValueError, match=r"image_embeds.*text_embeds|text_embeds.*image_embeds"):
        model(input_ids=inputs["input_ids"][:2], pixel_values=inputs["pixel_values"], return_loss=True)


def test_attention_mask_does_not_change_a_siglip_text(tiny_config):
    """Tokenizers hand out masks; masking the padding would give another vector than the model was trained for."""
    model = SiglipExtModel(tiny_config).eval()
    ids = inputs_for(tiny_config, 2, 0)["input_ids"]
    mask = torch.tensor([[1] * 3 + [0] * 5] * 2)
    with_mask = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    assert torch.equal(with_mask, model.get_text_features(input_ids=ids).pooler_output)


def test_unpadded_and_overlong_texts_raise_with_the_remedy(tiny_config):
    model = SiglipExtModel(tiny_config)
    with pytest.raises(ValueError, match=r'5 tokens.*exactly 8.*padding="max_length", max_length=8'):
        model.get_text_features(input_ids=torch.ones(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"9 tokens.*max_length=8, truncation=True"):
        model.get_text_features(input_ids=torch.ones(1, 9, dtype=torch.long))


def test_a_wrong_image_size_raises_with_the_remedy(tiny_config):
    with pytest.raises(ValueError, match=r"\(40, 32\).*\(32, 32\).*interpolate_pos_encoding=True"):
        SiglipExtModel(tiny_config).get_image_features(pixel_values=torch.zeros(1, 3, 40, 32))


def test_missing_inputs_are_named(tiny_config):
    model = SiglipExtModel(tiny_config)
    with pytest.raises(ValueError, match="pixel_values is missing"):
        model(input_ids=torch.ones(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="input_ids is missing"):
        model(pixel_values=torch.zeros(1, 3, 32, 32))
