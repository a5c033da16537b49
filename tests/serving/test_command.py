"""What cannot be served is one line and exit status 2."""

import pytest


pytest.importorskip("fastapi", reason="the server needs siglip-ext[serve]")

from modeling_siglip_ext.serving.__main__ import main, make_parser, settings_of
from modeling_siglip_ext.serving.settings import MIB


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{model}", "--api_key_file", "/dev/null"], "has no key in it"),
        (["{model}", "--api_key_file", "./nowhere"], "nowhere"),
        (["{model}", "--label_sets", "/dev/null"], "has no label sets"),
        (["{model}", "--max-queue", "0"], "--max_queue 0 must be positive"),
        (["{model}", "--port", "70000"], "--port 70000"),
        (["{model}", "--host", "192.0.2.1"], "--host 192.0.2.1"),
        (["{model}", "--allow_url"], "did you mean '--allow_urls'"),
        (["./nowhere"], "is no folder"),  # this one and the next are said by a worker
        (["{model}", "--batch_tokens", "100"], "for NaFlex models"),
        ([], "MODEL"),
    ],
)
def test_bad_input_is_one_line(model_folder, capfd, words, said):
    words = [word.format(model=model_folder) for word in words]
    try:
        status = main([*words, *([] if "--port" in words else ["--port", "0"])])
    except SystemExit as error:
        status = error.code
    assert status == 2
    errors = capfd.readouterr().err
    assert said in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_label_sets_are_of_characters(tmp_path):
    (tmp_path / "sets").write_text('{"a": ["x", "y\\ud800"]}')
    with pytest.raises(ValueError, match=r"has no label sets .* no character in place 1"):
        settings_of(make_parser().parse_args(["folder", "--label_sets", str(tmp_path / "sets")]))


def test_options_become_settings(tmp_path):
    (tmp_path / "keys").write_text("one\n\n  two \n")
    (tmp_path / "sets").write_text('{"a": ["x", "y"], "b": {"labels": ["z"], "templates": "a {}"}}')
    words = ["folder", "--device", "cuda:0,cuda:1", "--workers", "2", "--max_body", "0.5", "--no_upscale"]
    words += ["--api_key_file", str(tmp_path / "keys"), "--label_sets", str(tmp_path / "sets"), "--max_batch", "8"]
    settings = settings_of(make_parser().parse_args(words))
    assert [encoder.device for encoder in settings.encoders] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert settings.keys == (b"one", b"two")
    assert "two" not in repr(settings)
    assert settings.label_sets == {"a": (("x", "y"), ("This is a photo of {}.",)), "b": (("z",), ("a {}",))}
    assert settings.limits.body == MIB // 2
    assert settings.batch_sizes == {"image": 32, "text": 16}
    large = settings_of(make_parser().parse_args(["folder", "--max_body", "600"])).limits
    assert (large.body, large.held) == (600 * MIB, 1200 * MIB)
    plain = settings_of(make_parser().parse_args(["folder", "--device", "cpu"]))
    assert plain.batch_sizes == settings_of(make_parser().parse_args(["folder", "--backend", "onnx"])).batch_sizes
    assert plain.batch_sizes == {"image": 16, "text": 32}
    on_gpu = settings_of(make_parser().parse_args(["folder", "--device", "cuda"]))
    assert on_gpu.batch_sizes == {"image": 32, "text": 64}
    assert on_gpu.encoders[0].batch_images == 32
    assert (plain.host, plain.keys, plain.allow_urls) == ("127.0.0.1", (), False)
    assert not plain.encoders[0].trust_remote_code
