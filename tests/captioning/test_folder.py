"""A decoder by itself on disk."""

import json

import pytest
import torch

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, TextFormat, load_decoder, save_decoder


@pytest.fixture
def saved(decoder, tmp_path):
    save_decoder(decoder, tmp_path / "decoder")
    return tmp_path / "decoder"


def test_it_comes_back_as_it_was(tmp_path):
    form = TextFormat(caption="", box_order=("top", "left", "bottom", "right"))
    config = CaptionDecoderConfig(30, 16, 20, 1, 2, 12, dropout=0.1, text_format=form)
    decoder = CaptionDecoder(config).bfloat16()
    save_decoder(decoder, tmp_path / "decoder")
    loaded = load_decoder(tmp_path / "decoder")
    assert loaded.config == config
    assert not loaded.training
    for (name, one), (other_name, other) in zip(decoder.state_dict().items(), loaded.state_dict().items()):
        assert name == other_name
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder"]


def test_an_older_one_is_not_overwritten(saved, decoder):
    with pytest.raises(FileExistsError, match="decoder exists"):
        save_decoder(decoder, saved)


def test_what_is_missing_or_damaged_is_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"decoder\.json is missing: give a folder that save_decoder wrote"):
        load_decoder(tmp_path)
    weights, config = saved / "decoder.safetensors", saved / "decoder.json"
    whole, content = weights.read_bytes(), json.loads(config.read_text())
    weights.write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"decoder\.safetensors is damaged"):
        load_decoder(saved)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"decoder\.safetensors is missing"):
        load_decoder(saved)
    weights.write_bytes(whole)
    for changes, reason in (
        ({"intermediate_size": 21}, r"does not fit decoder\.json: layers\.0\.mlp\.fc1"),
        ({"num_hidden_layers": 3}, r"does not fit decoder\.json: layers\.2"),
        ({"vocab_size": -1}, r"decoder\.json is damaged"),
        ({"vocab_size": "many"}, r"decoder\.json is damaged \(vocab_size must be a whole number, got 'many'\)"),
        ({"hidden_size": 16.0}, r"decoder\.json is damaged \(hidden_size must be a whole number, got 16\.0\)"),
        ({"colour": "red"}, r"decoder\.json is damaged \(unknown colour"),
        ({"text_format": {"box_order": ["left"]}}, r"decoder\.json is damaged \(box_order"),
        ({"text_format": 3}, r"decoder\.json is damaged"),
    ):
        config.write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=reason):
            load_decoder(saved)
