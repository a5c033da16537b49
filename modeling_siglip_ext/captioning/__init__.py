"""Captions and boxes: the decoder of CapPa, LocCa and SigLIP 2 on an image tower's tokens."""

from .configuration import CaptionDecoderConfig
from .decoder import CaptionDecoder, decoder_inputs
from .folder import load_decoder, save_decoder
from .generation import Sampling, generate, log_likelihoods
from .images import caption, locate, locate_all, score_captions
from .targets import TASKS, Target, TargetWriter, padded
from .texts import Box, TextFormat, checked_box


__all__ = [
    "TASKS",
    "Box",
    "CaptionDecoder",
    "CaptionDecoderConfig",
    "Sampling",
    "Target",
    "TargetWriter",
    "TextFormat",
    "caption",
    "checked_box",
    "decoder_inputs",
    "generate",
    "load_decoder",
    "locate",
    "locate_all",
    "log_likelihoods",
    "padded",
    "save_decoder",
    "score_captions",
]
