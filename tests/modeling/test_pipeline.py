"""The zero-shot pipeline against the stock one, and what it does beyond it."""

import io
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    SiglipModel,
    ZeroShotImageClassificationPipeline,
    pipeline,
)

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtZeroShotImageClassificationPipeline,
    train_tokenizer,
)
from modeling_siglip_ext.pipeline_siglip_ext import RowCache
from support.models import TINY


TASK = "zero-shot-image-classification"
LABELS = ["red square", "blue circle", "green triangle", "nothing"]
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(5)]


def build(*, length: int = 64, naflex: bool = False, **config) -> tuple[SiglipExtModel, SiglipExtProcessor]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(LABELS, vocab_size=300, max_length=length)
    vision = {**TINY, "patch_size": 8} | ({"naflex": True, "num_patches": 16} if naflex else {"image_size": 32})
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": length}
    model = SiglipExtModel(SiglipExtConfig(text_config=text, vision_config=vision, **config)).eval()
    # so that scores differ clearly: random embeddings give nearly equal ones at the initial scale and bias
    with torch.no_grad():
        model.logit_scale.fill_(3.0)
        if model.logit_bias is not None:
            model.logit_bias.fill_(-1.0)
    if naflex:
        image_processor = SiglipExtNaflexImageProcessor(patch_size=8, max_num_patches=16)
    else:
        image_processor = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    return model, SiglipExtProcessor(image_processor, tokenizer)


def make(model, processor, **options):
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    return pipeline(TASK, model=model, device="cpu", **parts, **options)


def stock(model, processor):
    """The stock pipeline, made without the dispatcher."""
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    return ZeroShotImageClassificationPipeline(model=model, task=TASK, device="cpu", **parts)


def assert_same(found, expected, tolerance=1e-6):
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=tolerance)


@pytest.fixture(scope="module")
def classify():
    return make(*build())


def text_calls(pipe) -> list[int]:
    """Counts the texts of every call of the text tower from now on."""
    calls, original = [], pipe.model.get_text_features
    pipe.model.get_text_features = lambda **inputs: (calls.append(len(inputs["input_ids"])), original(**inputs))[1]
    return calls


@pytest.mark.parametrize("naflex", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_equal_the_stock_pipeline(naflex, batch_size):
    parts = build(naflex=naflex)
    found = make(*parts)(IMAGES, candidate_labels=LABELS, batch_size=batch_size)
    for image, rows in zip(IMAGES, found):
        assert_same(rows, stock(*parts)(image, candidate_labels=LABELS))
    single = make(*parts)(IMAGES[0], candidate_labels=LABELS, hypothesis_template="a {}")
    assert_same(single, stock(*parts)(IMAGES[0], candidate_labels=LABELS, hypothesis_template="a {}"))


def test_a_folder_in_stock_form_gets_this_pipeline_with_the_stock_model(tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(loaded) is SiglipExtZeroShotImageClassificationPipeline
    assert type(loaded.model) is SiglipModel
    assert_same(
        loaded(IMAGES[0], candidate_labels=LABELS), stock(model, processor)(IMAGES[0], candidate_labels=LABELS)
    )


def test_a_folder_in_our_form_needs_no_trust_where_the_package_is(tmp_path):
    model, processor = build()
    model.save_pretrained(tmp_path, native=False)
    processor.save_pretrained(tmp_path)
    assert TASK in json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(loaded) is SiglipExtZeroShotImageClassificationPipeline
    expected = stock(model, processor)(IMAGES[0], candidate_labels=LABELS)
    assert_same(loaded(IMAGES[0], candidate_labels=LABELS), expected)
    loaded.save_pretrained(tmp_path / "again")
    for trust in (None, True):
        again = pipeline(TASK, model=str(tmp_path / "again"), device="cpu", trust_remote_code=trust)
        assert type(again).__name__ == type(loaded).__name__
        assert_same(again(IMAGES[0], candidate_labels=LABELS), expected)


def test_a_clip_model_gets_the_stock_pipeline():
    tower = {**TINY, "projection_dim": 16}
    tokenizer = train_tokenizer(LABELS, vocab_size=300, max_length=64)
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": 1}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8})
    size = {"height": 32, "width": 32}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    made = pipeline(TASK, model=CLIPModel(config), tokenizer=tokenizer, image_processor=image_processor, device="cpu")
    assert type(made) is ZeroShotImageClassificationPipeline
    scores = [row["score"] for row in made(IMAGES[0], candidate_labels=LABELS)]
    assert sum(scores) == pytest.approx(1)


def test_the_text_length_is_the_models():
    model, processor = build(length=16)
    found = make(model, processor)(IMAGES[0], candidate_labels=LABELS, hypothesis_template="{}")
    inputs = processor(images=IMAGES[0], text=LABELS, return_tensors="pt")
    assert inputs.input_ids.shape[1] == 16
    with torch.no_grad():
        expected = model(**inputs).logits_per_image[0].sigmoid()
    assert {row["label"]: row["score"] for row in found} == pytest.approx(dict(zip(LABELS, expected.tolist())))


def test_labels_are_embedded_once_and_follow_the_weights():
    pipe = make(*build())
    calls = text_calls(pipe)
    for _ in range(2):
        pipe(IMAGES, candidate_labels=LABELS)
    assert calls == [4]
    pipe(IMAGES[0], candidate_labels=LABELS[:2])
    pipe(IMAGES[0], candidate_labels=LABELS, hypothesis_template="a {}")
    assert calls == [4, 2, 4]
    before = pipe(IMAGES[0], candidate_labels=LABELS)
    with torch.no_grad():
        pipe.model.text_model.embeddings.token_embedding.weight.mul_(3)
    after = pipe(IMAGES[0], candidate_labels=LABELS)
    assert calls == [4, 2, 4, 4]
    assert before != after


def test_several_templates_are_averaged_as_in_the_papers():
    model, processor = build()
    templates = ["a {}", "two pictures of {}.", "{}!"]
    found = make(model, processor)(IMAGES[0], candidate_labels=LABELS, hypothesis_template=templates)
    with torch.no_grad():
        image = model(**processor(images=IMAGES[0], text="a", return_tensors="pt")).image_embeds.double()
        for label in LABELS:
            texts = processor(text=[t.replace("{}", label) for t in templates], return_tensors="pt")
            embeds = model.get_text_features(**texts).pooler_output.double()
            mean = (embeds / embeds.norm(dim=1, keepdim=True)).mean(0)
            logit = image[0] @ (mean / mean.norm()) * model.logit_scale.double().exp() + model.logit_bias.double()
            score = next(row["score"] for row in found if row["label"] == label)
            assert score == pytest.approx(logit.sigmoid().item(), abs=1e-6)


def test_softmax_top_k_and_threshold(classify):
    full = classify(IMAGES[0], candidate_labels=LABELS)
    soft = classify(IMAGES[0], candidate_labels=LABELS, function_to_apply="softmax")
    assert sum(row["score"] for row in soft) == pytest.approx(1)
    logits = torch.logit(torch.tensor([row["score"] for row in full], dtype=torch.float64))
    assert [row["score"] for row in soft] == pytest.approx(logits.softmax(0).tolist(), abs=1e-5)
    assert classify(IMAGES[0], candidate_labels=LABELS, top_k=2) == full[:2]
    assert classify(IMAGES[0], candidate_labels=LABELS, threshold=full[1]["score"]) == full[:2]
    assert classify(IMAGES[0], candidate_labels=LABELS, threshold=1.1) == []


def test_a_softmax_model_gets_softmax_scores():
    pipe = make(*build(loss_type="softmax", logit_bias_init=None))
    assert sum(row["score"] for row in pipe(IMAGES[0], candidate_labels=LABELS)) == pytest.approx(1)
    assert sum(
        row["score"] for row in pipe(IMAGES[0], candidate_labels=LABELS, function_to_apply="sigmoid")
    ) != pytest.approx(1)


def test_settings_may_be_given_when_the_pipeline_is_made():
    pipe = make(*build(), candidate_labels=LABELS, top_k=1)
    assert pipe(IMAGES[0]) == make(*build())(IMAGES[0], candidate_labels=LABELS)[:1]


def test_all_kinds_of_input_give_the_same(classify, tmp_path):
    expected = classify(IMAGES[0], candidate_labels=LABELS)
    path = tmp_path / "image.png"
    IMAGES[0].save(path)
    for source in (str(path), path, path.read_bytes(), np.asarray(IMAGES[0])):
        assert classify(source, candidate_labels=LABELS) == expected
    streamed = list(classify((image for image in IMAGES[:2]), candidate_labels=LABELS))
    assert streamed == classify(IMAGES[:2], candidate_labels=LABELS)
    assert classify([], candidate_labels=LABELS) == []
    assert classify(images=IMAGES[0], candidate_labels=LABELS) == expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_one_bad_image_is_reported_by_index_and_the_rest_is_returned(classify, caplog, batch_size):
    buffer = io.BytesIO()
    IMAGES[1].save(buffer, "PNG")
    images = [IMAGES[0], buffer.getvalue()[:500], IMAGES[2], b"nonsense", IMAGES[4]]
    with caplog.at_level(logging.WARNING):
        found = classify(images, candidate_labels=LABELS, batch_size=batch_size)
    for index, rows in enumerate(found):
        if index in (1, 3):
            assert rows == []
        else:
            assert_same(rows, classify(IMAGES[index], candidate_labels=LABELS))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("image 1 cannot be read")
    assert messages[1].startswith("image 3 cannot be read")
    with pytest.raises(ValueError, match="not an image that PIL knows"):
        classify(b"nonsense", candidate_labels=LABELS)


def test_a_long_label_is_cut_with_eos_and_one_warning(caplog):
    model, processor = build(length=8)
    pipe = make(model, processor)
    long = ["red square " * 20, "blue circle " * 20]
    with caplog.at_level(logging.WARNING):
        found = pipe(IMAGES, candidate_labels=[*long, "red"], hypothesis_template="{}")
    assert len(found) == len(IMAGES)
    assert len(caplog.records) == 1
    assert "2 of the texts are longer than the 8 tokens" in caplog.records[0].getMessage()
    tokens = processor.tokenizer(long[0], padding="max_length", max_length=8, truncation=True)["input_ids"]
    assert tokens[-1] == processor.tokenizer.eos_token_id
    exact = next(n for n in range(1, 9) if len(processor.tokenizer("a" * n)["input_ids"]) == 8)
    caplog.clear()
    pipe(IMAGES[0], candidate_labels=["a" * exact], hypothesis_template="{}")
    assert not caplog.records


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "candidate_labels is missing"),
        ({"candidate_labels": []}, ValueError, "candidate_labels is empty"),
        ({"candidate_labels": ["a", "b", "a"]}, ValueError, "duplicates: 'a'"),
        ({"candidate_labels": "a, b"}, TypeError, "list of strings"),
        ({"candidate_labels": [1, 2]}, TypeError, "list of strings"),
        ({"candidate_labels": ["a"], "hypothesis_template": "a photo"}, ValueError, "must contain '{}'"),
        ({"candidate_labels": ["a"], "hypothesis_template": []}, ValueError, "none given"),
        ({"candidate_labels": ["a"], "function_to_apply": "tanh"}, ValueError, "'tanh'; choose"),
        ({"candidate_labels": ["a"], "top_k": 0}, ValueError, "at least 1"),
        ({"candidate_labels": ["a"], "tokenizer_kwargs": {"padding": True}}, ValueError, "tokenizer_kwargs"),
        ({"candidate_labels": ["a"], "topk": 1}, TypeError, "unknown arguments: topk"),
    ],
)
def test_bad_arguments_are_named(classify, options, error, message):
    with pytest.raises(error, match=message):
        classify(IMAGES[0], **options)


def test_threads_share_one_pipeline():
    pipe = make(*build())
    sets = [LABELS, LABELS[:2], LABELS[::-1], ["something else"]]
    expected = [pipe(IMAGES[i % 5], candidate_labels=sets[i % 4]) for i in range(20)]
    fresh = make(*build())
    calls = text_calls(fresh)
    barrier = threading.Barrier(4)

    def work(start):
        barrier.wait(timeout=60)
        return [fresh(IMAGES[i % 5], candidate_labels=sets[i % 4]) for i in range(start, 20, 4)]

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(work, range(4)))
    for start, part in enumerate(parts):
        for rows, wanted in zip(part, expected[start::4]):
            assert_same(rows, wanted)
    assert sorted(calls) == sorted(map(len, sets))


def test_the_cache_is_bounded_and_drops_what_was_not_used_longest():
    cache = RowCache(limit=10)
    for key in "abc":
        cache.put(key, torch.zeros(3, 2))
    assert cache.get("a") is not None
    cache.put("d", torch.zeros(3, 2))
    assert cache.get("b") is None
    assert [key for key in "acd" if cache.get(key) is not None] == ["a", "c", "d"]
    cache.put("huge", torch.zeros(99, 2))
    assert list(cache.kept) == ["huge"]
