"""`siglip-ext-train study NAME`: run what a study still lacks, and write its data, plot and table."""

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from modeling_siglip_ext.command_line import Subparsers, add_command, unknown_word
from modeling_siglip_ext.files import check_output_dir

from . import paper
from .report import write_study_report
from .runs import Runs
from .scenes import studies as scenes
from .study import Experiment, Study


STUDIES = paper.STUDIES | scenes.STUDIES


def register(commands: Subparsers) -> None:
    listed = "; ".join(f"{study.name}: {study.summary}" for study in STUDIES.values())
    parser = add_command(
        commands,
        "study",
        run,
        summary="repeat a study of the SigLIP or the SigLIP 2 paper with small models on emoji",
        examples="A study that was stopped goes on where it was: finished runs are in OUTPUT_DIR.",
    )
    parser.add_argument("name", metavar="NAME", nargs="+", help=listed)
    parser.add_argument("--output_dir", type=Path, default=Path("studies"), help="where results are kept and written")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each reported point")
    parser.add_argument("--workers", type=int, default=_cores(), help="runs at the same time, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu, or an accelerator, which the runs share")
    parser.add_argument("--max_runs", type=int, default=None, help="stop after so many runs; the report is written")
    parser.add_argument("--max_seconds", type=float, default=None, help="start no run after so long")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        OSError: nothing can be written in the output folder.
        ValueError: an unknown study, studies of different experiments, a setting that makes no sense, or runs of
            another experiment in the output folder.
        RuntimeError: a run failed; the others were made, and the report is written.
    """
    for name in arguments.name:
        if name not in STUDIES:
            raise ValueError(unknown_word(name, STUDIES, "study"))
    studies = [STUDIES[name] for name in dict.fromkeys(arguments.name)]
    experiment = studies[0].experiment
    if any(study.experiment is not experiment for study in studies):
        raise ValueError(f"{' and '.join(arguments.name)} train on different data: start one after the other")
    if arguments.seeds < 1 or arguments.workers < 1:
        raise ValueError("--seeds and --workers must be at least 1")
    for name, limit in (("max_runs", arguments.max_runs), ("max_seconds", arguments.max_seconds)):
        if limit is not None and not limit >= 0:
            raise ValueError(f"--{name} must not be negative, got {limit}")
    check_output_dir(str(arguments.output_dir), "--output_dir")
    usable = devices(experiment)
    if arguments.device.partition(":")[0] not in usable:
        raise ValueError(f"--device {arguments.device}: here these runs can be made on {' or '.join(usable)}")
    runs = Runs(arguments.output_dir / experiment.file, experiment.settings)
    limits = Limits(arguments.max_runs, arguments.max_seconds)
    left, failed = make_runs(studies, runs, arguments.seeds, arguments.workers, arguments.device, limits)
    for study in studies:
        paths = write_study_report(study, runs, arguments.seeds, arguments.output_dir)
        print(f"{study.name}: wrote {', '.join(map(str, paths))}")
    print(f"{left} runs to go")
    if failed:
        raise RuntimeError(f"{len(failed)} runs failed, the first with: {failed[0]!r}")


def devices(experiment: Experiment) -> list[str]:
    """Kinds of devices that runs can be made on here."""
    accelerator = torch.accelerator.current_accelerator(check_available=True) if experiment.accelerated else None
    return ["cpu"] if accelerator is None else ["cpu", accelerator.type]


@dataclass(frozen=True)
class Limits:
    """After how many runs, and how many seconds, no run is started any more."""

    runs: int | None = None
    seconds: float | None = None


def make_runs(
    studies: Sequence[Study], runs: Runs, seeds: int, workers: int, device: str = "cpu", limits: Limits = Limits()
) -> tuple[int, list[BaseException]]:
    """Run what studies of one experiment lack. What a sweep chose is known only when it is finished, so the missing
    runs are asked for again after each. A run that fails does not stop the others.

    Returns:
        The number of runs that are still missing, as far as known, and what failed.
    """
    began, experiment = time.monotonic(), studies[0].experiment
    started: set[Any] = set()
    prepared: set[tuple] = set()
    failed: list[BaseException] = []
    under_way: dict[Future, Any] = {}
    # fork would take over the threads of torch
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, tqdm(desc=studies[0].name) as bar:
        while True:
            wanted = dict.fromkeys(one for study in studies for one in study.wanted(runs, seeds))
            missing = [one for one in wanted if one not in runs]
            bar.total = bar.n + len(missing)
            bar.refresh()
            late = limits.seconds is not None and time.monotonic() - began > limits.seconds
            new = [one for one in missing if one not in started]
            new = [] if late else new[: None if limits.runs is None else limits.runs - len(started)]
            needs = dict.fromkeys(need for one in new for need in experiment.needs(one))
            if experiment.prepare is not None:
                list(pool.map(experiment.prepare, *zip(*(need for need in needs if need not in prepared))))
                prepared.update(needs)
            for one in new[: workers - len(under_way)]:
                started.add(one)
                under_way[pool.submit(experiment.run, one, device)] = one
            if not under_way:
                return len(missing), failed
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                one, error = under_way.pop(future), future.exception()
                if error is None:
                    runs.add(one, future.result())
                else:
                    failed.append(error)
                    bar.write(f"failed: {one}: {error!r}")
                bar.update()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
