"""Tiny models, exported: tracing takes seconds, so each is exported once in a process."""

import shutil

import pytest
import torch

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, fit_processor
from support.models import TINY_NAFLEX, TINY_TEXT, TINY_VISION, make_processor


# Colours and shapes of the exporter's own captions among them, so that its texts differ.
WORDS = [
    "a photo of a red circle",
    "ein Bild: blue square",
    "green triangle, yellow stripes",
    "picture number 0123456789",
]
VISION = {"fixed": TINY_VISION, "naflex": TINY_NAFLEX}
# AOTInductor calls the compiler of the system, which no package of Python brings.
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


def save_model(folder, kind: str) -> None:
    """A model with its processor, "fixed" in stock form, "naflex" in ours; texts of 16 tokens."""
    torch.manual_seed(0)
    text = {**TINY_TEXT, "vocab_size": 300, "max_position_embeddings": 16}
    model = SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=VISION[kind])).eval()
    with torch.no_grad():  # vectors of a fresh model all point one way, and a wrong one might pass
        for tower in (model.vision_model, model.text_model):
            for parameter in tower.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.1))
    model.save_pretrained(folder)
    fit_processor(make_processor(WORDS, 16), model.config).save_pretrained(str(folder))


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Exports a model of a kind, in a precision and a format; gives its folder and the exported one."""
    done = {}

    def export(kind: str, precision: str = "fp32", form: str = "onnx"):
        from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model

        if (kind, precision, form) not in done:
            base = tmp_path_factory.mktemp("exported")
            save_model(base / kind, kind)
            export_model(base / kind, base / form, ExportOptions(precision=precision, format=form))
            done[kind, precision, form] = base / kind, base / form
        return done[kind, precision, form]

    return export
