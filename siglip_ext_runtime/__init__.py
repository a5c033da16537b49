"""Exported SigLIP models on ONNX Runtime or OpenVINO, without torch.

A package of its own, because importing anything in `modeling_siglip_ext` loads torch and transformers, which take six
times the memory that a runtime does.
"""

from .exported_model import ExportedModel
from .settings import ExportSettings, is_exported, read_settings


__all__ = ["ExportSettings", "ExportedModel", "is_exported", "read_settings"]
