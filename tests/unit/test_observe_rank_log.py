"""A rank's file holds what it printed and why it ended, and its loss costs nothing else."""

import errno
import sys

import pytest

from distllm.errors import DataError
from distllm.observe.rank_log import RankLog, log_path


def read(tmp_path, rank=3):
    return log_path(tmp_path, rank).read_text().splitlines()


def test_what_is_printed_goes_to_both_until_it_is_closed(tmp_path, capsys):
    before = sys.stdout, sys.stderr
    for attempt in (1, 2):
        log = RankLog(tmp_path, 3, 8, attempt)
        print(f"out {attempt}")
        print("err", file=sys.stderr)
        log.close()
        assert (sys.stdout, sys.stderr) == before
        print("later")
    printed = capsys.readouterr()
    assert printed.out == "out 1\nlater\nout 2\nlater\n"
    lines = read(tmp_path)
    assert [line for line in lines if not line.startswith("==")] == [
        "out 1",
        "err",
        "out 2",
        "err",
    ]
    assert "attempt 1, rank 3 of 8, pid" in lines[0]
    assert "attempt 2" in lines[3]


def test_the_reason_of_the_end_is_noted_without_secrets_and_with_a_trace(tmp_path, capsys):
    log = RankLog(tmp_path, 3, 8, 1)
    log.log_error(DataError("https://user:hunter2@host is damaged", where="x", remedy="y"))
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError as error:
        log.log_error(error)
    log.close()
    text = "\n".join(read(tmp_path))
    assert "the attempt ends with DataError: https://" in text
    assert "remedy: y" in text
    assert "hunter2" not in text
    assert "Traceback" in text
    assert "ZeroDivisionError: oh" in text
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


def test_a_full_disk_is_told_once_and_printing_goes_on(tmp_path, capsys):
    log = RankLog(tmp_path, 3, 8, 1)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            raise AssertionError("it was given up")

    log._log._file.close()
    log._log._file = Full()
    print("one")
    print("two")
    log.close()
    printed = capsys.readouterr()
    assert printed.out == "one\ntwo\n"
    assert printed.err.count("is no longer written") == 1
    assert "No space left" in printed.err


def test_a_place_that_cannot_be_written_is_told(tmp_path, capsys):
    (tmp_path / "logs").write_text("a file")
    log = RankLog(tmp_path, 0, 1, 1)
    print("shown")
    log.close()
    printed = capsys.readouterr()
    assert printed.out == "shown\n"
    assert "is no longer written" in printed.err


def test_streams_that_others_took_meanwhile_are_left_to_them(tmp_path, monkeypatch):
    log = RankLog(tmp_path, 0, 1, 1)
    theirs = log._before[0]
    monkeypatch.setattr(sys, "stdout", theirs)
    log.close()
    assert sys.stdout is theirs
    monkeypatch.setattr(sys, "stderr", log._before[1])


@pytest.mark.parametrize("rank", [0, 12345])
def test_files_are_named_by_rank(tmp_path, rank):
    assert log_path(tmp_path, rank).name == f"rank-{rank:05d}.log"
