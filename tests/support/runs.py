"""Every kind of training run, small, on whatever device there is: for tests of what holds in each of them."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel, SiglipExtProcessor
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    SiglipExtTrainer,
    SiglipExtTrainingArguments,
)
from modeling_siglip_ext.training.data.collator import ExtendedCollator
from modeling_siglip_ext.training.data.locca import CaptioningCollator, CaptionTargets, CaptionTasks
from modeling_siglip_ext.training.data.reference_embeddings import ReferenceEmbeddings
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.curation import CurationSettings
from modeling_siglip_ext.training.objectives.masks import MaskSettings, PatchMasks
from modeling_siglip_ext.training.objectives.matching import MatchingSettings
from modeling_siglip_ext.training.objectives.self_distillation import self_distillation
from modeling_siglip_ext.training.objectives.super_batch import Curation
from modeling_siglip_ext.training.objectives.views import Views, ViewSettings
from support.models import TINY, make_processor


CHUNKS = {"mini_batch_size": 4}
KINDS: dict[str, dict[str, Any]] = {
    "contrastive": {},
    "softmax": {"model": {"loss_type": "softmax"}},
    "pairs": {"collator": {"equal_captions_match": True}},
    "uint8": {"collator": {"uint8": True}},
    "average": {"ema_decay": 0.99},
    "accumulation": {"gradient_accumulation_steps": 2},
    "checkpointing": {"gradient_checkpointing": True},
    "bfloat16": {"bf16": True},
    "chunks": {**CHUNKS, "collator": {"uint8": True}},
    "adamw": {"optim": "adamw"},
    "adamw_bf16": {"optim": "adamw_bf16"},
    "scaling_vit_adafactor": {"optim": "scaling_vit_adafactor"},
    "captioning": {"beside": "captioning"},
    "captioning in chunks": {"beside": "captioning", **CHUNKS},
    "self_distillation": {"beside": "self_distillation"},
    "self_distillation in chunks": {"beside": "self_distillation", **CHUNKS, "collator": {"uint8": True}},
    "curation": {"curated": True},
    "curation by embeddings": {"curated": "by embeddings"},
}
"""Settings of `SiglipExtTrainingArguments`, but for those that `make_run` knows."""


def make_run(kind: str, folder: Path, **changes: Any) -> SiglipExtTrainer:
    """A Trainer for one of `KINDS`, with 32 pairs and batches of 8.

    Args:
        folder: an empty one.
        changes: of the arguments, e.g. `use_cpu=True`.
    """
    settings = dict(KINDS[kind])
    beside, curated = settings.pop("beside", None), settings.pop("curated", False)
    model_settings, collator_settings = settings.pop("model", {}), settings.pop("collator", {})
    captions = [f"a picture of {number % 13} things" + " and more" * (number % 3) for number in range(32)]
    images = [Image.new("RGB", (16, 16), (7 * number, 255 - number, number)) for number in range(32)]
    processor = make_processor(captions, length=12, size=16)
    model = make_model(processor, **model_settings)
    collator: Any = ImageTextCollator(processor, **collator_settings)
    objectives = None
    if beside == "captioning":
        decoder = CaptionDecoder(CaptionDecoderConfig.for_towers(model.config, processor.tokenizer))
        objectives = {"captioning": (Captioning(decoder), 1.0)}
        tasks = CaptionTasks(tasks=("caption",))
        collator = CaptioningCollator(collator, CaptionTargets(processor.tokenizer, decoder.config, tasks))
    if beside == "self_distillation":
        matching, vision = MatchingSettings(hidden=16, bottleneck=8, prototypes=24), model.config.vision_config
        objectives = self_distillation(model, settings=matching)
        views = Views(ViewSettings.for_tower(vision, local_views=2))
        collator = ExtendedCollator(collator, views, PatchMasks(MaskSettings.for_tower(vision)))
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 10,
        "learning_rate": 1e-3,
        "logging_steps": 1000,
        "save_strategy": "no",
        "disable_tqdm": True,
        "report_to": "none",
        **settings,
        **changes,
    }
    embeds = torch.nn.functional.normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)))
    recalled = ReferenceEmbeddings(embeds, range(32, 64), {}, 2.3, -10.0, "") if curated == "by embeddings" else None
    curation = Curation(CurationSettings(chunks=2), recalled or make_model(processor)) if curated else None
    return SiglipExtTrainer(
        model=model,
        args=SiglipExtTrainingArguments(**arguments),
        train_dataset=ImageTextDataset(
            Dataset.from_dict({"image": images, "caption": captions}),
            image_processor=processor.image_processor,
            reference=recalled,
        ),
        data_collator=collator,
        processing_class=processor,
        objectives=objectives,
        curation=curation,
    )


def make_model(processor: SiglipExtProcessor, **changes: Any) -> SiglipExtModel:
    tokens = {"vocab_size": len(processor.tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    vision = {**TINY, "image_size": 16, "patch_size": 4}
    text = {**TINY, **tokens, "max_position_embeddings": 12}
    return SiglipExtModel(SiglipExtConfig(vision_config=vision, text_config=text, **changes))
