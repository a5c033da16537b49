"""Settings that have no meaning here, numbers out of range, missing packages: refused when the arguments are made."""

import importlib.util
import math

import pytest
from transformers.training_args import OptimizerNames

from modeling_siglip_ext.training.components import argument_checks


CHECKPOINTING = argument_checks.CHECKPOINTING_SWITCHES[-1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("label_smoothing_factor", 0.1),
        ("label_names", ["labels"]),
        ("remove_unused_columns", True),
        ("length_column_name", "size"),
        ("include_num_input_tokens_seen", "all"),
        ("include_num_input_tokens_seen", True),
        ("average_tokens_across_devices", False),
        ("include_for_metrics", ["inputs"]),
        ("prediction_loss_only", True),
        ("batch_eval_metrics", True),
        ("eval_do_concat_batches", False),
        ("eval_use_gather_object", True),
        ("neftune_noise_alpha", 5.0),
        ("use_cache", True),
        ("use_liger_kernel", True),
        ("liger_kernel_config", {"rope": True}),
        ("auto_find_batch_size", True),
        ("bf16_full_eval", True),
        ("fp16_full_eval", True),
        ("logging_nan_inf_filter", True),
        ("dataloader_in_order", False),
        ("train_sampling_strategy", "group_by_length"),
        ("train_sampling_strategy", "batch_rebalance"),
    ],
)
def test_fields_without_meaning(arguments, field, value):
    with pytest.raises(ValueError, match=f"^{field}=.* has no meaning here: "):
        arguments(**{field: value})


def test_every_field_without_meaning_is_one_of_trainers_and_may_be_left_alone(arguments):
    args = arguments()
    for field in argument_checks.MEANINGLESS:
        assert hasattr(args, field), field
        arguments(**{field: getattr(args, field)})


NUMBERS = (
    *argument_checks.AT_LEAST_ONE, *argument_checks.WHOLE, *argument_checks.NOT_NEGATIVE, *argument_checks.POSITIVE,
    *argument_checks.FACTORS, "max_grad_norm", "adam_beta1", "adam_beta2", "ema_decay", "max_bad_fraction",
)  # fmt: skip


@pytest.mark.parametrize("field", sorted(set(NUMBERS)))
def test_bad_numbers(arguments, field):
    bad = [math.nan, math.inf, -math.inf, "1"] + ([-1] if field != "max_steps" else [0, -2])
    bad += [0] if field in (*argument_checks.AT_LEAST_ONE, *argument_checks.POSITIVE, *argument_checks.FACTORS) else []
    bad += [1.5] if field in (*argument_checks.AT_LEAST_ONE, *argument_checks.WHOLE) else []
    for value in bad:
        with pytest.raises(ValueError, match=rf"^{field} must .* got "):
            arguments(**{field: value})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optim": "adamw_torhc"}, r"optim='adamw_torhc': choose from scaling_vit_adafactor"),
        ({"optim": "lion", "optim_args": "a=1"}, "optim=lion takes no optim_args"),
        ({"optim_args": "a=1"}, "takes no optim_args"),
        ({"optim": "sgd", "optim_args": "momentum"}, "'momentum' is not of the form NAME=VALUE"),
        ({"optim_target_modules": "all-linear"}, "takes no optim_target_modules"),
        ({"lr_scheduler_kwargs": {"nonsense": 1}}, "lr_scheduler_kwargs"),
        ({"lr_scheduler_kwargs": "{nonsense"}, "lr_scheduler_kwargs='{nonsense' is not JSON"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "lr_scheduler_kwargs do nothing"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type='cosine_with_min_lr'"),
        ({"max_seconds": 5.0, "lr_scheduler_kwargs": {"num_cycles": 1}}, "lr_scheduler_kwargs do nothing"),
        ({"accelerator_config": {"nonsense": 1}}, "accelerator_config: unknown setting 'nonsense'"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": '{"use_seedable_sampler": false}'}, "use_seedable_sampler"),
        ({"dataloader_persistent_workers": True}, "dataloader_persistent_workers is for dataloader workers"),
        ({"dataloader_multiprocessing_context": "spawn"}, "dataloader_multiprocessing_context is for"),
        ({"mini_batch_size": 4, "torch_empty_cache_steps": 1}, "torch_empty_cache_steps does nothing"),
        ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy=best never saves"),
        ({"report_to": "tensorbord"}, "unknown tracker 'tensorbord'"),
        ({"project": "mine"}, "project is for report_to=trackio"),
        ({"fp16": True}, "fp16 needs an accelerator"),
        ({"fsdp": "full_shard"}, "fsdp needs several processes"),
        ({"push_to_hub": True, "hub_strategy": "checkpoint", "hub_token": "x"}, "optimiser state"),
        ({"push_to_hub": True, "hub_model_id": "a/b/c", "hub_token": "x"}, "a/b/c"),
        ({"torch_compile": True, "torch_compile_backend": "nonsense"}, "torch_compile_backend='nonsense': choose"),
        ({"torch_compile_mode": "nonsense"}, "torch_compile_mode='nonsense': choose"),
        ({f"{CHECKPOINTING}_kwargs": {"use_reentrant": False}}, f"do nothing without {CHECKPOINTING}"),
        ({CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"nonsense": 1}}, "unknown setting 'nonsense'"),
        ({"output_dir": ""}, "output_dir is empty"),
    ],
)
def test_settings_that_do_not_work(arguments, changes, reason):
    with pytest.raises(ValueError, match=reason):
        arguments(**changes)


def test_no_token(arguments, monkeypatch):
    monkeypatch.setattr(argument_checks, "get_token", lambda: None)
    with pytest.raises(ValueError, match="push_to_hub needs a token"):
        arguments(push_to_hub=True, hub_model_id="me/x")
    arguments(push_to_hub=True, hub_model_id="me/x", hub_token="hf_mine")


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("tracker", ["wandb", "mlflow", "trackio", "clearml", "codecarbon", "dvclive", "swanlab"])
def test_missing_trackers(arguments, tracker):
    if installed(tracker):
        pytest.skip(f"{tracker} is installed")
    with pytest.raises(ImportError, match=f"report_to={tracker}: .* or set report_to none"):
        arguments(report_to=tracker)


def test_trackers_are_asked_for_by_the_names_that_transformers_has():
    for tracker in argument_checks.integration_utils.INTEGRATION_TO_CALLBACK:
        name = argument_checks.AVAILABLE_AS.get(tracker, tracker)
        assert callable(getattr(argument_checks.integration_utils, f"is_{name}_available"))


def test_missing_deepspeed(arguments):
    if installed("deepspeed"):
        pytest.skip("deepspeed is installed")
    with pytest.raises(ImportError, match="deepspeed needs the package deepspeed"):
        arguments(deepspeed={"zero_optimization": {"stage": 1}})


@pytest.mark.parametrize("name", [kind.value for kind in OptimizerNames])
def test_an_optimizer_works_or_is_refused_in_time(arguments, name):
    """In the words of its name, and never with another kind of error."""
    try:
        assert arguments(optim=name).optim == name
    except (ValueError, ImportError) as error:
        assert str(error).startswith(f"optim={name}: ")  # noqa: PT017 (the set of those installed differs)


def test_the_output_folder_is_a_folder(arguments, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is a file; choose another folder"):
        arguments(output_dir=str(tmp_path / "file"))
    with pytest.raises(NotADirectoryError, match="is a file; choose another folder"):
        arguments(output_dir=str(tmp_path / "file" / "below"))


def test_the_output_folder_may_be_written_to(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_siglip_ext.files.os.access", lambda path, mode: False)  # tests run as root, too
    with pytest.raises(PermissionError, match="nothing may be written in"):
        arguments(output_dir=str(tmp_path / "new"))
