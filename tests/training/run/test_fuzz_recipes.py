"""Any recipe and any words: read, or refused in one line with exit status 2. `make fuzz` draws more of them."""

from contextlib import suppress
from dataclasses import fields

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.training.run import precompute, recipe_command
from modeling_siglip_ext.training.run.recipe import FIELDS, PARTS, bundled_recipes, parse_recipe
from support.fuzz import assert_taken_or_refused, odd


# of transformers, about the older names of its own fields
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
# What parsing by itself would do elsewhere: start process groups, ask for devices or packages of other projects.
ELSEWHERE = {"deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config", "debug", "output_dir"}
NAMES = sorted(set(FIELDS) - ELSEWHERE)
ODD = odd("0", "1e400", "1_000", "null", "yes", "[1, 2]", "{a: 1}")
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**20),
    st.floats(),
    ODD,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD, inner, max_size=2))


class Stop(ValueError):
    """Nothing is loaded in these tests."""


@pytest.fixture(scope="module")
def nothing_runs():
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_, **__):
            raise Stop("here it would begin")

        patch.setattr(recipe_command, "prepare", stop)
        patch.setattr(precompute, "precompute", stop)
        patch.setattr(precompute, "every_row", stop)
        yield


@example(recipe={"report_to": [[]]})
@example(recipe={"caption_column": [None]})
@given(recipe=st.dictionaries(st.sampled_from([*NAMES, "learning_rat", ""]) | ODD, VALUES, max_size=4))
@settings(max_examples=25)
def test_any_recipe_is_read_or_refused(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder / "out"), "use_cpu": True}), encoding="utf-8")
    with suppress(ValueError, OSError, ImportError):
        parse_recipe(str(path))
    assert [one.name for one in folder.iterdir()] == ["mine.yaml"]


@given(content=st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(max_examples=25)
def test_any_file_is_a_recipe_or_refused(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "mine.yaml"
    path.write_bytes(content)
    with suppress(ValueError, OSError, ImportError):
        parse_recipe(str(path), ["--use_cpu"])


OPTIONS = [f"--{field.name}" for part in PARTS for field in fields(part) if field.init and field.name in NAMES]
WORDS = st.lists(
    st.sampled_from([*OPTIONS, "--", "-x", "--vision_config.hidden_size", "--vision_config."]) | ODD, max_size=5
)


@given(words=WORDS, name=st.sampled_from([*bundled_recipes()[:3], "precompute", "study", "emoij", "nothing.yaml"]))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_are_taken_or_refused(words, name, nothing_runs, status, capsys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        capsys.readouterr()
        ended = status([name, "--output_dir", str(folder / "out"), *words])
    assert_taken_or_refused("siglip-ext-train", ended, capsys.readouterr().err)
    assert list(folder.iterdir()) == []
