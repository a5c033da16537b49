"""Rows through Ray with two workers, one of which is killed in between; prints what came out as JSON.

    python worker_ray.py FOLDER

FOLDER holds `model` and `rows.parquet` with `number` and `image`.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import ray
import ray.data

from modeling_siglip_ext.serving import BatchEmbedder


DEADLY = 17  # in the second batch of its block


class Mortal(BatchEmbedder):
    """Says which process loads the model, and kills it at a certain row, the first time that anybody sees that."""

    def load(self):
        if self.loaded is None:
            (Path(self.model).parent / f"loaded-{os.getpid()}").touch()
        return super().load()

    def __call__(self, batch):
        mark = Path(self.model).parent / "killed"
        if DEADLY in batch["number"] and not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)


def main(folder: Path) -> dict:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the paths of sockets may not be long
        options = {"include_dashboard": False, "object_store_memory": 100_000_000, "_temp_dir": short}
        # logical ones: of two, both workers would hold one each, and nobody could read
        ray.init(num_cpus=3, configure_logging=False, log_to_driver=False, **options)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.read_parquet(str(folder / "rows.parquet")).repartition(4)
        embedded = rows.map_batches(
            Mortal,
            fn_constructor_kwargs={"model": str(folder / "model"), "device": "cpu", "batch_size": 3, "workers": 1},
            batch_size=4,
            concurrency=2,
        )
        found = embedded.take_all()
        ray.shutdown()
    return {
        "rows": [[int(row["number"]), row["embedding"].tolist(), row["error"]] for row in found],
        "loaded": sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("loaded-*")),
        "killed": int((folder / "killed").read_text()),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
