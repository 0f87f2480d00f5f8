"""Where a job keeps things: file systems, room, secrets, images; what a chain of jobs is known as."""

import pytest

from distllm.cluster import places
from distllm.cluster.image import describe_image, image_facts
from distllm.cluster.jobs import job_of, jobs_of, note_begin, note_jobs, note_successor
from distllm.cluster.places import check_room, check_secrets, check_shared
from distllm.cluster.snapshot import keep_submission
from distllm.config.compose import compose
from distllm.config.problems import Problems
from distllm.config.resolve import World, resolve
from distllm.errors import ConfigError


def found(check, *arguments):
    problems = Problems()
    check(*arguments, problems)
    return problems.found


def test_a_directory_in_memory_is_no_place_for_a_run(tmp_path, monkeypatch):
    config = compose([f"data.out={tmp_path}/data"])
    monkeypatch.setattr(places, "filesystem_of", lambda path: "tmpfs" if path.name == "run" else "nfs4")
    (problem,) = found(check_shared, config, tmp_path / "run")
    assert "is on tmpfs, in the memory of this machine" in problem.cause
    assert problem.where == "runs_dir"
    assert not found(check_shared, compose(["data.out=s3://bucket/x"]), tmp_path / "elsewhere")


def test_two_checkpoints_must_fit(tmp_path, monkeypatch):
    config = compose(["data.seq_len=128", "train.tokens_per_step=4096", "train.max_steps=4"])
    resolved = resolve(config, world=World(1, 1, "test"), starts_here=False)
    size = resolved.trainable_params * 12
    monkeypatch.setattr(places, "free_bytes", lambda _: 3 * size)
    assert not found(check_room, resolved, tmp_path)
    monkeypatch.setattr(places, "free_bytes", lambda _: 2 * size)
    (problem,) = found(check_room, resolved, tmp_path)
    assert "two checkpoints of this run take" in problem.cause


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("cluster.env.WANDB_API_KEY=0123456789abcdef", "cluster.env.WANDB_API_KEY"),
        ("cluster.setup=['export HF_TOKEN=hf_abcdefghijklmnop1234']", "cluster.setup"),
        ("cluster.slurm.comment='password=hunter2hunter2'", "cluster.slurm.comment"),
    ],
)
def test_secrets_stay_out_of_job_scripts(override, where):
    (problem,) = found(check_secrets, compose([override]))
    assert problem.where == where
    assert "looks like a secret" in problem.cause
    assert "hunter2" not in problem.cause
    assert "hf_abc" not in problem.cause
    assert not found(check_secrets, compose(["cluster=slurm-efa", "cluster.setup=['module load cuda']"]))


def kept(tmp_path, image):
    config = compose(["cluster.container.kind=apptainer", f"cluster.container.image='{image}'"])
    return keep_submission(tmp_path / "run", [], "x: 1\n", None, code=tmp_path, facts=image_facts(config))


def test_an_image_is_the_one_that_was_submitted(tmp_path):
    image = tmp_path / "x.sif"
    image.write_bytes(b"an image")
    submission = kept(tmp_path, image)
    assert "digest" in describe_image(submission)
    image.write_bytes(b"an image")  # another time of change, the same content
    assert "digest" in describe_image(submission)
    image.write_bytes(b"another!")
    with pytest.raises(ConfigError, match="not the one that was submitted"):
        describe_image(submission)
    image.unlink()
    with pytest.raises(ConfigError, match="not the one that was submitted"):
        describe_image(submission)


def test_an_address_of_a_registry_is_told_and_no_container_is_nothing(tmp_path):
    assert "nvcr.io#nvidia/pytorch:26.01" in describe_image(kept(tmp_path, "nvcr.io#nvidia/pytorch:26.01"))
    assert image_facts(compose([])) == {}
    plain = keep_submission(tmp_path / "run", [], "x: 1\n", None, code=tmp_path)
    assert describe_image(plain) is None


def test_a_chain_is_known_as_a_whole_and_shrinks_as_it_goes(tmp_path):
    assert jobs_of(tmp_path) == []
    assert job_of(tmp_path) is None
    note_jobs(tmp_path, ["1", "2", "3"])
    note_begin(tmp_path, "1")
    assert jobs_of(tmp_path) == ["1", "2", "3"]
    note_successor(tmp_path, "9")  # another job takes the place of the first one
    assert jobs_of(tmp_path) == ["9", "2", "3"]
    note_begin(tmp_path, "2")
    assert jobs_of(tmp_path) == ["2", "3"]
    note_begin(tmp_path, "77")  # one that was submitted by hand
    assert jobs_of(tmp_path) == ["77"]
