"""One piece of work at a time, in the background of the training. Imports no torch.

A thread and not a process: writing, flushing and digesting large buffers all let go of the
interpreter, the snapshot need not be copied once more into another process, and forking a process
that holds threads of gloo or NCCL is not safe. The thread outlives an error of the main thread, so
a write that has begun ends; a kill ends both, and the commit protocol takes care of that.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Background:
    """Runs one job at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin ``job``.

        Raises:
            ValueError: the result of the one before was not taken yet.
        """
        if self._job is not None:
            raise ValueError("a job is still going on")
        self._job = self._thread.submit(job)

    def start_here(self, job: Callable[[], None]) -> None:
        """Do ``job`` before returning, in this thread; `result` says how it went all the same."""
        if self._job is not None:
            raise ValueError("a job is still going on")
        self._job = Future()
        try:
            job()
        except Exception as error:
            self._job.set_exception(error)
        else:
            self._job.set_result(None)

    @property
    def done(self) -> bool:
        """Whether a job has ended whose result was not taken yet."""
        return self._job is not None and self._job.done()

    @property
    def idle(self) -> bool:
        """Whether there is no job, or its result was taken."""
        return self._job is None

    def wait(self, seconds: float) -> bool:
        """Wait for the job, at most so long; return whether it has ended."""
        return self._job is None or bool(wait([self._job], timeout=seconds).done)

    def result(self) -> None:
        """Wait for the job and forget it; raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
