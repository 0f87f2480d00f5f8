"""One job at a time, in the background of training. Imports no torch.

It is a thread, not a process: writing, flushing and hashing large buffers release the interpreter lock, the
state need not be copied again for another process, and forking a process with threads of gloo or NCCL is
not safe. The thread survives an error of the main thread, so a write that has begun is finished; a kill
ends both, and the commit protocol handles that.
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
            ValueError: the result of the previous job was not taken yet.
        """
        if self._job is not None:
            raise ValueError("a job is still going on")
        self._job = self._thread.submit(job)

    def start_here(self, job: Callable[[], None]) -> None:
        """Run ``job`` in this thread before returning; `result` returns or raises as for `start`."""
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
        """Wait for the job, at most ``seconds``; return whether it has ended."""
        return self._job is None or bool(wait([self._job], timeout=seconds).done)

    def result(self) -> None:
        """Wait for the job and forget it; raise what it raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
