"""Embeddings in one call, against the model called by hand, sentence-transformers and FAISS."""

import io
import logging
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, SiglipModel

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    encode_images,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext import images as images_module
from modeling_siglip_ext.encoding import ahead, stream_images
from support.models import TINY


TEXTS = ["red square", "blue circle", "green triangle", "nothing at all", "a"]
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)) for i in range(7)]


def build(naflex: bool = False, length: int = 16, **config) -> tuple[SiglipExtModel, SiglipExtProcessor]:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=length)
    vision = {**TINY, "patch_size": 8} | ({"naflex": True, "num_patches": 16} if naflex else {"image_size": 32})
    config = {"text_config": {**TINY, "vocab_size": 300, "max_position_embeddings": length}} | config
    image_processor = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    if naflex:
        image_processor = SiglipExtNaflexImageProcessor(patch_size=8, max_num_patches=16)
    model = SiglipExtModel(SiglipExtConfig(vision_config=vision, **config)).eval()
    return model, SiglipExtProcessor(image_processor, tokenizer)


@pytest.fixture(scope="module")
def parts() -> tuple[SiglipExtModel, SiglipExtProcessor]:
    return build()


def by_hand(model, processor, images=None, text=None) -> np.ndarray:
    inputs = processor(images=images, text=text, return_tensors="pt")
    features = model.get_image_features if text is None else model.get_text_features
    with torch.no_grad():
        embeds = features(**inputs).pooler_output.double()
    return (embeds / embeds.norm(dim=1, keepdim=True)).numpy()


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("naflex", [False, True])
@pytest.mark.parametrize("workers", [0, 3])
def test_images_equal_the_model_called_by_hand(naflex, workers):
    model, processor = build(naflex)
    found = encode_images(model, processor, IMAGES, batch_size=3, workers=workers)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(model, processor, images=IMAGES), rtol=0, atol=1e-6)
    only = encode_images(model, processor.image_processor, IMAGES, return_tensors="pt", normalize=False)
    assert isinstance(only, torch.Tensor)
    np.testing.assert_allclose(torch.nn.functional.normalize(only).numpy(), found, rtol=0, atol=1e-6)
    assert (only.norm(dim=1) - 1).abs().min() > 0.01


def test_texts_have_the_towers_length_whatever_the_tokenizer_says(parts, tmp_path):
    model, processor = parts
    expected = by_hand(model, processor, text=TEXTS)
    np.testing.assert_allclose(encode_texts(model, processor, TEXTS, batch_size=2), expected, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=1000)
    stock = SiglipModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(encode_texts(stock, tokenizer, TEXTS), expected, rtol=0, atol=1e-6)


def test_a_bert_text_tower_gets_its_mask():
    bert = BertConfig(**TINY, vocab_size=300, max_position_embeddings=20)
    model, _ = build(text_config=bert, text_projection_size=32)
    tokenizer = train_tokenizer(TEXTS, vocab_size=300, max_length=20)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    together = encode_texts(model, tokenizer, TEXTS)
    apart = np.concatenate([encode_texts(model, tokenizer, [text]) for text in TEXTS])
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-6)


def test_every_kind_of_collection(parts, tmp_path):
    model, processor = parts
    expected = encode_images(model, processor, IMAGES)
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(png(image))
    (tmp_path / "notes.txt").write_text("not an image")
    rows = {"image": [str(tmp_path / f"{i}.png") for i in range(7)], "text": [*TEXTS, "x", "y"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    sources = [
        tuple(IMAGES),
        (image for image in IMAGES),
        tmp_path,
        str(tmp_path),
        rows["image"],
        dataset,
        dataset.to_iterable_dataset(),
    ]
    for source in sources:
        assert np.array_equal(encode_images(model, processor, source), expected), source
    renamed = dataset.rename_columns({"image": "picture", "text": "caption"})
    assert np.array_equal(encode_images(model, processor, renamed, column="picture"), expected)
    texts = encode_texts(model, processor, rows["text"])
    assert np.array_equal(encode_texts(model, processor, dataset), texts)
    assert np.array_equal(encode_texts(model, processor, renamed.to_iterable_dataset(), column="caption"), texts)
    np.testing.assert_allclose(encode_texts(model, processor, "red square")[0], texts[0], rtol=0, atol=1e-6)
    assert encode_images(model, processor, IMAGES[0]).shape == (1, 32)


def test_the_model_keeps_its_mode_and_gradients_stay_off(parts):
    model, processor = build()
    model.train()
    model.vision_model.eval()
    found = encode_images(model, processor, IMAGES[:1], return_tensors="pt")
    assert model.training
    assert not model.vision_model.training
    assert not found.requires_grad


def test_bad_images_cost_their_rows_and_are_named(parts, caplog):
    model, processor = parts
    images = [b"no", *IMAGES[:3], "nowhere.jpg", IMAGES[3]]
    with caplog.at_level(logging.WARNING):
        found = encode_images(model, processor, images, batch_size=2)
    assert np.isnan(found).any(axis=1).tolist() == [True, False, False, False, True, False]
    good = encode_images(model, processor, IMAGES[:4])
    np.testing.assert_allclose(found[[1, 2, 3, 5]], good, rtol=0, atol=1e-6)
    assert len(caplog.records) == 1
    assert "2 of 6 images cannot be read" in caplog.text
    assert "0: 2 bytes" in caplog.text
    assert "4: 'nowhere.jpg'" in caplog.text
    with pytest.raises(ValueError, match=r"image 4: 'nowhere\.jpg'"):
        encode_images(model, processor, images[1:3] * 2 + images[4:], errors="raise", batch_size=2)
    assert np.isnan(encode_images(model, processor, [b"no"])).all()


def test_no_url_is_waited_for_without_end(parts, monkeypatch):
    """Or one server that does not answer holds up all images after its own."""
    waits = []
    session = SimpleNamespace(get=lambda url, timeout, **_: waits.append(timeout) or SimpleNamespace(status_code=404))
    monkeypatch.setattr(images_module, "get_session", lambda: session)
    stream = partial(stream_images, *parts, ["http://a/b.png"])
    assert np.isnan(encode_images(*parts, ["http://a/b.png"])).all()
    with torch.no_grad():
        assert [list(batch.errors) for batch in stream()] == [[0]]
        assert [list(batch.errors) for batch in stream(timeout=None)] == [[0]]
    assert waits == [30, 30, None]


def test_a_broken_image_in_a_dataset_costs_its_row(parts):
    model, processor = parts
    rows = [{"bytes": png(IMAGES[0]), "path": None}, {"bytes": b"broken", "path": None}]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    found = encode_images(model, processor, dataset)
    assert np.isnan(found).any(axis=1).tolist() == [False, True]


def test_many_long_texts_are_one_warning(parts, caplog):
    model, processor = parts
    with caplog.at_level(logging.WARNING):
        encode_texts(model, processor, ["red square " * 30, "a", "blue circle " * 30], batch_size=1)
    assert len(caplog.records) == 1
    assert "2 of the texts are longer than the 16 tokens" in caplog.text


def test_bad_arguments_are_named(parts):
    model, processor = parts
    dataset = datasets.Dataset.from_dict({"caption": ["a"]})
    with pytest.raises(ValueError, match="nothing to encode: there are no images"):
        encode_images(model, processor, [])
    with pytest.raises(ValueError, match="no column 'text'; it has caption"):
        encode_texts(model, processor, dataset)
    with pytest.raises(ValueError, match="no column 'picture'"):
        encode_images(model, processor, dataset, column="picture")
    with pytest.raises(TypeError, match="text 2 is a int"):
        encode_texts(model, processor, ["a", "b", 3], batch_size=2)
    with pytest.raises(ValueError, match="return_tensors='tf'"):
        encode_texts(model, processor, ["a"], return_tensors="tf")
    with pytest.raises(ValueError, match="errors='ignore'"):
        encode_images(model, processor, IMAGES, errors="ignore")
    with pytest.raises(ValueError, match="batch_size=0"):
        encode_images(model, processor, IMAGES, batch_size=0)
    with pytest.raises(ValueError, match="workers=-1 must not be negative"):
        encode_images(model, processor, IMAGES, workers=-1)
    with pytest.raises(TypeError, match="first argument is a SiglipExtProcessor, not a model"):
        encode_images(processor, model, IMAGES)
    for other in (None, model, processor.tokenizer):
        with pytest.raises(TypeError, match=f"second argument is a {type(other).__name__}, not a processor"):
            encode_images(model, other, IMAGES)
    for other in (None, model, processor.image_processor):
        with pytest.raises(TypeError, match=f"second argument is a {type(other).__name__}, not a processor"):
            encode_texts(model, other, ["a"])
    with pytest.raises(ValueError, match="has no character in place 0, but half of a pair of surrogates"):
        encode_texts(model, processor, ["a", "\ud83d"])


def test_a_folder_without_images_is_named(parts, tmp_path):
    with pytest.raises(ValueError, match="holds no image files"):
        encode_images(*parts, tmp_path)


def test_workers_run_only_so_far_ahead_and_keep_the_order():
    seen = []

    def source():
        for i in range(100):
            seen.append(i)
            yield i

    results = ahead(lambda i: i * i, source(), workers=3, limit=10)
    assert next(results) == 0
    assert len(seen) <= 11
    assert list(results) == [i * i for i in range(1, 100)]


def test_bfloat16_stays_near(parts):
    model, processor = build()
    found = encode_images(model.to(torch.bfloat16), processor, IMAGES)
    assert found.dtype == np.float32
    assert (found * encode_images(*parts, IMAGES)).sum(1).min() > 0.99


@pytest.mark.parametrize(("naflex", "native"), [(False, True), (False, False), (True, False), (True, None)])
def test_sentence_transformers_gives_the_same_embeddings_with_its_defaults(naflex, native, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    model, processor = build(naflex)
    model.save_pretrained(tmp_path, native=native)
    processor.save_pretrained(tmp_path)
    loaded = library.SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(loaded.encode(TEXTS), encode_texts(model, processor, TEXTS), rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.encode(IMAGES), encode_images(model, processor, IMAGES), rtol=0, atol=1e-6)
    assert loaded.similarity(loaded.encode(TEXTS[:2]), loaded.encode(IMAGES)).shape == (2, 7)


def test_search_with_faiss(parts):
    faiss = pytest.importorskip("faiss")
    model, processor = parts
    images, texts = encode_images(model, processor, IMAGES), encode_texts(model, processor, TEXTS)
    index = faiss.IndexFlatIP(images.shape[1])  # inner products of unit vectors are cosines
    index.add(images)
    scores, places = index.search(texts, 3)
    cosines = texts.astype(np.float64) @ images.T.astype(np.float64)
    np.testing.assert_allclose(scores, -np.sort(-cosines, axis=1)[:, :3], rtol=0, atol=1e-6)
    assert (places[:, 0] == cosines.argmax(axis=1)).all()


def test_a_fresh_process_knows_all_image_suffixes():
    """PIL loads its formats late; what is asked before that must not be taken for all there are."""
    # imported by its file name: the package would bring transformers, and seconds
    code = "import sys; sys.path.insert(0, sys.argv[1]); from images import is_image_file as known\n"
    code += "print(known('a.JPG'), known('b.py'))"
    command = [sys.executable, "-c", code, str(Path(images_module.__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "True False"
