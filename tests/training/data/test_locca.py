"""The targets of a batch: drawn by hashes, one region a box task, parallel captions only."""

import pytest
import torch

from modeling_siglip_ext.captioning import CaptionDecoderConfig
from modeling_siglip_ext.training import ImageTextCollator, ImageTextDataset
from modeling_siglip_ext.training.data.locca import CaptioningCollator, CaptionTargets, CaptionTasks, fraction
from modeling_siglip_ext.training.data.regions import Region
from modeling_siglip_ext.training.data.samples import UnusableRowError


REGIONS = [Region((0.1 * n, 0.0, 1.0, 0.5), f"thing {n}") for n in range(4)]


@pytest.fixture
def targets(processor):
    def build(**settings) -> CaptionTargets:
        words = len(processor.tokenizer)
        config = CaptionDecoderConfig(words, 16, 16, 1, 2, 32, max_length=48)
        return CaptionTargets(processor.tokenizer, config, CaptionTasks(**settings))

    return build


def decoded(targets, target) -> str:
    return targets.writer.tokenizer.decode(target.ids, skip_special_tokens=True).strip()


def test_the_parallel_share_is_that_of_captions_only(targets):
    own = targets()
    drawn = torch.tensor([own.parallel(f"0/0/{index}") for index in range(4000)])
    assert abs(drawn[:, 0].float().mean().item() - 0.5) <= 4 * 0.5 / 4000**0.5
    assert not drawn[:, 1:].any()
    assert not torch.tensor([targets(parallel=0).parallel(f"0/0/{index}") for index in range(20)]).any()
    assert all(targets(parallel=1).parallel(f"0/0/{index}") == [True, False, False] for index in range(20))


def test_regions_are_drawn_evenly_and_apart(targets):
    own, places = targets(), []
    for index in range(400):
        _, referring, grounded = own.of_example("a", REGIONS, f"0/0/{index}")
        places.append([int(decoded(own, target).split("thing ")[1][0]) for target in (referring, grounded)])
    table = torch.zeros(4, 4)
    for one, other in places:
        table[one, other] += 1
    assert (table >= 10).all()  # 25 each on average
    assert own.of_example("a", REGIONS, "0/0/1") == own.of_example("a", REGIONS, "0/0/1")
    assert own.of_example("a", REGIONS, "0/0/1") != own.of_example("a", REGIONS, "0/1/1")


def test_a_fraction_is_below_one_and_even():
    numbers = torch.tensor([fraction(str(number)) for number in range(4000)])
    assert 0 <= numbers.min() < numbers.max() < 1
    assert torch.histc(numbers, 10, 0, 1).min() > 320


def length_of(weights: torch.Tensor, parallel: torch.Tensor) -> int:
    """Of a text, up to its last token that counts; of one that is predicted in parallel, with all its padding."""
    places = [place for place, weight in enumerate(weights.tolist()) if weight]
    return 0 if not places else len(weights) if parallel else places[-1] + 1


def test_a_batch_has_what_the_objective_needs(targets, processor, rows):
    collator = CaptioningCollator(ImageTextCollator(processor), targets())
    examples = [dict(ImageTextDataset(rows)[index]) for index in range(3)]
    for index, example in enumerate(examples):
        example["key"] = f"0/0/{index}"
    examples[1]["regions"] = [{"box": [0, 0, 1, 1], "text": "a thing"}]
    batch = collator(examples)
    plain = ImageTextCollator(processor)(examples)
    assert all(torch.equal(batch[name], plain[name]) for name in ("input_ids", "pixel_values"))
    assert batch["caption_labels"].shape == batch["caption_weights"].shape == (3, 3, 48)
    assert batch["caption_labels"].dtype == torch.int64
    assert torch.equal(batch["caption_weights"].sum(-1) > 0, torch.tensor([[1, 0, 0], [1, 1, 1], [1, 0, 0]]) == 1)
    assert batch["caption_parallel"].tolist() == [targets().parallel(f"0/0/{index}") for index in range(3)]
    again = collator(examples)
    assert batch.pop("caption_counts") == batch["caption_weights"].sum((1, 2)).int().tolist()
    lengths = [sum(map(length_of, *rows)) for rows in zip(batch["caption_weights"], batch["caption_parallel"])]
    assert batch.pop("caption_lengths") == lengths
    assert all(torch.equal(batch[name], again[name]) for name in batch if name.startswith("caption_"))


def test_bare_rows_draw_one_caption_for_both_uses(targets, processor, rows):
    collator = CaptioningCollator(
        ImageTextCollator(processor, caption_column="captions"),
        targets(tasks=("caption",)),
    )
    bare = [{"image": rows[0]["image"], "captions": rows[0]["captions"]}] * 20
    batch = collator(bare)
    given = len(targets().writer.prefixes["caption"])
    assert torch.equal(batch["caption_labels"][:, 0, given : given + 12], batch["input_ids"])
    assert len({tuple(row) for row in batch["input_ids"].tolist()}) > 1


def test_of_bare_rows_the_columns_that_are_named_are_read(targets, processor, rows):
    """Also where those of the datasets here stand beside them."""
    collator = ImageTextCollator(processor, image_column="photo", caption_column="text", pair_column="product")
    bare = {"image": None, "caption": "not this", "text": "a red bar", "photo": rows[0]["image"], "product": 1}
    expected = ImageTextCollator(processor)([{"image": rows[0]["image"], "caption": "a red bar"}])
    regions = {"regions": None, "boxes": [{"box": [0, 0, 1, 1], "text": "a thing"}]}
    captioning = CaptioningCollator(collator, targets(), region_column="boxes")
    for batch in (collator([bare]), captioning([bare | regions])):
        assert torch.equal(batch["input_ids"], expected["input_ids"])
        assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert (batch["caption_weights"].sum(-1) > 0).all()
    given = dict(ImageTextDataset(rows)[0])  # is as it was made, whatever the collator's columns
    plain = ImageTextCollator(processor)([given])["input_ids"]
    assert torch.equal(collator([given | {"pair": 1}])["input_ids"], plain)
    with pytest.raises(ValueError, match="caption_column='text'"):
        captioning([{"image": rows[0]["image"]}])


def test_bad_settings_and_rows_are_refused(targets, processor, rows):
    for settings, reason in (
        ({"tasks": ("caption", "boxes")}, "tasks must be some of caption, referring, grounded"),
        ({"tasks": ()}, "tasks must be some of"),
        ({"tasks": ("caption", "caption")}, "each once"),
        ({"parallel": 2}, "parallel must be between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            CaptionTasks(**settings)
    config = CaptionDecoderConfig(len(processor.tokenizer), 16, 16, 1, 2, 32, mask_token=False)
    with pytest.raises(ValueError, match="mask_token=True"):
        CaptionTargets(processor.tokenizer, config)
    collator = CaptioningCollator(ImageTextCollator(processor), targets())
    with pytest.raises(UnusableRowError, match="give shares"):
        collator([{**rows[0], "regions": [{"box": [0, 0, 20, 20], "text": "a thing"}]}])
