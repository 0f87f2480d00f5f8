import pytest
from wandb.proto import wandb_internal_pb2 as schema

from distllm.observe import wandb_file
from distllm.observe.wandb_file import end_file, highest_shown

HEADER = b":W&B\xe1\xbe\x00"


def row(step, name, size=0):
    record = schema.Record(num=step)
    for key, value in ((["trainer/step"], str(step)), ([name], "1" + "0" * size)):
        record.history.item.add(nested_key=key, value_json=value)
    return record


def write(path, records):
    content = HEADER
    for record in records:
        content += wandb_file._in_pieces(record.SerializeToString(), len(content))
    path.write_bytes(content)
    return content


def exits(path):
    return [record.exit.exit_code for _, record in wandb_file._read(path) if record.HasField("exit")]


RUN = schema.Record(num=1, run=schema.RunRecord(run_id="a1"))
ROWS = [
    RUN,
    row(1, "train/lr"), row(1, "eval/causal_lm/loss"), row(2, "train/lr", 70_000), row(2, "eval/samples"),
    row(3, "perf/mfu"), row(3, "train/lr"),
]  # fmt: skip


def test_the_highest_steps_of_each_kind_are_read_over_borders_of_blocks(tmp_path):
    path = tmp_path / "run.wandb"
    assert len(write(path, ROWS)) > 2 * (1 << 15)
    assert highest_shown(path) == {"step": 3, "eval": 1, "sample": 2}


@pytest.mark.parametrize("lost", [0, 1, 20, 40, 200, 35_000])
def test_a_torn_file_keeps_its_whole_records_and_ends_once(tmp_path, lost):
    path = tmp_path / "run.wandb"
    content = write(path, ROWS)
    path.write_bytes(content[: len(content) - lost])
    before = [record for _, record in wandb_file._read(path)]
    assert (len(before) == len(ROWS)) == (lost == 0)
    assert end_file(path, exit_code=1)
    once = path.read_bytes()
    end_file(path, exit_code=1)
    assert path.read_bytes() == once
    assert [record for _, record in wandb_file._read(path)][:-1] == before
    assert exits(path) == [1]


@pytest.mark.parametrize("size", range(32_680, 32_760, 3))
def test_an_end_fits_wherever_a_block_ends(tmp_path, size):
    path = tmp_path / "run.wandb"
    before = len(write(path, [RUN]))
    write(path, [RUN, row(1, "train/lr", size - before - 60)])
    end_file(path, exit_code=1)
    assert exits(path) == [1]
    assert highest_shown(path) == {"step": 1}


@pytest.mark.parametrize("content", [b"", HEADER, HEADER + b"half a record"])
def test_a_file_that_holds_no_run_is_left_as_it_is(tmp_path, content):
    path = tmp_path / "run.wandb"
    path.write_bytes(content)
    assert not end_file(path, exit_code=1)
    assert path.read_bytes() == content
