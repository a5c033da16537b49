"""Load what `siglip-ext-train` wrote with plain transformers, as anyone without this package would.

    python -I training/run/demo.py demo-output

Run by `make demo` in a fresh process. It imports transformers, torch and Pillow only, and makes sure of that at the
end.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from transformers.utils.logging import disable_progress_bar, set_verbosity_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of a training run")
    folder = parser.parse_args().folder
    listing = folder / "held_out" / "captions.json"
    if not listing.is_file():
        parser.error(f"{folder} has no held_out/captions.json: train first, e.g. `siglip-ext-train emoji`")
    disable_progress_bar()
    set_verbosity_error()
    held_out = json.loads(listing.read_text(encoding="utf-8"))
    truth, captions = held_out["images"], held_out["captions"]
    images = [Image.open(folder / "held_out" / file).convert("RGB") for file in truth]

    model = AutoModel.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    inputs = processor(
        images=images, text=captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits_per_image
    print(f"\nLoaded {folder} as {type(model).__module__}.{type(model).__name__}")
    print(f"\nAutoModel + AutoProcessor: the best of {len(captions)} held-out captions for images never trained on")
    right = 0
    for file, row in zip(truth, logits):
        best = captions[row.argmax()]
        right += best == truth[file]
        print(f"  {'right' if best == truth[file] else 'wrong'}  {file}  {best}")
        if best != truth[file]:
            print(f"                 (truth: {truth[file]})")
    print(f"  {right} of {len(truth)}")

    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    labels = list(truth.values())
    print(f'\npipeline("zero-shot-image-classification"): the best of {len(labels)} labels, with its sigmoid score')
    right = 0
    for image, label in zip(images, labels):
        first = classify(image, candidate_labels=labels, hypothesis_template="{}")[0]
        right += first["label"] == label
        print(f"  {'right' if first['label'] == label else 'wrong'}  {first['score']:.3f}  {first['label']}")
    print(f"  {right} of {len(labels)}")

    ours = [name for name in sys.modules if name.startswith("modeling_siglip_ext")]
    assert not ours, f"this process was to need transformers only, but imported {ours}"
    print(f"""
Look at
  {folder / "retrieval.png"}   held-out images and the captions found for them
  {folder / "loss_curve.png"}  the training run
  {folder / "README.md"}       the model card, with figures

Next
  train on your own images      siglip-ext-train finetune --dataset FOLDER --output_dir OUT
                                (FOLDER: images with metadata.csv, or a .txt file beside each image)
  fine-tune another checkpoint  siglip-ext-train finetune --model_name_or_path google/siglip2-base-patch16-224 ...
  change the recipe             siglip-ext-train emoji --help
  publish                       siglip-ext-convert publish {folder} USER/NAME --dry_run
""")


if __name__ == "__main__":
    main()
