"""Objectives that a recipe names: built from its settings, trained, saved without a trace, and refused where wrong."""

import json

import pytest
import torch
import yaml
from datasets import Dataset, Features, Image, List, Value
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SiglipModel

from modeling_siglip_ext.captioning import load_decoder
from modeling_siglip_ext.positions import resample_positions
from modeling_siglip_ext.training.run.objective_fields import OBJECTIVES, SETTINGS, ObjectiveArguments
from modeling_siglip_ext.training.run.prepare import prepare
from modeling_siglip_ext.training.run.recipe import parse_recipe
from modeling_siglip_ext.training.run.train import save, train
from support.models import TINY


RECIPE = {
    "caption_column": ["caption"],
    "vocab_size": 300,
    "vision_config": {**TINY, "image_size": 16, "patch_size": 4},
    "text_config": {**TINY, "max_position_embeddings": 40},
    "per_device_train_batch_size": 4,
    "max_steps": 3,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "eval_fraction": 0.25,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}
SMALL = {"prototypes": 32, "hidden": 16, "bottleneck": 8, "local_views": 2, "starts_at": 0.5}


@pytest.fixture
def make(tmp_path, rows):
    """Parses a recipe with some changes, over a Parquet file of 16 captioned images with a region each."""
    regions = [[{"box": [0.2, 0.2, 0.8, 0.7], "text": text, "score": 0.9}] for text in rows["caption"]]
    box = {"box": List(Value("float64")), "text": Value("string"), "score": Value("float64")}
    features = Features({"image": Image(), "caption": Value("string"), "regions": List(box)})
    columns = {"image": list(rows["image"]), "caption": list(rows["caption"]), "regions": regions}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "rows.parquet")

    def parse(regions: str | None = None, **changes):
        if regions is not None:
            columns["regions"] = [[{"box": [0.2, 0.2, 0.8, 0.7], "text": regions, "score": 0.9}]] * len(rows)
            Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "rows.parquet")
        values = {**RECIPE, "dataset": str(tmp_path / "rows.parquet"), "output_dir": str(tmp_path / "out"), **changes}
        values = {name: value for name, value in values.items() if value is not None}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        return parse_recipe(str(tmp_path / "recipe.yaml"))

    return parse


@pytest.mark.parametrize("size", [None, 2])
def test_all_of_siglip_2_from_a_recipe(make, tmp_path, size):
    """With boxes, joining at half of the run; the folder is a stock one and the logs name every loss."""
    run = prepare(
        make(
            objectives={"captioning": 1.0, "distillation": 0.25, "masking": 0.0625},
            captioning={"num_hidden_layers": 1, "parallel": 0.5},
            self_distillation=SMALL,
            region_column="regions",
            mini_batch_size=size,
        )
    )
    parts = run.trainer.parts
    assert list(parts) == ["captioning", "distillation", "masking"]
    assert len(parts["captioning"].decoder.layers) == 1
    train(run)
    logged = [entry for entry in run.trainer.state.log_history if "loss_captioning" in entry]
    assert len(logged) == 3
    assert ["loss_masking" in entry and "loss_distillation" in entry for entry in logged] == [False, False, True]
    saved = load_file(tmp_path / "out/model.safetensors")
    assert set(saved) == set(SiglipModel(AutoModel.from_pretrained(tmp_path / "out").config).state_dict())
    trained = parts["captioning"].decoder
    for _ in range(2):  # a run that is resumed after its end writes it again
        decoder = load_decoder(tmp_path / "out/decoder")
        assert decoder.config == trained.config
        assert all(torch.equal(value, trained.state_dict()[name]) for name, value in decoder.state_dict().items())
        save(run)


def test_captions_alone_are_learnt_without_regions(make):
    run = prepare(make(objectives={"captioning": 0.5}, captioning={"num_hidden_layers": 1}))
    batch = next(iter(run.trainer.get_train_dataloader()))
    assert batch["caption_labels"].shape[1] == 1
    assert batch["caption_weights"].sum() > 0
    assert run.trainer._beside["captioning"].weight == 0.5


def test_boxes_come_with_their_column(make):
    recipe = make(objectives={"captioning": 1.0}, region_column="regions", captioning={"tasks": ["referring"]})
    batch = next(iter(prepare(recipe).trainer.get_train_dataloader()))
    assert batch["caption_labels"].shape[1] == 1
    assert (batch["caption_weights"].sum(-1) > 0).all()


def test_integers_of_boxes_are_words_of_a_tokenizer_that_is_trained_here(make):
    beside = {"objectives": {"captioning": 1.0}, "region_column": "regions", "vocab_size": 500}
    run = prepare(make(**beside, captioning={"box_scale": 24}))
    decoder, tokenizer = run.trainer.parts["captioning"].decoder, run.trainer.processing_class.tokenizer
    assert decoder.config.text_format.box_scale == 24
    assert len(tokenizer("3 12 24 9", add_special_tokens=False)["input_ids"]) == 4
    alone = prepare(make()).trainer.processing_class.tokenizer
    assert len(alone("3 12 24 9", add_special_tokens=False)["input_ids"]) > 4


def test_only_what_an_objective_reads_is_drawn(make):
    """And nothing of it for an evaluation, which is of the contrastive loss alone."""
    for objectives, names in (
        ({"masking": 1.0}, {"global_view", "hidden_patches"}),
        ({"distillation": 1.0}, {"global_view", "local_views"}),
        (
            {"captioning": 1.0},
            {"caption_labels", "caption_weights", "caption_parallel", "caption_counts", "caption_lengths"},
        ),
    ):
        trainer = prepare(make(objectives=objectives)).trainer
        plain = {"input_ids", "pixel_values", "return_loss"}
        assert set(next(iter(trainer.get_train_dataloader()))) == plain | names | {"samples"}
        assert set(next(iter(trainer.get_eval_dataloader()))) == plain


def test_initial_values_of_a_tower_from_scratch(make):
    plain, changed = (
        prepare(make(**values)).trainer.model.vision_model.embeddings
        for values in ({}, {"initial_values": {"patch_scale": 2.0, "position_std": 0.5}})
    )
    torch.testing.assert_close(changed.patch_embedding.weight, 2 * plain.patch_embedding.weight)
    assert changed.position_embedding.weight.std().item() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(ValueError, match="unknown name 'patch_scal'; did you mean 'patch_scale'"):
        make(initial_values={"patch_scal": 2.0})
    with pytest.raises(ValueError, match=r"initial_values\.patch_scale must be positive"):
        prepare(make(initial_values={"patch_scale": -1.0}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objectives": {"captoning": 1.0}}, "objectives: unknown name 'captoning'; did you mean 'captioning'"),
        ({"objectives": {"captioning": -1.0}}, "objectives.captioning must be a weight that is not negative"),
        ({"objectives": {"captioning": "much"}}, "objectives.captioning must be a weight"),
        ({"objectives": {"contrastive": 2.0, "masking": 1.0}}, "objectives.contrastive is 1"),
        ({"objectives": {"captioning": 1.0}, "captioning": {"layers": 2}}, "captioning: unknown name 'layers'"),
        (
            {"objectives": {"masking": 1.0}, "self_distillation": {"starts_at": "80%"}},
            "self_distillation.starts_at must be a number, got '80%'",
        ),
        (
            {"objectives": {"masking": 1.0}, "self_distillation": {"global_area": [0.4]}},
            r"self_distillation.global_area must be a list of 2 numbers, got \[0.4\]",
        ),
        (
            {"objectives": {"captioning": 1.0}, "captioning": {"num_hidden_layers": 1.5}},
            "captioning.num_hidden_layers must be a whole number, got 1.5",
        ),
        ({"objectives": {"captioning": 1.0}, "captioning": {"num_hidden_layers": 0}}, "must be at least 1, got 0"),
        (
            {"objectives": {"captioning": 1.0}, "captioning": {"task_weights": 1}},
            "captioning.task_weights must be a list of numbers or none, got 1",
        ),
        ({"objectives": {"masking": 1.0}, "self_distillation": {"ratio": 0.0}}, "ratio must hide a patch"),
        ({"objectives": {"masking": 1.0}, "lock_towers": ["vision"]}, "masking"),
        ({"objectives": {"captioning": 1.0}, "region_column": "boxes"}, "region_column"),
        (
            {"objectives": {"captioning": 1.0}, "region_column": "regions", "captioning": {"max_length": 20}},
            "a box has [0-9]+ tokens of this tokenizer",
        ),
        (
            {"objectives": {"captioning": 1.0}, "region_column": "regions", "captioning": {"task_weights": [1, 2]}},
            r"captioning\.task_weights=\[1, 2\] are not one for each of the tasks, caption, referring, grounded",
        ),
        ({"objectives": {"captioning": 1.0}, "captioning": {"task_weights": [0.0]}}, "task_weights must not"),
        ({"objectives": {"captioning": 1.0}, "captioning": {"dropout": 1.5}}, "dropout must be at least 0"),
        (
            {"objectives": {"distillation": 1.0}, "self_distillation": {"local_views": 0}},
            "self_distillation.local_views=0 leaves distillation without views",
        ),
        (
            {"objectives": {"distillation": 1.0}, "self_distillation": {"local_size": 3}},
            "local_size must be at least a patch of 4 pixels, got 3",
        ),
        (
            {"objectives": {"masking": 1.0}, "self_distillation": {"aspect": [0.0, 1.0]}},
            "aspect must be two numbers in order",
        ),
        ({"captioning": {"parallel": 0.0}}, "captioning has no effect without captioning among the objectives"),
        ({"objectives": {"captioning": 0.0}, "captioning": {"parallel": 0.0}}, "captioning has no effect"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_the_first_step(make, changes, reason):
    with pytest.raises(ValueError, match=reason):
        prepare(make(**changes))


def test_a_command_line_sets_them_in_json_and_one_by_one(make, tmp_path):
    make(objectives={"captioning": 1.0})
    words = ["--objectives", '{"masking": 0.5}', "--self_distillation.ratio", "0.25"]
    recipe = parse_recipe(str(tmp_path / "recipe.yaml"), words)
    assert recipe.objectives.weights() == {"masking": 0.5}
    assert recipe.objectives.self_distillation == {"ratio": 0.25}
    json.dumps(recipe.given["objectives"])


def test_every_setting_has_a_name_of_its_own():
    for names in SETTINGS.values():
        assert len(names) == len(set(names))
    assert ObjectiveArguments().weights() == {}
    assert OBJECTIVES == ("contrastive", "captioning", "distillation", "masking")


ALL = {"captioning": 1.0, "distillation": 0.25, "masking": 0.0625}
DECODER = {"num_hidden_layers": 1, "parallel": 0.5}
KEPT = "kept/checkpoint-3"


@pytest.fixture
def first_stage(make, tmp_path):
    """The checkpoint at three quarters of four steps at 16 pixels, with all objectives."""
    settings = {"captioning": DECODER, "self_distillation": {**SMALL, "starts_at": 0.25}}
    run = prepare(make(objectives=ALL, max_steps=4, keep_at=[0.7], output_dir=str(tmp_path / "first"), **settings))
    train(run)
    return tmp_path / "first" / KEPT


def later_stage(make, checkpoint, **changes):
    values = {
        "captioning": DECODER,
        "self_distillation": {**SMALL, "starts_at": 0.0},
        "model_name_or_path": str(checkpoint),
        "objectives_from": str(checkpoint),
        "objectives": ALL,
        **changes,
    }
    from_scratch = dict.fromkeys(("vision_config", "text_config", "vocab_size"))
    return make(**values, **from_scratch)


def test_objectives_go_on_at_another_resolution(make, first_stage):
    """The last stage of SigLIP 2: the teacher's positions are resampled as the tower's are, the rest is as it was."""
    saved = load_file(first_stage / "objectives.safetensors")
    run = prepare(later_stage(make, first_stage, image_size=24))
    begun = {name: value.clone() for name, value in run.trainer.parts.state_dict().items()}
    assert begun.keys() == saved.keys()
    resampled = [name for name in saved if saved[name].shape != begun[name].shape]
    assert [name.rpartition("average.")[2] for name in resampled] == ["embeddings.position_embedding.weight"]
    torch.testing.assert_close(begun[resampled[0]], resample_positions(saved[resampled[0]], 6), rtol=0, atol=0)
    same = saved.keys() - set(resampled)
    assert all(torch.equal(begun[name], saved[name]) for name in same)
    train(run)
    after = run.trainer.parts.state_dict()
    assert sum(not torch.equal(after[name], begun[name]) for name in same) > len(same) // 2
    # a teacher that began anew would be the tower, and the tower's tokens are not what it averaged
    assert any(name.endswith("begun") and bool(saved[name]) for name in saved)


def test_damaged_objectives_do_not_go_on(make, first_stage):
    (first_stage / "objectives.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"objectives\.safetensors are damaged"):
        prepare(later_stage(make, first_stage))


def test_a_run_goes_on_with_the_settings_and_regions_it_began_with(make, tmp_path):
    settings = {"objectives": ALL, "captioning": DECODER, "self_distillation": SMALL, "region_column": "regions"}
    settings |= {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "eval_fraction": 0.0}
    prepare(make(**settings)).trainer.train()
    settings["resume_from_checkpoint"] = str(tmp_path / "out/checkpoint-1")
    for changes, said in (
        ({"captioning": {**DECODER, "parallel": 0.0}}, "CaptionTargets.parallel is 0.5 there and 0.0 here"),
        ({"captioning": {**DECODER, "label_smoothing": 0.1}}, "captioning.label_smoothing is 0.0 there and 0.1 here"),
        ({"captioning": {**DECODER, "dropout": 0.1}}, "captioning.dropout is 0.0 there and 0.1 here"),
        ({"self_distillation": {**SMALL, "momentum": 0.5}}, "distillation.momentum is 0.966 there and 0.5 here"),
        ({"self_distillation": {**SMALL, "flip": 0.0}}, "Views.flip is 0.5 there and 0.0 here"),
        ({"self_distillation": {**SMALL, "blocks": True}}, "PatchMasks.blocks is False there and True here"),
        ({"regions": "another"}, "its regions are others"),
    ):
        run = prepare(make(**{**settings, **changes}))
        with pytest.raises(ValueError, match=said):
            run.trainer.train()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives_from": "nowhere"}, "has no objectives.safetensors"),
        ({"captioning": {"num_hidden_layers": 2, "parallel": 0.5}}, "num_hidden_layers is 1 there and 2 here"),
        # the same words, of which a box now means another place
        ({"captioning": {**DECODER, "box_scale": 20}}, "captioning.box_scale is 500 there and 20 here"),
        ({"self_distillation": {**SMALL, "prototypes": 64, "starts_at": 0.0}}, "has the shape"),
        # a table of words' places, which is no grid of patches to be resampled
        ({"captioning": {**DECODER, "max_length": 36}}, "max_length is .* there and 36 here"),
    ],
)
def test_objectives_of_another_form_do_not_go_on(make, first_stage, changes, said):
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        prepare(later_stage(make, first_stage, **changes))


def test_a_checkpoint_of_an_earlier_version_says_nothing_of_forms(make, first_stage):
    path = first_stage / "objectives.safetensors"
    save_file(load_file(path), path)
    prepare(later_stage(make, first_stage, captioning={**DECODER, "box_scale": 20}))
    with pytest.raises(ValueError, match="is missing there"):
        prepare(later_stage(make, first_stage, captioning={**DECODER, "num_hidden_layers": 2}))
