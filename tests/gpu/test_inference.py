"""Embeddings, the pipeline and captions on the device against the same on a CPU."""

import copy

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_siglip_ext import encode_images, encode_texts
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, Sampling, generate
from modeling_siglip_ext.training.objectives.captioning import caption_loss


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.9999), (torch.bfloat16, 0.999)], ids=str)
def test_encoded_images_and_texts(dtype, least, model, processor, rows, device):
    model = model.eval()
    on_device = copy.deepcopy(model).to(device, dtype)
    for encode, inputs in ((encode_images, list(rows["image"])), (encode_texts, list(rows["caption"]))):
        expected = encode(model, processor, inputs, progress=False)
        found = encode(on_device, processor, inputs, batch_size=5, progress=False)
        assert found.dtype == np.float32
        assert (found * expected).sum(1).min() >= least


def test_pipeline(model, processor, rows, device):
    def scores(model, device: torch.device) -> np.ndarray:
        parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
        classify = pipeline("zero-shot-image-classification", model=model.eval(), device=device, **parts)
        labels = [f"picture {number}" for number in range(6)]
        found = classify(list(rows["image"])[:6], candidate_labels=labels, batch_size=3)
        return np.array([[{x["label"]: x["score"] for x in one}[label] for label in labels] for one in found])

    expected = scores(copy.deepcopy(model), torch.device("cpu"))
    np.testing.assert_allclose(scores(model, device), expected, rtol=5e-2, atol=2e-3)


# ---- captions


@pytest.fixture
def decoder() -> CaptionDecoder:
    decoder = CaptionDecoder(CaptionDecoderConfig(30, 16, 20, 2, 2, encoder_hidden_size=12, max_length=9, bias=True))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return decoder.double()


def test_caption_loss(decoder, device):
    encoded, labels = torch.randn(5, 7, 12, dtype=torch.float64), torch.randint(1, 30, (5, 2, 9))
    parallel = torch.tensor([[True, False]] * 5)
    gradients, values = [], []
    for where in (torch.device("cpu"), device):
        one = copy.deepcopy(decoder).to(where)
        loss = caption_loss(one, encoded.to(where), labels.to(where), parallel=parallel.to(where)).loss
        loss.backward()
        values.append(loss.item())
        gradients.append({name: parameter.grad.cpu() for name, parameter in one.named_parameters()})
    assert values[1] == pytest.approx(values[0], rel=1e-10)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-8, atol=1e-10, msg=name)


def test_generated_captions(decoder, device):
    encoded, prompts = torch.randn(5, 7, 12, dtype=torch.float64), [[3], [], [4, 5], [6], []]
    decoder.eval()
    expected = generate(decoder, encoded, prompts)
    on_device = copy.deepcopy(decoder).to(device)
    assert generate(on_device, encoded.to(device), prompts) == expected
    drawn = [generate(on_device, encoded.to(device), prompts, sampling=Sampling(top_k=5, seed=1)) for _ in range(2)]
    assert drawn[0] == drawn[1]
