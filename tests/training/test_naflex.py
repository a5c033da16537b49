"""Training of NaFlex models: the stock model's gradients, a drawn length for each batch, and what is refused."""

import copy
import hashlib
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import Siglip2Model

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtModel,
    SiglipExtNaflexImageProcessor,
    SiglipExtProcessor,
    native_config,
)
from modeling_siglip_ext.captioning import CaptionDecoder, CaptionDecoderConfig
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    ImageTextStream,
    SiglipExtTrainer,
    precompute,
)
from modeling_siglip_ext.training.components.grad_cache import images_in_chunk
from modeling_siglip_ext.training.data.lengths import drawn_length
from modeling_siglip_ext.training.data.locca import CaptioningCollator, CaptionTargets, CaptionTasks
from modeling_siglip_ext.training.data.reference_embeddings import load_reference_embeddings
from modeling_siglip_ext.training.objectives.captioning import Captioning
from modeling_siglip_ext.training.objectives.curation import CurationSettings
from modeling_siglip_ext.training.objectives.super_batch import Curation
from support.images import noise
from support.models import TINY_NAFLEX, TINY_TEXT
from support.workers import recording


# of which two batches of 8 make an epoch
LENGTHS, ROWS, LENGTH = [5, 16, 25], 20, 12
PLACES = [f"{epoch}/{batch}" for epoch in range(5) for batch in range(2)]


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    draw = random.Random(0)
    images = [noise(draw.randint(1, 60), draw.randint(1, 60), number) for number in range(ROWS)]
    captions = [f"a {('red', 'green', 'blue')[number % 3]} bar" for number in range(ROWS)]
    return Dataset.from_dict({"image": images, "caption": captions})


@pytest.fixture(scope="module")
def naflex(processor) -> SiglipExtProcessor:
    images = SiglipExtNaflexImageProcessor(patch_size=TINY_NAFLEX["patch_size"], max_num_patches=16)
    return SiglipExtProcessor(images, processor.tokenizer)


@pytest.fixture
def model(naflex) -> SiglipExtModel:
    torch.manual_seed(1)
    tokens = {"vocab_size": len(naflex.tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    text = {**TINY_TEXT, **tokens, "max_position_embeddings": LENGTH}
    return SiglipExtModel(SiglipExtConfig(vision_config=TINY_NAFLEX, text_config=text))


class Rows:
    """A source of a stream."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def rows(self, part: int, parts: int, order: int):
        for number in range(part, len(self.dataset), parts):
            yield f"row {number}", self.dataset[number]


def note(trainer: SiglipExtTrainer, inputs: dict) -> tuple[int, int, int, str]:
    """The step, the pairs, the length and a digest of a batch."""
    pixels = inputs["pixel_values"]
    digest = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=8).hexdigest()
    return trainer.state.global_step, len(pixels), pixels.shape[1], digest


Recorder = recording(note)


@pytest.fixture
def make(shapes, naflex, model, arguments):
    """Builds a Trainer of the model, or of another."""

    def build(kind: str = "map", trained=None, lengths=LENGTHS, reference=None, **changes) -> Recorder:
        settings = {"image_processor": naflex.image_processor, "naflex_lengths": lengths}
        settings |= {} if reference is None else {"reference": reference}
        data = ImageTextStream(Rows(shapes), **settings) if kind == "stream" else ImageTextDataset(shapes, **settings)
        beside = {name: changes.pop(name) for name in ("objectives", "curation", "data_collator") if name in changes}
        return Recorder(
            model=trained or model,
            args=arguments(**changes),
            train_dataset=data,
            processing_class=naflex,
            **{"data_collator": ImageTextCollator(naflex, uint8=True), **beside},
        )

    return build


def gradients(trainer: SiglipExtTrainer, batch: dict) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, dict(batch))
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_are_those_of_padded_images_and_of_the_stock_model(shapes, naflex, model, make, length):
    stock = Siglip2Model(native_config(model.config))
    stock.load_state_dict(model.state_dict())
    stock, ours = stock.double(), model.double()
    dataset = ImageTextDataset(shapes, image_processor=naflex.image_processor, naflex_lengths=[length])
    batch = ImageTextCollator(naflex)(dataset.__getitems__([(row, length) for row in range(8)]))
    batch["pixel_values"] = batch["pixel_values"].double()
    model.config.vision_config.output_hidden_states = True  # for which states stay padded
    padded = gradients(make(trained=ours), batch)
    model.config.vision_config.output_hidden_states = False
    of_stock = gradients(make(trained=stock), batch)
    for cached in ({}, {"mini_batch_tokens": 2 * length}, {"gradient_checkpointing": True}):
        packed = gradients(make(trained=ours, lengths=[length], **cached), batch)
        assert packed.keys() == padded.keys() == of_stock.keys()
        for name, gradient in packed.items():
            torch.testing.assert_close(gradient, padded[name], rtol=0, atol=1e-10)
            # which resizes its positions in float32
            torch.testing.assert_close(gradient, of_stock[name], rtol=0, atol=1e-6)
    pooled = [one.eval().get_image_features(**_images(batch)).pooler_output for one in (stock, ours)]
    torch.testing.assert_close(*pooled, rtol=0, atol=1e-6)


def _images(batch: dict) -> dict:
    return {name: batch[name] for name in ("pixel_values", "pixel_attention_mask", "spatial_shapes")}


def test_uint8_batches_train_as_float_ones(naflex, make):
    weights = []
    for uint8 in (True, False):
        trainer = make(max_steps=3, data_collator=ImageTextCollator(naflex, uint8=uint8))
        start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        trainer.train()
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
        trainer.model.load_state_dict(start)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_logs_of_a_run_go_down(make):
    trainer = make(max_steps=30, learning_rate=3e-3)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("map", {}),
        (
            "map",
            {
                "dataloader_num_workers": 2,
                "dataloader_persistent_workers": True,
                "mini_batch_tokens": 60,
                "halve_batches_at": 25,
            },
        ),
        pytest.param("map", {"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        ("stream", {"dataloader_num_workers": 2}),
        pytest.param("stream", {"gradient_accumulation_steps": 2, "mini_batch_tokens": 30}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_ends_at_any_step_goes_on_bit_for_bit(make, model, tmp_path, kind, changes):
    start, steps = {name: tensor.clone() for name, tensor in model.state_dict().items()}, 5
    settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 1, **changes}
    whole = make(kind, output_dir=str(tmp_path / "whole"), **settings)
    whole.train()
    places, seed = (map(str, range(10)), 0) if kind == "stream" else (PLACES, whole.args.seed)
    expected = [drawn_length(LENGTHS, seed, place) for place in places]
    assert [length for _, _, length, _ in whole.batches] == expected[: len(whole.batches)]
    assert len(set(expected)) == 3
    assert {pairs for _, pairs, *_ in whole.batches} == {8}, "the pairs of a step are the recipe's"
    final = load_file(tmp_path / "whole" / f"checkpoint-{steps}" / "model.safetensors")
    for step in (3,) if "dataloader_num_workers" in changes else range(1, steps):
        model.load_state_dict(start)
        again = make(kind, output_dir=str(tmp_path / f"from {step}"), **settings)
        again.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        assert again.batches == [batch for batch in whole.batches if batch[0] >= step]
        found = load_file(tmp_path / f"from {step}" / f"checkpoint-{steps}" / "model.safetensors")
        assert all(torch.equal(found[name], final[name]) for name in final), step


@pytest.mark.parametrize("cached", [{}, {"mini_batch_tokens": 60}])
def test_long_batches_are_trained_on_in_two_halves_with_an_update_each(shapes, naflex, model, make, cached):
    dataset = ImageTextDataset(shapes, image_processor=naflex.image_processor, naflex_lengths=LENGTHS)
    lr, most = 0.05, 0.5
    for length in (16, 25):
        start = copy.deepcopy(model).double()
        batch = ImageTextCollator(naflex)(dataset.__getitems__([(row, length) for row in range(8)]))
        batch["pixel_values"] = batch["pixel_values"].double()
        trainer = make(
            trained=copy.deepcopy(start), halve_batches_at=25, optim="sgd", learning_rate=lr, weight_decay=0,
            max_grad_norm=most, **cached,
        )  # fmt: skip
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer.training_step(trainer.model, dict(batch))
        halves = [slice(0, None, 2), slice(1, None, 2)] if length == 25 else [slice(None)]
        losses = []
        for number, half in enumerate(halves):
            if number:
                torch.nn.utils.clip_grad_norm_(start.parameters(), most)
                with torch.no_grad():
                    for parameter in start.parameters():
                        parameter -= lr * parameter.grad
                start.zero_grad()
            inputs = {name: value[half] for name, value in batch.items() if isinstance(value, torch.Tensor)}
            losses.append(start(**inputs, return_loss=True).loss)
            losses[-1].backward()
        torch.testing.assert_close(loss, sum(losses) / len(losses), rtol=0, atol=1e-10, check_dtype=False)
        found = dict(trainer.model.named_parameters())
        for name, parameter in start.named_parameters():
            torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-10)
            torch.testing.assert_close(found[name].grad, parameter.grad, rtol=0, atol=1e-10)


def test_other_lengths_are_another_run(make, tmp_path):
    settings = {"output_dir": str(tmp_path), "save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make(**settings).train()
    with pytest.raises(ValueError, match=r"naflex_lengths is \[5, 16, 25\] there and \[5, 16\] here"):
        make(lengths=[5, 16], **settings).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(("rows", "tokens"), [(8, 25), (8, 60), (7, 100), (8, 1000), (1, 25)])
def test_chunks_hold_their_patches(rows, tokens):
    size = images_in_chunk({"pixel_values": torch.empty(rows, 25, 48)}, tokens)
    assert 1 <= size * 25 <= max(tokens, 25)
    fewest = -(-rows // (tokens // 25))
    assert -(-rows // size) == fewest


def test_chunks_cannot_hold_more(make):
    with pytest.raises(ValueError, match="mini_batch_tokens=24 cannot hold one image of 25 patches"):
        make(mini_batch_tokens=24)
    with pytest.raises(ValueError, match="mini_batch_tokens=15 cannot hold one image of 16 patches"):
        make(mini_batch_tokens=15, lengths=None)
    with pytest.raises(ValueError, match="set mini_batch_size"):
        images_in_chunk({"pixel_values": torch.empty(2, 3, 16, 16)}, 100)
    with pytest.raises(ValueError, match="set one of them"):
        make(mini_batch_tokens=30, mini_batch_size=2)


def test_processors_of_another_kind_are_refused(make, model, our_model, processor, naflex):
    with pytest.raises(ValueError, match=r"is NaFlex, and the processor .* makes images of one size"):
        make(data_collator=ImageTextCollator(processor))
    with pytest.raises(ValueError, match=r"is of fixed size, and the processor .* makes patches for NaFlex"):
        make(trained=our_model)
    for settings, reason in (
        ({"patch_size": 16, "max_num_patches": 16}, "takes patches of 4 pixels, and the processor cuts 16"),
        ({"patch_size": 4, "max_num_patches": 0}, "max_num_patches=0 .* must be at least 1"),
    ):
        other = SiglipExtProcessor(SiglipExtNaflexImageProcessor(**settings), naflex.tokenizer)
        with pytest.raises(ValueError, match=reason):
            make(data_collator=ImageTextCollator(other))


@pytest.mark.parametrize("changes", [{}, {"mini_batch_tokens": 60}])
def test_captioning_reads_the_images_tokens(make, model, naflex, changes):
    config = CaptionDecoderConfig.for_towers(model.config, naflex.tokenizer, num_hidden_layers=1)
    targets = CaptionTargets(naflex.tokenizer, config, CaptionTasks(tasks=("caption",)))
    collator = CaptioningCollator(ImageTextCollator(naflex, uint8=True), targets)
    objectives = {"captioning": (Captioning(CaptionDecoder(config)), 1.0)}
    trainer = make(data_collator=collator, objectives=objectives, max_steps=20, learning_rate=3e-3, **changes)
    trainer.train()
    losses = [entry["loss_captioning"] for entry in trainer.state.log_history if "loss_captioning" in entry]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("changes", [{}, {"mini_batch_tokens": 60}])
def test_curation_chooses_among_images_of_any_shape(make, model, changes):
    reference = SiglipExtModel(model.config)
    trainer = make(curation=Curation(CurationSettings(chunks=2), reference), max_steps=3, **changes)
    trainer.train()
    assert trainer.state.log_history[-2]["curation_score_chosen"] > trainer.state.log_history[-2]["curation_score"]


def test_a_reference_that_was_computed_before_sees_its_own_number_of_patches(make, model, naflex, shapes, tmp_path):
    """With batches of that one length the choice is the live reference's; with others it is made all the same."""
    torch.manual_seed(2)
    model.save_pretrained(tmp_path / "start")
    live = SiglipExtModel(model.config)
    live.save_pretrained(tmp_path / "model")
    naflex.save_pretrained(str(tmp_path / "model"))
    precompute(str(tmp_path / "model"), shapes, tmp_path / "reference", caption_column="caption")
    recalled = load_reference_embeddings(tmp_path / "reference", shapes)

    def weights(curated, **changes) -> torch.Tensor:
        start = SiglipExtModel.from_pretrained(tmp_path / "start")
        trainer = make(trained=start, curation=Curation(CurationSettings(chunks=2), curated), max_steps=3, **changes)
        trainer.train()
        scores = [entry["curation_score_chosen"] for entry in trainer.state.log_history if "loss" in entry]
        return torch.cat([*(parameter.detach().flatten() for parameter in start.parameters()), torch.tensor(scores)])

    for changes in ({}, {"mini_batch_tokens": 60}):
        torch.testing.assert_close(
            weights(recalled, reference=recalled, lengths=[16], **changes), weights(live, lengths=[16], **changes)
        )
        assert weights(recalled, reference=recalled, **changes).isfinite().all()


def test_the_saved_folder_has_the_processors_settings(make, tmp_path):
    trainer = make(output_dir=str(tmp_path / "out"))
    trainer.save_model()
    loaded = SiglipExtNaflexImageProcessor.from_pretrained(tmp_path / "out")
    assert (loaded.patch_size, loaded.max_num_patches) == (4, 16)
    assert Path(tmp_path / "out" / "model.safetensors").is_file()
