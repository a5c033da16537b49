"""Which collator the rows of a dataset need, where none was given; datasets of torch are looked through."""

from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from torch.utils.data import ConcatDataset, Subset
from transformers import ProcessorMixin

from .collator import ImageTextCollator
from .dataset import CaptionedRows
from .streaming import ImageTextStream


COLUMNS = {"image", "caption"}


def parts_of(data: Any) -> Iterator[Any]:
    """The datasets inside torch's `Subset` and `ConcatDataset`, those of `random_split` among them, and in mappings.

    Raises:
        ValueError: one with `naflex_lengths` or a `group_column` inside another, which its batches would not know of.
    """
    if isinstance(data, Mapping):
        inside = list(data.values())
    elif isinstance(data, (Subset, ConcatDataset)):
        inside = [data.dataset] if isinstance(data, Subset) else data.datasets
        for part in inside:
            for setting, value in (("naflex_lengths", "naflex_lengths"), ("group_column", "groups")):
                if getattr(part, value, None) is not None:
                    raise ValueError(
                        f"{setting} does not reach the batches through a {type(data).__name__}: choose or join the "
                        "rows before, with select or concatenate_datasets of datasets"
                    )
    else:
        yield data
        return
    for part in inside:
        yield from parts_of(part)


def collator_for(processor: Any, *given: Any) -> ImageTextCollator | None:
    """The collator of images and captions, if rows of these datasets hold such; None if they are a model's inputs.

    Raises:
        TypeError: rows that are no mappings, as pairs are.
        ValueError: there is no processor to make inputs of them.
    """
    if not any(rows_of_captions(part) for data in given if data is not None for part in parts_of(data)):
        return None
    if not isinstance(processor, ProcessorMixin):
        raise ValueError(
            "images and captions need a processor: pass processing_class=processor, or a data_collator such as "
            "ImageTextCollator(processor)"
        )
    return ImageTextCollator(processor)


def rows_of_captions(data: Any) -> bool:
    if isinstance(data, (CaptionedRows, ImageTextStream)):
        return True
    if isinstance(data, (datasets.Dataset, datasets.IterableDataset)):
        return set(data.column_names or ()) >= COLUMNS
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__") or not len(data):
        return False
    row = data[0]
    if not isinstance(row, Mapping):
        raise TypeError(
            f"the rows of the {type(data).__name__} are no mappings but a {type(row).__name__}: give rows with "
            "'image' and 'caption', as ImageTextDataset has them, or a data_collator"
        )
    return row.keys() >= COLUMNS
