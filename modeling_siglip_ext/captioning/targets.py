"""The tokens of each task: what a decoder is given of a text, and what it has to write.

The parts of a text - prefix, words, separator, box - are tokenized one by one, so that a prompt is in training what it
is later on, and a caption has the tokens that the text tower gives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PreTrainedTokenizerBase

from ..texts import check_characters
from .configuration import CaptionDecoderConfig
from .texts import SIDES


TASKS = ("caption", "referring", "grounded")


@dataclass(frozen=True)
class Target:
    """A text to be written.

    Args:
        ids: its tokens, with the end token.
        given: how many of them are its prefix, which costs no loss.
    """

    ids: list[int]
    given: int


class TargetWriter:
    """Makes prompts and targets of texts and boxes.

    Args:
        tokenizer: of the text tower.
        config: of the decoder.

    Raises:
        ValueError: the tokenizer has other tokens, or the prefixes fill the decoder's length.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: CaptionDecoderConfig):
        if len(tokenizer) > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens, the decoder {config.vocab_size}: it is of another "
                "text tower"
            )
        self.tokenizer, self.config = tokenizer, config
        self.prefixes = {task: self.words(config.text_format.prefix(task)) for task in TASKS}
        self.separator = self.words(config.text_format.separator)
        longest = max(map(len, self.prefixes.values())) + len(self.separator)
        if longest + 1 >= config.max_length:
            raise ValueError(
                f"prefix and separator have {longest} tokens, which leaves no room in {config.max_length}: raise "
                "max_length, or shorten them in text_format"
            )

    def words(self, text: str) -> list[int]:
        """The tokens of a text without any that the tokenizer adds.

        Raises:
            ValueError: a text that no tokenizer reads.
        """
        check_characters([text])
        return self.tokenizer(text, add_special_tokens=False, padding=False, truncation=False, verbose=False)[
            "input_ids"
        ]

    def caption(self, text: str) -> Target:
        """An image's caption, cut where it is too long."""
        return self._target("caption", [], self.words(text), [])

    def referring(self, text: str, box: Sequence[float]) -> Target:
        """A text and the box that it refers to; a long text is cut, the box never.

        Raises:
            ValueError: a box that is none, or that has more tokens than there is room for.
        """
        return self._target("referring", [], self.words(text), [*self.separator, *self._box(box)])

    def grounded(self, text: str, box: Sequence[float]) -> Target:
        """A box and the text that describes it; raises as `referring`."""
        return self._target("grounded", [*self._box(box), *self.separator], self.words(text), [])

    def referring_prompt(self, text: str) -> list[int]:
        """What comes before the box of a text; raises as `referring`."""
        box = self._longest_box
        whole = self._target("referring", [], self.words(text), [*self.separator, *box]).ids
        return whole[: len(whole) - 1 - len(box)]

    @cached_property
    def _longest_box(self) -> list[int]:
        """The tokens of a box that has the most: a vocabulary may have 500 as a word, and write 137 in three."""
        form = self.config.text_format
        boxes = [form.box_separator.join([str(number)] * len(SIDES)) for number in range(form.box_scale + 1)]
        return max(map(self.words, boxes), key=len)

    def _box(self, box: Sequence[float]) -> list[int]:
        return self.words(self.config.text_format.write_box(box))

    def _target(self, task: str, before: list[int], words: list[int], after: list[int]) -> Target:
        prefix = self.prefixes[task]
        room = self.config.max_length - len(prefix) - len(before) - len(after) - 1
        if room < 1:
            raise ValueError(
                f"a box has {len(before or after)} tokens of this tokenizer, too many for a decoder of max_length "
                f"{self.config.max_length}: raise max_length, or leave the tasks with boxes out"
            )
        return Target([*prefix, *before, *words[:room], *after, self.config.eos_token_id], len(prefix))


def padded(targets: Sequence[Target | None], config: CaptionDecoderConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (T, L) int64, and float32 weights of their tokens: 0 for prefixes, padding and missing targets."""
    labels = torch.full((len(targets), config.max_length), config.pad_token_id)
    weights = torch.zeros(labels.shape)
    for row, target in enumerate(targets):
        if target is not None:
            labels[row, : len(target.ids)] = torch.tensor(target.ids)
            weights[row, target.given : len(target.ids)] = 1
    return labels, weights
