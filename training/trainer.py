"""Trainer whose contrastive loss runs over the global batch, for our models and for stock SiglipModel alike."""

from collections.abc import Mapping, Sized
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import FullyShardedDataParallelPlugin, send_to_device
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import ModelOutput
from transformers.trainer_optimizer import is_optimizer_factory
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.trainer_utils import EvalLoopOutput, SaveStrategy, has_length

from .arguments import SiglipExtTrainingArguments
from .components.adapters import prepare_adapter
from .components.checked_run import check_construction
from .components.checkpoint import LossSums
from .components.devices import backend_for
from .components.ema import WeightAverage
from .components.evaluation_loss import blockwise_loss
from .components.grad_cache import begin_step, chunk_size, let_go_of_images
from .components.half_batches import in_halves, is_halved, update
from .components.image_inputs import check_images
from .components.milestones import Milestones
from .components.monitor import Monitor, examples_seen
from .components.process_group import leave_group
from .components.recompute import recompute_activations
from .components.schedule import TimeBudget, budgeted_schedule
from .components.sharded import check_wrapping, layers_to_shard
from .components.texts import TrainedTexts
from .components.towers import core_model, lock_towers, loss_head, whole
from .data.collating import collator_for
from .data.grouped_sampler import GroupedSampler
from .data.loaders import Epochs, one_batch_at_a_time, stream_loader
from .data.pixels import normalized
from .data.progress import DataProgress
from .data.reference_embeddings import REFERENCE
from .data.samples import ReportingCollator
from .data.streaming import ImageTextStream
from .objectives import FromForward, Weighted, check_shardable, trained_beside, weighted_sum
from .objectives.checkpoint import ObjectiveCheckpoints
from .objectives.contrastive import PAIRS, Contrastive
from .objectives.model import ObjectiveSteps, TrainedObjective
from .objectives.super_batch import Curation, read_for
from .optimizers import OPTIMIZERS, optimizer_class
from .optimizers.parameter_groups import kernel_names, parameter_groups


class SiglipExtTrainer(ObjectiveCheckpoints):
    """`transformers.Trainer` for image-text models trained with the sigmoid loss.

    What differs from `Trainer`:

    - The loss is a weighted sum of objectives (`objectives/`). The first is the contrastive loss of the global batch,
      for `SiglipExtModel` and any other model with `image_embeds`, `text_embeds`, `logit_scale` and `logit_bias`
      (stock `SiglipModel`, `Siglip2Model`). Each process reports its share times the number of processes, so that the
      mean over processes is the global loss and DDP's averaged gradient is the exact one.
    - `mini_batch_size`, or for NaFlex `mini_batch_tokens`, runs the towers on chunks of the contrastive batch, with
      the same gradients (`grad_cache.py`); the activations of MLPs are not kept for the backward (`recompute.py`).
    - Weight decay acts on kernels only (`get_decay_parameter_names`); towers can be locked or learn slower
      (`towers.py`, `parameter_groups.py`), and weights averaged (`ema.py`).
    - Evaluation keeps embeddings, gathered and without the repeated samples of padded batches. `eval_loss` is the mean
      loss over fixed blocks of `eval_contrastive_batch_size` pairs in dataset order, so it does not depend on the
      evaluation batch size or the number of processes; `eval_loss_pairs` says how many pairs it covers.
      `compute_metrics` receives `EvalPrediction(predictions=(image_embeds, text_embeds), label_ids=None)`, numpy
      arrays of shape (N, D).
    - Logs carry `temperature` (exp of `logit_scale`), `bias` and more (`monitor.py`); a loss that is not finite ends
      the run at the logging step, before anything is saved.
    - The tokenizer of `processing_class` and of the collator is put in the order that the text tower needs, in place,
      and what is saved gives the tokens that were trained with (`texts.py`). All that is trained beside an adapter of
      PEFT is saved with it, the temperature and the bias under `modules_to_save` among it (`adapters.py`).
    - Bad samples are skipped and counted up to `max_bad_fraction` (`samples.py`).
    - What is pushed to the Hub is the model with its card, never optimiser state or pickles (`hub.py`).
    - On TPUs with torch_xla it runs under SPMD or with a process for each device (`xla.py`).
    - Checkpoints appear whole or not at all, and a resumed run is the uninterrupted one bit for bit, streams included
      (`checkpoint.py`, `streaming.py`), also with another number of processes at the same global batch, streams not
      included. A checkpoint of another run is an error (`run_identity.py`), and so is a fresh run in the folder of
      another one (`run_folder.py`).
    - Every row of the evaluation data is read before the first step, and the metric for the best model is known then
      (`checked_run.py`).

    Args:
        model: the model to train.
        args: `SiglipExtTrainingArguments`, whose defaults the above relies on.
        objectives: what else to train for, {name: (objective, weight)}; its parameters are trained and kept in
            checkpoints, but are no part of the saved model.
        curation: chooses the examples of each batch out of more that are read for it (`objectives/curation.py`).
            `per_device_train_batch_size`, lengths in examples and `examples_seen` count those that are trained on,
            an epoch those that are read.
        kwargs: as for `transformers.Trainer`, except `compute_loss_func`, which is refused. `data_collator` is an
            `ImageTextCollator` of `processing_class` unless given, for rows of images and captions.

    Raises:
        TypeError: if `args` or `model` lacks what the loss needs.
        ValueError: for `nn.DataParallel` (several visible GPUs in one process) or `compute_loss_func`. When training
            starts: for a dataset smaller than one batch, `dataloader_drop_last=False`, `max_seconds` with several
            processes, and see `train`.
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

    def __init__(
        self,
        model: nn.Module | None = None,
        args: SiglipExtTrainingArguments | None = None,
        *,
        objectives: Mapping[str, tuple[TrainedObjective, float]] | None = None,
        curation: Curation | None = None,
        **kwargs,
    ):
        if not isinstance(args, SiglipExtTrainingArguments):
            raise TypeError(
                f"args must be SiglipExtTrainingArguments, got {type(args).__name__}: plain TrainingArguments drop "
                "the image and caption columns and pad the last batch with repeated samples"
            )
        self._backend = backend_for(args.device)
        check_construction(args, self._backend, kwargs)
        if isinstance(kwargs.get("train_dataset"), IterableDataset):
            # Otherwise accelerate reads every batch on process 0 and sends it around.
            cast(AcceleratorConfig, args.accelerator_config).dispatch_batches = False

        if kwargs.get("data_collator") is None:
            given = kwargs.get("train_dataset"), kwargs.get("eval_dataset")
            kwargs["data_collator"] = collator_for(kwargs.get("processing_class"), *given)

        beside = trained_beside(model, objectives) if objectives else None
        if any(objective.starts_at > 0 for objective, _ in (objectives or {}).values()):
            args.ddp_find_unused_parameters = True  # before it joins; DDP waits for the device to find them
        super().__init__(model=beside or model, args=args, **kwargs)
        if self.is_fsdp_enabled:
            plugin = cast(FullyShardedDataParallelPlugin, self.accelerator.state.fsdp_plugin)
            check_wrapping(plugin.auto_wrap_policy, plugin.fsdp_version)
            if beside is not None:
                check_shardable(beside, plugin.fsdp_version)
            if plugin.transformer_cls_names_to_wrap is None:
                plugin.transformer_cls_names_to_wrap = layers_to_shard(self.model)

        core = core_model(self.model)
        prepare_adapter(getattr(beside, "model", self.model), saves=args.save_strategy != SaveStrategy.NO)
        self._contrastive = Contrastive(lambda: core_model(self.model))
        self._texts = TrainedTexts(core, self.processing_class, self.data_collator)
        lengths = getattr(self.train_dataset, "naflex_lengths", None)
        check_images(core, (self.processing_class, self.data_collator), args, lengths)
        weights = {name: weight for name, (_, weight) in (objectives or {}).items()}
        self._beside = {name: Weighted(FromForward(name), weight) for name, weight in weights.items()}
        self.loss_name = self._contrastive.name
        self._locked = lock_towers(core, args.lock_towers)
        for objective, _ in (objectives or {}).values():
            objective.check(core)
        self.curation = curation
        if curation is not None:
            curation.check(args.per_device_train_batch_size, self.loss_name, self._backend.one_graph)
            if isinstance(curation.reference, nn.Module):
                curation.reference.to(args.device)
            self.further_identity = curation.identity()
        checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in core.modules())
        if args.recompute_activations and not (args.gradient_checkpointing or checkpointed):
            recompute_activations(core)
        if args.ema_decay is not None and self.is_fsdp_enabled:
            raise ValueError("ema_decay does not work with FSDP: unset it, or use DDP")
        # A batch mean, to be divided by gradient_accumulation_steps. Trainer would guess otherwise from the **kwargs
        # of forward as soon as the batch holds `labels`.
        self.model_accepts_loss_kwargs = False

        self._monitor = Monitor(lambda: core_model(self.model), every_step=self._backend.one_graph)
        self._data = DataProgress(args.max_bad_fraction, args.dataloader_num_workers)
        self._epochs = Epochs(self._backend.on_the_host)
        losses = LossSums(self.loss_sums, self.set_loss_sums)
        self.average = None if args.ema_decay is None else WeightAverage(core, args.ema_decay)
        self._budget = None if args.max_seconds is None else TimeBudget(args.max_seconds)
        self.progress = {"losses": losses, "data": self._data}
        self.checks = [self._monitor.check]
        # At each event they are called in this order: the device first, the clock last.
        objective_steps = None
        if beside is not None:
            elapsed = None if self._budget is None else self._budget.progress
            # A batch that accelerate holds ready, the one of now, and those of the workers.
            ahead = 2 + args.dataloader_num_workers * (args.dataloader_prefetch_factor or 2)
            objective_steps = ObjectiveSteps(beside, elapsed, getattr(self.data_collator, "want", None), ahead)
        milestones = Milestones(args.keep_at) if args.keep_at else None
        first = (self._backend, self._texts, losses, self._monitor, self._data, self._epochs)
        for part in (*first, self.average, objective_steps, milestones, self._budget):
            if part is not None:
                self.add_callback(part)

    def create_accelerator_and_postprocess(self) -> None:
        with self._backend.unchanged_float32():
            super().create_accelerator_and_postprocess()

    # ---- loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Loss over the global batch; the mean over processes of the returned scalar is that loss."""
        inputs = self._forward_inputs(inputs)
        for tower in self._locked:
            tower.eval()  # model.train() was called
        beside = self.active_parts
        asked = {"objectives": True} if beside else {}
        outputs = model(**self._contrastive.forward_inputs(inputs), **asked)
        loss = self._contrastive(outputs, inputs)
        if beside:
            loss = loss + self._beside_loss(outputs, inputs)
        embeds = outputs.image_embeds, outputs.text_embeds
        self._monitor.pairs(self.state.global_step + 1, *embeds, loss, inputs.get(PAIRS))
        return (loss, outputs) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Loss of a batch over the number of accumulated batches; in chunks or halves, if they are asked for."""
        names = self._data.take(inputs)
        if names:
            self._monitor.batch(self.state.global_step + 1, names)
        if self.curation is not None:
            at_once = chunk_size(self.args, inputs) or self.args.per_device_train_batch_size
            key = self.args.seed, self.state.global_step + 1
            own = () if self.everything is None else self.everything.inputs(1.0)

            def embed(one: nn.Module, chunk: dict) -> tuple[torch.Tensor, torch.Tensor]:
                return self.prediction_step(one, {k: value for k, value in chunk.items() if k not in own}, True)[1]

            # in place, as Trainer holds on to this batch
            inputs |= self.curation.choose(inputs, embed, model, self.args.device, at_once, key)
        whole = super().training_step

        def prepare(chunk: dict) -> dict:
            # in one graph XLA would find a chunk's two forwards the same, and keep activations
            self._backend.sync()
            return self._forward_inputs(self._prepare_inputs(chunk))

        def gradients(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            size = chunk_size(self.args, batch)
            if size is None:
                return whole(model, batch, num_items_in_batch)
            begin_step(model, self.optimizer, self._locked)
            if PAIRS in batch:
                batch |= self._prepare_inputs({PAIRS: batch[PAIRS]})
            beside = self._beside_loss if self.active_parts else None
            with self.compute_loss_context_manager():
                step = self._contrastive.in_chunks(
                    model,
                    batch,
                    size,
                    prepare=prepare,
                    backward=self.accelerator.backward,
                    weight=1 / self.current_gradient_accumulation_steps,
                    sync=self.accelerator.sync_gradients,
                    beside=beside,
                    beside_options={"objectives": True} if beside else {},
                )
            let_go_of_images(batch)
            embeds = step.image_embeds, step.text_embeds
            self._monitor.pairs(self.state.global_step + 1, *embeds, step.loss, batch.get(PAIRS))
            return step.loss / self.current_gradient_accumulation_steps

        if is_halved(inputs, self.args.halve_batches_at):
            clip, optimizer = super()._clip_grad_norm, self.optimizer
            assert optimizer is not None
            return in_halves(inputs, gradients, partial(update, model, optimizer, clip, self.args))
        return gradients(inputs)

    def _beside_loss(self, outputs: ModelOutput, inputs: dict) -> torch.Tensor:
        """The weighted sum of the objectives beside the contrastive one, for a batch or a chunk of it."""
        step = self.state.global_step + 1
        self._monitor.objectives(step, outputs["objective_losses"], len(inputs["input_ids"]))
        return weighted_sum([self._beside[name] for name in self.active_parts], outputs, inputs)

    def _forward_inputs(self, inputs: dict) -> dict:
        """What the model's forward takes, with uint8 images normalized on their device."""
        inputs = {name: value for name, value in inputs.items() if name not in ("return_loss", "samples", REFERENCE)}
        inputs = self._texts.inputs(inputs)
        raw = [name for name, value in inputs.items() if getattr(value, "dtype", None) == torch.uint8]
        if raw:
            owners = (self.processing_class, getattr(self.data_collator, "processor", None))
            processors = [getattr(owner, "image_processor", None) for owner in owners]
            processor = next((found for found in processors if found is not None), None)
            if processor is None:
                raise ValueError("uint8 images need mean and std: pass processing_class=processor to the Trainer")
            mask = inputs.get("pixel_attention_mask")
            inputs |= {name: normalized(inputs[name], processor, mask) for name in raw}
        return inputs

    def _prepare_inputs(self, inputs: dict) -> dict:
        # Trainer's own copies wait for the device; from pinned memory they need not.
        inputs = send_to_device(inputs, self.args.device, non_blocking=self.accelerator.non_blocking)
        return self._backend.shard_batch(super()._prepare_inputs(inputs))

    # ---- optimisation ----

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters under weight decay: kernels of linear maps and convolutions."""
        return kernel_names(model)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: nn.Module | None = None) -> tuple[Any, Any]:
        if args.optim not in OPTIMIZERS:
            kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, cast(PreTrainedModel | None, model))
        else:
            kind, settings = optimizer_class(args.optim, args.adam_beta1, args.adam_beta2, args.adam_epsilon)
            settings = {"lr": args.learning_rate, **settings}
        return kind, backend_for(args.device).optimizer_settings(settings)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            target = self.model if model is None else model
            kind, settings = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, target)
            # GaLore, LOMO and the like bring groups of their own.
            if not is_optimizer_factory(kind) and not settings.keys() & {"params", "model", "optimizer_dict"}:
                kernels = self.get_decay_parameter_names(target)
                groups = parameter_groups(target, kernels, self.args.group_settings())
                self.optimizer_cls_and_kwargs = kind, {**settings, "params": groups}
        return super().create_optimizer(model)

    def _clip_grad_norm(self, model):
        self._monitor.gradients(self.args, self.state, self.accelerator.scaler)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model, grad_norm=None):
        if grad_norm is None:
            self._monitor.gradients(self.args, self.state, self.accelerator.scaler)
        norm = super()._get_grad_norm(model, grad_norm)
        if self.accelerator.scaler is None:  # float16's leaves steps out, and waits for the device to know which
            self._monitor.loss(self.state.global_step + 1, torch.as_tensor(norm))
        return norm

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self._budget is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        kind = self.args.lr_scheduler_type
        optimizer = self.optimizer if optimizer is None else optimizer
        assert optimizer is not None, "create the optimizer first"
        self.lr_scheduler = budgeted_schedule(
            optimizer,
            self._budget,
            kind=getattr(kind, "value", kind),
            warmup=self.args.warmup_steps,
            max_steps=num_training_steps,
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        groups = getattr(self.train_dataset if train_dataset is None else train_dataset, "groups", None)
        args = self.args
        if groups is None:
            changed = [
                name for name in ("group_size", "group_from_epoch") if getattr(args, name) != getattr(type(args), name)
            ]
            if changed:
                raise ValueError(f"{changed[0]} has no effect: the training set has no groups; give it a group_column")
            return super()._get_train_sampler(train_dataset)
        self._epochs.sampler = GroupedSampler(groups, args.group_size, args.seed, args.group_from_epoch)
        return self._epochs.sampler

    def get_train_dataloader(self) -> DataLoader:
        self.args.check_for_training()
        loader = super().get_train_dataloader()
        if has_length(loader):
            read = read_for(self.curation, self.args.train_batch_size)
            self.args.check_samples(len(cast(Sized, self.train_dataset)), read)
            self.args.tell_of_short_updates(len(loader))
        self._monitor.batches_of_epoch = len(loader) if has_length(loader) else None
        return loader

    def _get_dataloader(
        self, dataset, description, batch_size, sampler_fn=None, is_training=False, dataloader_key=None
    ) -> DataLoader:
        args, collator, drop_last = self.args, self.data_collator, self.args.dataloader_drop_last
        batch_size = read_for(self.curation, batch_size) if is_training else batch_size
        if isinstance(dataset, ImageTextStream):
            if not is_training:
                raise ValueError("ImageTextStream never ends: evaluate on a map-style dataset")
            names = ("num_workers", "pin_memory", "prefetch_factor", "multiprocessing_context")
            workers = {name: getattr(args, f"dataloader_{name}") for name in names}
            place = args.process_index, args.world_size
            return stream_loader(dataset, batch_size, ReportingCollator(collator), *place, **workers)
        try:
            # dataloader_drop_last is for training: every sample counts in evaluation.
            args.dataloader_drop_last = drop_last and is_training
            evaluating = getattr(collator, "for_evaluation", collator)
            self.data_collator = ReportingCollator(collator) if is_training else evaluating
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        finally:
            args.dataloader_drop_last, self.data_collator = drop_last, collator
        lengths = getattr(dataset, "naflex_lengths", None)
        if is_training and (args.in_chunks or lengths) and not isinstance(dataset, IterableDataset):
            return one_batch_at_a_time(self._backend.on_the_host(loader), lengths, args.seed)
        return loader

    # ---- evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Of one batch (None, (image_embeds, text_embeds[, pair_ids]), None). The loss belongs to no single batch."""
        inputs = self._forward_inputs(self._prepare_inputs(inputs))
        pair_ids = [inputs.pop(PAIRS)] if PAIRS in inputs else []
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs, return_loss=False)
        return None, (outputs.image_embeds.detach(), outputs.text_embeds.detach(), *pair_ids), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        # Afterwards the model has the average.
        averaged = self.average.in_model() if self.average is not None and self.is_in_train else nullcontext()
        with averaged:
            output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
            if output.predictions is None:
                raise ValueError(f"{description} saw no batch: the dataset is empty")
            images, texts, *pair_ids = cast(tuple[np.ndarray, ...], output.predictions)
            output = output._replace(predictions=cast(Any, (images, texts)))
            scale, bias = loss_head(core_model(self.model))
            head = whole(scale), None if bias is None else whole(bias)
            size = self.args.eval_contrastive_batch_size
            metrics = blockwise_loss(images, texts, *head, self._contrastive.loss, size, *pair_ids)
            if self.compute_metrics is not None:
                # transformers' types know neither two predictions nor their lack of labels
                metrics.update(self.compute_metrics(EvalPrediction(cast(Any, output.predictions), cast(Any, None))))
        prefix = f"{metric_key_prefix}_"
        assert output.metrics is not None
        output.metrics.update({prefix + name.removeprefix(prefix): value for name, value in metrics.items()})
        return output

    # ---- logs ----

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        training = "loss" in logs
        if training:
            total = partial(self.accelerator.reduce, reduction="sum")
            seen = examples_seen(self.args, self.state, self._monitor.batches_of_epoch)
            logs.update(self._monitor.figures(seen, total, self.accelerator.gather))
            if self.everything is not None:
                logs.update(self.everything.figures(total))
            if self.curation is not None:
                logs.update(self.curation.figures(seen))
            if self._data.skips.total_skipped:
                logs["samples_skipped"] = self._data.skips.total_skipped
        super().log(logs, *args, **kwargs)
        if training:
            self._monitor.check(logs["loss"])

    def end(self) -> None:
        """Finish the trackers and leave the process group (`process_group.py`); once, at the very end of a script.

        The DDP wrapper goes first. Should it outlive `destroy_process_group`, it holds the last reference to the gloo
        group and, with it, the interpreter's lock while it joins gloo's thread; that thread may be waiting for the
        same lock to free a tensor, and the process never ends.
        """
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        super().end()
        leave_group()
