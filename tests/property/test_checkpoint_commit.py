"""Any sequence of saves, failures, damage and pruning leaves the newest whole checkpoint findable."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from distllm.checkpoint.commit import transaction
from distllm.checkpoint.format import list_checkpoints, newest_verified, step_path
from distllm.checkpoint.retention import Retention, prune
from distllm.errors import CheckpointError


class _FailureOnPurposeError(Exception):
    pass


def _fail(directory, step, files_written):
    with transaction(directory, step) as files:
        for number in range(files_written):
            files.write(f"model-{number:05d}.safetensors", b"half")
        raise _FailureOnPurposeError


class CheckpointDirectory(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.holder = tempfile.TemporaryDirectory()
        self.path = Path(self.holder.name)
        self.whole = {}
        self.damaged = set()
        self.ever = False

    def teardown(self):
        self.holder.cleanup()

    @rule(step=st.integers(0, 12), content=st.binary(max_size=64))
    def save(self, step, content):
        with transaction(self.path, step) as files:
            files.write("model-00000.safetensors", content)
        self.whole[step] = content
        self.damaged.discard(step)

    @rule(step=st.integers(0, 12), files_written=st.integers(0, 3))
    def fail_while_saving(self, step, files_written):
        with pytest.raises(_FailureOnPurposeError):
            _fail(self.path, step, files_written)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), name=st.sampled_from(["model-00000.safetensors", "manifest.json", "COMMITTED"]))
    def damage(self, data, name):
        step = data.draw(st.sampled_from(sorted(self.whole)))
        (step_path(self.path, step) / name).write_bytes(b"something else entirely, and longer than 64" * 2)
        del self.whole[step]
        self.damaged.add(step)

    @rule(keep_last=st.integers(1, 4))
    def prune(self, keep_last):
        prune(self.path, Retention(keep_last))
        stays = sorted(self.whole.keys() | self.damaged, reverse=True)[:keep_last]
        survivors = set(stays)
        if not survivors & self.whole.keys() and self.whole:
            survivors.add(max(self.whole))
        self.whole = {step: content for step, content in self.whole.items() if step in survivors}
        self.damaged &= survivors

    @rule()
    def resume(self):
        if not self.whole:
            self._resume_without_any()
            return
        info, damaged = newest_verified(self.path)
        assert info.step == max(self.whole)
        assert (info.path / "model-00000.safetensors").read_bytes() == self.whole[info.step]
        newer = {step for step in self.damaged if step > info.step}
        assert len(damaged) == len(newer)
        self.damaged -= newer
        self.ever = self.ever or bool(newer)

    def _resume_without_any(self):
        if self.damaged or self.ever:
            with pytest.raises(CheckpointError):
                newest_verified(self.path)
            self.ever, self.damaged = True, set()
        else:
            assert newest_verified(self.path) == (None, [])

    @invariant()
    def the_directory_holds_what_the_model_holds(self):
        steps = {int(path.name.removeprefix("step-")) for path in list_checkpoints(self.path)}
        assert steps == self.whole.keys() | self.damaged
        assert not list(self.path.glob("*.partial.*"))


CheckpointDirectory.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
TestCheckpointDirectory = CheckpointDirectory.TestCase
