"""The captioning objective: big_vision's losses and gradients, separable over examples, and it learns."""

import copy

import pytest
import torch
from PIL import Image, ImageDraw
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput

from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig, caption, locate_all, score_captions
from modeling_siglip_ext.captioning.unpadded import needed_tokens
from modeling_siglip_ext.conversion.big_vision.captioner import decoder_to_big_vision
from modeling_siglip_ext.training import ImageTextCollator
from modeling_siglip_ext.training.data.locca import CaptioningCollator, CaptionTargets
from modeling_siglip_ext.training.objectives.captioning import Captioning, CaptionLossSettings, caption_loss
from modeling_siglip_ext.training.objectives.model import ObjectiveModel
from support.cappa import CASES, read_arrays, read_decoder
from support.models import TINY, make_processor


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_big_visions(case, chunk):
    decoder, io = read_decoder(case, torch.float64), read_arrays(case, "io.npz")
    labels, masks = io["in/labels"].long()[:, None], io["in/label_masks"][:, None]
    encoded = io["out/encoded"].double().requires_grad_()
    chunks = CaptionLossSettings(chunk_tokens=chunk)
    smooth = CaptionLossSettings(label_smoothing=0.1, chunk_tokens=chunk)
    everything = torch.ones(len(labels), 1, dtype=torch.bool)

    def check(found, expected: str) -> None:
        assert found.loss.item() == pytest.approx(io[f"out/{expected}"].item(), abs=1e-6)
        name = f"out/{expected}_per_example"
        if name in io:
            torch.testing.assert_close(found.by_text[:, 0].float(), io[name], rtol=0, atol=1e-6)

    weights = masks * (labels != 0)
    check(caption_loss(decoder, encoded, labels, weights, settings=chunks), "causal/loss_masked")
    check(
        caption_loss(decoder, encoded, labels, settings=smooth),
        "causal/loss_smooth01",
    )
    for mode, parallel in (("causal", None), ("parallel", everything)):
        decoder.zero_grad()
        encoded.grad = None
        found = caption_loss(decoder, encoded, labels, parallel=parallel, settings=chunks)
        check(found, f"{mode}/loss")
        found.loss.backward()
        gradients = copy.deepcopy(decoder)
        gradients.load_state_dict({name: parameter.grad for name, parameter in decoder.named_parameters()})
        arrays = decoder_to_big_vision(gradients) | {"encoded": encoded.grad}
        expected = {
            name.removeprefix(f"grad/{mode}/"): array for name, array in io.items() if name.startswith(f"grad/{mode}/")
        }
        assert expected
        for name, array in expected.items():
            error = (arrays[name] - array).norm() / array.norm()
            assert error <= 1e-5, f"{mode} {name}: {error}"
    if case == "cappa_nobias":
        rows = io["in/mixed/parallel_rows"].bool()[:, None]
        check(caption_loss(decoder, encoded, labels, parallel=rows, settings=chunks), "mixed/loss")


@pytest.fixture
def batch(our_model, processor) -> tuple[SiglipExtModel, Captioning, dict]:
    """A model and a decoder in float64 with three texts an image, of which the second half of the images has one."""
    config = CaptionDecoderConfig.for_towers(our_model.config, processor.tokenizer)
    decoder = CaptionDecoder(config).double()
    torch.nn.init.normal_(decoder.output.weight)
    labels = torch.randint(2, config.vocab_size, (6, 3, config.max_length))
    labels[:, :, 9:] = 0
    weights = (labels != 0).float()
    weights[:, :, 0] = 0
    weights[3:, 1:] = 0
    inputs = {
        "pixel_values": torch.randn(6, 3, 16, 16, dtype=torch.float64),
        "input_ids": torch.randint(2, config.vocab_size, (6, config.max_length)),
        "caption_labels": labels,
        "caption_weights": weights,
        "caption_parallel": torch.rand(6, 3) < 0.3,
    }
    return our_model.double(), Captioning(decoder), inputs


def run(model, objective, inputs):
    outputs = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], return_loss=False)
    return objective.losses(outputs, inputs)


def test_it_is_a_mean_over_examples_and_can_be_cut_into_chunks(batch):
    model, objective, inputs = batch
    parameters = [*objective.parameters(), *model.vision_model.encoder.parameters()]
    whole = run(model, objective, inputs)
    whole_gradients = torch.autograd.grad(whole.loss, parameters)
    sums = [torch.zeros_like(parameter) for parameter in parameters]
    losses = []
    for rows in (slice(0, 2), slice(2, 3), slice(3, 6)):
        part = {name: value[rows] for name, value in inputs.items()}
        found = run(model, objective, part)
        losses.append(found.by_text)
        share = len(part["input_ids"]) / 6
        for total, gradient in zip(sums, torch.autograd.grad(found.loss * share, parameters)):
            total += gradient
    torch.testing.assert_close(torch.cat(losses), whole.by_text, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.by_text.mean(), whole.loss.detach(), rtol=1e-12, atol=0)
    for one, other in zip(sums, whole_gradients):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


def test_each_text_has_the_loss_of_its_counted_tokens(batch):
    model, objective, inputs = batch
    objective.settings = CaptionLossSettings(task_weights=(0.5, 2.0, 1.0))
    found = run(model, objective, inputs)
    decoder = objective.decoder
    with torch.no_grad():
        encoded = model.get_image_features(inputs["pixel_values"]).last_hidden_state
        total = 0.0
        for image in range(6):
            for task, factor in enumerate((0.5, 2.0, 1.0)):
                labels, weights = inputs["caption_labels"][image, task], inputs["caption_weights"][image, task]
                parallel = inputs["caption_parallel"][image, task]
                ids = torch.cat([torch.zeros(1, dtype=torch.long), labels[:-1]])
                ids = torch.full_like(ids, decoder.config.vocab_size) if parallel else ids
                logits = decoder.output(decoder(ids[None], encoded[image : image + 1], parallel[None])[0])
                loss = (F.cross_entropy(logits, labels, reduction="none") * weights).sum() / weights.sum().clamp(min=1)
                torch.testing.assert_close(found.by_text[image, task], loss, rtol=1e-12, atol=1e-12)
                total += factor * loss / 6
    torch.testing.assert_close(found.loss.detach(), total, rtol=1e-12, atol=0)


def test_examples_without_regions_add_nothing(batch):
    model, objective, inputs = batch
    assert (run(model, objective, inputs).by_text[3:, 1:] == 0).all()
    inputs["caption_weights"].zero_()
    empty = run(model, objective, inputs)
    empty.loss.backward()
    assert empty.loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in objective.parameters())


def test_it_is_an_objective_among_others_also_of_an_image_tower_alone(batch):
    model, objective, inputs = batch
    outputs = model(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], return_loss=False)
    expected = objective.losses(outputs, inputs).loss
    together = ObjectiveModel(model, {"captioning": objective})(**inputs, return_loss=False, objectives=True)
    assert torch.equal(together.image_embeds, outputs.image_embeds)
    assert torch.equal(together["objective_losses"]["captioning"], expected)
    tokens = BaseModelOutput(last_hidden_state=outputs.vision_model_output.last_hidden_state)
    assert torch.equal(objective(model, tokens, inputs), expected)


def test_numbers_from_the_host_change_nothing_and_too_few_give_no_loss(batch):
    model, objective, inputs = batch
    weights, parallel = inputs["caption_weights"], inputs["caption_parallel"]
    lengths = needed_tokens(weights.flatten(0, 1), parallel.flatten()).view(weights.shape).sum((1, 2)).tolist()
    told = {**inputs, "caption_counts": weights.count_nonzero((1, 2)).tolist(), "caption_lengths": lengths}
    expected = run(model, objective, inputs)
    found = run(model, objective, told)
    assert all(map(torch.equal, found, expected))
    lengths[0] -= 1
    assert run(model, objective, told).loss.isnan()


def test_a_compiled_objective_keeps_its_shapes(batch):
    """And so is compiled once, however long the texts are."""
    model, objective, inputs = batch
    features = model.get_image_features(inputs["pixel_values"]).last_hidden_state.detach()
    weights, parallel = inputs["caption_weights"], inputs["caption_parallel"].flatten()
    counter = CompileCounter()

    def losses(tokens: torch.Tensor, batch: dict) -> tuple[torch.Tensor, ...]:
        return tuple(objective.losses(BaseModelOutput(last_hidden_state=tokens), batch))

    compiled = torch.compile(losses, backend=counter, fullgraph=True)
    for cut in (9, 5):
        weights[:, :, cut:] = 0
        needed = needed_tokens(weights.flatten(0, 1), parallel).view(weights.shape)
        inputs["caption_counts"] = weights.count_nonzero((1, 2)).tolist()
        inputs["caption_lengths"] = needed.sum((1, 2)).tolist()
        for one, other in zip(compiled(features, inputs), losses(features, inputs)):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert counter.frame_count == 1


def test_what_does_not_fit_is_refused(batch):
    model, objective, inputs = batch
    del inputs["caption_labels"]
    with pytest.raises(ValueError, match="wrap the data collator in a CaptioningCollator"):
        run(model, objective, inputs)
    labels = torch.zeros(2, 1, 12, dtype=torch.long)
    with pytest.raises(ValueError, match="need as many weights and images"):
        caption_loss(objective.decoder, torch.zeros(3, 16, 32, dtype=torch.float64), labels)
    with pytest.raises(ValueError, match="2 task_weights for 1 tasks"):
        caption_loss(
            objective.decoder,
            torch.zeros(2, 16, 32).double(),
            labels,
            settings=CaptionLossSettings(task_weights=(1, 1)),
        )
    with pytest.raises(ValueError, match="the outputs have none"):
        objective.losses(BaseModelOutput(), {**inputs, "caption_labels": labels})
    for wrong in ({"task_weights": (-1,)}, {"label_smoothing": 1}, {"chunk_tokens": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CaptionLossSettings(**wrong)


PLACES = {(30, 20, "red"): (0, 0), (20, 30, "blue"): (10, 10), (40, 40, "green"): (40, 20), (10, 50, "white"): (60, 5)}


def scene(size: tuple[int, int], colour: str, place: tuple[int, int]) -> tuple[Image.Image, tuple[int, ...]]:
    image = Image.new("RGB", (80, 60))
    box = (*place, place[0] + size[0], place[1] + size[1])
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image, box


def test_it_learns_captions_and_boxes():
    """A few scenes by heart: captions, boxes in pixels and scores are those of the right image."""
    torch.manual_seed(0)
    scenes = [scene((width, height), colour, place) for (width, height, colour), place in PLACES.items()]
    texts = [f"a {colour} thing" for _, _, colour in PLACES]
    processor = make_processor([*texts, "Cap: ARef: GCap: 0 1 2 3 4 5 6 7 8 9 10 20 30 40 50"], length=20, size=16)
    words = len(processor.tokenizer)
    towers = {"vision_config": {**TINY, "image_size": 16, "patch_size": 4}}
    text = {**TINY, "vocab_size": words, "max_position_embeddings": 24}
    model = SiglipExtModel(SiglipExtConfig(**towers, text_config=text))
    decoder = CaptionDecoder(CaptionDecoderConfig.for_towers(model.config, processor.tokenizer))
    objective = Captioning(decoder)
    collator = CaptioningCollator(ImageTextCollator(processor), CaptionTargets(processor.tokenizer, decoder.config))
    parameters = [*decoder.parameters(), *model.vision_model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, fused=True)
    losses: list[float] = []
    while len(losses) < 150 and (not losses or max(losses[-3:]) > 0.1):
        examples = [
            {
                "image": image,
                "caption": text,
                "regions": [{"box": [left / 80, top / 60, right / 80, bottom / 60], "text": text}],
                "key": f"0/{len(losses)}/{index}",
            }
            for index, ((image, (left, top, right, bottom)), text) in enumerate(zip(scenes, texts))
        ]
        batch = collator(examples)
        loss = objective.losses(model.get_image_features(batch["pixel_values"]), batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    images = [image for image, _ in scenes]
    assert losses[0] == pytest.approx(torch.tensor(float(words)).log().item(), rel=1e-5)
    assert caption(model, decoder, processor, images, batch_size=3) == texts
    boxes = locate_all(model, decoder, processor, images, texts, batch_size=3)
    for found, (_, box) in zip(boxes, scenes):
        assert found is not None
        assert max(abs(one - other) for one, other in zip(found, box)) <= 80 * 0.5 / 500 + 1e-9
    scores = score_captions(model, decoder, processor, images, texts)
    assert torch.equal(scores.argmax(1), torch.arange(len(scenes)))
    assert decoder.training
    assert model.training
