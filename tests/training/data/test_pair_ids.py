"""Rows that belong together, from a column or from equal captions: the loss, in every way a batch is made and run."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    ImageTextStream,
    SiglipExtTrainer,
)
from modeling_siglip_ext.training.data.image_embeddings import EmbeddingTextDataset
from modeling_siglip_ext.training.data.pair_ids import ids_of_texts, ids_of_values


# Which of the 16 rows belong together: in fours, but for two without an id.
GROUPS = [row % 4 if row not in (5, 6) else None for row in range(16)]
CAPTIONS = [f"a red  square {row % 4}" if row % 2 else f"A Red square {row % 4}" for row in range(16)]


@pytest.fixture
def paired(rows) -> Dataset:
    named = [None if group is None else f"product {group}" for group in GROUPS]
    return rows.add_column("product", named).remove_columns("caption").add_column("caption", CAPTIONS)


def naive_loss(images: torch.Tensor, texts: torch.Tensor, scale: float, bias: float, kind: str, together) -> float:
    """The paper's loss and UniCL's, in float64, one pair at a time."""
    images, texts = (F.normalize(embeds.double(), dim=-1) for embeds in (images, texts))
    count = len(images)
    logits = [[math.exp(scale) * float(images[i] @ texts[j]) + bias for j in range(count)] for i in range(count)]
    if kind == "sigmoid":
        cells = [math.log1p(math.exp(-logits[i][j] if together(i, j) else logits[i][j]))
                 for i in range(count) for j in range(count)]  # fmt: skip
        return sum(cells) / count
    total = 0.0
    for matrix in (logits, [list(column) for column in zip(*logits)]):
        for i, row in enumerate(matrix):
            positives = [j for j in range(count) if together(i, j)]
            total -= sum(row[j] - math.log(sum(map(math.exp, row))) for j in positives) / len(positives)
    return total / 2 / count


def by_column(i: int, j: int) -> bool:
    return i == j or (GROUPS[i] is not None and GROUPS[i] == GROUPS[j])


def by_caption(i: int, j: int) -> bool:
    return i % 4 == j % 4


@pytest.mark.parametrize(
    ("kind", "size", "how"),
    [
        ("stock_model", None, "pair_column"),
        ("stock_model", 4, "equal_captions_match"),
        ("sigmoid", None, "equal_captions_match"),
        ("sigmoid", 4, "pair_column"),
        ("softmax", None, "pair_column"),
    ],
)
def test_the_loss_is_the_naive_one(request, our_model, arguments, paired, processor, how, kind, size):
    model = our_model
    if kind == "stock_model":
        model = request.getfixturevalue(kind)
    elif kind == "softmax":
        our_model.config.loss_type = kind
        model = SiglipExtModel(our_model.config)
    column = {"pair_column": "product"} if how == "pair_column" else {}
    dataset = ImageTextDataset(paired, image_processor=processor.image_processor, **column)
    trainer = SiglipExtTrainer(
        model=model,
        args=arguments(mini_batch_size=size, per_device_train_batch_size=16, max_steps=1, learning_rate=0.0),
        train_dataset=dataset,
        eval_dataset=dataset,
        data_collator=ImageTextCollator(processor, equal_captions_match=how != "pair_column"),
        processing_class=processor,
        compute_metrics=lambda prediction: {"labels": float(prediction.label_ids is not None)},
    )
    trainer.train()
    with torch.no_grad():
        outputs = model.eval()(**processor(images=list(paired["image"]), text=CAPTIONS, return_tensors="pt"))
    head = model.logit_scale.item(), 0.0 if kind == "softmax" else model.logit_bias.item()
    together = by_column if how == "pair_column" else by_caption
    loss = "softmax" if kind == "softmax" else "sigmoid"
    expected = naive_loss(outputs.image_embeds, outputs.text_embeds, *head, loss, together)
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)
    assert logged["positive_pairs"] == sum(together(i, j) for i in range(16) for j in range(16))
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["eval_labels"] == 0
    assert len(trainer.predict(dataset).predictions) == 2


def test_without_ids_nothing_changes(our_model, arguments, rows, processor):
    dataset = ImageTextDataset(rows, image_processor=processor.image_processor)
    trainer = SiglipExtTrainer(model=our_model, args=arguments(max_steps=1), train_dataset=dataset,
                               data_collator=ImageTextCollator(processor))  # fmt: skip
    trainer.train()
    assert "positive_pairs" not in trainer.state.log_history[0]


def test_ids():
    ids = ids_of_values(["a", "b", "a", 1, "1", None, None, float("nan"), float("nan")])
    assert ids.dtype == torch.int64
    assert ids[0] == ids[2]
    assert len(set(ids.tolist())) == 8
    assert torch.equal(ids_of_values(["a", 7]), ids_of_values(["a", 7]))
    assert ids_of_texts(torch.tensor([[1, 2], [1, 2], [2, 1]])).unique().numel() == 2


def test_every_source_of_rows(paired, processor):
    collate = ImageTextCollator(processor, pair_column="product")
    expected = [[by_column(i, j) for j in range(16)] for i in range(16)]

    def together(examples: list[dict]) -> list[list[bool]]:
        ids = collate(examples)["pair_ids"]
        return (ids[:, None] == ids[None]).tolist()

    images = ImageTextDataset(paired, image_processor=processor.image_processor, pair_column="product")
    assert together([images[i] for i in range(16)]) == expected
    embedded = EmbeddingTextDataset(
        paired, torch.zeros(16, 4), torch.ones(16, dtype=torch.bool), pair_column="product"
    )
    assert together([embedded[i] for i in range(16)]) == expected
    assert together([paired[i] for i in range(16)]) == expected
    stream = ImageTextStream(paired.to_iterable_dataset(), shuffle_buffer=1, pair_column="product")
    stream.assign(0, 1, 16, 0)
    assert together(next(iter(stream))) == expected


def test_what_contradicts_itself_is_refused(paired, processor):
    with pytest.raises(ValueError, match="one of them"):
        ImageTextCollator(processor, pair_column="product", equal_captions_match=True)
    with pytest.raises(ValueError, match="shuffle_captions"):
        ImageTextDataset(paired, pair_column="product", shuffle_captions=True)
    with pytest.raises(ValueError, match=r"pair_column='id'.*'product'"):
        ImageTextDataset(paired, pair_column="id")
    stream = ImageTextStream(paired.to_iterable_dataset(), pair_column="id")
    with pytest.raises(ValueError, match="the row has no 'id'"):
        next(iter(stream))


def test_the_model_counts_them_in_its_own_loss(our_model, processor, paired):
    inputs = processor(images=list(paired["image"]), text=CAPTIONS, return_tensors="pt")
    ids = torch.arange(16) % 4
    with torch.no_grad():
        outputs = our_model(**inputs, return_loss=True, pair_ids=ids)
    head = our_model.logit_scale.item(), our_model.logit_bias.item()
    expected = naive_loss(outputs.image_embeds, outputs.text_embeds, *head, "sigmoid", by_caption)
    assert outputs.loss.item() == pytest.approx(expected, rel=1e-5)
    assert isinstance(our_model.config, SiglipExtConfig)
