"""The paths of a real server, by OpenAI's client and by hand, against the functions of the package."""

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline

from modeling_siglip_ext import encode_images, encode_texts
from modeling_siglip_ext.serving.encoder import Facts
from modeling_siglip_ext.serving.service import probabilities
from support.images import noise
from support.serving import data_uri, png


TEXTS = ["a cat", "", "Ein HUND, groß", "a bicycle " * 60, "🐈"]
IMAGES = [png(noise(60, 40)), png(noise(31, 90, seed=1).convert("L")), png(noise(8, 8, seed=2).convert("RGBA"))]


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def expected(parts):
    """Vectors of TEXTS and IMAGES."""
    model, processor = parts
    return encode_texts(model, processor, TEXTS), encode_images(model, processor, IMAGES)


def vectors(response) -> np.ndarray:
    return np.array([entry.embedding for entry in response.data], np.float32)


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_openais_client_gets_the_vectors_of_encode_texts(client, expected, form):
    """Without a form the client asks for base64 and decodes it."""
    options = {} if form is None else {"encoding_format": form}
    response = client.embeddings.create(model="tiny", input=TEXTS, **options)
    assert [entry.index for entry in response.data] == list(range(len(TEXTS)))
    if form == "base64":
        import base64

        found = np.stack([np.frombuffer(base64.b64decode(entry.embedding), "<f4") for entry in response.data])
    else:
        found = vectors(response)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-5)


def test_one_text_is_one_vector(client, expected):
    response = client.embeddings.create(model="tiny", input=TEXTS[0])
    np.testing.assert_allclose(vectors(response), expected[0][:1], rtol=0, atol=1e-5)


def test_images_come_in_every_form_and_among_texts(client, expected):
    mixed = [
        TEXTS[0],
        data_uri(IMAGES[0]),
        {"image": data_uri(IMAGES[1]).partition(",")[2]},
        {"text": TEXTS[2]},
        {"type": "image_url", "image_url": {"url": data_uri(IMAGES[2])}},
    ]
    found = vectors(client.embeddings.create(model="tiny", input=mixed))
    texts, images = expected
    np.testing.assert_allclose(found[[1, 2, 4]], images, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[[0, 3]], texts[[0, 2]], rtol=0, atol=1e-5)


def test_dimensions_truncate_and_renormalise(client, expected):
    found = vectors(client.embeddings.create(model="tiny", input=TEXTS, dimensions=5))
    cut = torch.nn.functional.normalize(torch.from_numpy(expected[0])[:, :5], dim=-1)
    np.testing.assert_allclose(found, cut, rtol=0, atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="32 dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=33)


def test_usage_counts_tokens_and_patches(client, model_folder):
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = client.embeddings.create(model="tiny", input=TEXTS[:3])
    assert texts.usage.prompt_tokens == sum(len(tokenizer(text)["input_ids"]) for text in TEXTS[:3])
    images = client.embeddings.create(model="tiny", input=[data_uri(image) for image in IMAGES])
    assert images.usage.total_tokens == len(IMAGES) * (32 // 8) ** 2


def test_a_text_that_was_cut_says_so(server):
    found = server.post("/v1/embeddings", input=TEXTS).json["data"]
    assert [entry.get("truncated", False) for entry in found] == [False, False, False, True, False]


def test_a_broken_image_fails_its_item_only(server, expected):
    broken = data_uri(IMAGES[1][: len(IMAGES[1]) // 2])
    answer = server.post("/v1/embeddings", input=[data_uri(IMAGES[0]), broken, {"image": "%%%"}, TEXTS[0]])
    assert answer.status == 200
    data = answer.json["data"]
    assert [entry["embedding"] is None for entry in data] == [False, True, True, False]
    assert "cannot be read" in data[1]["error"]
    assert "neither base64" in data[2]["error"]
    np.testing.assert_allclose(data[0]["embedding"], expected[1][0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(data[3]["embedding"], expected[0][0], rtol=0, atol=1e-5)
    alone = server.post("/v1/embeddings", input=[broken])
    assert (alone.status, alone.json["error"]["code"]) == (400, "invalid_input")


@pytest.mark.parametrize("options", [{}, {"function": "softmax"}, {"top_k": 2}, {"threshold": 0.12}])
def test_classify_is_what_the_pipeline_says(server, model_folder, options):
    labels = ["a cat", "a dog", "a bicycle", "picture number"]
    images = [noise(60, 40), noise(20, 30, seed=3)]
    sent = {"images": [data_uri(png(image)) for image in images], "labels": labels}
    answer = server.post("/v1/classify", **sent, templates=["a photo of {}.", "{}"], **options).json
    classify = pipeline("zero-shot-image-classification", model=str(model_folder))
    asked = {"function_to_apply": options["function"]} if "function" in options else options
    wanted = classify(images, candidate_labels=labels, hypothesis_template=["a photo of {}.", "{}"], **asked)
    assert answer["function"] == options.get("function", "sigmoid")
    for entry, found in zip(answer["data"], wanted):
        assert [row["label"] for row in entry["labels"]] == [row["label"] for row in found]
        scores = [row["score"] for row in entry["labels"]]
        np.testing.assert_allclose(scores, [row["score"] for row in found], rtol=0, atol=1e-5)


def test_a_registered_set_is_its_labels_and_is_not_embedded_again(server):
    image = data_uri(IMAGES[0])
    before = server.metric("siglip_batch_items_sum")
    named = server.post("/v1/classify", images=image, label_set="things").json
    assert server.metric("siglip_batch_items_sum") == before + 1  # the image
    labels = ["a cat", "a dog", "a bicycle"]
    given = server.post("/v1/classify", images=image, labels=labels, templates=["a photo of {}.", "{}"]).json
    assert named["data"] == given["data"]  # the same labels and templates are the same set
    assert server.metric("siglip_batch_items_sum") == before + 2
    for _ in range(2):
        server.post("/v1/classify", images=image, labels=labels, templates=["a drawing of {}."])
    assert server.metric("siglip_batch_items_sum") == before + 2 + 3 + 2
    assert server.post("/v1/classify", images=image, label_set="none").status == 404


def test_a_label_that_was_cut_says_so(server):
    labels = ["a cat", "a dog " * 60, "a bicycle"]  # the text tower reads 64 tokens
    for templates in (["{}"], ["a photo of {}.", "{}"]):
        answer = server.post("/v1/classify", images=data_uri(IMAGES[0]), labels=labels, templates=templates).json
        said = {row["label"]: row.get("truncated", False) for row in answer["data"][0]["labels"]}
        assert said == {labels[0]: False, labels[1]: True, labels[2]: False}


def test_similarity_is_cosines_and_probabilities(server, parts, expected):
    model, _ = parts
    texts, images = expected
    answer = server.post("/v1/similarity", queries=TEXTS[:2], documents=[data_uri(i) for i in IMAGES]).json
    cosines = texts[:2] @ images.T
    logits = torch.from_numpy(cosines) * model.logit_scale.exp() + model.logit_bias
    np.testing.assert_allclose([row["cosines"] for row in answer["data"]], cosines, rtol=0, atol=1e-5)
    np.testing.assert_allclose([row["scores"] for row in answer["data"]], logits.sigmoid().detach(), rtol=0, atol=1e-4)
    mixed = server.post("/v1/similarity", queries=TEXTS[0], documents=[TEXTS[1], data_uri(IMAGES[0])]).json["data"][0]
    assert None not in mixed["cosines"]
    assert mixed["scores"] == [None, pytest.approx(answer["data"][0]["scores"][0], abs=1e-6)]
    broken = server.post("/v1/similarity", queries="a cat", documents=[{"image": "aaaa"}, "a dog"]).json
    assert broken["data"][0]["cosines"][0] is None
    assert [error["index"] for error in broken["errors"]] == [1]


def test_only_an_image_and_a_text_have_a_probability():
    cosines = np.array([[0.1, 0.5], [0.2, 0.4]], np.float32)
    of_sigmoid = probabilities(Facts(4, 10.0, -2.0, "sigmoid"), cosines, [True, False], [True, False])
    np.testing.assert_allclose(of_sigmoid, [[np.nan, 1 / (1 + np.exp(-3.0))], [0.5, np.nan]], rtol=1e-6)
    assert np.isnan(probabilities(Facts(4, 10.0, -2.0, "softmax"), cosines, [True] * 2, [False] * 2)).all()


def test_models_and_probes(client, server, expected):
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.dimensions == expected[0].shape[1]
    assert model.label_sets == ["animals", "things"]
    assert server.get("/healthz").json == {"status": "alive"}
    assert server.get("/readyz").json == {"status": "ready"}
    with pytest.raises(openai.NotFoundError, match="no model of this name"):
        client.embeddings.create(model="gpt", input="a")


def test_keys_are_asked_for_where_there_is_something_to_take(server):
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        assert server.send("GET", path, headers={"authorization": "Bearer wrong"}).status == 401
        assert server.send("GET", path, headers={"authorization": server.key}).status == 401
    for path in ("/", "/healthz", "/readyz"):
        assert server.send("GET", path, headers={"authorization": "-"}).status == 200
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="ké", max_retries=0) as stranger,
        pytest.raises((openai.AuthenticationError, UnicodeEncodeError)),
    ):
        stranger.models.list()


def test_the_metrics_are_prometheus_own_format(server):
    from prometheus_client.parser import text_string_to_metric_families

    server.post("/v1/embeddings", input=["a", "b"])
    server.get("/with/a/name/of/its/own")
    families = {family.name: family for family in text_string_to_metric_families(server.get("/metrics").body.decode())}
    assert {"siglip_queue_items", "siglip_batch_items", "siglip_request_seconds", "siglip_requests"} <= set(families)
    paths = {sample.labels["path"] for sample in families["siglip_requests"].samples}
    assert "other" in paths
    assert not any("name" in path for path in paths)


def test_nothing_that_a_client_wrote_is_in_the_log(server):
    secret = "s3cr3t-of-a-client"
    server.post("/v1/embeddings", input=[secret, {"image": f"https://example.com/?token={secret}"}])
    server.post("/v1/embeddings", input=secret * 60)
    server.post("/v1/embeddings", **{secret: 1})
    server.send("GET", f"/v1/models?api_key={secret}")
    server.send("GET", f"/{secret}", headers={"authorization": f"Bearer {secret}"})
    log = server.log.read_text()
    assert "POST /v1/embeddings 200" in log
    assert secret not in log
    assert server.key not in log


def test_other_names_of_the_machine_are_refused(server):
    """Or a page elsewhere could have its own name lead here."""
    assert server.send("GET", "/healthz", headers={"host": "evil.example"}).status == 400
    assert server.send("GET", "/healthz", headers={"host": "localhost:1"}).status == 200


def test_stock_classes_agree(server, model_folder):
    """Against the model as plain transformers computes it."""
    model, tokenizer = AutoModel.from_pretrained(model_folder).eval(), AutoTokenizer.from_pretrained(model_folder)
    tokens = tokenizer(["a cat"], padding="max_length", max_length=64, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    found = server.post("/v1/embeddings", input="a cat").json["data"][0]["embedding"]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(wanted)[0], rtol=0, atol=1e-5)
