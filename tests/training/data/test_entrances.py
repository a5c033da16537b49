"""One set of odd files through every entrance for images: the same upright 8-bit pixels, and the broken one named."""

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from modeling_siglip_ext import SiglipExtImageProcessor, encode_images, encoding
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.evaluation.data import columns as evaluation_columns
from modeling_siglip_ext.images import UnreadableImageError, load_image
from modeling_siglip_ext.inputs import files_below
from modeling_siglip_ext.pipeline_siglip_ext import SiglipExtZeroShotImageClassificationPipeline
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    ImageTextStream,
    TarShards,
    load_image_folder,
)
from modeling_siglip_ext.training.run.precompute import precompute


SIZE = (8, 6)
GREY = np.random.default_rng(1).integers(0, 256, SIZE[::-1], dtype=np.uint8)
COLOURS = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), dtype=np.uint8)
ORIENTATION = 0x0112
# what turns the stored pixels (H, W, C) upright
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored[::-1].transpose(1, 0, 2),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored[:, ::-1].transpose(1, 0, 2),
}


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, 2)


def odd_files() -> dict[str, tuple[bytes, np.ndarray]]:
    """Name to the file and the pixels that everybody is to see."""
    colours = Image.fromarray(COLOURS)
    files = {}
    for orientation, upright in UPRIGHT.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        files[f"exif{orientation}.png"] = (encoded(colours, "PNG", exif=exif), upright(COLOURS))
    deep = np.full(SIZE[::-1], 30_000, dtype=np.uint16)
    files["deep.png"] = (encoded(Image.fromarray(deep), "PNG"), np.full_like(COLOURS, 117))
    files["deep.tiff"] = (encoded(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"), grey(GREY))
    palette = colours.quantize(16)
    plain = np.asarray(palette.convert("RGB"))
    files["palette.png"] = (encoded(palette, "PNG", transparency=0), plain)
    cmyk = encoded(colours.convert("CMYK"), "JPEG", quality=100)
    files["cmyk.jpg"] = (cmyk, np.asarray(Image.open(io.BytesIO(cmyk)).convert("RGB")))
    transparent = Image.fromarray(np.dstack([COLOURS, GREY]))
    files["rgba.png"] = (encoded(transparent, "PNG"), COLOURS)
    files["la.png"] = (encoded(Image.fromarray(np.dstack([GREY, GREY])), "PNG"), grey(GREY))
    files["bits.png"] = (encoded(Image.fromarray(GREY > 127), "PNG"), grey((GREY > 127).astype(np.uint8) * 255))
    return files


FILES = odd_files()
NAMES = sorted(FILES)
BROKEN = "broken.png"  # first in order
CONTENT = {BROKEN: FILES["rgba.png"][0][:60], **{name: FILES[name][0] for name in NAMES}}
NUMBER = {f"example {place}": name for place, name in enumerate(CONTENT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    for place, (name, content) in enumerate(CONTENT.items()):
        file = path / f"{place:02d}-{name}"
        file.write_bytes(content)
        file.with_suffix(".txt").write_text(name)
    return path


@pytest.fixture
def columns() -> Dataset:
    rows = {"image": [{"bytes": content, "path": None} for content in CONTENT.values()], "caption": list(CONTENT)}
    return Dataset.from_dict(rows).cast_column("image", ImageFeature())


@pytest.fixture
def shard(tmp_path) -> str:
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for place, (name, content) in enumerate(CONTENT.items()):
            for member, data in ((f"{place:02d}.{name.split('.')[1]}", content), (f"{place:02d}.txt", name.encode())):
                header = tarfile.TarInfo(member)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    return str(tmp_path / "0.tar")


def check(images: dict[str, Image.Image], broken: Iterable[str] = (BROKEN,)) -> None:
    """Every odd file was seen as it should be, and the broken one by nobody."""
    assert list(broken) == [BROKEN]
    assert sorted(images) == NAMES
    for name, image in images.items():
        assert image.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(image), FILES[name][1], err_msg=name)


class Recorder(SiglipExtImageProcessor):
    """Keeps what it is given."""

    size = {"height": 16, "width": 16}

    def __call__(self, images, **kwargs):
        self.__dict__.setdefault("images", []).extend(images)
        return super().__call__(images, **kwargs)


class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def get_image_features(self, pixel_values):
        return type("Output", (), {"pooler_output": pixel_values.flatten(1)[:, :4]})


def test_load_image(folder):
    check({path.name[3:]: load_image(path) for path in files_below(folder, "image") if BROKEN not in path.name})
    check({name: load_image(content) for name, content in CONTENT.items() if name != BROKEN})
    with pytest.raises(UnreadableImageError, match=BROKEN):
        load_image(folder / f"00-{BROKEN}")


@pytest.mark.parametrize("source", ["folder", "columns", "bytes"])
def test_encoding(source, folder, columns):
    images = {"folder": folder, "columns": columns, "bytes": list(CONTENT.values())}[source]
    recorder = Recorder()
    embeds = encode_images(Tower(), recorder, images, workers=0)
    assert np.isnan(embeds).any(1).tolist() == [name == BROKEN for name in CONTENT]
    check(dict(zip(NAMES, recorder.images)))


def test_evaluation(columns):
    rows = evaluation_columns.images(columns, "image")
    recorder = Recorder()
    (batch,) = encoding.stream_images(Tower(), recorder, (row["image"] for row in rows), workers=0)
    check(dict(zip(NAMES, recorder.images)), [list(CONTENT)[place] for place in batch.errors])


def test_pipeline(folder, our_model, processor):
    recorder = Recorder()
    classify = SiglipExtZeroShotImageClassificationPipeline(
        model=our_model, image_processor=recorder, tokenizer=processor.tokenizer
    )
    for path in files_below(folder, "image"):
        if BROKEN in path.name:
            with pytest.raises(UnreadableImageError, match=BROKEN):
                classify(str(path), candidate_labels=["a"])
        else:
            classify(str(path), candidate_labels=["a"])
    check(dict(zip(NAMES, recorder.images)))


@pytest.mark.parametrize("source", ["folder", "columns"])
def test_dataset(source, folder, columns):
    rows = load_image_folder(folder) if source == "folder" else columns
    dataset = ImageTextDataset(rows, max_bad_fraction=0.2)
    items = [dataset[index] for index in range(1, len(rows))]
    skipped = dataset[0]["sample"]["skipped"]
    check({item["caption"]: item["image"] for item in items}, [NUMBER[name] for name, _ in skipped])


@pytest.mark.parametrize("cache_gib", [0, 1])
def test_dataset_of_resized_pixels(folder, cache_gib):
    recorder = Recorder()
    dataset = ImageTextDataset(
        load_image_folder(folder), image_processor=recorder, cache_gib=cache_gib, max_bad_fraction=0.2
    )
    items = [dataset[index] for index in range(len(dataset) - len(NAMES), len(dataset))]
    check(dict(zip(NAMES, recorder.images)))
    for item in items:
        expected = SiglipExtImageProcessor(size=Recorder.size)(load_image(CONTENT[item["caption"]]))["pixel_values"]
        np.testing.assert_allclose(item["pixels"].numpy() / 127.5 - 1, expected[0], atol=1e-6, err_msg=item["caption"])


@pytest.mark.parametrize("source", ["shard", "columns", "decoded"])
def test_stream(source, shard, columns):
    if source == "shard":
        data: Any = TarShards(shard)
    elif source == "columns":
        data = columns.to_iterable_dataset()
    else:  # rows of a script that decodes by itself
        rows = [{"image": Image.open(io.BytesIO(FILES[name][0])), "caption": name} for name in NAMES]
        data = type("Rows", (), {"rows": lambda *_: ((row["caption"], row) for row in rows)})()
    stream = ImageTextStream(data, shuffle_buffer=1)
    stream.assign(0, 1, len(NAMES), 0)
    items = next(iter(stream))
    skipped = [name for item in items for name, _ in item["sample"]["skipped"]]
    assert len(skipped) == (source != "decoded")
    check({item["caption"]: item["image"] for item in items})


def test_collator(columns, processor):
    rows = [{"image": content, "caption": name} for name, content in CONTENT.items() if name != BROKEN]
    batch = ImageTextCollator(processor)(rows)
    expected = processor.image_processor([load_image(CONTENT[name]) for name in NAMES], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])


def test_precompute(columns, our_model, processor, tmp_path, monkeypatch):
    our_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    recorder = Recorder()
    monkeypatch.setattr("transformers.AutoImageProcessor.from_pretrained", lambda _: recorder)
    precompute(str(tmp_path / "model"), columns, tmp_path / "out", workers=0, max_bad_fraction=0.2)
    check(dict(zip(NAMES, recorder.images)), [list(CONTENT)[row] for row in store.read(tmp_path / "out")[1]])
