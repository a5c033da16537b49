"""The launch lines of the README, with XLA:CPU devices in place of chips."""

import os
import subprocess
import sys
from pathlib import Path

from datasets import Dataset
from PIL import Image


SMOKE = ["siglip_b16", "--smoke", "--use_cpu", "false", "--max_steps", "2"]


def command(folder: Path, *words: str, devices: int = 1) -> str:
    environment = os.environ | {
        "PJRT_DEVICE": "CPU",
        "CPU_NUM_DEVICES": str(devices),
        "XLA_THREAD_POOL_SIZE": "16",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def test_training_under_spmd_and_evaluation_on_the_device(tmp_path):
    spmd = ["--xla_spmd", "true", "--bf16", "true", "--output_dir", "model"]
    command(tmp_path, "modeling_siglip_ext.training", *SMOKE, *spmd, devices=4)
    colours = [(i * 16, 255 - i * 16, 90) for i in range(16)]
    rows = {
        "image": [Image.new("RGB", (32, 32), c) for c in colours],
        "caption": [f"a {r} {g}" for r, g, _ in colours],
    }
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "captions.parquet"))
    evaluate = ["retrieval", "--model", "model", "--dataset", "captions.parquet", "--device", "xla"]
    assert "retrieval" in command(tmp_path, "modeling_siglip_ext.evaluation", *evaluate)


def test_training_by_accelerate(tmp_path):
    launch = ["--tpu", "--num_processes", "1", "--main_training_function", "main"]
    train = ["-m", "modeling_siglip_ext.training.__main__", *SMOKE, "--output_dir", "model"]
    command(tmp_path, "accelerate.commands.launch", *launch, *train)
    assert (tmp_path / "model" / "model.safetensors").is_file()
