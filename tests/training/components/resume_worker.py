"""Train a tiny float64 model for some steps, on its own or by torchrun, and note which examples made each batch.

Usage: resume_worker.py FOLDER STEPS KIND [CHECKPOINT]

KIND is "map", "stream", or "judged": a map-style dataset, evaluated, with a broken image.
`FOLDER/batches_RANK.json` has the names of the examples of each step of this process,
`FOLDER/final.safetensors` the weights, their average, and the logged losses.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file

from modeling_siglip_ext import (
    SiglipExtConfig,
    SiglipExtImageProcessor,
    SiglipExtModel,
    SiglipExtProcessor,
    train_tokenizer,
)
from modeling_siglip_ext.inputs import undecoded
from modeling_siglip_ext.training import (
    ImageTextCollator,
    ImageTextDataset,
    ImageTextStream,
)
from support.images import colour
from support.workers import RESUMED, logged, parameters, quick_arguments, recording


ROWS, GLOBAL_BATCH = 43, 8  # 5 batches an epoch, and a rest that is dropped


# the names of the examples of each step
Recorder = recording(lambda trainer, inputs: [trainer.state.global_step, *inputs["samples"]["names"]])


class Rows:
    """A source of a stream."""

    def rows(self, part: int, parts: int, order: int):
        for number in range(part, ROWS, parts):
            yield f"row {number}", {"image": colour(number), "caption": f"colour {number}"}


def main(folder: Path, steps: int, kind: str, checkpoint: str | None) -> None:
    torch.manual_seed(0)
    texts = [f"colour {number}" for number in range(ROWS)]
    tokenizer = train_tokenizer(texts, vocab_size=300, max_length=12)
    processor = SiglipExtProcessor(SiglipExtImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    width = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**width, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    config = SiglipExtConfig(vision_config={**width, "image_size": 16, "patch_size": 8}, text_config=text)
    rows = Dataset.from_dict({"image": [colour(n) for n in range(ROWS)], "caption": [[t, f"a {t}"] for t in texts]})
    settings = {"image_processor": processor.image_processor}
    judged = {"eval_strategy": "steps", "eval_steps": 3} if kind == "judged" else {}
    broken = [
        {"path": None, "bytes": b"no image"} if n == 5 else row
        for n, row in enumerate(undecoded(rows, "image")["image"])
    ]
    held_out = Dataset.from_dict({"image": broken, "caption": rows["caption"]})
    trainer = Recorder(
        model=SiglipExtModel(config).double(),
        args=quick_arguments(folder, GLOBAL_BATCH, max_steps=steps, mini_batch_size=2, **RESUMED, **judged),
        eval_dataset=ImageTextDataset(held_out, max_bad_fraction=0.1) if judged else None,
        train_dataset=ImageTextStream(Rows(), **settings) if kind == "stream" else ImageTextDataset(rows, **settings),
        data_collator=ImageTextCollator(processor, uint8=True),
        processing_class=processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    (folder / f"batches_{trainer.args.process_index}.json").write_text(json.dumps(trainer.batches))
    if judged:
        assert len(trainer.eval_dataset.rows) == ROWS - 1
        assert 5 not in trainer.eval_dataset.rows
        assert [entry["eval_loss_pairs"] for entry in trainer.state.log_history if "eval_loss" in entry] == [ROWS - 1]
    if trainer.is_world_process_zero():
        save_file({**parameters(trainer), "losses": logged(trainer, "loss")}, folder / "final.safetensors")
    trainer.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
