"""Which folders a fresh run may write to, and which checkpoint a resumed one continues."""

from pathlib import Path

import pytest

from modeling_siglip_ext.training.components.run_folder import (
    check_unused,
    checkpoint_to_resume,
    checkpoints,
    clear_pictures,
)


def checkpoint(run: Path, step: int, *, optimizer: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    if optimizer:
        (folder / "optimizer.pt").write_text("x")
    return folder


def test_a_fresh_run_needs_a_folder_without_another_run(tmp_path):
    check_unused(tmp_path / "new")
    check_unused(tmp_path)
    (tmp_path / "LICENSE").write_text("mine")
    (tmp_path / "checkpoint.partial").mkdir()  # of a run that was killed in its first checkpoint
    (tmp_path / "checkpoint-7").mkdir()  # as another writer leaves it: not whole
    check_unused(tmp_path)
    (tmp_path / "model.safetensors").write_text("x")  # a finished run, which a script that is run again replaces
    (tmp_path / "trainer_state.json").write_text("{}")
    check_unused(tmp_path)
    adapter = tmp_path / "tuned"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text("x")
    with pytest.raises(
        FileExistsError, match=r"holds adapter_model\.safetensors of an earlier run.*another output_dir"
    ):
        check_unused(adapter)
    checkpoint(tmp_path, 8)
    with pytest.raises(FileExistsError, match=r"holds checkpoint-8 of an earlier run.*--resume_from_checkpoint true"):
        check_unused(tmp_path)


@pytest.mark.parametrize("word", [None, False, "false", "False", "", "none"])
def test_no_resuming(tmp_path, word):
    checkpoint(tmp_path, 2)
    assert checkpoint_to_resume(word, tmp_path) is None


@pytest.mark.parametrize("word", [True, "true", "True"])
def test_the_newest_whole_checkpoint(tmp_path, word):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in output_dir"):
        checkpoint_to_resume(word, tmp_path / "none")
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    assert checkpoint_to_resume(word, tmp_path) == tmp_path / "checkpoint-10"


def test_a_named_checkpoint(tmp_path):
    run = tmp_path / "run"
    there = checkpoint(run, 4)
    (run / "trainer_state.json").write_text("{}")
    assert checkpoint_to_resume(str(there), run) == there
    assert checkpoint_to_resume(str(there), tmp_path / "new") == there
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a checkpoint; did you mean '.*checkpoint-4'"):
        checkpoint_to_resume(str(run), run)
    with pytest.raises(FileNotFoundError, match=r"chekpoint-4' is not the folder.*did you mean '.*checkpoint-4'"):
        checkpoint_to_resume(str(run / "chekpoint-4"), run)
    other = tmp_path / "other"
    checkpoint(other, 8)
    with pytest.raises(ValueError, match="is of another run than checkpoint-8"):
        checkpoint_to_resume(str(there), other)
    bare = checkpoint(tmp_path / "bare", 1, optimizer=False)
    with pytest.raises(FileNotFoundError, match="no state of the optimiser"):
        checkpoint_to_resume(str(bare), tmp_path / "new")


def test_pictures_of_an_earlier_run_go_and_folders_of_the_user_stay(tmp_path):
    for name in ("loss_curve.png", "retrieval.png", "held_out/captions.json", "held_out/0.png", "mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    clear_pictures(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"]
    (tmp_path / "held_out").mkdir()
    (tmp_path / "held_out/photo.jpg").write_text("mine")
    clear_pictures(tmp_path)
    assert (tmp_path / "held_out/photo.jpg").is_file()
