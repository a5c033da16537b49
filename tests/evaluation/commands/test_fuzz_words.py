"""Any words of `siglip-ext-eval`: taken, or refused in one line with exit status 2. `make fuzz` draws more of them."""

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modeling_siglip_ext.evaluation.__main__ import COMMANDS, main
from modeling_siglip_ext.evaluation.session import Session, Settings
from support.fuzz import assert_taken_or_refused, odd


NAMES = ["zero-shot", "retrieval", "multilingual-retrieval", "few-shot", "knn", "threshold", "embed", "duplicates"]
NAMES += ["report", "caption", "locate"]
OPTIONS = [
    *("--dataset", "--config", "--split", "--separator", "--image_column", "--caption_column", "--limit", "--images"),
    *("--texts", "--batch_size", "--workers", "--part_rows", "--sheet", "--threshold", "--embeddings", "--device"),
    *("--decoder", "--image", "--phrases", "--temperature", "--top_k", "--top_p", "--shown"),
]
ODD = odd("0", "1e9", "a/b", "x.csv", "x.tar", ".", "/")


@pytest.fixture(scope="module")
def nothing_loads():
    with pytest.MonkeyPatch.context() as patch:

        def stop(*_, **__):
            raise ValueError("here it would begin")

        patch.setattr(datasets, "load_dataset", stop)
        patch.setattr(Session, "open", stop)
        yield


@given(name=st.sampled_from(NAMES), words=st.lists(st.sampled_from(OPTIONS) | ODD, max_size=6))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_are_taken_or_refused(name, words, nothing_loads, capsys, tmp_path_factory):
    assert len(COMMANDS) <= len(NAMES)
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "x.csv").write_text("image,caption\na.png,b\n")
    (folder / "x.tar").write_bytes(b"")
    before = sorted(folder.iterdir())
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        try:
            ended = main([name, *(["--model", "m"] if name not in ("duplicates", "report") else []), *words])
        except SystemExit as end:
            ended = end.code
    assert_taken_or_refused("siglip-ext-eval", ended, capsys.readouterr().err)
    assert sorted(folder.iterdir()) == before or ended == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"part_rows": 0}, "part_rows must be a positive whole number, got 0"),
        ({"part_rows": float("nan")}, "part_rows must be a positive whole number, got nan"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must not be negative, got -1"),
    ],
)
def test_numbers_that_cannot_be_are_refused_before_a_model_is_loaded(changes, reason):
    with pytest.raises(ValueError, match=reason):
        Settings("model", **changes)
