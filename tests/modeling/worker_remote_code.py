"""Run without this package: loads a folder in `siglip_ext` form by its own code; prints what it found as JSON."""

import json
import sys

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    pipeline,
)


folder, again = sys.argv[1:3]
try:
    import modeling_siglip_ext  # noqa: F401 - whether it can be
except ImportError:
    pass
else:
    sys.exit("the package can be imported here, so this would prove nothing")

classes = {"AutoConfig": type(AutoConfig.from_pretrained(folder, trust_remote_code=True)).__name__}
for auto in (AutoModel, AutoModelForZeroShotImageClassification, AutoModelForImageClassification):
    classes[auto.__name__] = type(auto.from_pretrained(folder, trust_remote_code=True)).__name__

model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
image = Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 50).convert("RGB")
inputs = processor(text=["a red square", "a blue circle"], images=image, padding="max_length", return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits_per_image
    loss = model(**{**inputs, "input_ids": inputs["input_ids"][:1]}, return_loss=True).loss
model.save_pretrained(again)
reloaded = AutoModel.from_pretrained(again, trust_remote_code=True).eval()
with torch.no_grad():
    logits_again = reloaded(**inputs).logits_per_image

classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
classes["pipeline"] = type(classify).__name__
found = classify(image, candidate_labels=["red square", "blue circle"], hypothesis_template="a {}")
print(
    json.dumps(
        {
            "classes": classes,
            "logits": logits.tolist(),
            "logits_again": logits_again.tolist(),
            "loss": loss.item(),
            "pipeline": {row["label"]: row["score"] for row in found},
        }
    )
)
