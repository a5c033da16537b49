"""`--smoke`: a recipe with a tiny model and few steps on the bundled emoji, to see that it runs.

What makes the recipe stays: optimiser, learning rate, its schedule and factors, weight decay, clipping, the loss and
its initial temperature and bias, poolings, locked towers, gradient cache and averaged weights.
"""

STEPS = 12
BATCH = 32
# Stands for a checkpoint or tower that `smoke_start.py` makes in the output folder.
START = "smoke"

TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {**TOWER, "max_position_embeddings": 64}
_BOTTLENECK = 8
# Belong to the data and the machine that the recipe is for.
_LEFT_OUT = (
    "dataset_config", "train_split", "eval_split", "eval_fraction", "streaming", "image_embeddings", "group_column",
    "tokenizer_name_or_path", "text_name_or_path", "text_pooling", "text_length", "num_train_epochs", "max_steps",
    "max_examples", "max_seconds", "warmup_steps", "warmup_examples", "group_from_epoch", "bf16", "fp16", "tf32",
    "torch_compile", "gradient_checkpointing", "dataloader_num_workers", "eval_steps", "save_steps", "fsdp",
    "gradient_accumulation_steps",
)  # fmt: skip


def shrunk(recipe: dict) -> dict:
    """The fields of a recipe for a smoke run.

    The warm-up keeps its share of the run where the recipe gives both in examples or in steps.
    """
    values = {name: value for name, value in recipe.items() if name not in _LEFT_OUT}
    values |= {
        "dataset": "emoji",
        "image_column": "image",
        "caption_column": ["en"],
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 256,
        "max_steps": STEPS,
        "warmup_steps": _warmup_share(recipe),  # below 1 it is a share of the run
        "eval_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "vocab_size": 500,
    }
    if "mini_batch_size" in recipe:
        values["mini_batch_size"] = BATCH // 2
    starts = [name for name in ("model_name_or_path", "vision_name_or_path") if recipe.get(name) is not None]
    values |= dict.fromkeys(starts, START)
    if "image_size" in recipe:
        values["image_size"] = 2 * VISION["image_size"]
    if not starts:
        values["vision_config"] = {**(recipe.get("vision_config") or {}), **VISION}
    if "model_name_or_path" not in starts:
        values["text_config"] = text = {**(recipe.get("text_config") or {}), **TEXT}
        text.pop("projection_size", None)
        if "token_embedding_size" in text:
            text["token_embedding_size"] = _BOTTLENECK
        if not starts and text.get("use_head", True):
            text["projection_size"] = VISION["hidden_size"]
    return values


def _warmup_share(recipe: dict) -> float:
    """Share of the run that warms up."""
    if recipe.get("warmup_examples") and recipe.get("max_examples"):
        return float(recipe["warmup_examples"]) / float(recipe["max_examples"])
    warmup = float(recipe.get("warmup_steps") or 0)
    if warmup < 1:
        return warmup  # a share already
    return warmup / float(recipe["max_steps"]) if recipe.get("max_steps") else 0.1
