"""Settings of a run that would do nothing, as they belong to something that was not asked for."""

from .recipe import Recipe


OF_A_PUSH = (
    "hub_model_id", "hub_token", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision",
    "hub_overwrite",
)  # fmt: skip
OF_A_SCRIPT = ("do_train", "do_eval", "do_predict")


def check_given(recipe: Recipe) -> None:
    """
    Raises:
        ValueError: naming the field.
    """
    given = {name for name, value in recipe.given.items() if value not in (None, False)}
    for name in given.intersection(OF_A_SCRIPT):
        raise ValueError(f"{name} does nothing: the command trains, and evaluates where rows are held out. Unset it")
    for name in sorted(given.intersection(OF_A_PUSH)):
        if not recipe.training.push_to_hub:
            raise ValueError(f"{name} is for push_to_hub: set push_to_hub true, or unset it")
    if "run_name" in given and not recipe.training.report_to:
        raise ValueError("run_name is for trackers: set report_to, or unset it")
