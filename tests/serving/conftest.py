"""A tiny model in a folder, and one server of it for all tests that leave it as it is."""

import json

import pytest
import torch

from modeling_siglip_ext import SiglipExtModel
from support.models import make_config, make_processor


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from support.serving import serving


LABELS = ["a cat", "a dog", "a bicycle"]
TEMPLATES = ["a photo of {}.", "{}"]
KEY = "a key that nobody guesses"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    processor = make_processor(["a cat", "a dog", "a bicycle", "picture number"])
    config = make_config({"vocab_size": len(processor.tokenizer), "max_position_embeddings": 64})
    model = SiglipExtModel(config)
    with torch.no_grad():  # as after some training: scores apart from each other
        model.logit_bias.fill_(-2.0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def parts(model_folder):
    """The same model and processor here, as users load them."""
    from transformers import AutoModel, AutoProcessor

    return AutoModel.from_pretrained(model_folder).eval(), AutoProcessor.from_pretrained(model_folder)


@pytest.fixture(scope="session")
def server(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    sets = {"animals": ["a cat", "a dog"], "things": {"labels": LABELS, "templates": TEMPLATES}}
    (folder / "sets.json").write_text(json.dumps(sets))
    options = ("--label_sets", folder / "sets.json", "--served_name", "tiny", "--max_body", 1, "--max_items", 64)
    with serving(model_folder, folder / "log", *options, "--max_pixels", 1_000_000, key=KEY) as running:
        yield running
