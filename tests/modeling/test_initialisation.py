"""Initial weights follow big_vision: each is compared with the bound or the deviation that its formula gives."""

import math

import pytest
import torch

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel


WIDTH, MLP, VOCAB = 128, 256, 1000


@pytest.fixture(scope="module")
def model() -> SiglipExtModel:
    torch.manual_seed(0)
    tower = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": 1, "num_attention_heads": 2}
    return SiglipExtModel(
        SiglipExtConfig(
            text_config={**tower, "vocab_size": VOCAB, "token_embedding_size": 48},
            vision_config={**tower, "image_size": 64, "patch_size": 8},
        )
    )


def test_loss_head_is_the_papers(model):
    assert model.logit_scale.item() == pytest.approx(math.log(10))
    assert model.logit_bias.item() == -10.0


def assert_uniform(tensor: torch.Tensor, bound: float) -> None:
    assert tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


def test_attention_and_mlp_are_xavier_uniform(model):
    layer = model.vision_model.encoder.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.out_proj):
        assert_uniform(linear.weight, math.sqrt(6 / (2 * WIDTH)))
        assert not linear.bias.any()
    assert_uniform(layer.mlp.fc1.weight, math.sqrt(6 / (WIDTH + MLP)))
    assert 0 < layer.mlp.fc1.bias.abs().max() < 1e-5


def test_map_head_counts_query_key_and_value_as_three_square_matrices(model):
    head = model.vision_model.head
    for matrix in head.attention.in_proj_weight.chunk(3):
        assert_uniform(matrix, math.sqrt(6 / (2 * WIDTH)))
    assert head.probe.abs().max() <= math.sqrt(6 / (1 + WIDTH))
    assert head.probe.std().item() == pytest.approx(math.sqrt(2 / (1 + WIDTH)), rel=0.2)


def test_embeddings_are_normal(model):
    tables = {
        model.text_model.embeddings.token_embedding.weight: 48**-0.5,
        model.text_model.embeddings.position_embedding.weight: WIDTH**-0.5,
        model.vision_model.embeddings.position_embedding.weight: WIDTH**-0.5,
    }
    for table, std in tables.items():
        assert table.std().item() == pytest.approx(std, rel=0.05)


def test_dense_layers_are_lecun_normal(model):
    patches = model.vision_model.embeddings.patch_embedding
    assert patches.weight.std().item() == pytest.approx((3 * 8 * 8) ** -0.5, rel=0.05)
    assert patches.weight.abs().max() <= 2.01 * (3 * 8 * 8) ** -0.5 / 0.8796
    assert model.text_model.head.weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.05)
    assert not patches.bias.any()
    assert not model.text_model.head.bias.any()


def test_no_parameter_is_left_uninitialised():
    """Every parameter is filled even if its memory held garbage before."""
    config = SiglipExtConfig(
        text_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                     "vocab_size": 9, "pooling": "map"},
        vision_config={"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                       "image_size": 16, "patch_size": 8, "pooling": "cls", "pre_logits": True, "projection_size": 8},
    )  # fmt: skip
    with torch.device("meta"):
        model = SiglipExtModel(config)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.constant_(tensor, math.nan)
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert [n for n, t in model.named_parameters() if not t.isfinite().all()] == []
    assert [n for n, t in model.named_buffers() if not t.isfinite().all()] == []
