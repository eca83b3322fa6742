"""The thread that writes results while the model makes others."""

from __future__ import annotations

from queue import Queue
from threading import Thread
from typing import TYPE_CHECKING, Self

from qwen3_tts_jax.batch.folder import MOST_WAITING, JobFolder

if TYPE_CHECKING:
    from qwen3_tts_jax.batch.speak import Result


class Writer:
    """Writes results into a folder while others are made; a context manager that has written all of them at its end.

    Its methods raise what `JobFolder.add` raised, a FolderError, as soon as it is known.
    """

    def __init__(self, job: JobFolder):
        self._job = job
        self._waiting: Queue[Result | None] = Queue(MOST_WAITING)
        self._error: Exception | None = None
        self._thread = Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()
        if error_type is None and self._error is not None:
            raise self._error

    def put(self, result: Result) -> None:
        """Takes a result to write; waits if the disk is slower than the model."""
        if self._error is not None:
            raise self._error
        self._waiting.put(result)

    def _work(self) -> None:
        more = True
        while more:
            results = [self._waiting.get()]
            while len(results) < MOST_WAITING and not self._waiting.empty():
                results.append(self._waiting.get())
            more = results[-1] is not None
            try:
                if self._error is None:
                    self._job.add([result for result in results if result is not None])
            except Exception as error:
                self._error = error
