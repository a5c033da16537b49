"""Every snippet of every card runs, and what is published loads over HTTP from a cold cache without this package."""

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from modeling_siglip_ext.conversion.commands.write_released_cards import released_facts
from modeling_siglip_ext.conversion.released.cards import shown
from modeling_siglip_ext.conversion.released.catalogue import entries
from modeling_siglip_ext.hub.facts import ModelFacts
from modeling_siglip_ext.hub.publish import publish
from support.images import noise


WORKER = Path(__file__).parent / "worker_plain.py"
RELEASED = Path(__file__).parents[2] / "model_cards" / "released"
KINDS = ("stock", "naflex", "short", "bert", "image", "patches")
TEXTS = [f"This is a photo of a {label}." for label in ("cat", "dog", "bicycle")]


def snippets(card: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", card, flags=re.MULTILINE | re.DOTALL)


def without_package(cards: dict[str, list[str]], folder: Path, **environment: str) -> dict[str, list[dict]]:
    """Run snippets with site-packages on the path, but not the editable installation, and with a cold cache."""
    (folder / "cards.json").write_text(json.dumps(cards), encoding="utf-8")
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(site.getsitepackages()),
        "HF_HOME": str(folder / "cold"),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, "-S", str(WORKER), "cards.json"]
    done = subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def place(tmp_path) -> Path:
    """Where the reader of a card is: with a picture."""
    folder = tmp_path / "reader"
    folder.mkdir()
    noise().save(folder / "cat.jpg")
    return folder


def plain(kind: str, card: str) -> list[str]:
    """The snippets that need nothing but transformers: for texts of unusual length, all but the pipeline's."""
    found = snippets(card)
    assert len(found) == 3
    return found[1:] if kind == "short" else found


@pytest.mark.long
def test_what_is_published_loads_from_a_cold_cache_without_this_package(hub, stand_in, place, monkeypatch):
    """`publish`, then the snippets of the cards as they are on the Hub: Auto classes, pipelines, remote code."""
    for kind in KINDS:
        publish(stand_in(kind), f"user/{kind}", say=lambda line: None)
    cards = {kind: plain(kind, hub.files(f"user/{kind}")["README.md"].decode()) for kind in KINDS}
    hub.control()
    found = without_package(cards, place, HF_ENDPOINT=hub.address, HF_TOKEN="hf_read")
    calls = hub.calls()
    for kind in KINDS:
        assert any(f"/user/{kind}/resolve/" in call for call in calls), "it came over HTTP"

    image = Image.open(place / "cat.jpg").convert("RGB")
    for kind in ("stock", "naflex", "short", "bert"):
        model = AutoModel.from_pretrained(stand_in(kind)).eval()
        processor = AutoProcessor.from_pretrained(stand_in(kind))
        length = 16 if kind in ("short", "bert") else 64
        options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        with torch.no_grad():
            outputs = model(**processor(images=image, text=TEXTS, **options))
        logits = outputs.logits_per_image
        *pipeline, probabilities, search = found[kind]
        torch.testing.assert_close(torch.tensor(probabilities["logits_per_image"]), logits, rtol=0, atol=1e-5)
        embeds = torch.tensor(search["image_embeds"])
        torch.testing.assert_close(embeds, outputs.image_embeds, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(search["text_embeds"]), outputs.text_embeds, rtol=0, atol=1e-5)
        if pipeline:
            scores = (logits.softmax(-1) if kind == "bert" else logits.sigmoid())[0].tolist()
            assert pipeline[0]["scores"] == pytest.approx(dict(zip(("cat", "dog", "bicycle"), scores)), abs=1e-5)
        own_code = "transformers_modules" in probabilities["model"]
        assert own_code == (kind == "bert"), "the stock classes serve the stock form, the code beside it ours"
    assert found["image"][0]["features"] == [16, 32]
    assert torch.tensor(found["image"][1]["pooler_output"]).shape == (1, 24)
    assert torch.tensor(found["image"][2]["embeds"]).norm(dim=-1) == pytest.approx([1, 1], abs=1e-5)
    assert torch.tensor(found["patches"][1]["pooler_output"]).shape == (1, 16, 24)


def test_the_pipeline_of_texts_of_unusual_length(stand_in, place, monkeypatch):
    """With this package imported, as the card says."""
    card = (stand_in("short") / "README.md").read_text()
    snippet = snippets(card)[0]
    assert "import modeling_siglip_ext" in snippet
    monkeypatch.chdir(place)
    for file in stand_in("short").iterdir():
        (place / file.name).symlink_to(file)
    values: dict = {}
    exec(snippet, values)
    model, processor = AutoModel.from_pretrained(place).eval(), AutoProcessor.from_pretrained(place)
    image = Image.open("cat.jpg").convert("RGB")
    inputs = processor(images=image, text=TEXTS, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        scores = model(**inputs).logits_per_image.sigmoid()[0].tolist()
    assert {row["label"]: row["score"] for row in values["found"]} == pytest.approx(
        dict(zip(("cat", "dog", "bicycle"), scores)), abs=1e-5
    )


def kind_of(facts: ModelFacts) -> str:
    """The small model whose card has the same snippets."""
    if not facts.pair:
        return "image" if facts.pooled else "patches"
    if not facts.stock:
        return "bert"
    return "naflex" if facts.naflex else "short" if facts.needs_package else "stock"


def shape(kind: str, card: str, location: str) -> list[str]:
    return [snippet.replace(f'"{location}"', '"."') for snippet in plain(kind, card)]


def test_every_released_card_has_snippets_that_were_run(stand_in):
    """They are those of the small models' cards, but for the model's name."""
    of_kind = {kind: shape(kind, (stand_in(kind) / "README.md").read_text(), ".") for kind in KINDS}
    for entry in entries().values():
        kind = kind_of(released_facts(entry))
        card = (RELEASED / f"{shown(entry)}.md").read_text(encoding="utf-8")
        assert shape(kind, card, shown(entry)) == of_kind[kind], entry.name


@pytest.mark.slow
def test_every_snippet_of_every_released_card_runs(stand_in, place):
    cards = {}
    for entry in entries().values():
        name, kind = shown(entry), kind_of(released_facts(entry))
        (place / name).symlink_to(stand_in(kind), target_is_directory=True)
        cards[name] = plain(kind, (RELEASED / f"{name}.md").read_text(encoding="utf-8"))
    found = without_package(cards, place, HF_HUB_OFFLINE="1")
    assert len(found) == len(entries())
    assert sum(map(len, found.values())) >= 3 * len(entries()) - 1
