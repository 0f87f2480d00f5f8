"""What `distllm why` makes of logs as they really look."""

import os
from pathlib import Path

import pytest

from distllm.cluster.diagnose import CAUSES, classify, first_error, tail

LOGS = {
    "out of GPU memory": """
 12/400     6.1k    5.1736  5.64e-04     1.3332    3.62k    3.3%    1.2%  420.8 MiB       2.0s
Traceback (most recent call last):
  File "/runs/a/slurm/submissions/001/code/distllm/launch/train.py", line 31, in <module>
    leave(main(["train", *sys.argv[1:]]))
  File "/runs/a/slurm/submissions/001/code/distllm/ops/mlp.py", line 40, in forward
    return self.down(silu(self.gate(x_BTD)) * self.up(x_BTD))
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 3 has a total capacity of 79.1 GiB
""",
    "out of memory": """
slurmstepd: error: Detected 1 oom-kill event(s) in StepId=81.0. Some of the step tasks have been OOM Killed.
""",
    "no space on the disk": """
distllm: no space left while writing /runs/a/checkpoints/step-000000100.partial.n1-41-0badcafe/model-00000
  where:  /runs/a/checkpoints
  remedy: free disk space or point the path at another disk, then run the same command again
""",
    "a collective timed out": """
Traceback (most recent call last):
  File "/code/distllm/dist/collectives.py", line 20, in sum_over_ranks
    torch.distributed.all_reduce(tensor)
RuntimeError: [../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 60000ms for recv operation
""",
    "damaged data": """
Traceback (most recent call last):
  File "/code/distllm/data/shards/verify.py", line 77, in check
    raise DataError(f"a block of {path} is damaged", where=str(path))
distllm.errors.DataError: a block of /data/web/train/shard-00003.tar is damaged
""",
    "the configuration": """
distllm: 2 problems in the configuration:
1. unknown key 'optim.lrr'
  where:  optim.lrr
  remedy: did you mean 'optim.lr'?
2. train.max_steps='abc': 'abc' is not a count such as 4096, 1.5M or 2B
""",
    "a GPU failed": """
Traceback (most recent call last):
  File "/code/distllm/train/loop.py", line 131, in train_step
    run.engine.backward(batch_loss / weight)
RuntimeError: CUDA error: uncorrectable ECC error encountered
""",
    "a module is missing": """
Traceback (most recent call last):
  File "/code/distllm/dist/deepspeed.py", line 9, in <module>
    import deepspeed
ImportError: libcudart.so.13: cannot open shared object file: No such file or directory
""",
    "a peer was lost": """
Traceback (most recent call last):
  File "/code/distllm/dist/collectives.py", line 20, in sum_over_ranks
    torch.distributed.all_reduce(tensor)
RuntimeError: [../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.77.0.2]:38018
""",
    "a rank was killed": """
 12/400     6.1k    5.1736  5.64e-04     1.3332    3.62k    3.3%    1.2%  420.8 MiB       2.0s
srun: error: n2: task 1: Killed
""",
}


def write(directory, rank, text, age=0):
    path = directory / f"rank-{rank}.log"
    path.write_text(text)
    stat = path.stat()
    os.utime(path, (stat.st_atime - age, stat.st_mtime - age))
    return path


@pytest.mark.parametrize("cause", LOGS)
def test_cause_of_a_real_log(tmp_path, cause):
    path = write(tmp_path, 3, LOGS[cause])
    found = first_error(tmp_path)
    assert (found.rank, found.cause, found.log) == (3, cause, path)
    assert found.remedy == next(remedy for name, _, remedy in CAUSES if name == cause)
    assert len(found.excerpt.splitlines()) <= 8


def test_every_cause_has_a_log_here():
    assert set(LOGS) == {cause for cause, _, _ in CAUSES}
    assert all(remedy for _, _, remedy in CAUSES)


def test_a_consequence_never_hides_the_cause_even_if_it_was_logged_first(tmp_path):
    write(tmp_path, 0, LOGS["a peer was lost"], age=60)
    write(tmp_path, 1, LOGS["a peer was lost"], age=30)
    write(tmp_path, 2, LOGS["a GPU failed"])
    assert first_error(tmp_path).rank == 2


def test_of_two_errors_of_their_own_the_earlier_counts(tmp_path):
    write(tmp_path, 0, LOGS["a GPU failed"])
    write(tmp_path, 5, LOGS["no space on the disk"], age=60)
    assert first_error(tmp_path).rank == 5


def test_the_first_of_several_messages_in_a_log_counts(tmp_path):
    write(tmp_path, 0, LOGS["the configuration"] + LOGS["a peer was lost"])
    assert first_error(tmp_path).cause == "the configuration"


def test_logs_without_an_error(tmp_path):
    stopped = "distllm: asked to stop: the time limit is near: saved and ended at step 2\n  where:  /runs/a\n"
    write(tmp_path, 0, f"step 1\nstep 2\n{stopped}")
    (tmp_path / "exits").mkdir()
    assert first_error(tmp_path) is None


def test_bytes_that_are_no_text_do_not_matter(tmp_path):
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"\xff\xfe\x00" + LOGS["out of memory"].encode())
    assert first_error(tmp_path).cause == "out of memory"


def test_an_unknown_error_is_shown_as_it_is(tmp_path):
    write(tmp_path, 0, "Traceback (most recent call last):\n  File x\nZeroDivisionError: division by zero\n")
    found = first_error(tmp_path)
    assert found.cause == "an error"
    assert "ZeroDivisionError" in found.excerpt
    assert classify("ZeroDivisionError") == ("an error", "read the log")


def test_only_the_end_of_a_long_log_is_read(tmp_path):
    write(tmp_path, 0, LOGS["a GPU failed"] + "x" * 80 + "\n" * 2**19)
    assert first_error(tmp_path) is None


def test_tail(tmp_path):
    path = Path(tmp_path / "log")
    assert tail(path) == ()
    path.write_text("".join(f"{number}\n" for number in range(30)))
    assert tail(path, 2) == ["28", "29"]
