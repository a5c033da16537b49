"""Trainer whose contrastive loss runs over the global batch, for our models and for stock SiglipModel alike."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_utils import EvalLoopOutput, has_length

from modeling_siglip_ext.losses import sigmoid_loss, softmax_loss
from modeling_siglip_ext.modeling_siglip_ext import SiglipExtModel

from .arguments import SiglipExtTrainingArguments
from .components.checkpoint import AtomicCheckpoints, LossSums, read_json, write_json
from .components.ema import WeightAverage
from .components.evaluation_loss import blockwise_loss
from .components.grad_cache import cached_backward, check_chunkable, split_batch, whole
from .components.hub import HubPushes
from .components.locked_towers import lock_towers
from .components.monitor import Monitor
from .components.recompute import recompute_activations
from .components.schedule import TimeBudget, budgeted_schedule
from .data.grouped_sampler import GroupedSampler
from .data.loaders import PlainLoader, one_batch_at_a_time, stream_loader
from .data.pixels import normalized
from .data.progress import DataProgress
from .data.samples import ReportingCollator
from .data.streaming import ImageTextStream
from .optimizers import OPTIMIZERS, optimizer_class
from .optimizers.parameter_groups import GroupSettings, kernel_names, parameter_groups


class SiglipExtTrainer(AtomicCheckpoints, HubPushes):
    """`transformers.Trainer` for image-text models trained with the sigmoid loss.

    What differs from `Trainer`:

    - The loss is that of the global batch under DDP: `SiglipExtModel` computes it in its forward, and for any other
      model with `image_embeds`, `text_embeds`, `logit_scale` and `logit_bias` (stock `SiglipModel`, `Siglip2Model`)
      the Trainer computes it from the embeddings. Each process reports its share times the number of processes, so
      that the mean over processes is the global loss and DDP's averaged gradient is the exact one.
    - `mini_batch_size` runs the towers on chunks of the contrastive batch, with the same gradients (`grad_cache.py`);
      the activations of MLPs are not kept for the backward (`recompute.py`).
    - Weight decay acts on kernels only (`get_decay_parameter_names`); towers can be locked or learn slower
      (`lock.py`, `parameter_groups.py`), and weights averaged (`ema.py`).
    - Evaluation keeps embeddings, gathered and without the repeated samples of padded batches. `eval_loss` is the mean
      loss over fixed blocks of `eval_contrastive_batch_size` pairs in dataset order, so it does not depend on the
      evaluation batch size or the number of processes; `eval_loss_pairs` says how many pairs it covers.
      `compute_metrics` receives `EvalPrediction(predictions=(image_embeds, text_embeds), label_ids=None)`, numpy
      arrays of shape (N, D).
    - Logs carry `temperature` (exp of `logit_scale`), `bias` and more (`monitor.py`); a loss that is not finite ends
      the run at the logging step, before anything is saved.
    - Bad samples are skipped and counted up to `max_bad_fraction` (`samples.py`).
    - What is pushed to the Hub is the model with its card, never optimiser state or pickles (`hub.py`).
    - On TPUs with torch_xla it runs under SPMD or with a process for each device (`xla.py`).
    - Checkpoints appear whole or not at all, and a resumed run is the uninterrupted one bit for bit, streams included
      (`checkpoint.py`, `streaming.py`). A checkpoint that lacks a parameter is an error.

    Args:
        model: the model to train.
        args: `SiglipExtTrainingArguments`, whose defaults the above relies on.
        kwargs: as for `transformers.Trainer`, except `compute_loss_func`, which is refused.

    Raises:
        TypeError: if `args` or `model` lacks what the loss needs.
        ValueError: for `nn.DataParallel` (several visible GPUs in one process), `compute_loss_func`, or `max_seconds`
            with several processes. When training starts: for a dataset smaller than one batch and for
            `dataloader_drop_last=False`.
        FloatingPointError: at a logging step or before saving, when a loss was not finite.

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
        self._xla = _xla_module(args)
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
        if self._xla is not None:
            self._xla.check_launch(args.per_device_train_batch_size, args.mini_batch_size, args.xla_shard_parameters)
        elif args.xla_shard_parameters:
            raise ValueError(f"xla_shard_parameters spreads parameters over XLA devices; this run is on {args.device}")
        if kwargs.get("model_init") is not None and (args.lock_towers or args.ema_decay is not None):
            raise ValueError("lock_towers and ema_decay need the model itself: pass model, not model_init")
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
        core = self._core_model()
        softmax = getattr(core.config, "loss_type", None) == "softmax"
        self._contrastive_loss = softmax_loss if softmax else sigmoid_loss
        self._locked = lock_towers(core, args.lock_towers)
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in core.modules())
        if args.recompute_activations and not (args.gradient_checkpointing or checkpointed):
            recompute_activations(core)
        if args.ema_decay is not None and self.is_fsdp_enabled:
            raise ValueError("ema_decay does not work with FSDP yet: unset it")
        self._average = None if args.ema_decay is None else WeightAverage(core, args.ema_decay)
        self._monitor = Monitor()
        self._loss_sums = LossSums(self)
        self._data = DataProgress(args.max_bad_fraction, args.dataloader_num_workers)
        # A batch mean, to be divided by gradient_accumulation_steps. Trainer would guess otherwise from the **kwargs
        # of forward as soon as the batch holds `labels`.
        self.model_accepts_loss_kwargs = False
        self.add_callback(_Hooks(self))
        self._budget: TimeBudget | None = None
        self._grouped_sampler: GroupedSampler | None = None
        if args.max_seconds is not None:
            self._budget = TimeBudget(args.max_seconds)
            self.add_callback(self._budget)

    def create_accelerator_and_postprocess(self) -> None:
        with nullcontext() if self._xla is None else self._xla.unchanged_float32():
            super().create_accelerator_and_postprocess()

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
        inputs = self._forward_inputs(inputs)
        self._keep_locked()
        if isinstance(core, SiglipExtModel):
            outputs = model(**inputs, return_loss=True)
            loss = outputs.loss
        else:
            # The stock forward builds its small local logits from logit_scale and logit_bias, too; their gradients
            # come from the line below alone. DDP reduces them all the same: its hooks sit on the parameters.
            outputs = model(**inputs)
            loss = self._contrastive_loss(outputs.image_embeds, outputs.text_embeds, core.logit_scale, core.logit_bias)
        self._observe(outputs.image_embeds, outputs.text_embeds, loss)
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Loss of a batch over the number of accumulated batches; with `mini_batch_size` by gradient cache."""
        if self.args.mini_batch_size is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()  # of schedule-free optimisers
        self._keep_locked()
        core = self._core_model()
        check_chunkable(core)
        kept = {name: value for name, value in inputs.items() if name not in ("return_loss", "samples")}
        loss = self._contrastive_loss
        if getattr(core, "loss_group", None) is not None:
            loss = partial(loss, group=core.loss_group)
        with self.compute_loss_context_manager():
            step = cached_backward(
                model,
                core,
                split_batch(kept, self.args.mini_batch_size),
                loss,
                prepare=self._prepare_chunk,
                backward=self.accelerator.backward,
                weight=1 / self.current_gradient_accumulation_steps,
                sync=self.accelerator.sync_gradients,
            )
        # Trainer holds on to this batch until it has the next one.
        inputs["pixel_values"] = inputs["pixel_values"].new_empty(0)
        self._observe(step.image_embeds, step.text_embeds, step.loss)
        return step.loss / self.current_gradient_accumulation_steps

    def _prepare_chunk(self, chunk: dict) -> dict:
        if self._xla is not None:
            # In one graph XLA would find that a chunk's two forwards are the same, and keep all activations.
            self._xla.sync()
        return self._forward_inputs(self._prepare_inputs(chunk))

    def _forward_inputs(self, inputs: dict) -> dict:
        """What the model's forward takes, with uint8 images normalized on their device."""
        inputs = {name: value for name, value in inputs.items() if name not in ("return_loss", "samples")}
        if inputs["pixel_values"].dtype == torch.uint8:
            inputs["pixel_values"] = normalized(inputs["pixel_values"], self._image_processor())
        return inputs

    def _prepare_inputs(self, inputs: dict) -> dict:
        inputs = super()._prepare_inputs(inputs)
        return inputs if self._xla is None else self._xla.shard_batch(inputs)

    def _image_processor(self):
        for owner in (self.processing_class, getattr(self.data_collator, "processor", None)):
            if hasattr(owner, "image_processor"):
                return owner.image_processor
        raise ValueError("uint8 images need their mean and std: pass processing_class=processor to the Trainer")

    def _keep_locked(self) -> None:
        for tower in self._locked:
            tower.eval()  # model.train() is called at every step

    def _observe(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor, loss: torch.Tensor) -> None:
        self._monitor.embeddings(image_embeds, text_embeds)
        self._monitor.loss(self.state.global_step + 1, loss)

    # ---- optimisation ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters under weight decay: kernels of linear maps and convolutions."""
        return kernel_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        if args.optim not in OPTIMIZERS:
            kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        else:
            kind, settings = optimizer_class(args.optim, args.adam_beta1, args.adam_beta2, args.adam_epsilon)
            settings = {"lr": args.learning_rate, **settings}
        xla = _xla_module(args)
        return kind, settings if xla is None else xla.unfused(settings)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            target = self.model if model is None else model
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, target)
            # GaLore, LOMO and the like bring groups of their own.
            if not is_optimizer_factory(kind) and not settings.keys() & {"params", "model", "optimizer_dict"}:
                groups = parameter_groups(target, self.get_decay_parameter_names(target), GroupSettings.of(self.args))
                self.optimizer_cls_and_kwargs = kind, {**settings, "params": groups}
        return super().create_optimizer(model)

    def _clip_grad_norm(self, model):
        self._measure_gradients()
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None:
            self._measure_gradients()
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # with one, gradients may overflow, and the step is left out
            self._monitor.loss(self.state.global_step + 1, torch.as_tensor(norm))
        return norm

    def _measure_gradients(self) -> None:
        step, args = self.state.global_step + 1, self.args
        # On XLA a step that does more than the others would be another graph, to be compiled as well.
        always = args.logging_strategy == "epoch" or (step == 1 and args.logging_first_step) or self._xla is not None
        if always or (args.logging_strategy == "steps" and step % self.state.logging_steps == 0):
            scaler = self.accelerator.scaler
            self._monitor.gradients(self._core_model(), 1.0 if scaler is None else scaler.get_scale())

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

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if getattr(dataset, "groups", None) is not None:
            self._grouped_sampler = GroupedSampler(
                dataset.groups, self.args.group_size, self.args.seed, self.args.group_from_epoch
            )
            return self._grouped_sampler
        return super()._get_train_sampler(train_dataset)

    def get_train_dataloader(self) -> DataLoader:
        if not self.args.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last=False: the last training batch would be smaller, or padded with repeated "
                "samples, which are false negatives. Leave it True; evaluation sees every sample all the same"
            )
        loader = super().get_train_dataloader()
        if has_length(loader) and len(loader) == 0:
            batch = self.args.train_batch_size * self.args.world_size
            raise ValueError(
                f"the training set has {len(self.train_dataset)} samples, fewer than one batch of {batch}: lower "
                "per_device_train_batch_size"
            )
        return loader

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, **kwargs
    ) -> DataLoader:
        args, collator, drop_last = self.args, self.data_collator, self.args.dataloader_drop_last
        if isinstance(dataset, ImageTextStream):
            if not is_training:
                raise ValueError("ImageTextStream never ends: evaluate on a map-style dataset")
            return stream_loader(
                dataset,
                batch_size,
                ReportingCollator(collator),
                args.process_index,
                args.world_size,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
                prefetch_factor=args.dataloader_prefetch_factor,
                multiprocessing_context=args.dataloader_multiprocessing_context,
            )
        try:
            # dataloader_drop_last is for training: every sample counts in evaluation.
            args.dataloader_drop_last = drop_last and is_training
            self.data_collator = ReportingCollator(collator) if is_training else collator
            loader = super()._get_dataloader(
                dataset, description, batch_size, sampler_fn=sampler_fn, is_training=is_training, **kwargs
            )
        finally:
            args.dataloader_drop_last, self.data_collator = drop_last, collator
        if is_training and args.mini_batch_size is not None and not isinstance(dataset, IterableDataset):
            return one_batch_at_a_time(loader if self._xla is None else self._xla.on_the_host(loader))
        return loader

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            names = self._data.take(batch)
            if names:
                self._monitor.batch(self.state.global_step + 1, names)
        return batches, items

    # ---- evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Embeddings of one batch: (None, (image_embeds, text_embeds), None). The loss belongs to no single batch."""
        inputs = self._forward_inputs(self._prepare_inputs(inputs))
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_loss=False)
        return None, (outputs.image_embeds.detach(), outputs.text_embeds.detach()), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        averaged = self._average is not None and self.is_in_train  # afterwards the model has the average
        with self._average.in_model() if averaged else nullcontext():
            return self._evaluation_loop(dataloader, description, ignore_keys, metric_key_prefix)

    def _evaluation_loop(self, dataloader, description, ignore_keys, metric_key_prefix) -> EvalLoopOutput:
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        if output.predictions is None:
            raise ValueError(f"{description} saw no batch: the dataset is empty")
        core = self._core_model()
        head = (p if p is None else whole(p) for p in (core.logit_scale, core.logit_bias))
        size = self.args.eval_contrastive_batch_size
        metrics = blockwise_loss(*output.predictions, *head, self._contrastive_loss, size)
        if self.compute_metrics is not None:
            metrics.update(self.compute_metrics(EvalPrediction(predictions=output.predictions, label_ids=None)))
        prefixed = {
            f"{metric_key_prefix}_{name.removeprefix(f'{metric_key_prefix}_')}": v for name, v in metrics.items()
        }
        output.metrics.update(prefixed)
        return output

    # ---- logs, checkpoints, card ----

    def _examples_seen(self) -> int:
        args = self.args
        batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        return self.state.global_step * batch

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        training = "loss" in logs
        if training:
            core, total = self._core_model(), partial(self.accelerator.reduce, reduction="sum")
            scale, bias = (
                None if p is None else whole(p.detach()).item() for p in (core.logit_scale, core.logit_bias)
            )
            logs.update(self._monitor.figures(self._examples_seen(), scale, bias, total))
            if self._data.skips.total_skipped:
                logs["samples_skipped"] = self._data.skips.total_skipped
        super().log(logs, *args, **kwargs)
        if training:
            self._monitor.check(logs["loss"])

    def _save_checkpoint(self, model, trial) -> None:
        self._monitor.check()
        super()._save_checkpoint(model, trial)

    def save_extra(self, folder: Path) -> None:
        progress = {"losses": self._loss_sums.state(), "data": self._data.state()}
        write_json(folder / f"progress_{self.args.process_index}.json", progress)
        if self._average is not None and self.args.should_save:
            self._average.save(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        if self._average is not None:
            self._average.load(Path(checkpoint), self.state.global_step)
        progress = read_json(
            Path(checkpoint) / f"progress_{self.args.process_index}.json",
            "resume with as many processes as the checkpoint was written by, and with this Trainer",
        )
        self._loss_sums.load(progress["losses"])
        self._data.load(progress["data"])
        if isinstance(self.train_dataset, ImageTextStream) and not self.args.ignore_data_skip:
            batches = self.state.global_step * self.args.gradient_accumulation_steps
            self._data.resume(self.train_dataset, progress["data"], batches)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self._average is not None:
            self._average.load(Path(self.state.best_model_checkpoint), self.state.best_global_step)

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


def _xla_module(args: TrainingArguments) -> ModuleType | None:
    """What training on XLA devices needs, if it runs on one; torch_xla is there for nobody else."""
    if args.device.type != "xla":
        return None
    from .components import xla

    return xla


class _Hooks(TrainerCallback):
    """The moments of a run at which this Trainer has something to do."""

    def __init__(self, trainer: SiglipExtTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer._xla is not None:
            self.trainer._xla.begin(self.trainer._core_model(), self.trainer.optimizer, args.xla_shard_parameters)
        self.trainer._loss_sums.apply()
        self.trainer._monitor.start(self.trainer._examples_seen())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, train_dataloader=None, **kwargs
    ):
        """Tell dataset and samplers which epoch begins.

        accelerate does so for its own loaders in one process, but does not reach the dataset under DDP, nor the
        samplers once batches have been skipped.
        """
        epoch = int(state.epoch or 0)
        if self.trainer._xla is not None:
            train_dataloader = self.trainer._xla.on_the_host(train_dataloader)
        dataset = getattr(train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch)
        if isinstance(train_dataloader, PlainLoader):
            train_dataloader.set_epoch(epoch)
        if self.trainer._grouped_sampler is not None:
            self.trainer._grouped_sampler.set_epoch(epoch)

    def on_optimizer_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer._average is not None:
            self.trainer._average.update()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer._xla is not None:
            self.trainer._xla.sync()

    on_substep_end = on_step_end

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs):
        if self.trainer._average is not None:
            self.trainer._average.copy_to_model()
