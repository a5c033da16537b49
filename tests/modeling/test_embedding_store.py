"""Embeddings on disk: the same whatever the parts, the form and interruptions."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, SiglipModel, ViTConfig, ViTModel

from modeling_siglip_ext import SiglipExtModel
from modeling_siglip_ext import embedding_store as store
from modeling_siglip_ext.encoding import EncodedBatch
from support.models import TINY, TINY_VISION, make_config


EMBEDS = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))


class Encoder:
    """Gives rows of EMBEDS in batches of four; stops with an error when told to."""

    def __init__(self, stop_at: int | None = None):
        self.asked, self.stop_at = [], stop_at

    def __call__(self, first: int, last: int):
        self.asked.append((first, last))
        for start in range(first, last, 4):
            if self.stop_at is not None and start >= self.stop_at:
                raise KeyboardInterrupt
            rows = EMBEDS[start : min(last, start + 4)].clone()
            errors = {}
            if start <= 9 < start + len(rows):
                rows[9 - start], errors[9 - start] = torch.nan, "row nine"
            yield EncodedBatch(rows, errors)


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_parts_go_on_after_an_interruption_and_read_back_exactly(form, tmp_path):
    model, settings = nn.Linear(1, 1), {"weights": "abc"}
    options = {"form": form, "part_rows": 6}
    with pytest.raises(KeyboardInterrupt):
        store.compute(tmp_path, settings, 23, Encoder(stop_at=12), model, **options)
    with pytest.raises(FileNotFoundError, match=rf"lacks 2 of 4 parts.*part-00002\.{form}: run the command"):
        store.read(tmp_path)
    again = Encoder()
    store.compute(tmp_path, settings, 23, again, model, **options)
    assert again.asked == [(12, 18), (18, 23)]
    embeds, errors, found_names = store.read(tmp_path)
    expected = EMBEDS.clone()
    expected[9] = torch.nan
    assert torch.equal(embeds.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert errors == {9: "row nine"}
    assert found_names == [None] * 23
    assert len(list(tmp_path.iterdir())) == 5, "four parts and the settings"
    store.compute(tmp_path, settings, 23, again, model, **{**options, "part_rows": 5})
    assert len(again.asked) == 2, "another way to cut files is nothing new to compute"
    message = r"with other weights \(there abc, now xyz\): choose another folder"
    with pytest.raises(ValueError, match=message):
        store.compute(tmp_path, {"weights": "xyz"}, 23, Encoder(), model, **{**options, "part_rows": 5})


@pytest.mark.parametrize("part_rows", [0, -1, float("nan"), 2.5])
def test_a_refused_number_of_rows_leaves_nothing_behind(part_rows, tmp_path):
    with pytest.raises(ValueError, match="part_rows must be a positive whole number, got"):
        store.compute(tmp_path / "out", {}, 23, Encoder(), nn.Linear(1, 1), part_rows=part_rows)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_was_begun_goes_on_as_it_was_cut_and_under_any_name_of_the_model(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(KeyboardInterrupt):
        store.compute(tmp_path, {"model": "./here"}, 23, Encoder(stop_at=12), model, part_rows=6)
    again = Encoder()
    store.compute(tmp_path, {"model": "/moved/there"}, 23, again, model, part_rows=100)
    assert again.asked == [(12, 18), (18, 23)]
    assert torch.equal(store.read(tmp_path)[0].nan_to_num(7.0)[:9], EMBEDS[:9])


def test_processes_share_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "wait_for_all", lambda: None)
    asked = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        encoder = Encoder()
        store.compute(tmp_path, {}, 23, encoder, nn.Linear(1, 1), part_rows=6)
        asked.append(encoder.asked)
    assert asked == [[(0, 6), (12, 18)], [(6, 12), (18, 23)]]
    assert len(store.read(tmp_path)[0]) == 23


def test_the_fingerprint_follows_every_weight():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    first = store.weights_fingerprint(model)
    assert store.weights_fingerprint(model) == first
    with torch.no_grad():
        model[1].bias[2] += 1e-6
    assert store.weights_fingerprint(model) != first
    assert store.weights_fingerprint(model.to(torch.bfloat16)) != first


def test_the_fingerprint_follows_what_weights_do_not_tell(tmp_path):
    model = SiglipExtModel(make_config())
    model.save_pretrained(tmp_path)
    first = store.weights_fingerprint(model)
    assert (
        store.weights_fingerprint(SiglipModel.from_pretrained(tmp_path)) == first
    )  # the same model, in other classes
    changes = {"hidden_act": "quick_gelu", "num_attention_heads": 1, "layer_norm_eps": 1e-5}
    for changed in (*({name: value} for name, value in changes.items()), {"pooling": "mean"}):
        other = SiglipExtModel(make_config(changed))
        other.load_state_dict(model.state_dict())
        assert store.weights_fingerprint(other) != first, changed


def test_the_fingerprint_follows_how_towers_from_elsewhere_are_pooled():
    def model(pooling: str) -> SiglipExtModel:
        torch.manual_seed(0)
        vit, bert = ViTModel(ViTConfig(**TINY_VISION)), BertModel(BertConfig(**TINY, vocab_size=60))
        return SiglipExtModel.from_vision_text_pretrained(vit, bert, projection_size=8, vision_pooling=pooling)

    first, mean = model("first"), model("mean")
    assert all(torch.equal(one, other) for one, other in zip(first.state_dict().values(), mean.state_dict().values()))
    assert store.weights_fingerprint(first) != store.weights_fingerprint(mean)


def test_a_process_waits_for_others_however_long_their_parts_take(monkeypatch):
    """The default of half an hour ended runs whose parts take longer, at the same place each time."""
    asked = []
    monkeypatch.setattr(store, "processes", lambda: (0, 2))
    monkeypatch.setattr(store.dist, "init_process_group", lambda **options: asked.append(options))
    monkeypatch.setattr(store.dist, "all_reduce", lambda tensor: None)
    monkeypatch.setattr(store.atexit, "register", lambda function: None)
    store.wait_for_all()
    assert asked[0]["timeout"].days > 30


def test_a_folder_without_embeddings_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"_settings\.json is missing: run the command"):
        store.read(tmp_path)


def test_settings_are_compared_as_far_as_they_are_given(tmp_path):
    store.compute(tmp_path, {"weights": "abc", "dtype": "float32"}, 23, Encoder(), nn.Linear(1, 1))
    store.check_settings(tmp_path, {"weights": "abc"}, "go away")
    with pytest.raises(ValueError, match=r"with other weights \(there abc, now None\): go away"):
        store.check_settings(tmp_path, {"weights": None}, "go away")
    with pytest.raises(ValueError, match=r"with other dtype \(there float32, now None\)"):
        store.compute(tmp_path, {"weights": "abc"}, 23, Encoder(), nn.Linear(1, 1))


@pytest.mark.parametrize("form", ["safetensors", "parquet"])
def test_damaged_parts_and_settings_are_named(form, tmp_path):
    store.compute(tmp_path, {}, 23, Encoder(), nn.Linear(1, 1), form=form, part_rows=6)
    part, settings = tmp_path / f"part-00001.{form}", tmp_path / "_settings.json"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"part-00001\.{form} is damaged.*run the command"):
        store.read(tmp_path)
    part.write_bytes((tmp_path / f"part-00003.{form}").read_bytes())  # of five rows
    with pytest.raises(ValueError, match="holds 22 of 23 rows"):
        store.read(tmp_path)
    settings.write_text("{}")
    with pytest.raises(ValueError, match=r"_settings\.json is damaged.*delete "):
        store.read(tmp_path)


def test_an_encoder_that_gives_too_little_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="3 embeddings came for the 5 inputs"):
        store.compute(tmp_path, {}, 5, lambda *_: iter([EncodedBatch(EMBEDS[:3])]), nn.Linear(1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["_settings.json"]
