"""The cards of the released files, as they stand in the repository."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_siglip_ext.conversion.__main__ import main
from modeling_siglip_ext.conversion.commands.write_released_cards import cards
from modeling_siglip_ext.conversion.released.cards import shown
from modeling_siglip_ext.conversion.released.catalogue import entries


REPOSITORY = Path(__file__).parents[2]
RELEASED = REPOSITORY / "model_cards" / "released"
FIXTURES = REPOSITORY / "tests" / "fixtures" / "big_vision"


def test_they_are_up_to_date():
    there = {path.name: path.read_text(encoding="utf-8") for path in RELEASED.iterdir()}
    wanted = cards()
    command = "python -m modeling_siglip_ext.conversion.commands.write_released_cards model_cards/released"
    assert there.keys() == wanted.keys(), f"run `{command}`"
    for name, text in wanted.items():
        assert there[name] == text, f"{name}: run `{command}`"


def test_the_hub_accepts_their_metadata(hub):
    """One of each family, and of all families those without scores or licence; the others differ in figures only."""
    for name in ("siglip2_b16_256", "siglip2_b16_naflex", "webli_i18n_b16_256_66117334", "LiT-B16B", "pt_224"):
        ModelCard.load(RELEASED / f"{name}.md").validate()


@pytest.mark.slow
def test_the_hub_accepts_the_metadata_of_all(hub):
    for path in RELEASED.iterdir():
        ModelCard.load(path).validate()


def test_they_say_what_the_catalogue_says():
    for entry in entries().values():
        card = ModelCard.load(RELEASED / f"{shown(entry)}.md")
        assert card.data.license == entry.licence
        found = card.data.eval_results or []
        assert sorted(round(100 * result.metric_value, 6) for result in found) == sorted(entry.scores.values())
        assert all(result.source_url for result in found), "nothing was measured here"
        assert "Nothing was measured with this copy" in card.text


def convert(case: str, out: Path, *options: str) -> str:
    assert main(["from-jax", str(FIXTURES / case / "checkpoint.npz"), str(out), *options]) == 0
    return (out / "README.md").read_text(encoding="utf-8")


def test_a_converted_folder_has_a_card_with_its_report(tmp_path):
    card = convert("siglip1_mu16", tmp_path / "out")
    text = ModelCard(card).text
    assert "\n# out\n" in text
    assert "Converted from `checkpoint.npz` (SHA-256 `" in text
    assert "the largest difference is 0." in text
    assert "has no tokenizer" in text
    assert "Nothing is known here of what it was trained on" in text


def test_figures_of_the_original_do_not_go_with_other_sizes(tmp_path, monkeypatch):
    """The card of a released file, from a small one that passes for it."""
    from modeling_siglip_ext.conversion.big_vision import checkpoint

    entry = entries()["siglip2_b16_256"]
    monkeypatch.setattr(type(entry), "check", lambda self, found: None)
    monkeypatch.setattr(checkpoint, "choose_entry", lambda path, name: entry)
    same = convert("siglip1_mu16", tmp_path / "same")
    assert "| ImageNet | zero-shot accuracy@1 | 79.1 % |" in same
    assert ModelCard(same).data.eval_results
    entries_there = yaml.safe_load((tmp_path / "same" / ".eval_results" / "siglip-ext-published.yaml").read_text())
    assert {entry["dataset"]["id"] for entry in entries_there} == {"ILSVRC/imagenet-1k"}
    other = convert("siglip1_mu16", tmp_path / "other", "--image-size", "96")
    assert "79.1" not in other
    assert ModelCard(other).data.eval_results is None
    assert "image positions resampled" in other
    assert not (tmp_path / "other" / ".eval_results").exists()


@pytest.mark.parametrize("name", ["siglip2_b16_256", "LiT-B16B", "clippo_b16_yfcc100m", "pt_224"])
def test_the_citations_are_of_the_family(name):
    expected = {"siglip2_b16_256": "2502.14786", "LiT-B16B": "zhai2022lit", "clippo_b16_yfcc100m": "2212.08045"}
    assert expected.get(name, "beyer2024paligemma") in (RELEASED / f"{name}.md").read_text(encoding="utf-8")
