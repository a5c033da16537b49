"""What is known of the dataset that a recipe names."""

from modeling_siglip_ext.training.data.emoji import LANGUAGES
from modeling_siglip_ext.training.run.rows import facts_of_dataset


def test_only_names_of_the_hub_have_a_slash(tmp_path):
    (tmp_path / "my images").mkdir()
    for name, shown in (
        (str(tmp_path / "my images"), "my-images"),
        (str(tmp_path / "train-{0..3}.tar"), "train--0..3-.tar"),
        ("data/train-0.tar", "train-0.tar"),
        ("user/pictures", "user/pictures"),
        ("emoji", "siglip-ext-emoji"),
    ):
        assert facts_of_dataset(name).id == shown, name


def test_what_the_bundled_dataset_says_of_itself():
    about = facts_of_dataset("emoji")
    assert about.languages == LANGUAGES
    assert about.limits
    assert about.summary
    assert facts_of_dataset("user/pictures").limits is None
