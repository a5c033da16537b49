"""The decoder against the original JAX code, and what may not change its numbers: masks, neighbours, memory."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, SiglipConfig

from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, decoder_inputs
from support.cappa import CASES, read_arrays, read_decoder
from support.models import make_config, make_processor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_big_visions(case, dtype):
    decoder, io = read_decoder(case, dtype), read_arrays(case, "io.npz")
    tolerance = 3e-6 if dtype == torch.float64 else 4e-6  # theirs are float32, too
    encoded, labels = io["out/encoded"].to(dtype), io["in/labels"].long()
    for mode, parallel in (("causal", None), ("parallel", torch.ones(len(labels), dtype=torch.bool))):
        inputs = decoder_inputs(labels, decoder.config, parallel)
        logits = decoder.output(decoder(inputs, encoded, parallel))
        torch.testing.assert_close(logits.float(), io[f"out/{mode}/logits"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("mode", ["mixed", "partial"])
def test_logits_of_mixed_and_partly_masked_batches_are_big_visions(mode):
    decoder, io = read_decoder("cappa_nobias", torch.float64), read_arrays("cappa_nobias", "io.npz")
    inputs, parallel = io[f"in/{mode}/decoder_input_ids"].long(), io[f"in/{mode}/parallel_rows"].bool()
    if mode == "mixed":
        assert torch.equal(decoder_inputs(io["in/labels"].long(), decoder.config, parallel), inputs)
    logits = decoder.output(decoder(inputs, io["out/encoded"].double(), parallel))
    torch.testing.assert_close(logits.float(), io[f"out/{mode}/logits"], rtol=0, atol=3e-6)


def test_a_new_decoder_knows_nothing_and_has_big_visions_initial_values(encoded):
    torch.manual_seed(0)
    decoder = CaptionDecoder(CaptionDecoderConfig(1000, 256, 512, 1, 4, encoder_hidden_size=12, bias=True))
    logits = decoder.output(decoder(torch.zeros(5, 64, dtype=torch.long), encoded.float()))
    assert F.cross_entropy(logits.flatten(0, 1), torch.randint(1000, (320,))).item() == pytest.approx(math.log(1000))
    block = decoder.layers[0]
    expected = {
        decoder.token_embedding.weight: 1.0,
        decoder.position_embedding.weight: 256**-0.5,
        block.self_attn.q_proj.weight: 256**-0.5,
        block.cross_attn.k_proj.weight: 12**-0.5,
        block.cross_attn.out_proj.weight: 256**-0.5,
        block.mlp.fc1.weight: (2 / (256 + 512)) ** 0.5,
        block.mlp.fc1.bias: 1e-6,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.06)


def test_a_token_sees_none_behind_it_unless_its_row_is_parallel(decoder, encoded):
    ids = torch.randint(30, (5, 9))
    changed = torch.cat([ids[:, :6], (ids[:, 6:] + 1) % 30], dim=1)
    parallel = torch.tensor([True, False, False, True, False])
    for rows in (None, parallel):
        differs = (decoder(ids, encoded, rows) - decoder(changed, encoded, rows)).abs().amax(-1) > 1e-9
        assert differs[:, 6:].all()
        expected = torch.zeros(5, dtype=torch.bool) if rows is None else parallel
        assert torch.equal(differs[:, :6].any(1), expected)


def test_several_texts_of_an_image_are_as_each_alone(decoder, encoded):
    ids = torch.randint(30, (5, 3, 9))
    parallel = torch.rand(5, 3) < 0.5
    together = decoder(ids.flatten(0, 1), encoded, parallel.flatten()).unflatten(0, (5, 3))
    for text in range(3):
        alone = decoder(ids[:, text], encoded, parallel[:, text])
        torch.testing.assert_close(together[:, text], alone, rtol=1e-12, atol=1e-12)


def test_masked_image_tokens_are_not_seen(decoder, encoded):
    ids = torch.randint(30, (10, 9))
    mask = torch.ones(5, 7)
    mask[:, 4:] = 0
    masked = decoder(ids, encoded, encoded_mask=mask)
    torch.testing.assert_close(masked, decoder(ids, encoded[:, :4]), rtol=1e-12, atol=1e-12)


def test_checkpointing_changes_no_gradient(decoder, encoded):
    ids, found = torch.randint(30, (5, 9)), []
    for decoder.gradient_checkpointing in (False, True):
        decoder.train().zero_grad()
        decoder.output(decoder(ids, encoded)).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in decoder.parameters()])
    assert all(map(torch.equal, *found))


def test_dropout_works_in_training_only(decoder, encoded, config):
    ids = torch.randint(30, (5, 9))
    dropping = CaptionDecoder(CaptionDecoderConfig(**{**config.__dict__, "dropout": 0.5})).double()
    dropping.load_state_dict(decoder.state_dict())
    assert not torch.allclose(dropping.train()(ids, encoded), dropping(ids, encoded))
    assert torch.equal(dropping.eval()(ids, encoded), decoder(ids, encoded))


def test_the_text_tower_gives_the_shape():
    tokenizer = make_processor(["a cat"], length=8).tokenizer
    config = make_config(text={"vocab_size": 300, "num_hidden_layers": 5}, vision={"hidden_size": 48})
    decoder = CaptionDecoderConfig.for_towers(config, tokenizer)
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.intermediate_size) == (2, 32, 48)
    assert (decoder.encoder_hidden_size, decoder.vocab_size, decoder.max_length) == (48, 300, 8)
    assert (decoder.pad_token_id, decoder.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert CaptionDecoderConfig.for_towers(config, tokenizer, num_hidden_layers=4, bias=True).num_hidden_layers == 4
    # SigLIP's texts end and are padded with the same token, and its stock configuration names tokens of CLIP
    tokenizer.pad_token = tokenizer.eos_token
    stock = SiglipConfig(text_config={"vocab_size": 400, "num_hidden_layers": 1})
    decoder = CaptionDecoderConfig.for_towers(stock, tokenizer)
    assert (decoder.num_hidden_layers, decoder.pad_token_id, decoder.eos_token_id) == (1, 0, 1)
    # LiT's text tower
    config.text_config = BertConfig(vocab_size=400, hidden_size=64, num_attention_heads=4)
    assert CaptionDecoderConfig.for_towers(config, tokenizer).hidden_size == 64


def test_what_makes_no_decoder_is_refused(config, decoder, encoded):
    tokenizer = make_processor(["a cat"], length=8).tokenizer
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens, the text tower 99"):
        CaptionDecoderConfig.for_towers(make_config(), tokenizer)
    with pytest.raises(ValueError, match="hidden_size=16 is no multiple of num_attention_heads=3"):
        CaptionDecoderConfig(30, 16, 20, 2, 3, 12)
    with pytest.raises(ValueError, match="eos_token_id=30 is outside"):
        CaptionDecoderConfig(30, 16, 20, 2, 2, 12, eos_token_id=30)
    with pytest.raises(ValueError, match="num_hidden_layers must be at least 1"):
        CaptionDecoderConfig(30, 16, 20, 0, 2, 12)
    with pytest.raises(ValueError, match=r"dropout must be at least 0 and below 1, got 1\.5"):
        CaptionDecoderConfig(30, 16, 20, 2, 2, 12, dropout=1.5)
    with pytest.raises(ValueError, match="10 tokens, but the decoder has 9 positions"):
        decoder(torch.zeros(5, 10, dtype=torch.long), encoded)
    with pytest.raises(ValueError, match="7 texts for 5 images"):
        decoder(torch.zeros(7, 9, dtype=torch.long), encoded)
    unmasked = CaptionDecoderConfig(30, 16, 20, 2, 2, 12, mask_token=False)
    with pytest.raises(ValueError, match="mask_token=True"):
        decoder_inputs(torch.zeros(2, 9, dtype=torch.long), unmasked, torch.tensor([True, False]))
