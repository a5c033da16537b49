"""`torch_compile` in the Trainer: the same losses, a graph without a break, nothing compiled after the first step."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from support.runs import make_run


class CompiledOnce(TrainerCallback):
    """From the second step on, whatever would be compiled is an error."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch._dynamo.config.error_on_recompile = state.global_step > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "graphs"), [("uint8", 1), ("checkpointing", 1), ("chunks", 2), ("captioning", 1), ("bfloat16", 1)]
)
def test_one_graph_for_all_steps(kind, graphs, tmp_path):
    """Without the generated kernels. The gradient cache has a graph for each of its two passes."""

    def run(**settings) -> list[float]:
        torch.manual_seed(0)
        quiet = {"use_cpu": True, "dataloader_pin_memory": False, "max_steps": 4, "logging_steps": 1}
        trainer = make_run(kind, tmp_path / f"{len(settings)}", **quiet, **settings)
        if settings:
            trainer.add_callback(CompiledOnce())
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=False):
        found = run(torch_compile=True, torch_compile_backend="aot_eager")
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
    assert found == pytest.approx(run(), rel=1e-2 if kind == "bfloat16" else 1e-4)
