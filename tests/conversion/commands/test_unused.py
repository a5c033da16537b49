"""No option of a conversion is ignored in silence."""

import pytest

from modeling_siglip_ext.conversion.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("from-jax {jax} {out} --text_heads 4", "--text_heads=4 has no effect on this checkpoint, which says 2"),
        ("from-jax {jax} {out} --text_rules v2", "--text_rules has no effect without a tokenizer"),
        ("inspect {jax} --image_heads 8", "--image_heads=8 has no effect on this checkpoint"),
        ("inspect {jax} --image_size 64", "--image_size=64 has no effect on this checkpoint"),
        ("inspect {folder} --text_pooling mean", "--text_pooling has no effect with a model folder"),
        ("inspect {folder} --name none", "--name has no effect with a model folder"),
    ],
)
def test_options_without_effect(words, message, checkpoints, converted, tmp_path, capsys):
    places = {"jax": checkpoints / "siglip1_mu16" / "checkpoint.npz", "folder": converted("siglip1_mu16")}
    capsys.readouterr()
    assert main(words.format(**places, out=tmp_path / "out").split()) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "out").exists()
