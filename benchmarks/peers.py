"""Are our towers as fast as timm's and open_clip's? B/16-224 with the same weights, forward, without gradients.

    python benchmarks/peers.py --peer-python OTHER/bin/python   # writes benchmarks/results/peers.md; four minutes

OTHER is an environment with timm and open_clip_torch beside the same torch. The peer runs in a process of its own that
waits while ours computes. Each line is the ratio of our time to the peer's over 40 alternating pairs; the bar: 1.02.

Both peers build their SigLIP with the exact GELU, while the released weights were trained with the tanh approximation
(big_vision, `models/vit.py`), which costs three times as much on a CPU. They are measured as they come and, so that
both sides compute the same function, with the tanh approximation.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import torch
from report import RESULTS, machine, publish, store, table
from safetensors.torch import load_file, save_file


BATCH = {"image": 2, "text": 4}
LINES = {"timm": "image", "open_clip": "text"}  # open_clip's image tower is timm's
GELU = {"tanh": "the same GELU", "none": "as it comes"}


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(BATCH["image"], 3, 224, 224, generator=generator)
    return {"image": pixels, "text": torch.randint(32000, (BATCH["text"], 64), generator=generator)}


# ---- the peer's process: names of open_clip's parameters from those of transformers


def stack(weights: dict[str, torch.Tensor], prefix: str, names: str, kind: str) -> torch.Tensor:
    return torch.cat([weights[f"{prefix}.{name}_proj.{kind}"] for name in names])


def layer(weights: dict, ours: str, theirs: str, qkv: str, norms: tuple[str, str], mlp: tuple[str, str]) -> dict:
    found = {}
    for kind in ("weight", "bias"):
        found[f"{theirs}.attn.{qkv}{kind}"] = stack(weights, f"{ours}.self_attn", "qkv", kind)
        for old, new in (
            ("self_attn.out_proj", "attn.out_proj" if qkv == "in_proj_" else "attn.proj"),
            ("layer_norm1", norms[0]),
            ("layer_norm2", norms[1]),
            ("mlp.fc1", mlp[0]),
            ("mlp.fc2", mlp[1]),
        ):
            found[f"{theirs}.{new}.{kind}"] = weights[f"{ours}.{old}.{kind}"]
    return found


def open_clip_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    trunk, head = "visual.trunk", "vision_model.head"
    found = {
        "logit_scale": weights["logit_scale"][0],
        "logit_bias": weights["logit_bias"][0],
        f"{trunk}.pos_embed": weights["vision_model.embeddings.position_embedding.weight"][None],
        f"{trunk}.attn_pool.latent": weights[f"{head}.probe"],
        "text.positional_embedding": weights["text_model.embeddings.position_embedding.weight"],
        "text.token_embedding.weight": weights["text_model.embeddings.token_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        found[f"{trunk}.patch_embed.proj.{kind}"] = weights[f"vision_model.embeddings.patch_embedding.{kind}"]
        found[f"{trunk}.norm.{kind}"] = weights[f"vision_model.post_layernorm.{kind}"]
        query, key_value = weights[f"{head}.attention.in_proj_{kind}"].tensor_split([768])
        found |= {f"{trunk}.attn_pool.q.{kind}": query, f"{trunk}.attn_pool.kv.{kind}": key_value}
        found[f"{trunk}.attn_pool.proj.{kind}"] = weights[f"{head}.attention.out_proj.{kind}"]
        found[f"{trunk}.attn_pool.norm.{kind}"] = weights[f"{head}.layernorm.{kind}"]
        for name in ("fc1", "fc2"):
            found[f"{trunk}.attn_pool.mlp.{name}.{kind}"] = weights[f"{head}.mlp.{name}.{kind}"]
        found[f"text.ln_final.{kind}"] = weights[f"text_model.final_layer_norm.{kind}"]
        found[f"text.text_projection.{kind}"] = weights[f"text_model.head.{kind}"]
    for n in range(12):
        image, text = f"vision_model.encoder.layers.{n}", f"text_model.encoder.layers.{n}"
        found |= layer(weights, image, f"{trunk}.blocks.{n}", "qkv.", ("norm1", "norm2"), ("mlp.fc1", "mlp.fc2"))
        block = f"text.transformer.resblocks.{n}"
        found |= layer(weights, text, block, "in_proj_", ("ln_1", "ln_2"), ("mlp.c_fc", "mlp.c_proj"))
    return found


def work(weights: str, threads: int) -> None:
    """Answers "peer kind" on standard input with the seconds of one forward pass; its first output first."""
    torch.set_num_threads(threads)
    library = torch.library.Library("torchvision", "DEF")  # its operators do not load beside a torch for CPUs
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import open_clip

    model = open_clip.create_model("ViT-B-16-SigLIP", pretrained=None).eval()
    model.load_state_dict(open_clip_weights(load_file(weights)))
    calls = {"timm": model.visual.trunk, "open_clip": model.encode_text}
    activations = [module for module in model.modules() if isinstance(module, torch.nn.GELU)]
    given = inputs()

    def run(peer: str, gelu: str) -> torch.Tensor:
        for activation in activations:
            activation.approximate = gelu
        return calls[peer](given[LINES[peer]])

    with torch.no_grad():
        outputs = {f"{peer}.{gelu}": run(peer, gelu).contiguous() for peer in LINES for gelu in GELU}
        save_file(outputs, f"{weights}.outputs")
        print("ready", flush=True)
        for line in sys.stdin:
            start = time.perf_counter()
            run(*line.split())
            print(time.perf_counter() - start, flush=True)


# ---- ours


def measure(python: str, rounds: int) -> dict:
    import numpy as np
    from scipy.stats import bootstrap

    from modeling_siglip_ext import SiglipExtConfig, SiglipExtModel

    torch.manual_seed(0)
    model, given, found = SiglipExtModel(SiglipExtConfig()).eval(), inputs(), {}
    calls = {"image": model.get_image_features, "text": model.get_text_features}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = str(Path(folder) / "weights.safetensors")
        save_file(model.state_dict(), path)
        command = [python, __file__, "--worker", path, str(torch.get_num_threads())]
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            if peer.stdout.readline() != "ready\n":
                sys.exit("the peer's process ended; see above")
            outputs = load_file(f"{path}.outputs")

            def theirs(name: str, gelu: str) -> float:
                print(name, gelu, file=peer.stdin, flush=True)
                return float(peer.stdout.readline())

            def ours(kind: str) -> float:
                start = time.perf_counter()
                calls[kind](given[kind])
                return time.perf_counter() - start

            for name, gelu in product(LINES, GELU):
                kind = LINES[name]
                expected = calls[kind](given[kind]).pooler_output
                difference = (outputs[f"{name}.{gelu}"] - expected).abs().max() / expected.abs().max()
                theirs(name, gelu)
                pairs = []
                for index in range(rounds):
                    if index % 2:
                        second, first = theirs(name, gelu), ours(kind)
                    else:
                        first, second = ours(kind), theirs(name, gelu)
                    pairs.append((first, second))
                times = np.array(pairs)
                ratios = times[:, 0] / times[:, 1]
                interval = bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
                found[f"{name}, {kind} tower, batch {BATCH[kind]}, {GELU[gelu]}"] = {
                    "ratio": float(np.median(ratios)),
                    "low": float(interval.low),
                    "high": float(interval.high),
                    "seconds": np.median(times, axis=0).tolist(),
                    "difference": difference.item(),
                }
                print(name, gelu, list(found.values())[-1], flush=True)
        finally:
            peer.kill()
            peer.wait()
    return found


COLUMNS = "peer", "ours, s:", "theirs, s:", "ratio", "greatest relative difference of outputs:"


def cells(name: str, r: dict) -> list[str]:
    ratio = f"{r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"
    return [name, *(f"{value:.3f}" for value in r["seconds"]), ratio, f"{r['difference']:.1e}"]


def render(found: dict) -> list[str]:
    return [
        "# Towers against timm and open_clip",
        "",
        f"Written by `benchmarks/peers.py`. {machine()}; timm 1.0.31, open_clip 3.3.0, the same torch.",
        "B/16-224, equal weights, float32, forward; ratio = ours / theirs, median of alternating pairs with its 95 %",
        "interval. As they come, the peers compute the exact GELU, cheaper on a CPU than the tanh approximation",
        "that the released weights were trained with, and give slightly other outputs.",
        "",
        *table(COLUMNS, [cells(name, r) for name, r in found.items()]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    found = measure(args.peer_python, args.rounds)
    store(RESULTS / "peers.json", found)
    publish(RESULTS / "peers.md", render(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], int(sys.argv[3]))
    else:
        main()
