"""What stands behind `pipeline("zero-shot-image-classification")` once this package is imported."""

from transformers import Pipeline, ZeroShotImageClassificationPipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_siglip_ext import SiglipExtConfig
from .pipeline_siglip_ext import TASK, SiglipExtZeroShotImageClassificationPipeline


SIGLIP_TYPES = ("siglip", "siglip2", "siglip_ext")


class ZeroShotImageClassificationDispatcher(ZeroShotImageClassificationPipeline):
    """Makes our pipeline for SigLIP models and the stock one for all others."""

    def __new__(cls, *args, **kwargs) -> Pipeline:
        # neither class is a subclass of this one, so Python does not call __init__ a second time
        model = kwargs["model"] if "model" in kwargs else args[0]
        siglip = model.config.model_type in SIGLIP_TYPES
        chosen = SiglipExtZeroShotImageClassificationPipeline if siglip else ZeroShotImageClassificationPipeline
        return chosen(*args, **kwargs)


def register() -> None:
    """Put the dispatcher in the place of the stock class; its default model and its settings stay."""
    # not `register_pipeline`, which warns that a task is overwritten and forgets its default model
    stock = PIPELINE_REGISTRY.supported_tasks[TASK]
    PIPELINE_REGISTRY.supported_tasks[TASK] = {**stock, "impl": ZeroShotImageClassificationDispatcher}
    SiglipExtConfig.packaged_pipeline = True
