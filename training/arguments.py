"""Training arguments whose defaults suit a contrastive loss.

transformers' own defaults are made for losses that are a mean over samples; several of them make a contrastive run
wrong without a word. The ones that bite are changed here, each with its reason.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments


@dataclass
class SiglipExtTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with safe defaults for SigLIP, and the few settings SigLIP training adds.

    `per_device_train_batch_size` times the number of processes is the contrastive batch: the number of texts every
    image is compared with. `gradient_accumulation_steps` averages the gradients of several contrastive batches; it
    does not make the contrastive batch larger.

    Raises:
        ValueError: from the constructor, naming the field, when a setting is out of range.
    """

    remove_unused_columns: bool = field(
        default=False,
        metadata={"help": "Drop dataset columns that forward does not name (the images and captions among them)."},
    )
    dataloader_drop_last: bool = field(
        default=True,
        metadata={
            "help": "Drop the last incomplete training batch. Padding it across processes repeats samples, and a "
            "repeated sample is a false negative. Evaluation always sees every sample."
        },
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide non-finite losses from the logs. They are what a person must see."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Let DDP search for unused parameters at every step; both towers use theirs."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule (P1: cosine to 0)."})
    adam_beta2: float = field(
        default=0.95,
        metadata={"help": "Adam's second-moment decay. 0.999 gives loss spikes (arXiv 2303.15343, sec. 4.6)."},
    )
    eval_contrastive_batch_size: int = field(
        default=256,
        metadata={
            "help": "eval_loss is the mean loss over fixed blocks of this many evaluation pairs, whatever the "
            "evaluation batch size and the number of processes. A last partial block is left out, "
            "unless it is the only one."
        },
    )
    max_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Stop after this many seconds of training, with the schedule stretched to end there. Steps and "
            "epochs stay upper limits. One process only."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.eval_contrastive_batch_size < 1:
            raise ValueError(f"eval_contrastive_batch_size must be positive, got {self.eval_contrastive_batch_size}")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {self.max_seconds}")
        if self.batch_eval_metrics:
            raise ValueError(
                "batch_eval_metrics=True is not supported: retrieval figures need the whole evaluation set"
            )
