"""What a training run pushes to the Hub: the model with its card, in one commit, and never what resuming needs."""

import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress

from modeling_siglip_ext.hub.card import CARD, check_card, write_card, written_here
from modeling_siglip_ext.hub.publish import publish
from modeling_siglip_ext.hub.repository import ensure_repository
from modeling_siglip_ext.hub.upload import select

from ..arguments import SiglipExtTrainingArguments
from .card import GENERATED, Trained, output_folder, trainer_card
from .towers import core_model


logger = logging.get_logger(__name__)


class HubPushes(Trainer):
    """The part of `SiglipExtTrainer` that pushes; a name that is not free is found out before the first step."""

    args: SiglipExtTrainingArguments
    model: nn.Module
    loss_name: str
    """"sigmoid" or "softmax", for the card."""

    def trained(self) -> Trained:
        """What there is to tell of the training, so far."""
        return Trained(core_model(self.model), self.args, self.state, self.processing_class, self.loss_name)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository, or make sure that it may be pushed to.

        Raises:
            RefusedError: it has a card that this package did not write, and `hub_overwrite` is not set.
            PublishError: the Hub refuses.
        """
        if not self.is_world_process_zero():
            return
        self.hub_model_id = ensure_repository(
            self.args.hub_model_id or output_folder(self.args).absolute().name,
            private=self.args.hub_private_repo if private is None else private,
            overwrite=self.args.hub_overwrite,
            revision=self.args.hub_revision,
            token=token or self.args.hub_token,
        )
        self.push_in_progress = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if output_dir is None or Path(output_dir) == output_folder(self.args):
            self._finish_current_push()  # it reads the files that are replaced now
        super().save_model(output_dir, _internal_call)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> CommitInfo | Future | None:  # ty: ignore[incompatible-method-override]  # None in all processes but one
        """Save the model and publish `output_dir`; see `modeling_siglip_ext.hub.publish`.

        Args:
            commit_message: of the one commit.
            blocking: whether to wait for the end of it.
            token: in place of `args.hub_token`.
            revision: in place of `args.hub_revision`.
            private: in place of `args.hub_private_repo`.
            kwargs: for `create_model_card`.

        Returns:
            The commit, or its future with `blocking=False`; None in all processes but the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        return self._publish(commit_message, token, revision, blocking)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self._finish_current_push()  # it reads the files that are replaced now
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        output = output_folder(self.args)
        # checkpoints may be deleted while the upload runs
        for name in select(Path(checkpoint_folder))[0]:
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(checkpoint_folder) / name, output / name)
        self.create_model_card()
        steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch)}"
        self._publish(f"Training in progress, {progress}")

    def _publish(
        self, message: str | None, token: str | None = None, revision: str | None = None, blocking: bool = False
    ) -> CommitInfo | Future | None:
        """Publish the output folder, which is complete."""
        assert self.hub_model_id is not None, "init_hf_repo comes first"
        folder = output_folder(self.args)
        options: dict[str, Any] = {
            "message": message or "Upload of siglip-ext",
            "token": token or self.args.hub_token,
            "revision": revision or self.args.hub_revision,
            "private": self.args.hub_private_repo,
            "overwrite": self.args.hub_overwrite,
        }
        if blocking:
            return publish(folder, self.hub_model_id, **options)
        job = HfApi().run_as_future(publish, folder, self.hub_model_id, **options, say=logger.info)
        job.add_done_callback(_warn_of_failure)
        self.push_in_progress = PushInProgress(cast(Any, [job]))  # a list, whatever its annotation says
        return job

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write the card of what the Trainer knows, unless the output folder has one of a recipe or of the user's.

        `tasks`, `dataset_tags` and `dataset_args` are those of the stock Trainer and have no place in our card.
        """
        if not self.is_world_process_zero():
            return
        path = output_folder(self.args) / CARD
        if path.exists():
            text = path.read_text(encoding="utf-8")
            if not written_here(text) or GENERATED not in (check_card(text).data.get("tags") or []):
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"license": license, "language": language, "tags": tags, "dataset": dataset}
        card = trainer_card(self.trained(), name=model_name, finetuned_from=finetuned_from, **about)
        write_card(path.parent, card)


def _warn_of_failure(job: Future) -> None:
    if not job.cancelled() and job.exception() is not None:
        logger.warning("a push to the Hub failed: %s", job.exception())
