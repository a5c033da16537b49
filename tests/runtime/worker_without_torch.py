"""Runs an exported model in a process that could not import torch or transformers, and prints what it found."""

import json
import sys

import numpy as np


class Refusal:
    """Whoever imports one of these is wrong."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "modeling_siglip_ext"):
            raise AssertionError(f"{name} was imported")


sys.meta_path.insert(0, Refusal)

from siglip_ext_runtime import ExportedModel  # noqa: E402 - once torch is refused


folder, inputs = sys.argv[1:]
model = ExportedModel(folder)
arrays = np.load(inputs)
images = model.get_image_features(pixel_values=arrays["pixel_values"]).embeds
texts = model.get_text_features(input_ids=arrays["input_ids"]).embeds
scores = images @ texts.T * np.exp(model.settings.logit_scale) + model.settings.logit_bias
print(json.dumps({"type": type(images).__name__, "scores": scores.tolist()}))
