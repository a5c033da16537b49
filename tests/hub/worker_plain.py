"""Run without this package: runs the snippets of cards, as their readers would; prints what they found as JSON.

worker_plain.py CARDS.json      # {name: [snippet, ...]}
"""

import json
import sys
from pathlib import Path

import torch


def found(values: dict) -> dict:
    """What a snippet computed, by its names for it."""
    shown = {}
    for name in ("image_embeds", "text_embeds", "embeds"):
        if name in values:
            shown[name] = values[name].tolist()
    outputs = values.get("outputs")
    if outputs is not None:
        for name in ("logits_per_image", "pooler_output"):
            if isinstance(getattr(outputs, name, None), torch.Tensor):
                shown[name] = getattr(outputs, name).tolist()
    if isinstance(values.get("found"), list):
        shown["scores"] = {row["label"]: row["score"] for row in values["found"]}
    if "features" in values:
        shown["features"] = [len(values["features"]), len(values["features"][0])]
    for name in ("model", "classify"):
        if name in values:
            shown[name] = type(values[name]).__module__
    return shown


cards = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
results: dict[str, list[dict]] = {}
for card, snippets in cards.items():
    results[card] = []
    for number, snippet in enumerate(snippets):
        values: dict = {"__name__": "__main__", "print": lambda *args: None}
        try:
            exec(compile(snippet, f"{card}, snippet {number}", "exec"), values)
        except Exception as error:  # whatever a snippet raises, said with its card and text
            raise RuntimeError(f"{card}, snippet {number}:\n{snippet}") from error
        results[card].append(found(values))
if "modeling_siglip_ext" in sys.modules:
    sys.exit("the package was imported, so this would prove nothing")
print(json.dumps(results))
