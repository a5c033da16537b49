"""What FSDP shards by itself, and state out of modules and into them; sharded ones are in `fsdp_trainer_worker.py`."""

import copy

import pytest
import torch
from torch import nn

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
from modeling_siglip_ext.training.components.sharded import layers_to_shard, load_whole, whole_state
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.model import ObjectiveModel


@pytest.fixture
def captioning() -> Captioning:
    return Captioning(CaptionDecoder(CaptionDecoderConfig(20, 16, 32, 2, 2, encoder_hidden_size=32, max_length=6)))


@pytest.mark.parametrize(("model", "prefix"), [("our_model", "SiglipExt"), ("stock_model", "Siglip")])
def test_layers_are_those_that_are_there_and_can_be_sharded_once(request, captioning, model, prefix):
    """Of a model of fixed resolution: no NaFlex embeddings; nor those of texts, which hold the input embeddings."""
    towers = [f"{prefix}{name}" for name in ("EncoderLayer", "MultiheadAttentionPoolingHead", "VisionEmbeddings")]
    found = request.getfixturevalue(model)
    assert layers_to_shard(found) == towers
    assert layers_to_shard(ObjectiveModel(found, {"captioning": captioning})) == ["DecoderBlock", *towers]
    assert layers_to_shard(nn.Linear(2, 2)) == []


def test_state_goes_out_and_in(captioning):
    expected = {name: tensor.clone() for name, tensor in captioning.state_dict().items()}
    state = whole_state(captioning)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    for parameter in captioning.parameters():
        nn.init.zeros_(parameter)
    again = copy.deepcopy(captioning)
    load_whole(again, expected)
    found = again.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert whole_state(captioning, wanted=False) == {}
    with pytest.raises(RuntimeError, match="Missing key"):
        load_whole(again, {})


def test_a_decoder_by_itself_computes_the_same(captioning):
    inputs = torch.randint(1, 20, (2, 6)), torch.randn(2, 4, 32)
    expected = captioning.decoder(*inputs)
    assert torch.equal(captioning.whole_decoder()(*inputs), expected)
