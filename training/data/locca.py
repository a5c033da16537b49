"""What LocCa trains a decoder to write for an image: its caption, a region's text and box, and a box and its text.

An example has one target a task, a region for each box task drawn apart. All draws are hashes of what identifies an
example and epoch, as the draw of captions is: the same for any number of processes and workers, and after a resume.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from modeling_siglip_ext.captioning import TASKS, CaptionDecoderConfig, Target, TargetWriter, padded
from modeling_siglip_ext.captioning.unpadded import needed_tokens

from .collator import ImageTextCollator
from .regions import Region, as_regions
from .samples import as_captions, drawn


@dataclass(frozen=True)
class CaptionTasks:
    """What a decoder learns.

    Args:
        tasks: of "caption", "referring" and "grounded". Examples without regions have no targets of the last two.
        parallel: share of the captions that are predicted in parallel, of mask tokens alone (SigLIP 2: 0.5); never
            those of the other tasks.
        min_score: regions that the detector is less sure of are left out.

    Raises:
        ValueError: an unknown task, none or one twice, or a share that is none.
    """

    tasks: tuple[str, ...] = TASKS
    parallel: float = 0.5
    min_score: float = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks must be some of {', '.join(TASKS)}, each once, got {list(self.tasks)}")
        if not 0 <= self.parallel <= 1:
            raise ValueError(f"parallel must be between 0 and 1, got {self.parallel}")


class CaptionTargets:
    """Makes the targets of an example.

    Args:
        tokenizer: of the text tower.
        config: of the decoder.
        tasks: what it learns.

    Raises:
        ValueError: parallel prediction with a decoder that has no mask token, or one too short for a box.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, config: CaptionDecoderConfig, tasks: CaptionTasks | None = None
    ):
        self.settings = tasks or CaptionTasks()
        if self.settings.parallel and not config.mask_token:
            raise ValueError("parallel prediction needs a decoder with mask_token=True; or set parallel=0")
        self.writer = TargetWriter(tokenizer, config)
        if {"referring", "grounded"} & set(self.settings.tasks):
            self.writer.referring_prompt("")  # whether there is room for the longest box

    def of_example(self, caption: str, regions: list[Region], key: str) -> list[Target | None]:
        """One target a task, None where there is nothing to write.

        Args:
            key: identifies the example and the epoch, as "seed/epoch/index".
        """
        return [self._target(task, caption, regions, key) for task in self.settings.tasks]

    def parallel(self, key: str) -> list[bool]:
        """For each task whether its target is predicted in parallel."""
        chosen = fraction(f"{key}/parallel") < self.settings.parallel
        return [chosen and task == "caption" for task in self.settings.tasks]

    def _target(self, task: str, caption: str, regions: list[Region], key: str) -> Target | None:
        if task == "caption":
            return self.writer.caption(caption)
        if not regions:
            return None
        region = regions[int(fraction(f"{key}/{task}") * len(regions))]
        write = self.writer.referring if task == "referring" else self.writer.grounded
        return write(region.text, region.box)


class CaptioningCollator:
    """Adds the targets of a captioning decoder to the batches of another collator.

    The examples of the datasets here carry `key`, from which all is drawn; for bare rows it comes from torch's random
    state, as the caption of such a row does.

    Args:
        collator: makes the rest of the batch.
        targets: makes the targets.
        region_column: key of bare rows; without it an example has no regions. That of captions is the collator's.
    """

    def __init__(
        self,
        collator: ImageTextCollator,
        targets: CaptionTargets,
        region_column: str = "regions",
    ):
        self.collator, self.targets, self.processor = collator, targets, collator.processor
        self.region_column = region_column

    @property
    def for_evaluation(self) -> ImageTextCollator:
        """As of `ExtendedCollator`."""
        return self.collator

    def __call__(self, examples: list[dict]) -> dict[str, Any]:
        """Adds `caption_labels` int64 (B, T, L), `caption_weights` float32 (B, T, L), `caption_parallel` bool (B, T),
        and numbers that stay on the host: `caption_counts`, for each example that of its tokens with a weight, and
        `caption_lengths`, that of the tokens which a decoder computes for these.

        Raises:
            ValueError: no column of captions.
            UnusableRowError: regions or captions that are none.
        """
        keys = [example.get("key") or f"{torch.randint(2**62, ()).item()}" for example in examples]
        captions = [self._caption(example, key) for example, key in zip(examples, keys)]
        name = self.collator.caption_column
        batch = self.collator([{**example, name: caption} for example, caption in zip(examples, captions)])
        labels, weights = zip(
            *(
                padded(self.targets.of_example(caption, self._regions(example), key), self._config)
                for caption, example, key in zip(captions, examples, keys)
            )
        )
        batch["caption_labels"], batch["caption_weights"] = torch.stack(labels), torch.stack(weights)
        batch["caption_parallel"] = torch.tensor([self.targets.parallel(key) for key in keys])
        batch["caption_counts"] = batch["caption_weights"].count_nonzero((1, 2)).tolist()
        rows, parallel = batch["caption_weights"].flatten(0, 1), batch["caption_parallel"].flatten()
        needed = needed_tokens(rows, parallel).view(batch["caption_weights"].shape)
        batch["caption_lengths"] = needed.count_nonzero((1, 2)).tolist()
        return batch

    @property
    def _config(self) -> CaptionDecoderConfig:
        return self.targets.writer.config

    def _caption(self, example: dict, key: str) -> str:
        value = self.collator.captions(example)
        return value if isinstance(value, str) else drawn(as_captions(value), key)

    def _regions(self, example: dict) -> list[Region]:
        value = example.get(self.region_column, example.get("regions"))
        return as_regions(value, self.targets.settings.min_score)


def fraction(key: str) -> float:
    """A number from 0 up to 1 that the key alone decides."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
