"""Exports of converted checkpoints against what the original JAX code computed, without torch between them."""

import numpy as np
import pytest

from modeling_siglip_ext.conversion.export.export import ExportOptions, export_model
from siglip_ext_runtime import ExportedModel


CASES = [
    *(
        "siglip1_mu16",
        "siglip1_bf16",
        "siglip1_opt_adafactor",
        "siglip1_resample",
        "siglip_scan",
        "siglip_i18n_so400m_nohead",
    ),
    *("lit_legacy_names", "lit_tok_noimghead"),
]


def images_of(recorded) -> dict[str, np.ndarray]:
    if "in/patches" in recorded:
        shapes = {"pixel_attention_mask": recorded["in/type"], "spatial_shapes": recorded["in/spatial_shapes"]}
        return {"pixel_values": recorded["in/patches"], **shapes}
    return {"pixel_values": recorded["in/image"].transpose(0, 3, 1, 2)}


@pytest.mark.long
@pytest.mark.parametrize("case", ["siglip2_naflex", *(pytest.param(case, marks=pytest.mark.slow) for case in CASES)])
def test_an_export_gives_what_the_original_code_gave(converted, checkpoints, tmp_path, case):
    export_model(converted(case), tmp_path / "out", ExportOptions())
    recorded, model = np.load(checkpoints / case / "io.npz"), ExportedModel(tmp_path / "out")
    images = model.get_image_features(**images_of(recorded)).embeds
    texts = model.get_text_features(input_ids=recorded["in/text"]).embeds
    # the largest that compare_outputs allows in float32
    np.testing.assert_allclose(images, recorded["out/zimg"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(texts, recorded["out/ztxt"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_an_image_tower_alone(converted, tmp_path):
    """PaliGemma's has no pooling, and no embedding to export."""
    with pytest.raises(ValueError, match="--towers image"):
        export_model(converted("paligemma_tiny"), tmp_path / "out")
    with pytest.raises(ValueError, match='pooling="none"'):
        export_model(converted("paligemma_tiny"), tmp_path / "out", ExportOptions(towers=("vision_model",)))
