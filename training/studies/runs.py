"""Results of runs by their settings, one JSON line each, in a file that survives being killed."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .experiment import Settings


class Runs:
    """Finished runs of all studies of one experiment; a run that two studies need is made once.

    Args:
        path: file with a JSON line for each run; need not exist. A last line that was cut off is passed over.
        kind: the dataclass of the experiment's settings.

    Raises:
        ValueError: a run with other settings is there, of another version perhaps.
    """

    def __init__(self, path: str | Path, kind: type = Settings):
        self.path = Path(path)
        self.figures: dict[Any, dict[str, float]] = {}
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the process was killed while it wrote this line: that run is made again
                try:
                    self.figures[kind(**entry["settings"])] = entry["figures"]
                except (TypeError, KeyError) as error:
                    raise ValueError(
                        f"{self.path} has a run that is none of this experiment ({error}): choose another folder"
                    ) from error

    def __contains__(self, settings: Any) -> bool:
        return settings in self.figures

    def add(self, settings: Any, figures: dict[str, float]) -> None:
        """Keep a result, on disk when this returns."""
        self.figures[settings] = figures
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"settings": asdict(settings), "figures": figures}) + "\n"
        with open(self.path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line  # after a line that was cut off
            file.write(line.encode())  # a single write, at the end of the file whoever else has written
            file.flush()
            os.fsync(file.fileno())

    def values(self, settings: Iterable[Any], figure: str) -> list[float]:
        """One figure of those runs that are finished."""
        return [self.figures[one][figure] for one in settings if one in self.figures]
