"""big_vision's captioners: there and back is the identity, and what is none is refused."""

import pytest
import torch

from modeling_siglip_ext import SiglipExtVisionConfig, SiglipExtVisionModel
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, TextFormat
from modeling_siglip_ext.conversion.big_vision.captioner import decoder_from_big_vision, decoder_to_big_vision
from modeling_siglip_ext.conversion.big_vision.names import image_rules
from modeling_siglip_ext.conversion.errors import CheckpointError
from modeling_siglip_ext.conversion.name_map import to_torch
from support.cappa import CASES, read_arrays, read_decoder


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    arrays = {
        name.removeprefix("params/"): array
        for name, array in read_arrays(case, "params.npz").items()
        if "/encoder/" not in name
    }
    written = decoder_to_big_vision(read_decoder(case), stacked=case == "cappa_scan")
    assert written.keys() == arrays.keys()
    assert all(torch.equal(written[name], array) for name, array in arrays.items())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_back_and_there(stacked, bias):
    config = CaptionDecoderConfig(
        11, 6, 5, 3, 3, 4, 7, bias=bias, mask_token=bias, eos_token_id=2, text_format=TextFormat(caption="")
    )
    decoder = CaptionDecoder(config)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter)
    found = decoder_from_big_vision(decoder_to_big_vision(decoder, stacked=stacked), eos_token_id=2)
    assert found.config == config
    assert all(
        torch.equal(one, other) for one, other in zip(found.state_dict().values(), decoder.state_dict().values())
    )


def test_its_encoder_is_a_vit_that_averages():
    """The decoder reads what our image tower gives as `last_hidden_state`."""
    arrays, io = read_arrays("cappa_nobias", "params.npz"), read_arrays("cappa_nobias", "io.npz")
    config = SiglipExtVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        pooling="mean",
    )
    rules = image_rules(config, stacked=False)
    tensors = to_torch(rules, lambda name: arrays[name.replace("img/", "params/encoder/")])
    tower = SiglipExtVisionModel(config).eval()
    tower.load_state_dict({name.removeprefix("vision_model."): tensor for name, tensor in tensors})
    with torch.no_grad():
        tokens = tower(io["in/image"].permute(0, 3, 1, 2)).last_hidden_state
    torch.testing.assert_close(tokens, io["out/encoded"], rtol=0, atol=1e-5)


def test_what_is_no_captioner_is_refused():
    arrays = read_arrays("cappa_bias", "params.npz")

    def refused(changed: dict, reason: str) -> None:
        with pytest.raises(CheckpointError, match=reason):
            decoder_from_big_vision(changed)

    refused({"img/embedding/kernel": torch.zeros(2)}, "no decoder/LogitsDense/kernel: not a captioner")
    norm = "params/decoder/EncDecBlock1/LayerNorm2/scale"
    refused({name: array for name, array in arrays.items() if name != norm}, "EncDecBlock1/LayerNorm2/scale")
    refused({**arrays, "decoder/other": torch.zeros(2)}, "left over: decoder/other")
    refused({**arrays, norm: torch.zeros(3)}, r"layers\.1\.layer_norm2\.weight would have the shape \(3,\)")
