"""What does HTTP cost? 64 clients of the server against encode_images, and against the endpoint one writes first.

    python benchmarks/serving.py                    # all lines, eleven minutes on two idle cores
    python benchmarks/serving.py --only labels      # this line anew, the others as they were
    python benchmarks/serving.py --size tiny --rounds 1

B/16-224 with random weights, JPEGs of 640 x 480, loopback only. 64 clients send one image (or text) each, again and
again until every one of them has had so many answers; `encode_images` has the same inputs as one list. Both run in
turn, and for both the CPU time is counted, too: on a machine that others use it says more than the clock. "In 8 bits"
is the same model as `siglip-ext-convert to-onnx --precision int8-static` exports it, calibrated on other inputs than
are sent, served with `--backend onnx`, beside the same naive endpoint. The bars: 0.95 of encode_images' images/s, 2.5
times the naive endpoint's, vectors equal to 1e-5 whatever shared their batch; a label set of 1,000 costs at most 1.05
of an embedding. What was measured is kept in benchmarks/results/serving.json.
"""

import argparse
import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image
from report import RESULTS, machine, publish, store, stored, table

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    encode_images,
    encode_texts,
    train_tokenizer,
)
from modeling_siglip_ext.conversion.__main__ import main as convert
from modeling_siglip_ext.evaluation.prompts import imagenet_classes
from siglip_ext_runtime import ExportedModel


CLIENTS, BATCH = 64, 32
IN_8_BITS = " in 8 bits"
KINDS = ("images", "texts", f"images{IN_8_BITS}", f"texts{IN_8_BITS}")
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {"base": {}, "tiny": SMALL}


@dataclass(frozen=True)
class Served:
    """What a server is started with, and the same model at hand."""

    folder: Path
    model: SiglipExtModel | ExportedModel
    processor: SiglipExtProcessor
    options: tuple[str, ...] = ()


def in_8_bits(model: Served) -> Served:
    """Its export, beside it, calibrated on inputs that no client sends."""
    out, images, texts = (model.folder.with_name(name) for name in ("int8", "images", "texts.txt"))
    if not out.exists():
        images.mkdir()
        for number, file in enumerate(photos(3 * CLIENTS)[CLIENTS:]):
            (images / f"{number}.jpg").write_bytes(file)
        texts.write_text("\n".join(imagenet_classes()[CLIENTS : 3 * CLIENTS]))
        seen = ["--images", str(images), "--texts", str(texts)]
        assert convert(["to-onnx", str(model.folder), str(out), "--precision", "int8-static", *seen]) == 0
    return Served(out, ExportedModel(out), model.processor, ("--backend", "onnx"))


def save_model(folder: Path, size: str, **text: int) -> Served:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(imagenet_classes(), vocab_size=4000, max_length=64)
    text_config = {**SIZES[size], "vocab_size": len(tokenizer), **text}
    model = SiglipExtModel(SiglipExtConfig(text_config=text_config, vision_config={**SIZES[size]})).eval()
    processor = SiglipExtProcessor(SiglipExtImageProcessor(), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Served(folder, model, processor)


def photos(count: int) -> list[bytes]:
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        small.resize((640, 480), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def data_uri(file: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(file).decode()}"


class Client:
    """One connection, kept open."""

    def __init__(self, url: str):
        address = urlsplit(url)
        self.connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=600)

    def post(self, path: str, **body: object) -> dict:
        self.connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        response = self.connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        return json.loads(content)


@contextmanager
def running(command: Sequence[str], url: str | None = None) -> Iterator[tuple[str, int]]:
    """The address of a server, and its process number; ended with the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if url is None:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                assert url, "the server did not start"
            while True:
                try:
                    Client(url).connection.connect()
                    break
                except ConnectionRefusedError:
                    assert process.poll() is None, "the server ended"
                    time.sleep(0.2)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(60)


def ours(folder: Path, *options: str):
    return running([sys.executable, "-m", "modeling_siglip_ext.serving", str(folder), "--port", "0", *options])


def naive(folder: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worker = Path(__file__).with_name("serving_naive.py")
    return running([sys.executable, str(worker), str(folder), str(port)], f"http://127.0.0.1:{port}")


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def load(url: str, inputs: Sequence[str], rounds: int) -> tuple[np.ndarray, list[float]]:
    """Vectors of the last round, and every answer's seconds; each input has a client of its own."""
    latencies: list[float] = []

    def client(text: str) -> list[float]:
        one = Client(url)
        for _ in range(rounds):
            start = time.perf_counter()
            found = one.post("/v1/embeddings", input=text)
            latencies.append(time.perf_counter() - start)
        one.connection.close()
        return found["data"][0]["embedding"]

    with ThreadPoolExecutor(len(inputs)) as pool:
        return np.array(list(pool.map(client, inputs))), latencies


def measured(run: Callable[[], object], pid: int) -> dict[str, float]:
    cpu, start = cpu_seconds(pid), time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "cpu": cpu_seconds(pid) - cpu}


def throughput(served: Served, naive_folder: Path, kind: str, rounds: int, answers: int) -> dict:
    files = photos(CLIENTS)
    sent = [data_uri(file) for file in files] if kind == "images" else imagenet_classes()[:CLIENTS]
    answers *= 1 if kind == "images" else 4  # to last as long: a load begins and ends with batches that are not full
    many, few = CLIENTS * answers, 8
    found: dict = {"direct": [], "server": [], "naive": [], "latencies": [], "count": many, "few": few}
    options = {"batch_size": BATCH if kind == "images" else 2 * BATCH, "progress": False}

    def direct(count: int) -> np.ndarray:
        inputs = (files if kind == "images" else sent) * answers
        encode = encode_images if kind == "images" else encode_texts
        return encode(served.model, served.processor, inputs[:count], **options)

    def server(url: str) -> None:
        vectors[1], latencies = load(url, sent, answers)
        found["latencies"] += latencies

    def at_hand() -> None:
        vectors[0] = direct(many)[:CLIENTS]

    vectors: list[np.ndarray] = [np.empty(0)] * 2
    direct(2)  # the warm-up, as below of the servers
    with ours(served.folder, *served.options) as (url, pid), naive(naive_folder) as (naive_url, naive_pid):
        for address in (url, naive_url):
            load(address, sent[:2], 1)
        for index in range(rounds):
            turns = [
                lambda: found["direct"].append(measured(at_hand, os.getpid())),
                lambda: found["server"].append(measured(lambda: server(url), pid)),
            ]
            for turn in turns if index % 2 == 0 else reversed(turns):
                turn()
            np.testing.assert_allclose(vectors[1], vectors[0], rtol=0, atol=1e-5)
            # one at a time it is as fast for 8 as for 64
            found["naive"].append(measured(lambda: load(naive_url, sent[:few], 1), naive_pid))
    return found


def labels(folder: Path, rounds: int) -> dict:
    """One client at a time: an image's embedding, and its labels out of 1,000."""
    sets = folder / "sets.json"
    sets.write_text(json.dumps({"many": [f"{name} {number}" for number, name in enumerate(imagenet_classes())]}))
    image = data_uri(photos(1)[0])
    found: dict = {"embeddings": [], "classify": []}
    with ours(folder, "--label_sets", str(sets)) as (url, pid):
        client = Client(url)
        runs = {
            "embeddings": lambda: client.post("/v1/embeddings", input=image),
            "classify": lambda: client.post("/v1/classify", images=image, label_set="many", top_k=5),
        }
        for index in range(10 * rounds + 1):
            for name, run in runs.items() if index % 2 else reversed(runs.items()):
                taken = measured(run, pid)
                if index:  # the first is the warm-up
                    found[name].append(taken)
    return found


def median(entries: Sequence[dict], key: str) -> float:
    return float(np.median([entry[key] for entry in entries]))


def rows(name: str, r: dict) -> list[list[str]]:
    lines = []
    for who, count in (("direct", r["count"]), ("server", r["count"]), ("naive", r["few"])):
        speeds = [count / entry["seconds"] for entry in r[who]]
        cpu = median(r[who], "cpu") / count
        spread = f"{np.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f})"
        lines.append([f"{name}, {who}", spread, f"{cpu:.3f}"])
    return lines


def ratios(r: dict) -> list[str]:
    """Of speeds: each round's by the clock, and the medians' by CPU time."""
    by_clock = [a["seconds"] / b["seconds"] for a, b in zip(r["direct"], r["server"])]
    naive_each = [one["seconds"] / r["few"] * r["count"] for one in r["naive"]]
    over_naive = [a / b["seconds"] for a, b in zip(naive_each, r["server"])]
    cpu = median(r["direct"], "cpu") / median(r["server"], "cpu")
    over_naive_cpu = median(r["naive"], "cpu") / r["few"] * r["count"] / median(r["server"], "cpu")
    return [
        f"{np.median(by_clock):.3f} ({min(by_clock):.3f} to {max(by_clock):.3f})",
        f"{cpu:.3f}",
        f"{np.median(over_naive):.2f} ({min(over_naive):.2f} to {max(over_naive):.2f})",
        f"{over_naive_cpu:.2f}",
    ]


def waits(r: dict) -> list[str]:
    """Little's law: so many clients and so many answers a second make this mean."""
    speed = np.median([r["count"] / entry["seconds"] for entry in r["server"]])
    p50, p99 = np.percentile(r["latencies"], [50, 99])
    return [f"{p50:.2f}", f"{p99:.2f}", f"{np.mean(r['latencies']):.2f}", f"{CLIENTS / speed:.2f}"]


def render(found: dict) -> list[str]:
    lines = ["# Serving", "", f"Written by `benchmarks/serving.py`. {found['machine']}; {found['load']}.", ""]
    lines += [
        f"{CLIENTS} clients on the same machine, one input a request. `encode_*` has batches of {BATCH} images or "
        f"{2 * BATCH} texts; the server takes its own, for a CPU."
    ]
    kinds = [kind for kind in KINDS if kind in found]
    lines += [
        "Medians of the rounds, and their range. Where others use the machine, the clock says what its minutes were"
    ]
    lines += ["like; compare the CPU time.", ""]
    speeds = [row for kind in kinds for row in rows(kind, found[kind])]
    lines += table(("what", "inputs a second:", "CPU s an input:"), speeds)
    lines += ["", "The server against `encode_*` (bar 0.95) and against the naive endpoint (bar 2.5).", ""]
    columns = ("what", "speed, clock:", "speed, CPU time:", "over naive, clock:", "over naive, CPU time:")
    lines += table(columns, [[kind, *ratios(found[kind])] for kind in kinds])
    lines += [
        "",
        "In 8 bits: the model as `to-onnx --precision int8-static` exports it. The naive endpoint stays the stock",
        "classes. The server's vectors were those of `encode_*` to 1e-5 in each round.",
    ]
    lines += ["", "Seconds until the answer; by Little's law the mean is the clients over the answers a second.", ""]
    lines += table(("what", "p50:", "p99:", "mean:", "Little:"), [[kind, *waits(found[kind])] for kind in kinds])
    if "labels" in found:
        r = found["labels"]
        by_clock, cpu = (median(r["classify"], key) / median(r["embeddings"], key) for key in ("seconds", "cpu"))
        lines += [
            "",
            f"The five best of 1,000 registered labels cost {by_clock:.3f} of an image's embedding by the clock",
        ]
        lines += [f"and {cpu:.3f} by CPU time (bar 1.05), one client, {len(r['classify'])} pairs in turn."]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    lines = (*KINDS, "labels")
    parser.add_argument("--only", nargs="+", choices=lines, default=lines)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--answers", type=int, default=2, help="images of each client in a round; texts come four times as many"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="tiny: to try this script; nothing is kept")
    args = parser.parse_args()
    kept = RESULTS / "serving.json"
    found = {**(stored(kept) if args.size == "base" else {}), "machine": machine()}
    found["load"] = f"load average {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores at the start"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        for kind in (kind for kind in args.only if kind != "labels"):
            model = save_model(folder, args.size)
            served = in_8_bits(model) if kind.endswith(IN_8_BITS) else model
            found[kind] = throughput(served, folder, kind.removesuffix(IN_8_BITS), args.rounds, args.answers)
            print(kind, *ratios(found[kind]), *waits(found[kind]), flush=True)
        if "labels" in args.only:
            # what labels cost depends on the width of their vectors, and not on how these were made
            save_model(folder, args.size, num_hidden_layers=1)
            found["labels"] = labels(folder, args.rounds)
    if args.size == "base":
        store(kept, found)
        publish(kept.with_suffix(".md"), render(found))
    else:
        print("\n".join(render(found)))


if __name__ == "__main__":
    main()
