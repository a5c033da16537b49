"""What a model is evaluated on: rows in any of the usual layouts, and which of their columns say what."""

from .layouts import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    captions,
    column,
    file_names,
    images,
    label_names,
    labels,
    lines_beside,
    load,
    xm3600,
)


__all__ = [
    "CAPTION_COLUMNS",
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "captions",
    "column",
    "file_names",
    "images",
    "label_names",
    "labels",
    "lines_beside",
    "load",
    "xm3600",
]
