"""The model card writer."""

import re
from dataclasses import replace

import jinja2
import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.hub.card import (
    NOTHING_MEASURED,
    Card,
    add_results,
    card_at,
    check_card,
    render,
    write_card,
    written_here,
)
from modeling_siglip_ext.hub.facts import Example, ModelFacts, example_of, facts_of
from modeling_siglip_ext.hub.results import Figure, Results


FACTS = ModelFacts(pair=True, stock=True, naflex=False, image_size=224, max_patches=None, text_length=64)
PAPER = ("A paper", "https://arxiv.org/abs/0000.00000")
RECALL = Figure("image→text R@1", "image_to_text_recall@1", 0.5, 0.002)
LOSS = Figure("loss", "loss", 1.5, percent=False)
MEASURED = Results("Some set", "user/some-set", (RECALL, LOSS), split="test", date="2026-01-02", note="On 500 pairs.")
PUBLISHED = Results("Some set", "user/some-set", (Figure("accuracy", "accuracy", 0.9),), split="test", source=PAPER)


@pytest.fixture
def card() -> Card:
    return Card(name="mine", summary="A model.", facts=FACTS, limits="Many.", license="apache-2.0")


def test_metadata(card):
    text = render(
        replace(
            card,
            base_model="google/siglip2-base-patch16-224",
            datasets=["user/train"],
            languages=["en"],
            tags=["retrieval"],
            measured=[MEASURED],
        )
    )
    data = ModelCard(text).data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["siglip", "siglip-ext", "retrieval"]
    assert data.base_model == "google/siglip2-base-patch16-224"
    assert data.datasets == ["user/train"]
    assert data.language == ["en"]
    assert data.model_name == "mine"
    assert [result.metric_value for result in data.eval_results] == [0.5, 1.5]


def test_the_text(card):
    text = render(replace(card, measured=[MEASURED], training="Some steps.", recipe="seed: 0"))
    assert written_here(text)
    assert "| image→text R@1 | 50.0 % | 0.2 % |" in text
    assert "| loss | 1.5 |  |" in text
    assert "On 500 pairs." in text
    assert text.count("```python") == 3
    for heading in ("Use", "Preprocessing", "Results", "Training", "Limits and biases", "Citation"):
        assert f"\n## {heading}\n" in text
    assert "## Conversion" not in text
    assert "\n\n\n" not in text


def test_measured_and_published_figures_are_kept_apart(card, tmp_path):
    """Though they are of the same dataset and split, for which the metadata has room for one source only."""
    write_card(tmp_path, replace(card, measured=[MEASURED], published=[PUBLISHED]))
    parsed = ModelCard.load(tmp_path / "README.md")
    sources = {result.metric_type: result.source_url for result in parsed.data.eval_results}
    assert sources == {"image_to_text_recall@1": None, "loss": None, "accuracy": PAPER[1]}
    measured, published = parsed.text.split("### Published elsewhere")
    assert "R@1 | 50.0 %" in measured
    assert "90.0 %" not in measured
    assert "90.0 %" in published
    assert PAPER[1] in published
    entries = {}
    for name in ("measured", "published"):
        content = yaml.safe_load((tmp_path / ".eval_results" / f"siglip-ext-{name}.yaml").read_text())
        entries[name] = parse_eval_result_entries(content)
    assert [(e.dataset_id, e.task_id, e.value, e.source_url) for e in entries["published"]] == [
        ("user/some-set", "accuracy", 0.9, PAPER[1])
    ]
    assert [(e.task_id, e.value, e.source_url, e.date) for e in entries["measured"]] == [
        ("image_to_text_recall@1", 0.5, None, "2026-01-02"),
        ("loss", 1.5, None, "2026-01-02"),
    ]
    assert "not measured" in entries["published"][0].notes


def test_a_dataset_that_is_not_on_the_hub_has_no_benchmark_file(card, tmp_path):
    write_card(tmp_path, replace(card, measured=[replace(MEASURED, dataset_id="mine")]))
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=9),
        st.tuples(st.floats(-1e6, 1e6), st.none() | st.floats(0, 1)),
        min_size=1,
        max_size=5,
    )
)
def test_figures_survive_the_way_through_the_metadata(values):
    figures = tuple(Figure(name, name, value, chance) for name, (value, chance) in values.items())
    card = Card("mine", "A model.", FACTS, "Many.", measured=[replace(MEASURED, figures=figures)])
    found = ModelCard(render(card)).data.eval_results
    assert [result.metric_type for result in found] == list(values)
    for result, (value, chance) in zip(found, values.values()):
        assert result.metric_value == pytest.approx(value, abs=1e-6)
        assert (result.metric_args is None) == (chance is None)


def test_without_figures(card):
    text = render(card)
    assert ModelCard(text).data.eval_results is None
    assert NOTHING_MEASURED in text


def test_figures_need_their_dataset():
    with pytest.raises(ValueError, match="dataset"):
        Results("", "", (RECALL,))
    with pytest.raises(ValueError, match="without a figure"):
        Results("Some set", "user/some-set", ())


def test_a_card_that_cannot_be_written_leaves_nothing(card, tmp_path):
    with pytest.raises(ValueError, match="license"):
        write_card(tmp_path, replace(card, license="Apache 2.0!"))
    with pytest.raises((KeyError, jinja2.UndefinedError)):
        write_card(tmp_path, replace(card, citations=["nobody"]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("license: [1]", "license"),
        ("license: other", "license_name"),
        ("language: [english]", "language"),
        ("- a list", "not valid"),
        ("model-index: [{name: x}]", "not valid"),
        ("a: b: c", "not valid"),
    ],
)
def test_wrong_metadata_is_named(metadata, message):
    with pytest.raises(ValueError, match=message):
        check_card(f"---\n{metadata}\n---\n\n# A card\n")


def test_figures_are_added_and_replaced(card, tmp_path):
    write_card(tmp_path, replace(card, published=[PUBLISHED], limits="Edited by hand."))
    first = replace(MEASURED, dataset_id="user/other", dataset="Other set")
    add_results(tmp_path, [first])
    add_results(tmp_path, [MEASURED])
    better = replace(MEASURED, figures=(replace(RECALL, value=0.75), LOSS))
    text = add_results(tmp_path, [better]).read_text()
    assert "75.0 %" in text
    assert text.count("50.0 %") == 1, "of the other dataset"
    assert text.count("Other set") >= 1
    assert NOTHING_MEASURED not in text
    assert "Edited by hand." in text
    found = check_card(text).data.eval_results
    assert sorted((r.dataset_type, r.metric_value) for r in found if r.metric_type != "loss") == [
        ("user/other", 0.5),
        ("user/some-set", 0.75),
        ("user/some-set", 0.9),
    ]
    entries = yaml.safe_load((tmp_path / ".eval_results" / "siglip-ext-measured.yaml").read_text())
    assert [(entry["dataset"]["id"], entry["value"]) for entry in entries] == [
        ("user/other", 0.5),
        ("user/other", 1.5),
        ("user/some-set", 0.75),
        ("user/some-set", 1.5),
    ]


def test_figures_are_added_to_our_cards_only(tmp_path):
    (tmp_path / "README.md").write_text("# Somebody's model\n")
    with pytest.raises(ValueError, match="not written by siglip-ext"):
        add_results(tmp_path, [MEASURED])
    with pytest.raises(ValueError, match="measured here"):
        add_results(tmp_path, [PUBLISHED])


def test_snippets_name_where_the_model_is(stand_in, tmp_path):
    folder = stand_in("bert")
    assert '"."' in (folder / "README.md").read_text()
    text = card_at(folder, "user/lit")
    assert 'from_pretrained("user/lit", trust_remote_code=True)' in text
    assert '"."' not in text
    rest = re.compile("<!-- use -->.*<!-- /use -->", flags=re.DOTALL)
    assert rest.sub("", text) == rest.sub("", (folder / "README.md").read_text())
    (tmp_path / "README.md").write_text('# Mine\nfrom_pretrained(".")\n')
    assert card_at(tmp_path, "user/lit") == '# Mine\nfrom_pretrained(".")\n', "a card of others stays as it is"


def test_the_facts_of_a_folder(stand_in):
    assert facts_of(stand_in("stock")) == replace(FACTS, image_size=32)
    assert facts_of(stand_in("short")).needs_package
    naflex = facts_of(stand_in("naflex"))
    assert (naflex.naflex, naflex.image_size, naflex.max_patches) == (True, None, 256)
    bert = facts_of(stand_in("bert"))
    assert (bert.stock, bert.softmax, bert.text_length, bert.padding_matters) == (False, True, 16, False)
    patches = facts_of(stand_in("patches"))
    assert (patches.pair, patches.pooled, patches.task) == (False, False, "image-feature-extraction")


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        facts_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        facts_of(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="bert"):
        facts_of(tmp_path)


def test_an_example_of_the_folder(tmp_path):
    assert example_of(tmp_path) == Example()
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out" / "captions.json").write_text('{"images": {"00.png": "a \\"cat\\"", "01.png": "ein Hund"}}')
    example = example_of(tmp_path)
    assert (example.image, example.labels, example.own) == ("held_out/00.png", ('a "cat"', "ein Hund"), True)
