"""No option of an evaluation is ignored in silence."""

import pytest

from modeling_siglip_ext.evaluation.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("embed --images {folder} --split test", "--split has no effect without --dataset"),
        ("embed --images {folder} --caption_column text", "--caption_column has no effect without --dataset"),
        ("embed --texts {file} --image_column picture", "--image_column has no effect without --dataset"),
        ("embed --texts {file} --separator ,", "--separator has no effect without --dataset"),
        ("embed --texts {file} --workers 2", "--workers has no effect where texts are embedded"),
        ("embed --texts {file} --check_contents", "--check_contents has no effect without --images or --videos"),
        ("embed --images {folder} --interval 3", "--interval has no effect without --videos"),
        ("embed --dataset {folder} --config en", "--config has no effect with a file or a folder"),
        ("embed --dataset a/b --caption_column c --image_column i", "--image_column has no effect where texts"),
        ("retrieval --dataset {folder} --config en", "--config has no effect with a file or a folder"),
        ("zero-shot --dataset a/b --labels {file} --label_column label", "--label_column has no effect with --labels"),
        ("threshold --dataset a/b --label_column same --seed 0", "--seed has no effect with --label_column"),
    ],
)
def test_options_without_effect(words, message, tmp_path, capsys):
    (tmp_path / "file.txt").write_text("a\n")
    filled = words.format(folder=tmp_path, file=tmp_path / "file.txt").split()
    assert main([*filled, "--model", "none", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert message in error[0]
