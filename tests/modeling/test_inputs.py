"""One input or many: the same answer in `encode_images`, `encode_texts` and the pipeline for all that people have."""

import base64
import io
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from PIL import Image

from modeling_siglip_ext import (
    SiglipExtModel,
    SiglipExtZeroShotImageClassificationPipeline,
    encode_images,
    encode_texts,
)
from modeling_siglip_ext.inputs import inputs_of
from support.models import make_config, make_processor


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(pixels) for pixels in PIXELS]
TEXTS = ["red square", "blue circle", "nothing"]
LABELS = ["red", "blue"]


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(image) for image in IMAGES]
BASE64 = [base64.encodebytes(file).decode() for file in FILES]  # with a line break after 76 characters
PIXELS_FIRST = PIXELS.transpose(0, 3, 1, 2)
ROWS = [{"bytes": file, "path": None} for file in FILES]
DATASET = datasets.Dataset.from_dict({"image": ROWS, "text": TEXTS}).cast_column("image", datasets.Image())
ARROW = pyarrow.table({"image": FILES, "text": TEXTS})
PANDAS = pandas.DataFrame({"image": FILES, "text": TEXTS})

ONE_IMAGE: dict[str, Callable[[], Any]] = {
    "PIL": lambda: IMAGES[0],
    "array (H, W, 3)": lambda: PIXELS[0],
    "array (3, H, W)": lambda: PIXELS_FIRST[0],
    "floats": lambda: PIXELS[0] / np.float32(255),
    "tensor (3, H, W)": lambda: torch.tensor(PIXELS_FIRST[0]),
    "tensor (H, W, 3)": lambda: torch.tensor(PIXELS[0]),
    "bytes": lambda: FILES[0],
    "bytearray": lambda: bytearray(FILES[0]),
    "memoryview": lambda: memoryview(FILES[0]),
    "open file": lambda: io.BytesIO(FILES[0]),
    "base64": lambda: BASE64[0],
    "data URI": lambda: f"data:image/png;base64,{BASE64[0]}",
    "mapping of a data set": lambda: ROWS[0],
    "numpy string": lambda: np.array(BASE64[0]),
    "pyarrow value": lambda: ARROW["image"][0],
}
MANY_IMAGES: dict[str, Callable[[], Any]] = {
    "list": lambda: list(IMAGES),
    "tuple": lambda: tuple(FILES),
    "generator": lambda: (image for image in IMAGES),
    "map": lambda: map(io.BytesIO, FILES),
    "array (N, H, W, 3)": lambda: PIXELS,
    "array (N, 3, H, W)": lambda: PIXELS_FIRST,
    "tensor (N, 3, H, W)": lambda: torch.tensor(PIXELS_FIRST),
    "tensor of floats": lambda: torch.tensor(PIXELS_FIRST) / 255,
    "list of arrays": lambda: list(PIXELS),
    "array of strings": lambda: np.array(BASE64),
    "array of objects": lambda: np.array([*FILES, None], dtype=object)[:3],
    "pandas table": lambda: PANDAS,
    "pandas column": lambda: PANDAS["image"],
    "pyarrow table": lambda: ARROW,
    "pyarrow batch": lambda: ARROW.to_batches()[0],
    "pyarrow column": lambda: ARROW["image"],
    "mapping": lambda: {"image": FILES, "text": TEXTS},
    "data set": lambda: DATASET,
    "stream": lambda: DATASET.to_iterable_dataset(),
    "column of a data set": lambda: DATASET["image"],
    "column of a stream": lambda: DATASET.to_iterable_dataset()["image"],
    "rows of a data set": lambda: DATASET[:3],
    "values": lambda: dict(enumerate(FILES)).values(),
}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    processor = make_processor(TEXTS, length=16)
    text = {"vocab_size": len(processor.tokenizer), "max_position_embeddings": 16}
    model = SiglipExtModel(make_config(text)).eval()
    with torch.no_grad():
        model.logit_bias.fill_(0)
    return model, processor


@pytest.fixture(scope="module")
def expected(parts):
    return encode_images(*parts, IMAGES)


@pytest.fixture(scope="module")
def classify(parts):
    model, processor = parts
    return SiglipExtZeroShotImageClassificationPipeline(
        model=model, tokenizer=processor.tokenizer, image_processor=processor.image_processor
    )


@pytest.mark.parametrize("kind", ONE_IMAGE)
def test_one_image_is_one_row(kind, parts, expected, classify):
    found = encode_images(*parts, ONE_IMAGE[kind](), errors="raise")
    np.testing.assert_allclose(found, expected[:1], rtol=0, atol=1e-6)
    answer = classify(ONE_IMAGE[kind](), candidate_labels=LABELS)
    assert answer == classify(IMAGES[0], candidate_labels=LABELS)
    assert isinstance(answer[0], dict)


@pytest.mark.parametrize("kind", MANY_IMAGES)
def test_many_images_are_as_many_rows(kind, parts, expected, classify):
    found = encode_images(*parts, MANY_IMAGES[kind](), errors="raise")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    answers = list(classify(MANY_IMAGES[kind](), candidate_labels=LABELS))
    assert answers == classify(IMAGES, candidate_labels=LABELS)


def test_grey_images_alone_and_in_a_batch(parts):
    grey = PIXELS[..., 0]
    expected = encode_images(*parts, [Image.fromarray(one) for one in grey])
    batch = np.concatenate([grey, grey])  # 6 images; of three it could be one with three channels
    np.testing.assert_allclose(encode_images(*parts, batch), np.tile(expected, (2, 1)), rtol=0, atol=1e-6)
    for one in (grey[0], grey[0][None], grey[0][..., None], torch.tensor(grey[0])):
        np.testing.assert_allclose(encode_images(*parts, one), expected[:1], rtol=0, atol=1e-6)


def test_a_broken_image_of_a_column_costs_its_row(parts):
    rows = [{"bytes": file, "path": None} for file in (FILES[0], b"broken")]
    dataset = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    for source in (dataset, dataset["image"], dataset.to_iterable_dataset()["image"]):
        assert np.isnan(encode_images(*parts, source)).any(axis=1).tolist() == [False, True]


MANY_TEXTS: dict[str, Callable[[], Any]] = {
    "list": lambda: TEXTS,
    "generator": lambda: (text for text in TEXTS),
    "array": lambda: np.array(TEXTS),
    "objects": lambda: np.array(TEXTS, dtype=object),
    "pandas table": lambda: PANDAS,
    "pandas column": lambda: PANDAS["text"],
    "pandas index": lambda: pandas.Index(TEXTS),
    "pyarrow table": lambda: ARROW,
    "pyarrow column": lambda: ARROW["text"],
    "pyarrow array": lambda: pyarrow.array(TEXTS),
    "mapping": lambda: {"text": TEXTS},
    "data set": lambda: DATASET,
    "column of a data set": lambda: DATASET["text"],
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
}


@pytest.mark.parametrize("kind", MANY_TEXTS)
def test_texts_of_every_collection(kind, parts):
    expected = encode_texts(*parts, TEXTS)
    np.testing.assert_allclose(encode_texts(*parts, MANY_TEXTS[kind]()), expected, rtol=0, atol=1e-6)


def test_one_text(parts):
    expected = encode_texts(*parts, TEXTS[:1])
    for one in (TEXTS[0], np.array(TEXTS[0]), np.str_(TEXTS[0]), ARROW["text"][0], {"text": TEXTS[0]}):
        np.testing.assert_allclose(encode_texts(*parts, one), expected, rtol=0, atol=1e-6)


def test_columns_are_chosen_by_name(parts):
    expected = encode_texts(*parts, TEXTS)
    renamed = PANDAS.rename(columns={"text": "caption"})
    rows = [{"caption": text} for text in TEXTS]
    for source in (renamed, pyarrow.Table.from_pandas(renamed), renamed.to_dict("list"), rows, iter(rows)):
        np.testing.assert_allclose(encode_texts(*parts, source, column="caption"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "kind", "error", "message"),
    [
        ({"caption": TEXTS}, "text", ValueError, r"mapping has no column 'text'; it has caption: give column="),
        (PANDAS[["image"]], "text", ValueError, r"table has no column 'text'; it has image"),
        (ARROW.select(["text"]), "image", ValueError, r"table has no column 'image'; it has text"),
        (datasets.DatasetDict({"train": DATASET}), "image", ValueError, r"splits train: choose one"),
        (np.zeros((20, 20, 2)), "image", ValueError, r"shape \(20, 20, 2\) is not an image"),
        (np.zeros(5), "image", ValueError, r"shape \(5,\) is neither an image"),
        (torch.zeros(2, 2, 3, 8, 8), "image", ValueError, r"shape \(2, 2, 3, 8, 8\) is neither"),
        (torch.zeros(2, 8), "text", TypeError, r"numbers of shape \(2, 8\) are no texts"),
        (io.StringIO("a\nb"), "text", TypeError, r"an open file is not a text"),
        ({"a", "b"}, "text", TypeError, r"a set has no order"),
        (7, "image", TypeError, r"object of type int is no image and no collection of images"),
        (None, "text", TypeError, r"object of type NoneType is no text"),
    ],
)
def test_what_is_neither_is_refused_in_one_line(source, kind, error, message, parts):
    with pytest.raises(error, match=message) as raised:
        (encode_images if kind == "image" else encode_texts)(*parts, source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow", None])
def test_the_format_of_a_data_set_changes_nothing(kind, parts, expected):
    """Nor do the columns that it shows."""
    shown = DATASET.with_format(kind, columns=["text"])
    np.testing.assert_allclose(encode_images(*parts, shown), encode_images(*parts, DATASET), rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        encode_texts(*parts, DATASET.with_format(kind)), encode_texts(*parts, DATASET), rtol=0, atol=1e-6
    )


def test_arrays_of_objects_are_what_they_hold(parts):
    """What numpy makes of PIL images of one size, and of one column of a table."""
    images = [Image.new("RGB", (10, 8), color) for color in ("red", "blue")]
    wanted = encode_images(*parts, images)
    np.testing.assert_array_equal(encode_images(*parts, np.array(images, dtype=object)), wanted)
    np.testing.assert_array_equal(
        encode_texts(*parts, np.array([["a"], ["b"]], dtype=object)), encode_texts(*parts, ["a", "b"])
    )


def test_a_row_without_the_column_is_named():
    with pytest.raises(ValueError, match="row 1 has no 'text'; it has caption"):
        list(inputs_of([{"text": "a"}, {"caption": "b"}], "text", "text").items)
    with pytest.raises(ValueError, match="row 0 has no 'text'; it is a str"):
        list(inputs_of(["a"], "text", "text").items)


class ByPlace(torch.utils.data.Dataset):
    """A data set that answers to any place, so that only its length ends it."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, place):
        return IMAGES[place % len(IMAGES)]


def test_data_sets_of_torch(parts, expected, classify):
    np.testing.assert_allclose(encode_images(*parts, ByPlace()), expected, rtol=0, atol=1e-6)
    assert list(classify(ByPlace(), candidate_labels=LABELS)) == classify(IMAGES, candidate_labels=LABELS)


def test_labels_of_every_collection(classify):
    expected = classify(IMAGES[0], candidate_labels=LABELS)
    for labels in (tuple(LABELS), np.array(LABELS), pandas.Series(LABELS), (label for label in LABELS)):
        assert classify(IMAGES[0], candidate_labels=labels) == expected


def test_a_folder_in_the_pipeline(classify, tmp_path):
    for place, file in enumerate(FILES):
        (tmp_path / f"{place}.png").write_bytes(file)
    expected = classify(IMAGES, candidate_labels=LABELS)
    assert classify(tmp_path, candidate_labels=LABELS) == expected


def test_columns_with_the_names_of_other_things(parts, expected):
    """A column of paths or bytes is no undecoded image, and a column may be called "column"."""
    columns = {"path": BASE64, "column": FILES, "text": TEXTS}
    for source in (columns, pandas.DataFrame(columns), pyarrow.table(columns)):
        for column in ("path", "column"):
            found = encode_images(*parts, source, column=column, errors="raise")
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    row = {"path": "elsewhere.png", "image": FILES[0]}
    np.testing.assert_allclose(encode_images(*parts, row, column="image"), expected[:1], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="no column 'image'; it has path, column, text"):
        encode_images(*parts, columns)


class Labelled(ByPlace):
    """Rows as torchvision's data sets have them."""

    def __getitem__(self, place):
        return super().__getitem__(place), 0


@pytest.mark.parametrize("rows", [Labelled(), [(IMAGES[0], 1)], [[IMAGES[0], IMAGES[1]]]])
def test_rows_of_an_image_and_its_label_are_no_images(rows, parts):
    with pytest.raises(TypeError, match=r"input 0 is a (tuple|list) of 2, not an image: give the images alone"):
        encode_images(*parts, rows)
