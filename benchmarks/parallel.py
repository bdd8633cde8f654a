"""Training runs side by side, one thread each; finished ones are read back.

On two processors two runs of one thread each are as fast as one after the other with
two threads, and lose less to whatever else the machine does.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Iterable
from concurrent import futures
from typing import Any, Protocol


class Job(Protocol):
    """A run, described by data that a worker can be sent."""

    @property
    def folder(self) -> str:
        """Names the run's folder; equal names mean equal runs."""
        ...

    def run(self, out: pathlib.Path) -> dict[str, Any]:
        """Trains in a folder, or reads back what is there."""
        ...


@dataclasses.dataclass(frozen=True)
class Pool:
    """Where runs are kept, and how many go on at a time."""

    out: pathlib.Path
    jobs: int

    def finish(self, runs: Iterable[Job]) -> dict[Job, dict[str, Any]]:
        """Returns the result of every run, after the last one has ended."""
        wanted = list(dict.fromkeys(runs))
        context = multiprocessing.get_context("spawn")
        with context.Manager() as manager:
            processors = manager.Queue()
            for index in range(self.jobs):
                processors.put(index)
            with futures.ProcessPoolExecutor(
                self.jobs, context, initializer=_take, initargs=(processors,)
            ) as pool:
                started = {pool.submit(_finish, run, self.out): run for run in wanted}
                results = {}
                try:
                    for done in futures.as_completed(started):
                        run = started[done]
                        results[run], seconds = done.result()
                        print(
                            f"[{len(results)}/{len(wanted)}] {run.folder}:"
                            f" {results[run]['final_loss']:.4f}, {seconds:.0f} s",
                            flush=True,
                        )
                finally:
                    pool.shutdown(wait=False, cancel_futures=True)
        return {run: results[run] for run in wanted}


def log(folder: pathlib.Path, kind: str) -> list[dict[str, Any]]:
    """Reads the rows of one kind, "train" or "eval", from the log of a run."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def _take(processors: Any) -> None:
    """Keeps a worker on one processor; JAX then starts one thread."""
    index = processors.get()
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {mine[index % len(mine)]})


def _finish(run: Job, out: pathlib.Path) -> tuple[dict[str, Any], float]:
    begin = time.perf_counter()
    return run.run(out / run.folder), time.perf_counter() - begin
