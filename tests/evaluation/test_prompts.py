"""The lists are what they claim, and prompts are canonicalised as in big_vision."""

import pytest

from modeling_siglip_ext.evaluation import prompts


def test_imagenet_names_stand_at_their_labels():
    names = prompts.imagenet_classes()
    assert len(names) == 1000
    # fixed points of the ILSVRC order
    assert {place: names[place] for place in (0, 207, 281, 817, 999)} == {
        0: "tench",
        207: "Golden Retriever",
        281: "tabby cat",
        817: "sports car",
        999: "toilet paper",
    }
    assert sorted({name for name in names if names.count(name) > 1}) == ["missile", "sunglasses"]


def test_template_sets():
    paper, best = prompts.templates("clip_paper"), prompts.templates("clip_best")
    assert (len(paper), len(best)) == (81, 8)
    assert set(best) < set(paper)
    assert paper[-1] == best[-1] == "{}"
    assert all(template.count("{}") == 1 for template in paper)
    with pytest.raises(ValueError, match="'clip' are unknown; choose one of clip_paper"):
        prompts.templates("clip")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A photo of a {}.", "a photo of a {}"),
        ("Geoffroy's_spider  monkey", "geoffroys spider monkey"),
        ("ram (adult male sheep)", "ram adult male sheep"),
        ("swim trunks / shorts", "swim trunks shorts"),
        ("{}", "{}"),
    ],
)
def test_canonical_form(text, expected):
    assert prompts.canonicalize(text) == expected
