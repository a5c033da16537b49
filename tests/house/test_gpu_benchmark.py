"""What the READMEs say of the GPU is what was measured there, and what errors are measured against is exact."""

import sys
from pathlib import Path

import pytest
import torch

from modeling_siglip_ext import sigmoid_loss, softmax_loss


BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
MACHINE = {"machine": "a card, torch 2.11"}
RATES = {"TFLOP/s": 445.0, "of_nominal": 0.45, "of_reached": 0.56, "ms": 321.0, "bytes": 7e10}
ERRORS = {"value": 1e-5, "images": 2e-3, "texts": 2e-3, "scale": 1e-4, "bias": 1e-4}
FOUND = {
    "ceilings": {"copy": {"GB/s": 3000.0}, "bfloat16 product": {"TFLOP/s": 798.0}},
    "loss": {
        "sigmoid, triton, 65536, bfloat16": {"ms": 38.25, "bytes": 9.5e8, "errors": ERRORS, **MACHINE},
        "sigmoid, tiled, 65536, bfloat16": {"ms": 90.0, "bytes": 1.2e9, "errors": ERRORS},
        "sigmoid, eager, 65536, bfloat16": {"error": "out of memory"},
        "sigmoid, triton, 1048576, bfloat16": {"ms": 10400.0, "bytes": 9e9, "errors": ERRORS},
        "softmax, tiled, 8192, float32": {"error": "RuntimeError: an illegal memory access"},
    },
    "peers": {
        "memeff": {"error": "not installed"},
        "sigmoid, siglip-kernel, 65536, bfloat16": {"ms": 48.8, "bytes": 1.4e9, "errors": ERRORS},
    },
    "training": {
        "B/16-224, eager": {"batch": 1024, "pairs/s": 3190.0, **RATES},
        "B/16-224, compiled": {"batch": 1024, "pairs/s": 3500.0, **RATES},
        "B/16-224, gradient cache, layers compiled": {"batch": 32768, "pairs/s": 9999.0, **RATES},
    },
    "naflex": {f"mixed sizes, forward, {kind}": {"images/s": 900.0, "bytes": 1e9} for kind in ("ours", "stock")},
    "inference": {
        "B/16-224, image tower, eager": {"batch": 512, "images/s": 14000.0, **RATES},
        "B/16-224, text tower, eager": {"batch": 512, "texts/s": 50000.0, **RATES},
    },
    "finetune": {"siglip-ext-train finetune, B/16-224, from JPEGs": {"batch": 512, "images/s": 2000.0, "workers": 16}},
    "profile": {
        "B/16-224, eager": {
            "kinds": {"matrix products": 0.7, "others": 0.3},
            "busy": 0.97,
            "kernels": {"gemm<a|b>": 0.5},
        }
    },
    "tests": {"tests/gpu": {"summary": "241 passed in 60.00s"}},
    "running": {"section": "loss", "item": "sigmoid"},
}


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """The benchmarks' modules import each other as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("gpu_parts", "report"):
            del sys.modules[name]


@pytest.fixture
def report(benchmarks):
    from gpu_parts import report

    return report


def test_the_pages_say_what_was_measured(report):
    from report import stored

    results = stored(BENCHMARKS / "results" / "gpu.json")
    for path, lines in report.sections(results).items():
        text = path.read_text(encoding="utf-8")
        assert report.replaced(text, lines) == text, f"{path.name}: run benchmarks/gpu.py --report"


def test_tables(report):
    page, summary = "\n".join(report.page(FOUND)), "\n".join(report.summary(FOUND))
    for line in (
        "| 65,536 | 38.2 ms, 950 MB | 90.0 ms, 1.2 GB | out of memory | 48.8 ms, 1.4 GB |",
        "| 1,048,576 | 10.4 s, 9.0 GB |  |  |  |",
        "| sigmoid | siglip-kernel | 1e-05 | 2e-03 | 2e-03 | 1e-04 | 1e-04 |",
        "| B/16-224, compiled | 1,024 | 3,500 | 445 | 45% | 56% | 70.0 GB |",
        "| mixed sizes, forward | 900 | 900 | 1.00 | 1.0 GB | 1.0 GB |",
        "| matrix products | 70.0% |",
        "| `gemm<a b>` | 50.0% |",
        "- memeff: not installed",
        "- softmax, tiled, 8192, float32: RuntimeError: an illegal memory access",
        "`tests/gpu`: 241 passed in 60.00s.",
    ):
        assert line in page, line
    for line in (
        "| sigmoid loss, 65,536 pairs | 38.2 ms, 950 MB | siglip-kernel 48.8 ms, 1.4 GB |",
        "| sigmoid loss, 1,048,576 pairs | 10.4 s, 9.0 GB |  |",
        "| training B/16-224 | 3,500 pairs/s | 45% of 989 TFLOP/s |",
        "| image tower B/16-224 | 14,000 images/s | 45% of 989 TFLOP/s |",
        "| `finetune` from JPEGs, B/16-224 | 2,000 images/s |  |",
    ):
        assert line in summary, line


def test_before_anything_is_measured(report):
    assert "Nothing has been measured" in report.page({})[0]
    assert "Nothing has been measured" in report.summary({})[0]


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_errors_are_measured_against_the_truth(kind, monkeypatch):
    from gpu_parts import reference
    from gpu_parts.losses import inputs

    monkeypatch.setattr(reference, "BLOCK", 1000)  # several blocks of rows, the last one smaller
    monkeypatch.setattr(reference, "SAMPLED_ROWS", 9)
    arguments = inputs(70, 12, torch.float64, torch.device("cpu"))
    loss = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}[kind](*arguments, implementation="eager")
    loss.backward()
    with torch.no_grad():
        if kind == "sigmoid":
            exact = reference.sigmoid_reference(*arguments, sweep=True)
        else:
            exact = reference.softmax_reference(*arguments[:3])
    found = reference.errors(exact, loss.detach(), arguments)
    assert set(found) == {"value", "images", "texts", "scale", *(["bias"] if kind == "sigmoid" else [])}
    assert max(found.values()) <= 1e-6  # the head's numbers are float32

    arguments[1].grad[exact.rows[4], 3] *= 1.5
    assert reference.errors(exact, loss.detach(), arguments)["texts"] > 1e-3
