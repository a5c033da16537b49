"""No field of a recipe is ignored in silence: it always has an effect, or it is refused where it has none."""

import logging
from types import SimpleNamespace

import pytest
import yaml

from modeling_siglip_ext.training.components.argument_checks import MEANINGLESS
from modeling_siglip_ext.training.run.recipe import DEFAULTS, FIELDS, bundled_recipes, parse_recipe
from modeling_siglip_ext.training.run.unused import RULES, find_unused


# Fields that have an effect in every run, or are refused with words of their own where they are read.
ALWAYS = """
model_name_or_path vision_name_or_path text_name_or_path license attn_implementation
dataset image_column caption_column streaming image_embeddings pair_column equal_captions_match
output_dir per_device_train_batch_size learning_rate lr_scheduler_type optim weight_decay
gradient_accumulation_steps max_grad_norm label_smoothing_factor bf16 fp16 tf32 activation_checkpointing
gradient_checkpointing torch_compile torch_compile_backend torch_compile_mode use_liger_kernel neftune_noise_alpha
torch_empty_cache_steps auto_find_batch_size logging_strategy log_on_each_node logging_nan_inf_filter
include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to eval_use_gather_object
batch_eval_metrics save_strategy push_to_hub full_determinism seed use_cpu accelerator_config parallelism_config
dataloader_drop_last dataloader_num_workers dataloader_pin_memory remove_unused_columns ddp_find_unused_parameters
ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp deepspeed debug
skip_memory_metrics resume_from_checkpoint local_rank lock_towers ema_decay
max_bad_fraction xla_spmd max_seconds eval_strategy eval_on_start prediction_loss_only include_for_metrics
eval_do_concat_batches average_tokens_across_devices use_cache label_names length_column_name
"""

STREAM = {"dataset": "a.tar", "max_steps": 5}
HUB = {"dataset": "user/set"}
TUNED = {"model_name_or_path": "user/model"}
LIT = {"vision_name_or_path": "user/vit", "text_name_or_path": "user/bert"}
CACHED = {"vision_name_or_path": "user/vit", "image_embeddings": "here"}
TEXT = {"hidden_size": 32}
# Each field in situations in which it has no effect, with a value.
SITUATIONS = [
    *((name, TEXT, TUNED) for name in ("vision_config", "text_config")),
    *(("loss_type", value, TUNED) for value in ("sigmoid", "softmax")),
    ("logit_scale_init", 4.0, TUNED),
    ("initial_values", {"patch_scale": 3.0}, TUNED),
    ("logit_bias_init", -3.0, TUNED),
    ("logit_bias_init", -3.0, {"loss_type": "softmax"}),
    ("vocab_size", 2000, TUNED),
    ("vocab_size", 5000, LIT),
    ("vocab_size", 5000, {"tokenizer_name_or_path": "user/tokenizer"}),
    ("tokenizer_name_or_path", "user/tokenizer", TUNED),
    ("tokenizer_name_or_path", "user/tokenizer", LIT),
    ("image_size", 64, {}),
    ("naflex", True, {}),
    ("vision_pooling", "mean", {}),
    ("vision_pooling", "mean", TUNED),
    ("text_pooling", "mean", {}),
    ("text_pooling", "mean", {"vision_name_or_path": "user/vit"}),
    ("text_length", 8, TUNED),
    ("dataset_config", "en", {}),
    ("separator", ";", {}),
    ("train_split", "all", STREAM),
    ("scenes", {"count": 64}, {}),
    ("scenes", {"count": 64}, HUB),
    ("eval_split", "test", {}),
    ("eval_split", "test", STREAM),
    ("eval_fraction", 0.2, {}),
    ("eval_fraction", 0.0, {}),
    ("eval_fraction", 0.2, STREAM),
    ("eval_fraction", 0.2, {**HUB, "eval_split": "test"}),
    ("shuffle_buffer", 10, {}),
    ("cache_gib", 1.0, STREAM),
    ("cache_gib", 1.0, CACHED),
    *((name, value, where) for name, value in (("group_column", "base"), ("shuffle_captions", True))
      for where in (STREAM, CACHED, {**HUB, "streaming": True})),
    ("objectives", {"captioning": 1.0}, CACHED),
    ("curation", {"ratio": 0.5, "reference_name_or_path": "here"}, CACHED),
    ("captioning", {"parallel": 0.0}, {"objectives": {"masking": 1.0}}),
    ("region_column", "regions", {}),
    ("regions_file", "boxes", {}),
    ("objectives_from", "checkpoint-3", {}),
    ("keep_at", [0.9], {"max_seconds": 5}),
    ("regions_key", "url", {"objectives": {"captioning": 1.0}}),
    ("self_distillation", {"starts_at": 0.8}, {"objectives": {"captioning": 1.0}}),
    *((name, value, CACHED) for name, value in (("naflex_lengths", [16, 64]), ("mini_batch_tokens", 1024))),
    ("halve_batches_at", 64, CACHED),
    ("upscale", False, CACHED),
    ("group_size", 4, {}),
    ("group_from_epoch", 2, {}),
    ("data_seed", 3, STREAM),
    ("data_seed", 3, {"group_column": "base"}),
    ("train_sampling_strategy", "sequential", {"group_column": "base"}),
    ("num_train_epochs", 2.0, {"max_steps": 5}),
    ("num_train_epochs", 2.0, {"max_examples": 500}),
    ("max_steps", 5, {"max_examples": 500}),
    ("max_examples", 500, {"max_steps": 5}),
    ("warmup_steps", 5, {"warmup_examples": 500}),
    ("warmup_examples", 500, {"warmup_steps": 5}),
    ("warmup_steps", 5, {"lr_scheduler_type": "constant"}),
    ("warmup_examples", 500, {"lr_scheduler_type": "constant"}),
    ("lr_scheduler_kwargs", "{}", {"lr_scheduler_type": "constant_with_warmup"}),
    ("lr_scheduler_kwargs", "{}", {"max_seconds": 5}),
    *((name, 0.8, {"optim": optim}) for name in ("adam_beta1", "adam_beta2")
      for optim in ("lion", "sgd", "adafactor")),
    *(("adam_epsilon", 1e-6, {"optim": optim})
      for optim in ("lion", "scaling_vit_adafactor", "sgd", "paged_lion_32bit")),
    ("optim_args", "rank=4", {"optim": "adamw"}),
    ("optim_target_modules", ["q_proj"], {}),
    *((name, 0.5, {"optim": "galore_adamw"}) for name in ("vision_lr_factor", "text_lr_factor", "head_lr_factor",
      "vision_weight_decay", "text_weight_decay", "layer_decay")),
    ("weight_decay_convention", "big_vision", {"optim": "lomo", "weight_decay": 1.0}),
    ("weight_decay_convention", "big_vision", {}),
    *((name, 0.5, CACHED) for name in ("vision_lr_factor", "vision_weight_decay")),
    ("mini_batch_size", 128, {"per_device_train_batch_size": 4}),
    ("recompute_activations", True, {"gradient_checkpointing": True}),
    *((f"{kind}_checkpointing_kwargs", "{'use_reentrant': true}", {}) for kind in ("gradient", "activation")),
    *((name, value, where) for name, value in (
        ("per_device_eval_batch_size", 4), ("eval_contrastive_batch_size", 64), ("eval_accumulation_steps", 2),
        ("bf16_full_eval", True), ("fp16_full_eval", True), ("load_best_model_at_end", True),
        ("eval_steps", 5), ("eval_delay", 5),
    ) for where in (STREAM, {**HUB, "eval_fraction": 0.0})),
    ("eval_steps", 5, {"eval_strategy": "epoch"}),
    ("eval_delay", 5, {"eval_strategy": "no"}),
    ("metric_for_best_model", "loss", {}),
    ("metric_for_best_model", "loss", {"eval_strategy": "epoch", "save_strategy": "no"}),
    ("greater_is_better", True, {}),
    ("greater_is_better", True, {"eval_strategy": "epoch", "save_strategy": "epoch"}),
    ("save_steps", 5, {"save_strategy": "epoch"}),
    *((name, value, {"save_strategy": "no"}) for name, value in (
        ("save_total_limit", 2), ("save_only_model", True), ("save_on_each_node", True),
        ("enable_jit_checkpoint", True))),
    ("ignore_data_skip", True, {}),
    ("restore_callback_states_from_checkpoint", True, {}),
    ("logging_steps", 5, {"logging_strategy": "epoch"}),
    ("logging_first_step", True, {"logging_strategy": "no"}),
    *((name, "mine", {"report_to": "none"}) for name in (
        "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id")),
    *((name, value, {}) for name, value in (
        ("hub_token", "secret"), ("hub_private_repo", True), ("hub_model_id", "user/mine"), ("hub_strategy", "end"),
        ("hub_always_push", True), ("hub_revision", "next"), ("hub_overwrite", True), ("fsdp_config", "{}"),
        ("xla_shard_parameters", True), ("liger_kernel_config", "{}"), ("dataloader_prefetch_factor", 2),
        ("dataloader_persistent_workers", True), ("dataloader_multiprocessing_context", "spawn"),
        ("dataloader_in_order", False), ("do_train", True), ("do_eval", True), ("do_predict", True))),
]  # fmt: skip


def unused(given: dict) -> dict:
    return find_unused(SimpleNamespace(**{**DEFAULTS, **given}), given, DEFAULTS)


def test_every_field_is_classified():
    always = set(ALWAYS.split())
    ruled = {name for rule in RULES for name in rule.fields.split()}
    assert not ruled & always
    assert {*ruled, *always} == set(FIELDS)
    assert {name for rule in RULES for name in rule.because.split()} <= set(FIELDS)
    assert {name for name, _, _ in SITUATIONS} == ruled


@pytest.mark.parametrize(("name", "value", "where"), SITUATIONS, ids=lambda value: str(value)[:40])
def test_each_field_where_it_has_no_effect(name, value, where):
    assert name in unused({**where, name: value})
    assert not unused(where), "the situation alone is no fault"


def test_each_rule_has_a_situation():
    met = set()
    for name, value, where in SITUATIONS:
        fields = SimpleNamespace(**{**DEFAULTS, **where, name: value})
        met |= {id(rule) for rule in RULES if name in rule.fields.split() and rule.when(fields)}
    assert met == {id(rule) for rule in RULES}


def test_embeddings_of_a_reference_go_with_those_of_a_tower():
    for value in ({"reference_embeddings": "there"}, '{"reference_embeddings": "there"}'):
        assert not find_unused(SimpleNamespace(**{**DEFAULTS, **CACHED, "curation": value}), ["curation"], DEFAULTS)


@pytest.fixture
def recipe_file(tmp_path):
    def write(**fields) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"use_cpu": True, "output_dir": str(tmp_path / "out"), **fields}))
        return str(path)

    return write


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prediction_loss_only", True),
        ("include_for_metrics", ["loss"]),
        ("eval_do_concat_batches", False),
        ("average_tokens_across_devices", False),
        ("use_cache", True),
        ("label_names", ["labels"]),
        ("length_column_name", "words"),
    ],
)
def test_a_field_without_meaning_is_refused_with_the_reason(recipe_file, name, value):
    with pytest.raises(ValueError, match=rf"^{name}=.* has no meaning here: {MEANINGLESS[name]}"):
        parse_recipe(recipe_file(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("vocab_size", 2000, TUNED),
        ("loss_type", "sigmoid", TUNED),
        ("eval_fraction", 0.0, {}),
        ("hub_strategy", "end", {}),
        ("adam_beta1", 0.8, {"optim": "sgd"}),
        ("dataloader_in_order", False, {}),
    ],
)
def test_in_a_file_and_on_the_command_line(recipe_file, name, value, where):
    for given, words in ({name: value}, []), ({}, [f"--{name}={value}"]):
        with pytest.raises(ValueError, match=rf"^{name} has no effect with.*: leave it out$"):
            parse_recipe(recipe_file(**where, **given), words)


def test_what_the_command_line_makes_void_is_left_out_and_said(recipe_file, caplog):
    path = recipe_file(num_train_epochs=3, eval_fraction=0.2, per_device_eval_batch_size=4, dataset="user/set")
    with caplog.at_level(logging.WARNING):
        recipe = parse_recipe(path, ["--max_steps", "4", "--dataset", "a-{0..3}.tar"])
    assert set(recipe.given) == {"use_cpu", "output_dir", "dataset", "max_steps"}
    assert recipe.training.num_train_epochs == DEFAULTS["num_train_epochs"]
    for name in ("num_train_epochs (with max_steps", "eval_fraction (with a stream", "per_device_eval_batch_size"):
        assert name in caplog.text
    with pytest.raises(ValueError, match="num_train_epochs has no effect"):
        parse_recipe(path, ["--max_steps", "4", "--num_train_epochs", "2"])


@pytest.mark.parametrize("by", ["file", "line"])
def test_what_only_decides_the_speed_is_left_out_and_said(recipe_file, by, caplog):
    file, words = (
        ({"per_device_eval_batch_size": 4}, []) if by == "file" else ({}, ["--per_device_eval_batch_size", "4"])
    )
    with caplog.at_level(logging.WARNING):
        recipe = parse_recipe(recipe_file(**STREAM, **file), words)
    assert "per_device_eval_batch_size (without held-out rows" in caplog.text
    assert "per_device_eval_batch_size" not in recipe.given


def test_the_command_line_takes_every_optimizer(recipe_file):
    assert parse_recipe(recipe_file(), ["--optim", "scaling_vit_adafactor"]).training.optim == "scaling_vit_adafactor"
    with pytest.raises(ValueError, match="optim='adm': choose from scaling_vit_adafactor"):
        parse_recipe(recipe_file(), ["--optim", "adm"])


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_with_other_data(name, tmp_path):
    recipe = parse_recipe(name, ["--output_dir", str(tmp_path), "--use_cpu", "--dataset", "a.tar", "--max_steps", "9"])
    assert recipe.training.max_steps == 9
    assert not {"max_examples", "num_train_epochs", "group_size", "eval_steps"} & recipe.given.keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"vision_config": {"hiden_size": 32}},
            "vision_config: unknown field 'hiden_size'; did you mean 'hidden_size'",
        ),
        ({"text_config": {"dropout": 0.1}}, "text_config: unknown field 'dropout'"),
        ({"vision_config": {"vocab_size": 3}}, "vision_config: unknown field 'vocab_size'"),
        ({"vision_config": {"output_attentions": True}}, "vision_config: unknown field 'output_attentions'"),
        ({"text_config": {"vocab_size": 3}}, "text_config.vocab_size has no effect: set vocab_size"),
        ({"text_config": {"pad_token_id": 3}}, "text_config.pad_token_id has no effect"),
        ({"vision_config": {"model_type": "vitt"}}, "no model of transformers"),
        ({"vision_config": {"model_type": "vit", "pooling": "map"}}, "vision_config: unknown field 'pooling'"),
    ],
)
def test_a_tower_reads_all_of_its_configuration(recipe_file, fields, message):
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe_file(**fields))
    part, entries = next(iter(fields.items()))
    words = [f"--{part}.{key}={value}" for key, value in entries.items()]
    with pytest.raises(ValueError, match=message):
        parse_recipe(recipe_file(), words)
