"""`evaluate` against loops written by hand over a stock model, and that it leaves the model as it was."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtProcessor, train_tokenizer
from modeling_siglip_ext.encoding import embed, evaluating
from modeling_siglip_ext.evaluation import Classes, EvaluationData, ForcedChoiceTask, ZeroShotTask, evaluate


TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 300, "max_position_embeddings": 16, "projection_size": 32}
VISION = {**TOWER, "image_size": 32, "patch_size": 16, "attention_dropout": 0.5}
COUNT = 20
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(COUNT)]
CAPTIONS = [[f"picture {i}", f"number {i} again"][: 1 + i % 2] for i in range(COUNT)]
NAMES = ["red square", "blue circle", "green triangle"]
LABELS = [[i % 3] for i in range(COUNT)]
TEMPLATES = ["{}", "a picture of a {}"]


@pytest.fixture(params=[(SiglipExtConfig, SiglipExtModel), (SiglipConfig, SiglipModel)], ids=["ext", "stock"])
def model(request):
    config, model = request.param
    torch.manual_seed(0)
    return model(config(text_config=TEXT, vision_config=VISION))


@pytest.fixture(scope="module")
def processor():
    tokenizer = train_tokenizer([*NAMES, "picture number again 0123456789"], vocab_size=300, max_length=16)
    return SiglipExtProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def by_hand(model, processor, images=None, texts=None) -> np.ndarray:
    """Unit vectors, one input at a time, with what transformers documents and nothing of ours."""
    model.eval()
    rows = []
    with torch.no_grad():
        for image in images or ():
            rows.append(model.get_image_features(**processor.image_processor(image, return_tensors="pt")))
        for text in texts or ():
            tokens = processor.tokenizer(
                [text], padding="max_length", max_length=16, truncation=True, return_tensors="pt"
            )
            rows.append(model.get_text_features(input_ids=tokens["input_ids"]))
    stacked = torch.cat([row.pooler_output for row in rows]).double().numpy()
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def ranks(scores: np.ndarray, right: list[int]) -> np.ndarray:
    own = scores[np.arange(len(scores)), right][:, None]
    return (scores >= own - 1e-6).sum(1) - 1


def test_embeddings_are_those_of_forward_and_of_unit_length(model):
    pixels, ids = torch.randn(5, 3, 32, 32), torch.randint(0, 300, (5, 16))
    with evaluating(model):
        images = torch.cat([embed(model, "image", {"pixel_values": part}) for part in pixels.split(2)])
        texts = torch.cat([embed(model, "text", {"input_ids": part}) for part in ids.split(3)])
    model.eval()
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels, return_loss=False)
    torch.testing.assert_close(images, expected.image_embeds)
    torch.testing.assert_close(texts, expected.text_embeds)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(5))
    assert not images.requires_grad


def test_half_precision_comes_back_as_float32(model):
    with evaluating(model.bfloat16()):
        embeds = embed(model, "image", {"pixel_values": torch.randn(2, 3, 32, 32).bfloat16()})
    assert embeds.dtype == torch.float32
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(2))


def test_every_module_returns_to_its_own_mode(model):
    model.train()
    model.vision_model.eval()
    before = [module.training for module in model.modules()]

    def fail_within():
        with evaluating(model):
            assert not any(module.training for module in model.modules())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_within()
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()


def test_what_cannot_be_measured_is_named(model, processor):
    for data, options, message in (
        (EvaluationData(IMAGES), {}, "nothing to evaluate"),
        (EvaluationData(captions=CAPTIONS), {}, "give image_embeds"),
        (EvaluationData(captions=CAPTIONS), {"image_embeds": np.ones((3, 32))}, "3 image embeddings for 20 rows"),
        (EvaluationData([b"no image"], captions=[["a"]]), {}, "none of the images can be read"),
        (EvaluationData(IMAGES[:1], labels=[[]], classes=Classes(NAMES)), {}, "no image has a label"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, processor, data, **options)
    with pytest.raises(ValueError, match="one entry an image, got 20 images, 1 captions"):
        EvaluationData(IMAGES, captions=[["a"]])


def test_retrieval_equals_a_loop(model, processor):
    before = [module.training for module in model.train().modules()]
    result = evaluate(model, processor, EvaluationData(IMAGES, captions=CAPTIONS), ks=(1, 5), batch_size=7)
    assert [module.training for module in model.modules()] == before
    texts = [text for own in CAPTIONS for text in own]
    owner = [i for i, own in enumerate(CAPTIONS) for _ in own]
    scores = by_hand(model, processor, images=IMAGES) @ by_hand(model, processor, texts=texts).T
    assert result.task == "retrieval"
    assert (result.counts.evaluated, result.counts.texts) == (COUNT, len(texts))
    for k in (1, 5):
        assert result.metrics[f"text_to_image_recall@{k}"] == pytest.approx(np.mean(ranks(scores.T, owner) < k))
        hits = [any(owner[j] == i for j in np.argsort(-scores[i])[:k]) for i in range(COUNT)]
        assert result.metrics[f"image_to_text_recall@{k}"] == pytest.approx(np.mean(hits))


def test_zero_shot_equals_a_loop(model, processor):
    data = EvaluationData(IMAGES, labels=LABELS, classes=Classes(NAMES, TEMPLATES))
    result = evaluate(model, processor, data)
    prototypes = []
    for name in NAMES:
        prompts = by_hand(model, processor, texts=[template.replace("{}", name) for template in TEMPLATES])
        prototypes.append(prompts.mean(0) / np.linalg.norm(prompts.mean(0)))
    scores = by_hand(model, processor, images=IMAGES) @ np.array(prototypes).T
    assert result.task == "zero-shot"
    assert result.metrics["accuracy@1"] == pytest.approx(np.mean(ranks(scores, [i % 3 for i in range(COUNT)]) == 0))
    assert result.predictions == scores.argmax(1).tolist()
    assert result.settings["template_count"] == 2
    assert result.model is not None
    assert result.model.class_name == type(model).__name__


def test_an_unreadable_image_does_not_count(model, processor):
    images = [*IMAGES[:3], b"broken", *IMAGES[4:]]
    data = EvaluationData(images, captions=CAPTIONS, labels=LABELS, classes=Classes(NAMES))
    result = evaluate(model, processor, data)
    without = [i for i in range(COUNT) if i != 3]
    rest = EvaluationData(
        [IMAGES[i] for i in without],
        captions=[CAPTIONS[i] for i in without],
        labels=[LABELS[i] for i in without],
        classes=Classes(NAMES),
    )
    assert result.task == "retrieval and zero-shot"
    assert result.counts.unreadable == [3]
    assert result.predictions is not None
    assert result.predictions[3] == -1
    assert result.metrics == evaluate(model, processor, rest).metrics


def test_embeddings_may_be_given_and_tasks_are_measured_beside(model, processor):
    images = by_hand(model, processor, images=IMAGES)
    captions = [f"picture {i}" for i in range(COUNT)]
    texts = by_hand(model, processor, texts=captions)
    prompts = [[template.replace("{}", name) for template in TEMPLATES] for name in NAMES]
    choices = [[f"picture {i}", f"number {i}"] for i in range(5)]
    tasks = [
        ZeroShotTask("shape", NAMES, prompts, range(COUNT), [own[0] for own in LABELS]),
        ForcedChoiceTask("word", ["a", "b"], choices, range(5), [0] * 5),
    ]
    result = evaluate(model, processor, EvaluationData(tasks=tasks), image_embeds=images, text_embeds=texts, ks=(1, 5))
    assert list(result.metrics) == [
        *(f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)),
        "zero_shot_shape",
        "zero_shot_word",
    ]
    plain = evaluate(model, processor, EvaluationData(IMAGES, captions=[[one] for one in captions]), ks=(1, 5))
    assert {key: result.metrics[key] for key in plain.metrics} == plain.metrics
    classes = Classes(NAMES, TEMPLATES)
    zero_shot = evaluate(model, processor, EvaluationData(IMAGES, labels=LABELS, classes=classes))
    assert result.metrics["zero_shot_shape"] == zero_shot.metrics["accuracy@1"]
    candidates = [by_hand(model, processor, texts=own) @ images[i] for i, own in enumerate(choices)]
    assert result.metrics["zero_shot_word"] == pytest.approx(np.mean([a > b + 1e-6 for a, b in candidates]))


def test_a_model_that_has_diverged_scores_nothing(model, processor):
    """In training this is what the log must show, and no error."""
    nothing = np.full((COUNT, 32), np.nan, np.float32)
    result = evaluate(model, processor, EvaluationData(), image_embeds=nothing, text_embeds=nothing)
    assert set(result.metrics.values()) == {0.0}


@pytest.mark.parametrize("data", ["x.parquet", [("image", "text")], None])
def test_other_data_is_refused(data):
    with pytest.raises(TypeError, match=r"data is a \w+: give select\(\.\.\.\) of a file"):
        evaluate(None, None, data)
