"""Every snippet of every README runs, in the order of its page, with a small local model for the Hub's names."""

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Features, Value
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizer, Dinov2Config, Dinov2Model, ViTImageProcessor

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from support.detector import small_detector
from support.models import TINY
from support.processes import HUB_SERVER, server
from support.videos import frames, write_video


REPOSITORY = Path(__file__).resolve().parents[2]
# pages that are read one after the other, in one workplace: the second needs what the first made
CHAINS = (
    ("README.md", "modeling_siglip_ext/README.md"),
    ("training/README.md",),
    ("evaluation/README.md",),
    ("conversion/README.md", "siglip_ext_runtime/README.md"),
    ("serving/README.md",),
    ("training/data/emoji/README.md", "training/data/scenes/README.md"),
)
WITHOUT_SNIPPETS = ("benchmarks/README.md", "benchmarks/results/studies/README.md", "evaluation/prompts/README.md")
RELEASED = "google/siglip2-base-patch16-224"
DETECTOR = "google/owlv2-base-patch16-ensemble"
# `make demo` and `make test` are run by hand and by CI; `pip install` is what `make` does
RUN_ELSEWHERE = ("make ", "pip install")
QUICK = "--use_cpu true --num_train_epochs 1 --per_device_train_batch_size 2 --eval_fraction 0.25 --report_to none"
LIT = QUICK.replace("batch_size 2", "batch_size 4 --mini_batch_size 2")
SMALL = {
    # the name of a released checkpoint is a promise about its sizes, which a small one cannot keep
    "webli_en_b16_256_60500360.npz": "checkpoint.npz",
    "--output_dir my-siglip": f"--output_dir my-siglip {QUICK}",
    "--output_dir my-large-siglip": f"--output_dir my-large-siglip {QUICK}",
    "--output_dir my-lit": f"--output_dir my-lit {LIT}",
    "--output_dir my-domain-siglip": f"--output_dir my-domain-siglip --model_name_or_path {RELEASED} {LIT}",
    "--output_dir my-sharded": "--output_dir my-sharded --use_cpu true --per_device_train_batch_size 2 "
    "--save_strategy no --report_to none",
    "--smoke --output_dir smoke-naflex": "--smoke --output_dir smoke-naflex --max_steps 3",
    "--smoke --output_dir smoke-output": "--smoke --output_dir smoke-output --max_steps 3",
    "--smoke --output_dir smoke-siglip2": "--smoke --output_dir smoke-siglip2 --max_steps 3",
    "--reference_name_or_path google/siglip2-so400m-patch16-256": f"--reference_name_or_path {RELEASED}",
    "--output_dir my-curated": f"--output_dir my-curated {QUICK}",
    "--output_dir my-locca": f"--output_dir my-locca {QUICK}",
    "--output_dir my-scenes": "--output_dir my-scenes --max_steps 2 --scenes.count 128 --scenes.held_out 16",
    "--output_dir my-four-losses": f"--output_dir my-four-losses {QUICK} --self_distillation.prototypes 64",
    "study batch-size --seeds 3 --output_dir studies": "study batch-size --output_dir studies --max_runs 1",
}


WORKER = Path(__file__).with_name("snippet_worker.py")


def snippets(page: str) -> list[tuple[str, str]]:
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    found = re.findall(r"^```(python|bash)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if not code.startswith(RUN_ELSEWHERE)]


def small(code: str, port: int) -> str:
    """What a page shows, in the size of a test, with a free port."""
    code = code.replace(":8000", f":{port}").replace("--port 8000", f"--port {port}")
    for shown, instead in SMALL.items():
        code = code.replace(shown, instead)
    return code


@pytest.fixture
def workplace(tmp_path) -> Path:
    """A folder as the pages assume it: two pictures, a video, images with captions, and a model under its Hub name."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    random = np.random.default_rng(0)
    (folder / "my-images").mkdir()
    names = ["cat", "dog", *(f"my-images/{i}" for i in range(16))]
    for name in names:
        Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{name}.jpg")
    (folder / "my-videos").mkdir()
    write_video(folder / "my-videos" / "cat.mp4", frames(9))
    for i in range(16):
        (folder / "my-images" / f"{i}.txt").write_text(f"picture number {i}\nnumber {i} in other words\n")
    tokenizer = train_tokenizer(["a cat", "a dog", "picture number"], vocab_size=300)
    config = SiglipExtConfig(
        text_config={**TINY, "vocab_size": len(tokenizer)},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
    )
    SiglipExtModel(config).save_pretrained(folder / RELEASED)
    Dinov2Model(Dinov2Config(**TINY, image_size=32, patch_size=8)).save_pretrained(folder / "facebook/dinov2-base")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "facebook/dinov2-base")
    small_detector(folder / DETECTOR)
    bert = BertModel(BertConfig(**TINY, vocab_size=99), add_pooling_layer=False)
    bert.save_pretrained(folder / "google-bert/bert-base-uncased")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: n for n, word in enumerate([*special, "picture", "number", *map(str, range(16))])}
    BertTokenizer(vocab=words).save_pretrained(folder / "google-bert/bert-base-uncased")
    pairs = {
        "image": [{"bytes": (folder / f"my-images/{i}.jpg").read_bytes(), "path": None} for i in range(16)],
        "caption": [f"picture number {i}" for i in range(16)],
    }
    features = Features(image=datasets.Image(), caption=Value("string"))
    Dataset.from_dict(pairs, features=features).to_parquet(folder / "my-captions.parquet")
    jax = REPOSITORY / "tests" / "fixtures" / "big_vision" / "siglip1_mu16" / "checkpoint.npz"
    shutil.copy(jax, folder / "checkpoint.npz")
    image_processor = SiglipExtImageProcessor(size={"height": 32, "width": 32})
    SiglipExtProcessor(image_processor, tokenizer).save_pretrained(folder / RELEASED)
    return folder


@pytest.fixture
def hub(tmp_path):
    """(address, folder) of a Hub on loopback."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with server(HUB_SERVER, folder) as address:
        yield address, folder


@pytest.fixture
def port(workplace):
    """A free one for the server of a page; a server that is left over is stopped."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    yield number
    if (workplace / "server.pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((workplace / "server.pid").read_text()), signal.SIGKILL)


def test_every_page_is_read():
    folders = ("modeling_siglip_ext", "training", "evaluation", "conversion", "serving", "model_cards", "benchmarks")
    folders += ("siglip_ext_runtime",)
    paths = [path for room in folders for path in (REPOSITORY / room).rglob("README.md")]
    pages = ["README.md", *(str(path.relative_to(REPOSITORY)) for path in paths)]
    assert sorted(pages) == sorted([page for chain in CHAINS for page in chain] + list(WITHOUT_SNIPPETS))
    for chain in CHAINS:
        assert all(map(snippets, chain)), chain
    assert not any(map(snippets, WITHOUT_SNIPPETS))
    assert {language for language, _ in snippets("README.md")} == {"python", "bash"}


def test_the_readme_fits_in_the_head():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 260


@pytest.mark.long
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0].rpartition("/")[0] or "top")
def test_snippets_run(chain, workplace, hub, port):
    """One after the other in one test: later ones read what earlier ones wrote."""
    address, pushed = hub
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(workplace / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    of_chain = [(language, small(code, port)) for page in chain for language, code in snippets(page)]
    result = subprocess.run(
        [sys.executable, str(WORKER)],
        input=json.dumps(of_chain),
        cwd=workplace,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    if chain[0] == "README.md":
        saved = {path.name for path in (workplace / "my-siglip").iterdir()}
        assert {"model.safetensors", "config.json", "README.md", "processor_config.json", "tokenizer.json"} <= saved
        arrived = {path.name for path in (pushed / "user" / "my-siglip").iterdir()}
        assert {"model.safetensors", "config.json", "processor_config.json", "tokenizer.json"} <= arrived
        for name in ("model.safetensors", "tokenizer.json"):
            assert (pushed / "user" / "my-siglip" / name).read_bytes()[:8]


@pytest.mark.parametrize("page", [*itertools.chain(*CHAINS), *WITHOUT_SNIPPETS, "CONTRIBUTING.md"])
def test_links_to_files_lead_somewhere(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((REPOSITORY / page).parent / target).exists(), target
    # a path in backticks stands for a file here where its first folder is one of the repository or beside the page
    places = (REPOSITORY, (REPOSITORY / page).parent)
    for path in re.findall(r"`([a-z_]+/(?:[a-z_]+/)*(?:[a-z_]+\.[a-z]+)?)`", text):
        near = [place / path for place in places if (place / path.partition("/")[0]).is_dir()]
        assert not near or any(one.exists() for one in near), path
