"""A recipe trains on every kind of data that the evaluation reads, and refuses what is not there in one line."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from datasets import Dataset

from modeling_siglip_ext.training import ImageTextDataset, TarShards, load_image_folder
from modeling_siglip_ext.training.data.samples import TooManyBadSamples
from modeling_siglip_ext.training.run.fields import DataArguments
from modeling_siglip_ext.training.run.rows import every_row, facts_of_dataset, load_rows
from support.shards import encoded, write_tar


def picture(number: int) -> bytes:
    return encoded(number)


@pytest.fixture
def folder(tmp_path) -> Path:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def pairs(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        (f"{number}{suffix}", content)
        for number in range(start, start + count)
        for suffix, content in ((".png", picture(number)), (".txt", b"a cat"))
    ]


def data(dataset: object, **changes) -> DataArguments:
    return DataArguments(dataset=str(dataset), **{"eval_fraction": 0.0, **changes})


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.json", "x.jsonl", "x.parquet", "saved", "splits"])
def test_files_of_every_kind(name, folder):
    rows = [{"filepath": f"{number}.png", "title": f"caption {number}"} for number in range(6)]
    if name in ("x.csv", "x.tsv"):
        separator = "\t" if name.endswith("tsv") else ","
        lines = [separator.join(row.values()) for row in ({"filepath": "filepath", "title": "title"}, *rows)]
        (folder / name).write_text("\n".join(lines))
    elif name in ("x.json", "x.jsonl"):
        (folder / name).write_text(json.dumps(rows) if name == "x.json" else "\n".join(map(json.dumps, rows)))
    else:
        images = [{"bytes": picture(number), "path": None} for number in range(6)]
        rows = Dataset.from_dict({"image": images, "title": [row["title"] for row in rows]})
        if name == "x.parquet":
            rows.to_parquet(folder / name)
        elif name == "saved":
            rows.save_to_disk(folder / name)
        else:
            for split, part in (("train", rows), ("test", rows.select([0]))):
                (folder / name / split).mkdir(parents=True)
                part.to_parquet(folder / name / split / "0.parquet")
    found = load_rows(data(folder / name), 0)
    assert found.held_out is None
    assert found.train["caption"][:] == [f"caption {number}" for number in range(6)]
    dataset = ImageTextDataset(found.train)
    assert [dataset[index]["image"].getpixel((0, 0))[0] for index in range(6)] == list(range(6))
    assert len(every_row(data(folder / name))) == 6
    if name == "splits":
        assert len(load_rows(data(folder / name, eval_split="test"), 0).held_out) == 1
        with pytest.raises(ValueError, match="no split 'dev'; there are test, train"):
            load_rows(data(folder / name, train_split="dev"), 0)
    else:
        with pytest.raises(ValueError, match="has no splits: unset train_split and eval_split"):
            load_rows(data(folder / name, eval_split="test"), 0)


def test_settings_name_columns_that_are_there(folder):
    (folder / "x.csv").write_text("file,de,en\n0.png,eine Katze,a cat\n")
    with pytest.raises(ValueError, match=r"caption_column='caption': the dataset has no such column\. It has: 'file'"):
        load_rows(data(folder / "x.csv"), 0)
    found = load_rows(data(folder / "x.csv", caption_column=["de", "en"]), 0)
    assert found.train[0]["de"] == "eine Katze"
    with pytest.raises(ValueError, match="image_column='photo'"):
        load_rows(data(folder / "x.csv", caption_column=["de"], image_column="photo"), 0)
    (folder / "y.csv").write_text("photo;de\n0.png;eine Katze, rot\n")
    found = load_rows(data(folder / "y.csv", caption_column=["de"], image_column="photo", separator=";"), 0)
    assert ImageTextDataset(found.train, "photo", "de")[0]["caption"] == "eine Katze, rot"


def test_one_empty_caption_is_skipped_counted_and_named(folder, caplog):
    for number in range(6, 200):
        (folder / f"{number}.png").write_bytes(picture(number))
    for number in range(200):
        (folder / f"{number}.txt").write_text("" if number == 7 else "a cat")
    rows = load_image_folder(folder)
    assert "1 of 200 images in " in caplog.text
    dataset = ImageTextDataset(rows)
    assert len(dataset) == 199
    assert dataset.skips.skipped[0][1].endswith("/7.png")
    (folder / "8.txt").unlink()
    (folder / "9.txt").write_text("\n")
    with pytest.raises(TooManyBadSamples, match=r"3 of 200 samples are bad[\s\S]*/7\.png[\s\S]*/8\.png[\s\S]*/9\.png"):
        ImageTextDataset(load_image_folder(folder))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_metadata_with_an_empty_caption(name, folder):
    rows = [{"file_name": f"{number % 6}.png", "caption": "" if number == 7 else "a cat"} for number in range(200)]
    lines = ["file_name,caption", *(",".join(row.values()) for row in rows)]
    (folder / name).write_text("\n".join(map(json.dumps, rows) if name.endswith("jsonl") else lines))
    assert len(ImageTextDataset(load_rows(data(folder), 0).train)) == 199


def test_shards_are_found_at_the_start(tmp_path, trained_words, refused):
    write_tar(tmp_path / "s-0.tar", pairs(4))
    write_tar(tmp_path / "s-2.tar", pairs(4))
    for shards, reason in (
        ("s-{0..3}.tar", r"2 of 4 files: .*/s-1\.tar does not exist, .*/s-3\.tar does not exist"),
        ("s-0.tar::{tmp}/s-7.tar", r"1 of 2 files: .*/s-7\.tar does not exist"),
        ("none-*.tar", "matches no file"),
        ("s-{2..0}.tar", "counts backwards"),
        ("nothing.tar.gz", "does not exist"),
        ("nothing.csv", "does not exist"),
    ):
        refused([*trained_words, "--dataset", f"{tmp_path}/{shards.replace('{tmp}', str(tmp_path))}"], reason)
    (tmp_path / "x.zip").write_bytes(b"PK")
    refused([*trained_words, "--dataset", f"{tmp_path}/x.zip"], r"is of no known kind; known are \.parquet, .*\.tar")
    refused([*trained_words, "--dataset", "https://localhost:1/x.tar?s=1"], r"https://localhost:1/x\.tar\?s=1 cannot")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def trained_words(our_model, processor, tmp_path) -> list[str]:
    """A fine-tuning for one step; the data are to be said."""
    our_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    words = ["--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    words += [
        "--per_device_train_batch_size",
        "2",
        "--max_steps",
        "1",
        "--eval_strategy",
        "no",
        "--disable_tqdm",
        "true",
    ]
    return ["finetune", *words, "--save_strategy", "no"]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_shards_of_which_nothing_can_be_used(workers, tmp_path, trained_words, refused):
    """The reason is in the message, and the remedy fits; also where a worker found it."""
    alone = [(f"{number}.png", picture(number)) for number in range(4)]
    for name, members, reason in (
        ("empty", [], "none of the 1 rows that were read is usable.*holds no image and no caption"),
        ("same", pairs(1) * 6, "5 of 6 samples cannot be used.*0.png comes more than once"),
        ("alone", alone, "4 of 4 samples cannot be used.*an image alone"),
    ):
        write_tar(tmp_path / f"{name}.tar", members)
        words = [*trained_words, "--dataset", f"{tmp_path}/{name}.tar", "--dataloader_num_workers", workers]
        refused(words, f"^siglip-ext-train: error: (?!.*Traceback)(?!.*fewer dataloader).*{reason}")


def test_a_folder_of_shards_and_compressed_ones(tmp_path, trained_words, status):
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards" / "0.tar.gz", pairs(3), "w:gz")
    write_tar(tmp_path / "shards" / "1.tgz", [*pairs(3, 3), ("._5.png", b"x")], "w:gz")
    assert sorted(name.rsplit(": ")[1] for name, _ in load_rows(data(tmp_path / "shards"), 0).train.rows(0, 1, 0)) == [
        *"012345"
    ]
    assert status([*trained_words, "--dataset", str(tmp_path / "shards"), "--image_column", "png"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_python_way_names_what_is_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"0\.tar does not exist"):
        TarShards(str(tmp_path / "0.tar"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match="is a folder: name the files in it"):
        TarShards([str(tmp_path / "folder")])


def test_hard_links_in_a_shard_are_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name, content in pairs(3):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        archive.addfile(link)
    rows = dict(TarShards(str(tmp_path / "0.tar")).rows(0, 1, 0))
    assert "hard-dereference" in str(rows[f"{tmp_path}/0.tar: 3.png"])


def test_a_signature_is_not_published():
    facts = facts_of_dataset("https://host/data/train-{0..3}.tar?signature=secret")
    assert (facts.title, facts.id) == ("train-{0..3}.tar", "train--0..3-.tar")
