"""Checkpoints written by one process, through the same steps as those of several ranks."""

from contextlib import contextmanager

from distllm.checkpoint.commit import Files, abandon, begin, commit, write_errors


@contextmanager
def transaction(directory, step):
    """Write the checkpoint of ``step`` alone; it exists if and only if the block succeeds."""
    partial = begin(directory, step)
    try:
        with write_errors(directory, step):
            files = Files(partial)
            yield files
        commit(partial, directory, step, files.records)
    except BaseException:
        abandon(partial)
        raise
