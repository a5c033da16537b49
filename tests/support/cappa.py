"""Decoders and numbers that the original JAX code gave, see `tests/fixtures/cappa`."""

from pathlib import Path

import numpy as np
import torch

from modeling_siglip_ext.captioning import CaptionDecoder
from modeling_siglip_ext.conversion.big_vision.captioner import decoder_from_big_vision


FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "cappa"
CASES = ("cappa_nobias", "cappa_bias", "cappa_scan")


def read_arrays(case: str, file: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / case / file) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def read_decoder(case: str, dtype: torch.dtype = torch.float32) -> CaptionDecoder:
    return decoder_from_big_vision(read_arrays(case, "params.npz")).to(dtype)
