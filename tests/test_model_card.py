"""The model card writer."""

import jinja2
import pytest
from huggingface_hub import ModelCard

from modeling_siglip_ext.model_card import Figure, write_model_card


VALUES = {
    "summary": "A model.",
    "pictures": {},
    "location": "user/name",
    "example_image": "cat.png",
    "example_labels": '["a cat"]',
    "hypothesis_template": "{}",
    "text_length": 64,
    "image_size": 224,
    "figures_note": "",
    "training": "Some steps.",
    "recipe": "seed: 0",
    "limits": "Many.",
}


def test_metadata_and_figures(tmp_path):
    figures = [
        Figure("image→text R@1", "image_to_text_recall@1", 0.5, 0.002),
        Figure("loss", "loss", 1.5, percent=False),
    ]
    path = write_model_card(
        tmp_path,
        "trained",
        name="mine",
        figures=figures,
        dataset="Some set",
        dataset_id="user/some-set",
        split="test",
        license="apache-2.0",
        base_model="google/siglip2-base-patch16-224",
        languages=["en"],
        **VALUES,
    )
    card = ModelCard.load(path)
    assert card.data.base_model == "google/siglip2-base-patch16-224"
    assert card.data.datasets == ["user/some-set"]
    assert card.data.model_name == "mine"
    assert [result.metric_value for result in card.data.eval_results] == [0.5, 1.5]
    assert "| image→text R@1 | 50.0 % | 0.2 % |" in card.text
    assert "| loss | 1.500 |  |" in card.text
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_without_figures(tmp_path):
    card = ModelCard.load(write_model_card(tmp_path, "trained", name="mine", **VALUES))
    assert card.data.eval_results is None
    assert "## Results" not in card.text


def test_figures_need_their_dataset(tmp_path):
    with pytest.raises(ValueError, match="dataset"):
        write_model_card(tmp_path, "trained", name="mine", figures=[Figure("R@1", "r1", 0.5)], **VALUES)


def test_a_missing_variable_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="limits"):
        write_model_card(tmp_path, "trained", name="mine", **{k: v for k, v in VALUES.items() if k != "limits"})
    assert not list(tmp_path.iterdir())
