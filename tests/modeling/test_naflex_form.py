"""Fixed resolution and NaFlex are two forms of one tower: against each other, stock classes and the conversion."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, Siglip2Model, SiglipModel
from transformers.image_utils import PILImageResampling

from modeling_siglip_ext import (
    SiglipExtForImageClassification,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    SiglipExtTextModel,
    SiglipExtVisionModel,
    encode_images,
    fit_processor,
)
from modeling_siglip_ext.conversion.plan import NewSizes, resized
from modeling_siglip_ext.conversion.resize import PATCHES, changes_between
from support.images import noise
from support.models import make_config, make_processor


SIDE, PATCH = 32, 8


@pytest.fixture(scope="module")
def fixed(tmp_path_factory):
    """A folder with a model of fixed resolution, values of its own and bicubic resizing."""
    folder = tmp_path_factory.mktemp("fixed")
    torch.manual_seed(0)
    SiglipExtModel(make_config({"vocab_size": 300})).save_pretrained(folder)
    processor = make_processor(["a red square"], length=8, size=SIDE)
    processor.image_processor.image_mean, processor.image_processor.image_std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    processor.save_pretrained(str(folder))
    return folder


def features(model, processor, image) -> torch.Tensor:
    inputs = processor.image_processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        return model.eval().get_image_features(**inputs).pooler_output


@pytest.mark.parametrize("pooling", ["map", "mean", "max", "first"])
def test_both_forms_give_the_same_on_a_square_image_of_the_native_grid(pooling, tmp_path):
    SiglipExtModel(make_config(vision={"pooling": pooling, "pre_logits": True})).save_pretrained(tmp_path)
    processor = make_processor(["a"], length=8, size=SIDE)
    plain = SiglipExtModel.from_pretrained(tmp_path)
    naflex = SiglipExtModel.from_pretrained(tmp_path, naflex=True)
    assert naflex.vision_model.config.num_patches == (SIDE // PATCH) ** 2
    of_naflex = fit_processor(processor, naflex.config)
    assert isinstance(of_naflex, SiglipExtProcessor)
    image = noise(SIDE, SIDE)
    found = features(naflex, of_naflex, image)
    torch.testing.assert_close(found, features(plain, processor, image), rtol=0, atol=1e-5)
    assert features(naflex, of_naflex, noise(100, 20)).shape == found.shape  # and any other shape


def test_what_is_saved_is_stock_form_both_ways(fixed, tmp_path):
    processor = AutoProcessor.from_pretrained(fixed)
    naflex = SiglipExtModel.from_pretrained(fixed, naflex=True)
    naflex.save_pretrained(tmp_path / "naflex")
    stock = AutoModel.from_pretrained(tmp_path / "naflex")
    assert type(stock) is Siglip2Model
    image, of_naflex = noise(50, 90), fit_processor(processor, naflex.config)
    torch.testing.assert_close(
        features(stock, of_naflex, image), features(naflex, of_naflex, image), rtol=0, atol=1e-5
    )
    back = SiglipExtModel.from_pretrained(tmp_path / "naflex", naflex=False)
    back.save_pretrained(tmp_path / "back")
    assert type(AutoModel.from_pretrained(tmp_path / "back")) is SiglipModel
    before, after = (load_file(folder / "model.safetensors") for folder in (fixed, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again, images = fit_processor(of_naflex, back.config).image_processor, processor.image_processor
    assert torch.equal(*(one(images=[image], return_tensors="pt")["pixel_values"] for one in (again, images)))


def test_the_conversion_says_the_same(fixed, tmp_path):
    plain = SiglipExtModel.from_pretrained(fixed)
    naflex = SiglipExtModel.from_pretrained(fixed, naflex=True)
    wanted = resized(plain.config, NewSizes(naflex=True))
    assert naflex.config.vision_config.to_dict() == wanted.vision_config.to_dict()
    changes = changes_between(plain.config, wanted)
    assert changes.keys() == {PATCHES}
    state = naflex.state_dict()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(state[name], changes[name](tensor) if name in changes else tensor)


def test_the_processor_keeps_its_values_and_follows_the_tower(fixed, tmp_path):
    processor = AutoProcessor.from_pretrained(fixed)
    naflex = SiglipExtModel.from_pretrained(fixed, naflex=True)
    images = fit_processor(processor, naflex.config).image_processor
    assert isinstance(images, SiglipExtNaflexImageProcessor)
    assert (images.patch_size, images.max_num_patches) == (PATCH, 16)
    assert (list(images.image_mean), list(images.image_std)) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    assert images.resample == PILImageResampling.BICUBIC
    assert fit_processor(processor, SiglipExtModel.from_pretrained(fixed).config) is processor
    fit_processor(processor, naflex.config).save_pretrained(str(tmp_path))
    naflex.save_pretrained(tmp_path)
    loaded, model = AutoProcessor.from_pretrained(tmp_path), SiglipExtModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        torch.from_numpy(encode_images(model, loaded, [noise(90, 30)])),
        torch.from_numpy(encode_images(naflex, images, [noise(90, 30)])),
    )


def test_towers_classifiers_and_half_precision(fixed):
    tower = SiglipExtVisionModel.from_pretrained(fixed, naflex=True, dtype=torch.bfloat16)
    assert tower.embeddings.patch_embedding.weight.dtype == torch.bfloat16
    assert all(layer.self_attn.config.naflex for layer in tower.encoder.layers)
    classifier = SiglipExtForImageClassification.from_pretrained(fixed, naflex=True, num_labels=3)
    assert classifier.config.vision_config.naflex
    model = SiglipExtModel.from_pretrained(fixed, naflex=True).train()
    inputs = SiglipExtNaflexImageProcessor(patch_size=PATCH, max_num_patches=9)(images=[noise()], return_tensors="pt")
    model.get_image_features(**inputs).pooler_output.sum().backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    same, report = SiglipExtModel.from_pretrained(fixed, naflex=False, output_loading_info=True)
    assert not same.config.vision_config.naflex
    assert not report["missing_keys"]


def test_a_naflex_form_beside_a_tokenizer_of_its_own(fixed, tmp_path):
    """Beside a "siglip2" model transformers would read any tokenizer as Gemma's, so the form is ours."""
    processor = AutoProcessor.from_pretrained(fixed)
    model = SiglipExtModel.from_pretrained(fixed, naflex=True)
    model.save_pretrained(tmp_path)
    fit_processor(processor, model.config).save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip_ext"


def test_a_tower_without_the_other_form_is_refused_in_a_sentence(fixed, tmp_path):
    for number, fields in enumerate([{"pooling": "cls"}, {"position_embedding_type": "sincos2d"}]):
        SiglipExtModel(make_config(vision=fields)).save_pretrained(tmp_path / str(number))
        with pytest.raises(ValueError, match='learned positions and a pooling other than "cls"'):
            SiglipExtModel.from_pretrained(tmp_path / str(number), naflex=True)
    with pytest.raises(ValueError, match="for SigLIP's image towers, not for a 'siglip_ext_text_model'"):
        SiglipExtTextModel.from_pretrained(fixed, naflex=True)


def test_the_wrong_processor_is_named(fixed):
    plain, naflex = (SiglipExtModel.from_pretrained(fixed, naflex=form) for form in (False, True))
    for_plain = SiglipExtImageProcessor(size={"height": SIDE, "width": SIDE})
    with pytest.raises(ValueError, match="a NaFlex tower needs spatial_shapes"):
        encode_images(naflex, for_plain, [noise()])
    with pytest.raises(ValueError, match="are for NaFlex; this tower's size is fixed"):
        encode_images(plain, SiglipExtNaflexImageProcessor(), [noise()])
