"""A small open-vocabulary detector with random weights."""

import json
from pathlib import Path

import torch
from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def small_detector(folder: Path) -> Path:
    """An OWLv2 with a tokenizer of single letters, as a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["!", "<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    files = {
        "vocab.json": json.dumps({word: place for place, word in enumerate(words)}),
        "merges.txt": "#version: 0.2\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = Owlv2Config(
        text_config={**text, "pad_token_id": 2}, vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Owlv2ForObjectDetection(config)
    with torch.no_grad():  # else all boxes are as large as the image, or empty
        for parameter in model.box_head.parameters():
            parameter.mul_(0.1)
        for parameter in model.class_head.parameters():
            parameter.mul_(0.3)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    Owlv2Processor(Owlv2ImageProcessor(size=size), tokenizer).save_pretrained(folder)
    return folder
