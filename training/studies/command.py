"""`siglip-ext-train study NAME`: run what a study still lacks, and write its data, plot and table."""

import argparse
import os
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from modeling_siglip_ext.command_line import Subparsers, add_command, unknown_word

from .experiment import Settings, train_and_evaluate
from .paper import STUDIES
from .report import write_study_report
from .runs import Runs
from .study import Study


RUNS = "runs.jsonl"


def register(commands: Subparsers) -> None:
    listed = "; ".join(f"{study.name}: {study.summary}" for study in STUDIES.values())
    parser = add_command(
        commands,
        "study",
        run,
        summary="repeat a study of the SigLIP paper with small models on the bundled emoji",
        examples="A study that was stopped goes on where it was: finished runs are in OUTPUT_DIR/runs.jsonl.",
    )
    parser.add_argument("name", metavar="NAME", help=listed)
    parser.add_argument("--output_dir", type=Path, default=Path("studies"), help="where results are kept and written")
    parser.add_argument("--seeds", type=int, default=3, help="runs for each reported point")
    parser.add_argument("--workers", type=int, default=_cores(), help="runs at the same time, one thread each")
    parser.add_argument("--max_runs", type=int, default=None, help="stop after so many runs; the report is written")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an unknown study, or a number that makes no sense.
    """
    if arguments.name not in STUDIES:
        raise ValueError(unknown_word(arguments.name, STUDIES, "study"))
    if arguments.seeds < 1 or arguments.workers < 1:
        raise ValueError("--seeds and --workers must be at least 1")
    study, runs = STUDIES[arguments.name], Runs(arguments.output_dir / RUNS)
    missing = make_runs(study, runs, arguments.seeds, arguments.workers, arguments.max_runs)
    paths = write_study_report(study, runs, arguments.seeds, arguments.output_dir)
    print(f"{study.name}: {missing} runs to go; wrote {', '.join(map(str, paths))}")


def make_runs(study: Study, runs: Runs, seeds: int, workers: int, limit: int | None = None) -> int:
    """Run what is missing, at most `limit` runs. What a sweep chose is known only when it is finished, so the missing
    runs are asked for again after each.

    Returns:
        The number of runs that are still missing, as far as known.
    """
    started: set[Settings] = set()
    under_way: dict[Future, Settings] = {}
    # fork would take over the threads of torch
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool, tqdm(desc=study.name) as bar:
        while True:
            missing = [one for one in dict.fromkeys(study.wanted(runs, seeds)) if one not in runs]
            bar.total = bar.n + len(missing)
            bar.refresh()
            for one in missing:
                full = len(under_way) >= workers or (limit is not None and len(started) >= limit)
                if one not in started and not full:
                    started.add(one)
                    under_way[pool.submit(train_and_evaluate, one)] = one
            if not under_way:
                return len(missing)
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                runs.add(under_way.pop(future), future.result())
                bar.update()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
