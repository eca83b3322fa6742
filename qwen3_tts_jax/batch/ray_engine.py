"""The batch job on a Ray cluster: Ray Data hands parts of the job to workers that hold the model. Needs ray[data].

Ray replaces a worker that is lost and gives its part to another. Results come to the process that called `run`, which
alone writes them.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from qwen3_tts_jax.audio import is_file_name
from qwen3_tts_jax.batch import speak
from qwen3_tts_jax.batch.plan import Task
from qwen3_tts_jax.batch.speak import JobError, Model, Result
from qwen3_tts_jax.config import GenerationConfig

_ROUNDS = 4
"""A part has this many times the batch size of tasks. If it is lost, all of them are made again."""

_LOSSES = 5
"""How often a part may lose its worker. Ray by itself would never give up on one that kills every worker."""


def connect(quiet: bool) -> None:
    """Joins the cluster of RAY_ADDRESS or of this machine, or starts one on this machine."""
    if not ray.is_initialized():
        before = signal.getsignal(signal.SIGTERM)
        ray.init(log_to_driver=not quiet, logging_level="warning")
        if threading.current_thread() is threading.main_thread():
            # Ray's own handler aborts the process, and with it what waits for the disk.
            signal.signal(signal.SIGTERM, before)
    ray.data.DataContext.get_current().enable_progress_bars = False


def gpus() -> int:
    """How many GPUs the cluster has."""
    return int(ray.cluster_resources().get("GPU", 0))


def run(
    load: Callable[[], Model],
    tasks: Sequence[Task],
    generation: GenerationConfig,
    batch_size: int,
    *,
    retries: int = 0,
    workers: int | None = None,
) -> Iterator[Result]:
    """Speaks tasks on the cluster and yields each result once, as `speak.run` does.

    Args:
        load: makes the model in a worker; files must have the same names there.
        tasks: see `speak.run`, like `generation`, `batch_size` and `retries`.
        generation: how codes are drawn.
        batch_size: the rows of every batch.
        retries: how often speech that was cut is made again.
        workers: how many; by default one per GPU, or one where there is none.

    Raises:
        JobError: there are fewer GPUs than workers, a worker failed in a way that would repeat, or not all
            results came back.
    """
    workers = workers or max(gpus(), 1)
    if 0 < gpus() < workers:
        raise JobError(f"the cluster has {gpus()} GPUs for {workers} workers")
    parts = [
        group[first : first + _ROUNDS * batch_size]
        for group in speak.schedule(map(_with_whole_path, tasks))
        for first in range(0, len(group), _ROUNDS * batch_size)
    ]
    rows = [{"tasks": pickle.dumps(part)} for part in parts]
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_args=(load, generation, batch_size, retries),
        batch_size=None,
        concurrency=workers,
        num_gpus=1 if gpus() else 0,
        max_task_retries=_LOSSES,
    )
    left = {task.id: task for task in tasks}
    try:
        for row in results.iter_rows():
            # Results that a lost worker had already sent come again with its part.
            task = left.pop(row["id"], None)
            if task is not None:
                yield Result(task, *pickle.loads(row["result"]))
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise JobError(f"a worker failed: {reason}") from error
    if left:
        raise JobError(f"{len(left)} items did not come back from the workers")


class _Worker:
    """Holds the model in one of Ray's processes."""

    def __init__(self, load: Callable[[], Model], *options: object):
        self._model, self._options = load(), options

    def __call__(self, rows: Mapping[str, np.ndarray]) -> Iterator[dict[str, list]]:
        generation, batch_size, retries = self._options
        for part in rows["tasks"]:
            for result in speak.run(self._model, pickle.loads(part), generation, batch_size, retries=retries):
                content = result.speech, result.reason, result.seed, result.tries
                yield {"id": [result.task.id], "result": [pickle.dumps(content)]}


def _with_whole_path(task: Task) -> Task:
    reference = task.reference
    if reference is None or not is_file_name(reference.source):
        return task
    return replace(task, reference=replace(reference, source=str(Path(reference.source).absolute())))
