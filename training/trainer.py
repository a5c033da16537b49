"""Trainer whose contrastive loss runs over the global batch, for our models and for stock SiglipModel alike."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_utils import EvalLoopOutput

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.modeling_siglip_ext import SiglipExtModel

from .arguments import SiglipExtTrainingArguments
from .schedule import TimeBudget, budgeted_schedule


class SiglipExtTrainer(Trainer):
    """`transformers.Trainer` for image-text models trained with the sigmoid loss.

    What differs from `Trainer`:

    - The loss is that of the global batch under DDP: `SiglipExtModel` computes it in its forward, and for any other
      model with `image_embeds`, `text_embeds`, `logit_scale` and `logit_bias` (stock `SiglipModel`, `Siglip2Model`)
      the Trainer computes it from the embeddings. Each process reports its share times the number of processes, so
      that the mean over processes is the global loss and DDP's averaged gradient is the exact one.
    - Weight decay acts on kernels only (`get_decay_parameter_names`).
    - Evaluation keeps embeddings, gathered and without the repeated samples of padded batches. `eval_loss` is the mean
      loss over fixed blocks of `eval_contrastive_batch_size` pairs in dataset order, so it does not depend on the
      evaluation batch size or the number of processes; `eval_loss_pairs` says how many pairs it covers.
      `compute_metrics` receives `EvalPrediction(predictions=(image_embeds, text_embeds), label_ids=None)`, numpy
      arrays of shape (N, D).
    - Logs carry `temperature` (exp of `logit_scale`) and `bias`.
    - A checkpoint that lacks a parameter is an error when resuming.

    Args:
        model: the model to train.
        args: `SiglipExtTrainingArguments`, whose defaults the above relies on.
        kwargs: as for `transformers.Trainer`, except `compute_loss_func`, which is refused.

    Raises:
        TypeError: if `args` or `model` lacks what the loss needs.
        ValueError: for `nn.DataParallel` (several visible GPUs in one process), `compute_loss_func`, or `max_seconds`
            with several processes.

    Example:

        trainer = SiglipExtTrainer(
            model=AutoModel.from_pretrained("google/siglip2-base-patch16-224"),
            args=SiglipExtTrainingArguments(output_dir="out", per_device_train_batch_size=256, learning_rate=1e-5),
            train_dataset=ImageTextDataset(dataset, image_column="image", caption_column="caption"),
            data_collator=ImageTextCollator(processor),
            processing_class=processor,
        )
        trainer.train()
    """

    def __init__(self, model: nn.Module | None = None, args: SiglipExtTrainingArguments | None = None, **kwargs):
        if not isinstance(args, SiglipExtTrainingArguments):
            raise TypeError(
                f"args must be SiglipExtTrainingArguments, got {type(args).__name__}: plain TrainingArguments drop "
                "the image and caption columns and pad the last batch with repeated samples"
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process mean nn.DataParallel, which computes the loss on each GPU's slice "
                "only. Start one process per GPU (`torchrun --nproc-per-node N` or `accelerate launch`), or show this "
                "process a single GPU."
            )
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is not supported: override `compute_loss` in a subclass instead")
        if args.max_seconds is not None and args.world_size > 1:
            raise ValueError(
                "max_seconds works in one process only, as clocks differ between processes; set max_steps or "
                "num_train_epochs instead"
            )
        if isinstance(kwargs.get("train_dataset"), IterableDataset):
            # Otherwise accelerate reads every batch on process 0 and sends it around.
            args.accelerator_config.dispatch_batches = False

        super().__init__(model=model, args=args, **kwargs)

        missing = [name for name in ("logit_scale", "logit_bias") if not hasattr(self._core_model(), name)]
        if missing:
            raise TypeError(
                f"{type(self._core_model()).__name__} has no {' and no '.join(missing)}: the sigmoid loss needs a "
                "dual-tower model such as SiglipExtModel or SiglipModel"
            )
        softmax = getattr(self._core_model().config, "loss_type", None) == "softmax"
        self._contrastive_loss = softmax_loss if softmax else sigmoid_loss
        # A batch mean, to be divided by gradient_accumulation_steps. Trainer would guess otherwise from the **kwargs
        # of forward as soon as the batch holds `labels`.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_EpochForDataset())
        self._budget: TimeBudget | None = None
        if args.max_seconds is not None:
            self._budget = TimeBudget(args.max_seconds)
            self.add_callback(self._budget)

    def _core_model(self) -> nn.Module:
        """The model without the wrappers of DDP, torch.compile or PEFT."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Loss over the global batch; the mean over processes of the returned scalar is that loss."""
        core = self._core_model()
        inputs = {name: value for name, value in inputs.items() if name != "return_loss"}
        if isinstance(core, SiglipExtModel):
            outputs = model(**inputs, return_loss=True)
            loss = outputs.loss
        else:
            # The stock forward builds its small local logits from logit_scale and logit_bias, too; their gradients
            # come from the line below alone. DDP reduces them all the same: its hooks sit on the parameters.
            outputs = model(**inputs)
            loss = self._contrastive_loss(outputs.image_embeds, outputs.text_embeds, core.logit_scale, core.logit_bias)
        return (loss, outputs) if return_outputs else loss

    # ---- optimisation ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters under weight decay: kernels of linear maps and convolutions.

        Norms, biases, embeddings (tokens and positions), the MAP head's probe, class tokens, `logit_scale` and
        `logit_bias` are left alone (arXiv 2303.15343, sec. 4, and big_vision's `wd_mults` on kernels).
        """
        return [
            f"{module_name}.{name}" if module_name else name
            for module_name, module in model.named_modules()
            if not isinstance(module, nn.Embedding)
            for name, parameter in module.named_parameters(recurse=False)
            # `in_proj_weight` is the packed query, key and value kernel of the MAP head.
            if name in ("weight", "in_proj_weight") and parameter.ndim >= 2
        ]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self._budget is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        kind = self.args.lr_scheduler_type
        self.lr_scheduler = budgeted_schedule(
            optimizer or self.optimizer,
            self._budget,
            kind=getattr(kind, "value", kind),
            warmup=self.args.warmup_steps,
            max_steps=num_training_steps,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- evaluation ----

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs
    ) -> DataLoader:
        # dataloader_drop_last is for training: every sample counts in evaluation.
        drop_last = self.args.dataloader_drop_last
        try:
            self.args.dataloader_drop_last = drop_last and is_training
            return super()._get_dataloader(
                dataset, description, batch_size, sampler_fn=sampler_fn, is_training=is_training, **kwargs
            )
        finally:
            self.args.dataloader_drop_last = drop_last

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Embeddings of one batch: (None, (image_embeds, text_embeds), None). The loss belongs to no single batch."""
        inputs = self._prepare_inputs({name: value for name, value in inputs.items() if name != "return_loss"})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_loss=False)
        return None, (outputs.image_embeds.detach(), outputs.text_embeds.detach()), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if output.predictions is None:
            raise ValueError(f"{description} saw no batch: the dataset is empty")
        metrics = self._blockwise_loss(*output.predictions)
        if self.compute_metrics is not None:
            metrics.update(self.compute_metrics(EvalPrediction(predictions=output.predictions, label_ids=None)))
        prefixed = {
            f"{metric_key_prefix}_{name.removeprefix(f'{metric_key_prefix}_')}": v for name, v in metrics.items()
        }
        output.metrics.update(prefixed)
        return output

    def _blockwise_loss(self, image_embeds, text_embeds) -> dict[str, float]:
        """Mean loss over blocks of `eval_contrastive_batch_size` pairs, on the CPU in float64."""
        core = self._core_model()
        scale, bias = (p if p is None else p.detach().cpu().double() for p in (core.logit_scale, core.logit_bias))
        images, texts = torch.from_numpy(image_embeds).double(), torch.from_numpy(text_embeds).double()
        size = min(self.args.eval_contrastive_batch_size, len(images))
        starts = range(0, len(images) - size + 1, size)
        losses = [
            self._contrastive_loss(images[i : i + size], texts[i : i + size], scale, bias, distribution="none").item()
            for i in starts
        ]
        return {"loss": sum(losses) / len(losses), "loss_pairs": len(losses) * size}

    # ---- logs, checkpoints, card ----

    def create_model_card(self, *args, **kwargs) -> None:
        """Trainer's generic card, unless the output folder already has a card."""
        if not (Path(self.args.output_dir) / "README.md").exists():
            super().create_model_card(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            core = self._core_model()
            logs["temperature"] = core.logit_scale.detach().exp().item()
            if core.logit_bias is not None:
                logs["bias"] = core.logit_bias.detach().item()
        super().log(logs, *args, **kwargs)

    def end(self) -> None:
        """Finish the trackers and leave the process group; to be called once, at the very end of a script.

        The DDP wrapper goes first. Should it outlive `destroy_process_group`, it holds the last reference to the gloo
        group and, with it, the interpreter's lock while it joins gloo's thread; that thread may be waiting for the
        same lock to free a tensor, and the process never ends.
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()

    def _issue_warnings_after_load(self, load_result) -> None:
        super()._issue_warnings_after_load(load_result)
        ignored = set(getattr(self.model, "_keys_to_ignore_on_save", None) or ())
        missing = [name for name in load_result.missing_keys if name not in ignored]
        if missing:
            raise RuntimeError(
                f"the checkpoint lacks {len(missing)} parameters of the model, the first of them {missing[:5]}; "
                "resuming from it would train a partly fresh model"
            )


class _EpochForDataset(TrainerCallback):
    """Tells the training dataset which epoch begins, so that it can draw another caption for each image.

    accelerate does so in one process but not under DDP, where the sampler of the wrapped batch sampler is told
    instead.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))
