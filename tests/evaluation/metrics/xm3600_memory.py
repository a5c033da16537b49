"""Run by test_retrieval.py: retrieval metrics on data of XM3600's shape; prints its peak memory in bytes."""

from pathlib import Path

import torch

from modeling_siglip_ext.evaluation.metrics.retrieval import retrieval_metrics


IMAGES, LANGUAGES, WIDTH = 3600, 36, 768

generator = torch.Generator().manual_seed(0)
images = torch.nn.functional.normalize(torch.randn(IMAGES, WIDTH, generator=generator), dim=-1)
owner = torch.arange(IMAGES).repeat_interleave(2)  # 261,375 captions are 2.02 an image and language
for language in range(LANGUAGES):
    noise = torch.randn(len(owner), WIDTH, generator=generator)
    texts = torch.nn.functional.normalize(noise + 12.0 * (language % 2) * images[owner], dim=-1)
    recall = retrieval_metrics(images, texts, owner)["text_to_image_recall@1"]
    assert recall < 0.01 if language % 2 == 0 else recall > 0.3, recall
# not ru_maxrss: it remembers the size of the process that started this one
status = Path("/proc/self/status").read_text()
print(int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024)
