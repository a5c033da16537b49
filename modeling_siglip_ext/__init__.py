"""SigLIP and SigLIP 2 for Hugging Face Transformers: models, losses, processing.

Importing the package registers its classes with the Auto classes of transformers.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

# transformers before 5.23 offers this one at the top only beside torchvision, though it works without
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from .configuration_siglip_ext import SiglipExtConfig, SiglipExtTextConfig, SiglipExtVisionConfig
from .dispatch import register as register_dispatcher
from .encoding import encode_images, encode_texts
from .image_processing_siglip_ext import SiglipExtImageProcessor, SiglipExtNaflexImageProcessor
from .losses import sigmoid_loss, softmax_loss
from .modeling_siglip_ext import (
    SiglipExtForImageClassification,
    SiglipExtModel,
    SiglipExtOutput,
    SiglipExtPreTrainedModel,
    SiglipExtTextModel,
    SiglipExtVisionModel,
)
from .pipeline_siglip_ext import SiglipExtZeroShotImageClassificationPipeline
from .pooling import SiglipExtMultiheadAttentionPoolingHead
from .processing_siglip_ext import SiglipExtProcessor, fit_processor
from .stock import native_config
from .tokenization_siglip_ext import apply_text_rules, fit_tokenizer, train_tokenizer
from .videos import EncodedVideo, encode_videos


for config_class, model_class in (
    (SiglipExtConfig, SiglipExtModel),
    (SiglipExtTextConfig, SiglipExtTextModel),
    (SiglipExtVisionConfig, SiglipExtVisionModel),
):
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
AutoModelForZeroShotImageClassification.register(SiglipExtConfig, SiglipExtModel, exist_ok=True)
AutoModelForImageClassification.register(SiglipExtConfig, SiglipExtForImageClassification, exist_ok=True)
AutoProcessor.register(SiglipExtConfig, SiglipExtProcessor, exist_ok=True)
AutoImageProcessor.register(SiglipExtConfig, image_processor_classes={"pil": SiglipExtImageProcessor}, exist_ok=True)
register_dispatcher()

__version__ = "0.1.0"

__all__ = [
    "EncodedVideo",
    "SiglipExtConfig",
    "SiglipExtForImageClassification",
    "SiglipExtImageProcessor",
    "SiglipExtModel",
    "SiglipExtMultiheadAttentionPoolingHead",
    "SiglipExtNaflexImageProcessor",
    "SiglipExtOutput",
    "SiglipExtPreTrainedModel",
    "SiglipExtProcessor",
    "SiglipExtTextConfig",
    "SiglipExtTextModel",
    "SiglipExtVisionConfig",
    "SiglipExtVisionModel",
    "SiglipExtZeroShotImageClassificationPipeline",
    "apply_text_rules",
    "encode_images",
    "encode_texts",
    "encode_videos",
    "fit_processor",
    "fit_tokenizer",
    "native_config",
    "sigmoid_loss",
    "softmax_loss",
    "train_tokenizer",
]
