"""Bad requests of all kinds among good ones: an error of the client's in OpenAI's shape, nothing for the others."""

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from modeling_siglip_ext import encode_images, encode_texts
from modeling_siglip_ext.conversion.__main__ import main as convert
from siglip_ext_runtime import ExportedModel
from support.images import noise
from support.serving import data_uri, png, serving


GOOD = png(noise(20, 20))
URI = data_uri(GOOD)
MANY = [f"label {number}" for number in range(1001)]


def raw(path: str, body: bytes, **headers: str):
    return "POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()}


def embed(**fields):
    return raw("/v1/embeddings", json.dumps(fields).encode())


def classify(**fields):
    return raw("/v1/classify", json.dumps(fields).encode())


MALFORMED = {
    "no body": raw("/v1/embeddings", b""),
    "no JSON": raw("/v1/embeddings", b"{input: a}"),
    "half of it": raw("/v1/embeddings", b'{"input": "a'),
    "no UTF-8": raw("/v1/embeddings", b'{"input": "\xff\xfe"}'),
    "another type": raw("/v1/embeddings", b'{"input": "a"}', content_type="text/plain"),
    "a list": raw("/v1/embeddings", b'["a"]'),
    "null": raw("/v1/embeddings", b"null"),
    "deeply nested": raw("/v1/embeddings", b'{"input": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "larger than a body may be": raw("/v1/embeddings", b'{"input": "' + b"a" * 2_000_000 + b'"}'),
    "no input": embed(model="tiny"),
    "empty input": embed(input=[]),
    "tokens": embed(input=[1, 2, 3]),
    "lists of tokens": embed(input=[[1, 2], [3]]),
    "null among texts": embed(input=["a", None]),
    "half a character": raw("/v1/embeddings", b'{"input": "\\ud800"}'),
    "a text too long": embed(input="a" * 10_001),
    "too many inputs": embed(input=["a"] * 65),
    "an unknown field": embed(input="a", dimension=3),
    "no dimensions": embed(input="a", dimensions=0),
    "many dimensions": embed(input="a", dimensions=10**30),
    "dimensions in words": embed(input="a", dimensions="8"),
    "an unknown form": embed(input="a", encoding_format="int8"),
    "another model": embed(input="a", model="gpt-4"),
    "a number for a model": embed(input="a", model=1),
    "no image": embed(input={"image": ""}),
    "half an image": embed(input=data_uri(GOOD[: len(GOOD) // 2])),
    "a text for an image": embed(input={"image": data_uri(b"hello")}),
    "no base64": embed(input={"image": "!!!"}),
    "a data URI without base64": embed(input="data:image/png,abc"),
    "a path on the server": embed(input={"image": "/etc/passwd"}),
    "a URL": embed(input={"image": "http://127.0.0.1:1/"}),
    "a URL of files": embed(input={"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
    "too many pixels": embed(input=data_uri(png(Image.new("L", (1001, 1000))))),
    "no labels": classify(images=URI, labels=[]),
    "neither labels nor set": classify(images=URI),
    "both": classify(images=URI, labels=["a"], label_set="animals"),
    "an unknown set": classify(images=URI, label_set="../../etc"),
    "a label twice": classify(images=URI, labels=["a", "a"]),
    "too many labels": classify(images=URI, labels=MANY),
    "a template without a place": classify(images=URI, labels=["a"], templates="a photo"),
    "no best ones": classify(images=URI, labels=["a"], top_k=0),
    "a threshold of infinity": raw("/v1/classify", b'{"images": "a", "labels": ["a"], "threshold": Infinity}'),
    "half a character in a label": raw("/v1/classify", b'{"images": "a", "labels": ["\\udc00"]}'),
    "another method": ("DELETE", "/v1/embeddings", None, {}),
    "another path": ("GET", "/v1/embedding", None, {}),
    "a path out of it": ("GET", "/../../etc/passwd", None, {}),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_request_is_the_clients_error(server, kind):
    answer = server.send(*MALFORMED[kind])
    assert 400 <= answer.status < 500, answer.body
    error = answer.json["error"]
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) <= 500
    assert "passwd" not in error["message"]
    assert server.get("/readyz").status == 200


FORMS = '{"image": ...} or {"type": "image_url", "image_url": {"url": ...}}'


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (embed(input=[1, 2]), f'input.0: give a text, {{"text": ...}}, {FORMS}'),
        (embed(input=["a", None]), f'input.1: give a text, {{"text": ...}}, {FORMS}'),
        (embed(input={"type": "video", "video": "a"}), f'input: give a text, {{"text": ...}}, {FORMS}'),
        (embed(input={"image": ["a"]}), "input.image: Input should be a valid string"),
        (embed(input={"image_url": {"url": "a"}}), "input.type: Field required"),
        (embed(input={"text": "a", "image": "b"}), "input.text: Extra inputs are not permitted"),
        (classify(images={"text": "a"}, labels=["a"]), f"images: give a data URI, base64, {FORMS}"),
        (classify(images=URI, labels=["a"], templates=3), "templates: Input should be a valid string"),
        (raw("/v1/embeddings", b'{"input": "a",}'), "the body is not JSON (at character 14)"),
        (
            raw("/v1/embeddings", b'{"input": "a"}', content_type="application/x-www-form-urlencoded"),
            "the body is read as JSON where the request says so: content-type: application/json",
        ),
    ],
)
def test_the_message_names_the_place_and_what_belongs_there(server, request_, message):
    assert server.send(*request_).json["error"]["message"] == message


def memory(pids: list[int]) -> int:
    """KiB that processes have in memory."""
    found = [re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()) for pid in pids]
    return sum(int(match[1]) for match in found if match)


def volley(server, parts, count: int, seed: int) -> None:
    """`count` requests, one of twenty malformed, from 16 clients at a time."""
    drawn = random.Random(seed)
    texts = [f"picture number {number}" for number in range(50)]
    images = [png(noise(16 + number, 24, seed=number)) for number in range(20)]
    vectors = dict(
        zip([*texts, *map(data_uri, images)], [*encode_texts(*parts, texts), *encode_images(*parts, images)])
    )
    kinds = [name for name in MALFORMED if len(MALFORMED[name][2] or b"") < 100_000]

    def one(_: int) -> None:
        if drawn.random() < 0.05:
            answer = server.send(*MALFORMED[drawn.choice(kinds)])
            assert 400 <= answer.status < 500, answer.body
            return
        inputs = drawn.choices(list(vectors), k=drawn.choice((1, 1, 1, 5)))
        answer = server.post("/v1/embeddings", input=inputs)
        assert answer.status == 200, answer.body
        found = [entry["embedding"] for entry in answer.json["data"]]
        np.testing.assert_allclose(found, [vectors[one] for one in inputs], rtol=0, atol=1e-5)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


def test_good_requests_are_right_whatever_comes_beside_them(server, parts):
    volley(server, parts, 200, seed=0)


@pytest.fixture(scope="module")
def in_8_bits(model_folder, tmp_path_factory):
    """The model as it is exported with scales of its own, which no batch changes, and what it is here."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("8 bits")
    images = folder / "images"
    images.mkdir()
    for number in range(16):
        (images / f"{number}.png").write_bytes(png(noise(30, 30 + number, seed=100 + number)))
    texts = folder / "texts.txt"
    texts.write_text("\n".join(f"picture number {number}" for number in range(100, 116)))
    command = ["to-onnx", str(model_folder), str(folder / "out"), "--precision", "int8-static", "--min_cosine", "0.99"]
    assert convert([*command, "--images", str(images), "--texts", str(texts)]) == 0
    return folder / "out", (ExportedModel(folder / "out"), AutoProcessor.from_pretrained(model_folder))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "8 bits"])
def test_ten_thousand_requests_leak_nothing(model_folder, parts, precision, request, tmp_path):
    options = ("--served_name", "tiny", "--max_body", 1, "--max_items", 64, "--max_pixels", 1_000_000)
    if precision == "8 bits":
        model_folder, parts = request.getfixturevalue("in_8_bits")
        options += ("--backend", "onnx")
    with serving(model_folder, tmp_path / "log", *options) as running:
        pids = [running.process.pid, *running.workers()]
        volley(running, parts, 5000, seed=1)
        before = memory(pids)
        volley(running, parts, 5000, seed=2)
        after = memory(pids)
        print(f"{before} KiB after 5,000 requests, {after} KiB after 10,000")
        assert after <= 1.05 * before
        assert running.workers() == pids[1:]
        assert running.metric("siglip_worker_restarts_total") == 0
        assert " 500 " not in running.log.read_text()
