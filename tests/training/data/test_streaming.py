"""Streams and tar shards: split without overlap, resumed exactly, bad samples skipped and counted."""

import gzip
import io
import itertools
import json
import tarfile
from collections import Counter
from operator import itemgetter
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from modeling_siglip_ext.training import ImageTextCollator
from modeling_siglip_ext.training.data.loaders import stream_loader
from modeling_siglip_ext.training.data.samples import ReportingCollator, TooManyBadSamples
from modeling_siglip_ext.training.data.streaming import HubSource, ImageTextStream, shuffled
from modeling_siglip_ext.training.data.tar_shards import TarShards, expand, read_shard
from modeling_siglip_ext.training.trainer import SiglipExtTrainer


def png(image) -> bytes:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    return encoded.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with fsspec.open(str(path), "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(rows, tmp_path_factory) -> Path:
    """16 samples in four shards; captions as text in two of them, as JSON in the others."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        members = {}
        for index in range(shard * 4, shard * 4 + 4):
            members[f"part/{index:02d}.png"] = png(rows[index]["image"])
            if shard % 2:
                members[f"part/{index:02d}.txt"] = "\n".join(rows[index]["captions"]).encode()
            else:
                members[f"part/{index:02d}.json"] = json.dumps({"caption": rows[index]["captions"]}).encode()
        write_tar(folder / f"train-{shard:03d}.tar", members)
    return folder


def names(source, part: int = 0, parts: int = 1, order: int = 0) -> list[str]:
    return [name for name, _ in source.rows(part, parts, order)]


def test_brace_ranges_globs_and_lists(shards):
    expected = [f"{shards}/train-{n:03d}.tar" for n in range(4)]
    assert expand(f"{shards}/train-{{000..003}}.tar") == expected
    assert [path.removeprefix("file://") for path in expand(f"{shards}/train-*.tar")] == expected
    assert expand("::".join(expected[:2])) == expected[:2]
    with pytest.raises(FileNotFoundError, match="matches no file"):
        expand(f"{shards}/none-*.tar")


def test_a_shard_gives_its_samples(shards, rows):
    found = list(read_shard(f"{shards}/train-001.tar"))
    assert [name.rsplit(": ", 1)[1] for name, _ in found] == [f"part/{n:02d}" for n in range(4, 8)]
    assert found[0][1]["caption"] == rows[4]["captions"]
    assert found[0][1]["image"] == png(rows[4]["image"])


def test_an_image_is_a_member_and_never_a_name(rows, tmp_path):
    """Whoever made a shard cannot have a file or an address of their choice opened."""
    fields = json.dumps({"image": str(tmp_path / "secret.png"), "caption": "a caption", "width": 16}).encode()
    write_tar(tmp_path / "0.tar", {"a.png": png(rows[0]["image"]), "a.json": fields, "b.json": fields})
    found = [row for _, row in read_shard(str(tmp_path / "0.tar"))]
    assert found[0] == {"image": png(rows[0]["image"]), "caption": "a caption", "width": 16}
    assert found[1] == {"caption": "a caption", "width": 16}


def test_a_url_of_another_file_system(rows, shards):
    """Any fsspec protocol: here its file system in memory."""
    write_tar("memory://bucket/0.tar", {"a.png": png(rows[0]["image"]), "a.txt": b"a caption"})
    assert [row["caption"] for _, row in TarShards("memory://bucket/0.tar").rows(0, 1, 0)] == [["a caption"]]
    assert len(names(TarShards("memory://bucket/*.tar"))) == 1


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["tar", "hub", "hub_shards"])
def test_parts_are_disjoint_and_complete(shards, rows, kind, parts):
    def source():
        if kind == "tar":
            return TarShards(f"{shards}/train-{{000..003}}.tar")
        return HubSource(rows.to_iterable_dataset(num_shards=1 if kind == "hub" else 8), "image")

    def contents(part: int) -> list:
        return [json.dumps(row["caption"]) for _, row in source().rows(part, parts, 0)]

    found = [content for part in range(parts) for content in contents(part)]
    assert Counter(found) == Counter(contents_of_all(source()))
    assert len(found) == 16


@pytest.mark.parametrize("shards", [1, 3, 8])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_of_a_loader_read_every_row_of_a_hub_stream(rows, shards, workers):
    """`datasets` itself deals shards to workers, too: what is one worker's part already, is not to be dealt again."""
    stream = ImageTextStream(rows.to_iterable_dataset(num_shards=shards), shuffle_buffer=4)
    loader = stream_loader(stream, 1, itemgetter(0), 0, 1, num_workers=workers)
    found = [sample["caption"] for sample in itertools.islice(loader, 3 * len(rows))]
    assert set(found) == set(rows["caption"])


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_shuffled_hub_stream_has_another_order_in_every_pass(rows, parts):
    shuffled_stream = rows.to_iterable_dataset(num_shards=4).shuffle(seed=0, buffer_size=8)
    source = HubSource(shuffled_stream, "image")
    passes = [[row["caption"] for _, row in source.rows(0, parts, order)] for order in (0, 1, 0)]
    assert passes[0] == passes[2] != passes[1]


def contents_of_all(source) -> list[str]:
    return [json.dumps(row["caption"]) for _, row in source.rows(0, 1, 0)]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_the_buffer_only_permutes(count, size, seed):
    once = list(shuffled(range(count), size, str(seed)))
    assert sorted(once) == list(range(count))
    assert once == list(shuffled(range(count), size, str(seed)))
    assert size > 1 or once == list(range(count))


def batches(stream: ImageTextStream, processor, workers: int = 0, batch_size: int = 3, **place) -> DataLoader:
    collator = ReportingCollator(ImageTextCollator(processor))
    place = {"rank": 0, "world_size": 1, **place}
    return stream_loader(stream, batch_size, collator, **place, num_workers=workers)


def stream_of(shards, processor, buffer: int = 5) -> ImageTextStream:
    source = TarShards(f"{shards}/train-{{000..003}}.tar")
    return ImageTextStream(source, image_processor=processor.image_processor, shuffle_buffer=buffer)


def take(loader: DataLoader, count: int) -> list[dict]:
    return [batch for _, batch in zip(range(count), loader)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_with_the_next_batch(shards, processor, workers):
    whole = take(batches(stream_of(shards, processor), processor, workers), 14)  # more than two passes
    for done in (0, 1, 7, 12):
        positions = {}
        for batch in whole[:done]:
            worker, *position = batch["samples"]["position"]
            positions[worker] = tuple(position)
        stream = stream_of(shards, processor)
        stream.resume(positions, done)
        resumed = take(batches(stream, processor, workers), 14)
        assert all(batch == {} for batch in resumed[:done])
        for one, other in zip(whole[done:], resumed[done:]):
            assert one["samples"] == other["samples"]
            assert torch.equal(one["pixel_values"], other["pixel_values"])
            assert torch.equal(one["input_ids"], other["input_ids"])


def test_every_sample_once_a_pass_over_processes_and_workers(shards, processor):
    """Two processes with two workers each, 16 samples: each part has four of them in every pass."""
    counts = Counter()
    for rank in range(2):
        for batch in take(batches(stream_of(shards, processor), processor, 2, 4, rank=rank, world_size=2), 4):
            counts.update(batch["samples"]["names"])
    assert len(counts) == 16
    assert set(counts.values()) == {2}


def test_captions_and_order_change_with_the_pass(shards, processor):
    stream = stream_of(shards, processor, buffer=16)
    stream.assign(0, 1, 16, 0)
    first, second = (next_batch for next_batch, _ in zip(stream, range(2)))
    assert [s["sample"]["name"] for s in first] != [s["sample"]["name"] for s in second]
    by_name = [{s["sample"]["name"]: s["caption"] for s in batch} for batch in (first, second)]
    assert by_name[0].keys() == by_name[1].keys()
    assert by_name[0] != by_name[1]


@pytest.fixture
def broken(rows, tmp_path) -> Path:
    """2,000 samples, nine of them bad in different ways."""
    good = png(rows[0]["image"])
    members = {}
    for number in range(1000):
        members[f"{number:04d}.png"] = good
        members[f"{number:04d}.txt"] = b"a caption"
    write_tar(tmp_path / "0.tar", members)
    members["0003.png"] = good[: len(good) // 2]
    members["0100.png"] = b""
    members["0200.png"] = b"<html>not found</html>"
    members["0300.txt"] = b"  \n \n"
    members["0400.txt"] = b""
    del members["0500.txt"], members["0600.png"]
    members["0700.json"] = b'{"caption": 7}'
    write_tar(tmp_path / "1.tar", members)
    content = (tmp_path / "1.tar").read_bytes()
    cut = content.index(b"PNG", len(content) * 3 // 4) + 20  # in the middle of an image
    (tmp_path / "1.tar").write_bytes(content[:cut])
    return tmp_path


def test_bad_samples_are_skipped_and_counted(broken, rows, processor, our_model, arguments):
    def trainer(**changes) -> SiglipExtTrainer:
        source = TarShards([str(broken / "1.tar")])
        return SiglipExtTrainer(
            model=our_model,
            args=arguments(per_device_train_batch_size=64, max_steps=6, **changes),
            train_dataset=ImageTextStream(source, image_processor=processor.image_processor, shuffle_buffer=1),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )

    run = trainer()
    run.train()
    assert run.state.global_step == 6
    assert run.state.log_history[5]["samples_skipped"] == run._data.skips.total_skipped == 4
    reasons = dict(run._data.skips.skipped)
    assert [name.rsplit(": ", 1)[1] for name in reasons] == ["0003", "0100", "0200", "0300"]
    half = len(png(rows[0]["image"])) // 2
    assert [reason.split(" (")[0] for reason in reasons.values()] == [
        f"{half} bytes cannot be read: OSError: image file is truncated",
        "0 bytes is not an image that PIL knows",
        "22 bytes is not an image that PIL knows",
        "no caption",
    ]
    with pytest.raises(TooManyBadSamples, match=r"2 of \d+ samples are bad[\s\S]*0003[\s\S]*0100"):
        trainer(max_bad_fraction=0.001).train()


def test_a_text_that_no_tokenizer_reads_is_a_bad_sample(rows, processor, tmp_path):
    """JSON can have half of a pair of surrogates; in a batch it would end the run."""
    regions = '[{"box": [0, 0, 1, 1], "text": "%s"}]'
    texts = [("a cat", "a cat"), ("half \\ud83d", "a cat"), ("a cat", "half \\ud83d"), ("a dog", "a dog")]
    members = {}
    for number, (caption, text) in enumerate(texts):
        members[f"{number}.png"] = png(rows[0]["image"])
        members[f"{number}.json"] = f'{{"caption": "{caption}", "regions": {regions % text}}}'.encode()
    write_tar(tmp_path / "0.tar", members)
    stream = ImageTextStream(TarShards([str(tmp_path / "0.tar")]), region_column="regions", shuffle_buffer=1)
    stream.assign(0, 1, 2, 0)
    first = next(iter(stream))
    assert [sample["caption"] for sample in first] == ["a cat", "a dog"]
    skipped = first[1]["sample"]["skipped"]
    assert all("half of a pair of surrogates" in reason for _, reason in skipped)
    assert len(skipped) == 2
    with pytest.raises(ValueError, match="half of a pair of surrogates"):
        ImageTextCollator(processor)([{"image": rows[0]["image"], "caption": "half \ud83d"}])


def test_a_truncated_shard_is_one_bad_sample(broken):
    rows = list(TarShards([str(broken / "1.tar"), str(broken / "0.tar")]).rows(0, 1, 0))
    bad = [row for name, row in rows if not {"image", "caption"} <= row.keys() and "broken shard" in str(row)]
    assert len(bad) == 1
    assert 1700 < len(rows) < 1800


@pytest.mark.parametrize("compression", ["", "gz"])
@pytest.mark.parametrize("place", ["before a header", "in a header", "in an image", "a garbled header"])
def test_a_shard_cut_anywhere_is_noticed(shards, tmp_path, place, compression):
    whole = shards / "train-001.tar"
    with tarfile.open(whole) as archive:
        header = archive.getmembers()[4].offset
    content = whole.read_bytes()
    content = {
        "before a header": content[:header],
        "in a header": content[: header + 100],
        "in an image": content[: header + 512 + 20],
        "a garbled header": content[:header] + b"x" * (len(content) - header),
    }[place]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(gzip.compress(content) if compression else content)
    found = list(TarShards([str(cut)]).rows(0, 1, 0))
    assert [name.rsplit(": ", 1)[-1] for name, _ in found][:1] == ["part/04"]
    assert ["broken shard" in str(row) for _, row in found].count(True) == 1
    assert "broken shard" in str(found[-1])


def test_a_part_without_samples_is_an_error(shards, processor):
    stream = stream_of(shards, processor)
    stream.assign(0, 20, 2, 0)
    list(zip(range(3), stream))
    stream.assign(17, 20, 2, 0)
    with pytest.raises(ValueError, match="part 17 of 20 of the stream has 0 rows"):
        next(iter(stream))


def test_another_number_of_workers_is_refused(shards, processor, our_model, arguments):
    def trainer(**changes) -> SiglipExtTrainer:
        return SiglipExtTrainer(
            model=our_model,
            args=arguments(save_strategy="steps", save_steps=2, max_steps=2, **changes),
            train_dataset=stream_of(shards, processor),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )

    trainer().train()
    resume = str(Path(trainer().args.output_dir) / "checkpoint-2")
    with pytest.raises(ValueError, match="dataloader_num_workers=0, not 1"):
        trainer(dataloader_num_workers=1).train(resume_from_checkpoint=resume)


def test_evaluating_on_a_stream_is_refused(shards, processor, our_model, arguments):
    trainer = SiglipExtTrainer(model=our_model, args=arguments(), data_collator=ImageTextCollator(processor))
    with pytest.raises(ValueError, match="never ends"):
        trainer.evaluate(stream_of(shards, processor))
