"""A model under evaluation is whole: in a stock class weights that are missing would be random, with figures."""

import json

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModel, GemmaTokenizer, Siglip2ImageProcessorPil, Siglip2Processor

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext.embedding_store import weights_fingerprint
from modeling_siglip_ext.evaluation.session import Session, Settings
from support.models import make_config, make_processor


def test_a_checkpoint_without_some_weights_is_refused(tmp_path):
    processor = make_processor(["a red square"], length=8)
    SiglipExtModel(make_config({"vocab_size": 300})).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert type(Session.open(Settings(str(tmp_path))).model).__name__ == "SiglipModel"
    file = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("text_model.head")}
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"has no weights for 2 of the .* text_model\.head\.bias"):
        Session.open(Settings(str(tmp_path)))


def test_a_processor_that_is_missing_in_whole_or_part_is_said(tmp_path):
    processor = make_processor(["a red square"], length=8)
    SiglipExtModel(make_config({"vocab_size": 300})).save_pretrained(tmp_path)
    remedy = "save the processor of images and texts there"
    for part, said in ((None, "cannot be loaded"), (processor.image_processor, "cannot be loaded|without")):
        if part is not None:
            part.save_pretrained(tmp_path)
        with pytest.raises((OSError, ValueError), match=f"(?s)({said}).*{remedy}") as refusal:
            Session.open(Settings(str(tmp_path)))
        assert str(tmp_path) in str(refusal.value)
    processor.save_pretrained(tmp_path)
    Session.open(Settings(str(tmp_path)))


def test_naflex_in_stock_form_is_not_padded(tmp_path):
    vision = {"naflex": True, "num_patches": 16, "patch_size": 4, "image_size": None}
    SiglipExtModel(make_config({"vocab_size": 300}, vision)).save_pretrained(tmp_path)
    images = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
    Siglip2Processor(images, GemmaTokenizer()).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip2"
    session = Session.open(Settings(str(tmp_path)))
    assert type(session.model) is SiglipExtModel
    # the card of the folder asks the stock class
    assert session.weights == weights_fingerprint(AutoModel.from_pretrained(tmp_path))
