"""The held-out figures of a run are those of `evaluate`, under the names that logs and cards know."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext.evaluation import ForcedChoiceTask, ZeroShotTask, retrieval_metrics
from modeling_siglip_ext.training.run.held_out import HeldOutMetrics


TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
WORDS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    config = SiglipExtConfig(
        text_config={**TOWER, "vocab_size": 300, "max_position_embeddings": 16},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
    )
    tokenizer = train_tokenizer(WORDS, vocab_size=300, max_length=16)
    return SiglipExtModel(config), SiglipExtProcessor(
        SiglipExtImageProcessor(size={"height": 32, "width": 32}), tokenizer
    )


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_figures_of_pairs_and_tasks(parts):
    model, processor = parts
    random = np.random.default_rng(0)
    images, texts = (unit(random.normal(size=(12, 32)).astype(np.float32)) for _ in range(2))
    rows, labels = [1, 3, 5, 7, 8], [0, 1, 2, 0, 1]
    tasks = [
        ZeroShotTask("colour", WORDS, [[word, f"a {word} one"] for word in WORDS], rows, labels),
        ForcedChoiceTask("choice", WORDS, [WORDS] * 5, rows, labels),
    ]
    model.train()
    found = HeldOutMetrics(model, processor, tasks)(EvalPrediction((images, texts), None))
    assert model.training
    recalls = retrieval_metrics(torch.from_numpy(images), torch.from_numpy(texts), ks=(1, 5))
    assert list(found) == [*recalls, "zero_shot_colour", "zero_shot_choice"]
    assert {key: found[key] for key in recalls} == recalls
    plain = encode_texts(model, processor, WORDS)
    classes = unit(plain + encode_texts(model, processor, [f"a {word} one" for word in WORDS]))
    assert found["zero_shot_colour"] == pytest.approx(np.mean((images[rows] @ classes.T).argmax(1) == labels))
    assert found["zero_shot_choice"] == pytest.approx(np.mean((images[rows] @ plain.T).argmax(1) == labels))
    assert all(isinstance(value, float) for value in found.values())


def test_a_run_without_tasks_has_recalls_alone(parts):
    found = HeldOutMetrics(*parts)(EvalPrediction((np.eye(8, 32), np.eye(8, 32)), None))
    assert found == {f"{way}_recall@{k}": 1.0 for way in ("image_to_text", "text_to_image") for k in (1, 5)}
