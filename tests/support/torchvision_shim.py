"""Lets open_clip and timm be imported beside a torch for CPUs, where the operators of PyPI's torchvision do not load.

Importing it defines those that `import torchvision` asks for; none of them is used here. A plugin for pytest:

    PYTHONPATH=tests OTHER/bin/python -m pytest -p support.torchvision_shim tests/conversion/open_clip
"""

import importlib.util

import torch


if torch.version.cuda is None and importlib.util.find_spec("torchvision") is not None:
    LIBRARY = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
