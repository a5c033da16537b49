"""Models from a recipe: another resolution, another tokenizer."""

import pytest
import torch
from scipy.ndimage import zoom
from transformers import AutoModel, AutoProcessor

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.training.run.fields import ModelArguments
from modeling_siglip_ext.training.run.models import at_image_size, build_model
from support.models import TINY


@pytest.fixture
def folder(our_model, processor, tmp_path):
    our_model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_another_resolution(folder, our_model, rows, tmp_path):
    """Positions as scipy zooms them, all else as it was, and plain transformers loads the result."""
    model, processor = build_model(ModelArguments(model_name_or_path=folder, image_size=24), None)
    table = "vision_model.embeddings.position_embedding.weight"
    old, new = our_model.state_dict(), model.state_dict()
    expected = zoom(old[table].view(4, 4, -1).numpy(), (1.5, 1.5, 1), order=1)
    torch.testing.assert_close(new[table].view(6, 6, -1), torch.from_numpy(expected), rtol=0, atol=1e-6)
    for name in old.keys() - {table}:
        assert torch.equal(new[name], old[name]), name
    model.save_pretrained(tmp_path / "larger")
    processor.save_pretrained(tmp_path / "larger")
    inputs = AutoProcessor.from_pretrained(tmp_path / "larger")(images=rows["image"][:2], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 24, 24)
    stock = AutoModel.from_pretrained(tmp_path / "larger").eval()
    with torch.no_grad():
        vectors = [one.get_image_features(**inputs).pooler_output for one in (stock, model.eval())]
    torch.testing.assert_close(*vectors, rtol=1e-5, atol=1e-5)


def test_another_resolution_is_refused(folder, our_model, processor):
    with pytest.raises(ValueError, match=r"image_size is for model_name_or_path"):
        ModelArguments(image_size=24)
    naflex = SiglipExtConfig(vision_config={**TINY, "naflex": True, "num_patches": 16}, text_config=TINY)
    with pytest.raises(ValueError, match="NaFlex takes images of any size"):
        at_image_size(SiglipExtModel(naflex), processor, 24)
    with pytest.raises(ValueError, match="image_size=3 is smaller than the patch of 4 pixels"):
        at_image_size(our_model, processor, 3)


def test_a_fixed_checkpoint_as_naflex_and_back(folder, our_model, rows, tmp_path):
    """The same vectors on square images of the native grid, and a processor for images of any shape."""
    model, processor = build_model(ModelArguments(model_name_or_path=folder, naflex=True), None)
    images = [image.resize((16, 16)) for image in rows["image"][:3]]
    with torch.no_grad():
        naflex = model.eval().get_image_features(**processor.image_processor(images, return_tensors="pt"))
        fixed = our_model.eval().get_image_features(
            **AutoProcessor.from_pretrained(folder)(images, return_tensors="pt")
        )
    torch.testing.assert_close(naflex.pooler_output, fixed.pooler_output, rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "naflex")
    processor.save_pretrained(tmp_path / "naflex")
    again, fitting = build_model(ModelArguments(model_name_or_path=str(tmp_path / "naflex"), naflex=False), None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in our_model.state_dict().items())
    assert fitting(rows["image"][:2], return_tensors="pt")["pixel_values"].shape == (2, 3, 16, 16)
    _, fitting = build_model(
        ModelArguments(model_name_or_path=str(tmp_path / "naflex"), naflex=False, image_size=24), None
    )
    assert fitting(rows["image"][:2], return_tensors="pt")["pixel_values"].shape == (2, 3, 24, 24)
    with pytest.raises(ValueError, match="naflex=true takes images of any size: leave out image_size"):
        ModelArguments(model_name_or_path=folder, naflex=True, image_size=24)
    with pytest.raises(ValueError, match=r"from scratch set vision_config\.naflex"):
        ModelArguments(naflex=True)


def test_a_tokenizer_from_elsewhere(folder, processor):
    arguments = ModelArguments(
        vision_config={**TINY, "image_size": 16, "patch_size": 8},
        text_config={**TINY, "max_position_embeddings": 20},
        tokenizer_name_or_path=folder,
    )
    model, own = build_model(arguments, None)  # None: the captions of a stream are not known
    text = model.config.text_config
    assert text.vocab_size == len(processor.tokenizer)
    assert (text.pad_token_id, text.eos_token_id) == (
        processor.tokenizer.pad_token_id,
        processor.tokenizer.eos_token_id,
    )
    assert own(text=["a red square"], padding="max_length", return_tensors="pt")["input_ids"].shape == (1, 20)
    arguments.tokenizer_name_or_path = None
    with pytest.raises(ValueError, match="set tokenizer_name_or_path"):
        build_model(arguments, None)
