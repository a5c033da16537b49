"""Targets: which tokens a decoder writes and which of them cost loss."""

import pytest
import torch

from modeling_siglip_ext.captioning import CaptionDecoderConfig, TargetWriter, TextFormat, padded
from support.models import make_processor


TEXTS = ["a red cat on a mat", "the green dog", "Cap: ARef: GCap: 0 1 2 3 4 5 6 7 8 9"]
BOX = (0.1, 0.2, 0.5, 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    return make_processor(TEXTS, length=24).tokenizer


@pytest.fixture
def writer(tokenizer) -> TargetWriter:
    return TargetWriter(tokenizer, config_of(tokenizer))


def config_of(tokenizer, length: int = 24, **fields) -> CaptionDecoderConfig:
    return CaptionDecoderConfig(len(tokenizer), 16, 16, 1, 2, 16, max_length=length, **fields)


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids).strip()


def test_targets_read_as_they_should_and_masks_cover_the_prefix_only(writer, tokenizer):
    end = tokenizer.eos_token
    expected = {
        "caption": (writer.caption("A red cat"), "cap:", f"a red cat{end}"),
        "referring": (writer.referring("A red cat", BOX), "aref:", f"a red cat : 50 100 250 500{end}"),
        "grounded": (writer.grounded("A red cat", BOX), "gcap:", f"50 100 250 500 : a red cat{end}"),
    }
    for target, prefix, rest in expected.values():
        assert text_of(tokenizer, target.ids[: target.given]) == prefix
        # a separator that ends with a space and a word that begins with one
        assert " ".join(text_of(tokenizer, target.ids[target.given :]).split()) == rest
    labels, weights = padded([target for target, _, _ in expected.values()], writer.config)
    for row, (target, _, _) in enumerate(expected.values()):
        assert labels[row].tolist() == target.ids + [0] * (24 - len(target.ids))
        given, written = target.given, len(target.ids) - target.given
        assert weights[row].tolist() == [0] * given + [1] * written + [0] * (24 - given - written)


def test_a_caption_has_the_tokens_of_the_text_tower(writer, tokenizer):
    target = writer.caption(TEXTS[0])
    assert target.ids[target.given :] == tokenizer(TEXTS[0])["input_ids"]


def test_no_prefix_as_in_cappa(tokenizer):
    writer = TargetWriter(tokenizer, config_of(tokenizer, text_format=TextFormat(caption="")))
    target = writer.caption(TEXTS[1])
    assert (target.ids, target.given) == (tokenizer(TEXTS[1])["input_ids"], 0)


def test_a_prompt_is_the_beginning_of_its_target(writer, tokenizer):
    for text in ("the green dog", "a " * 40):
        prompt = writer.referring_prompt(text)
        target = writer.referring(text, (1.0, 1.0, 1.0, 1.0)).ids
        assert target[: len(prompt)] == prompt
        assert text_of(tokenizer, target[len(prompt) :]) == f"500 500 500 500{tokenizer.eos_token}"


def test_there_is_room_for_a_box_that_has_more_tokens_than_the_largest_numbers():
    """A vocabulary may have 500 as a word, and write other numbers in digits."""
    tokenizer = make_processor([*TEXTS, *["500 500 500 500"] * 9], length=24).tokenizer
    writer = TargetWriter(tokenizer, config_of(tokenizer))
    large, digits = (len(writer.words(text)) for text in ("500 500 500 500", "137 137 137 137"))
    assert large < digits
    prompt, target = writer.referring_prompt("a " * 40), writer.referring("a " * 40, (0.274, 0.274, 0.274, 0.274))
    assert target.ids[: len(prompt)] == prompt
    assert len(prompt) + digits + 1 == 24
    short = config_of(tokenizer, length=len(writer.prefixes["referring"]) + len(writer.separator) + large + 2)
    with pytest.raises(ValueError, match=r"a box has .* too many"):
        TargetWriter(tokenizer, short).referring_prompt("")


def test_long_texts_are_cut_and_keep_box_and_end(writer, tokenizer):
    for target in (writer.caption("a " * 40), writer.referring("a " * 40, BOX), writer.grounded("a " * 40, BOX)):
        assert len(target.ids) == 24
        assert target.ids[-1] == tokenizer.eos_token_id
    assert "50 100 250 500" in text_of(tokenizer, writer.referring("a " * 40, BOX).ids)


def test_nothing_to_write_weighs_nothing(writer):
    labels, weights = padded([None, writer.caption("a cat")], writer.config)
    assert (labels[0] == 0).all()
    assert (weights[0] == 0).all()
    assert weights.dtype == torch.float32


def test_no_room(tokenizer):
    with pytest.raises(ValueError, match="leaves no room in 3"):
        TargetWriter(tokenizer, config_of(tokenizer, length=3))
    with pytest.raises(ValueError, match=r"a box has \d+ tokens .* decoder of max_length 10"):
        TargetWriter(tokenizer, config_of(tokenizer, length=10)).referring("a cat", BOX)
