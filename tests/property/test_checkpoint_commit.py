"""Any sequence of saves, crashes, damage and pruning leaves the newest whole checkpoint findable."""

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from transactions import transaction

from distllm.checkpoint.commit import recover
from distllm.checkpoint.format import list_checkpoints, newest_verified, step_path, verify
from distllm.checkpoint.retention import Retention, Summary, kept, prune
from distllm.errors import CheckpointError


class _FailureOnPurposeError(Exception):
    pass


class _Dead(BaseException):
    """The process died: whatever touches a file from now on does not happen, cleaning up included."""


class Death:
    """Lets the process die at its n-th operation on files from now on, until it is revived."""

    OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")

    def __init__(self):
        self.left = None
        sys.addaudithook(self._count)

    def _count(self, event, _arguments):
        if self.left is not None and event in self.OPERATIONS:
            self.left -= 1
            if self.left <= 0:
                raise _Dead

    def during(self, operation, work):
        """Do ``work``; return whether it came to its end before the process died."""
        self.left = operation
        try:
            work()
        except _Dead:
            return False
        finally:
            self.left = None
        return True


DEATH = Death()
RETENTION = st.builds(Retention, st.integers(1, 4), st.none() | st.integers(2, 5))


def _fail(directory, step, files_written):
    with transaction(directory, step) as files:
        for number in range(files_written):
            files.write(f"model-{number:05d}.safetensors", b"half")
        raise _FailureOnPurposeError


def verify_fails(path):
    try:
        verify(path)
    except CheckpointError:
        return True
    return False


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
        file = step_path(self.path, step) / name
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, len(content)))
        content[at : at + 1] = b"!" if at == len(content) else bytes([content[at] ^ 1])
        file.write_bytes(content)
        assert verify_fails(file.parent)
        del self.whole[step]
        self.damaged.add(step)

    @rule(step=st.integers(0, 12), content=st.binary(max_size=64), operation=st.integers(1, 20))
    def die_while_saving(self, step, content, operation):
        finished = DEATH.during(operation, lambda: self.save(step, content))
        recover(self.path)
        if finished:
            return
        file = step_path(self.path, step) / "model-00000.safetensors"
        if file.exists() and (step not in self.whole or file.read_bytes() == content != self.whole[step]):
            if step in self.damaged and verify_fails(file.parent):
                return
            verify(file.parent)
            self.whole[step] = content
            self.damaged.discard(step)

    @precondition(lambda self: self.whole)
    @rule(data=st.data(), content=st.binary(max_size=64), operation=st.integers(5, 12))
    def die_while_replacing(self, data, content, operation):
        """Between the two renames there is no checkpoint of this name, and the old one must come back."""
        self.die_while_saving(data.draw(st.sampled_from(sorted(self.whole))), content, operation)

    @rule(retention=RETENTION)
    def prune(self, retention):
        prune(self.path, retention)
        self._lose(self._doomed(retention))

    @rule(retention=RETENTION, operation=st.integers(1, 30))
    def die_while_pruning(self, retention, operation):
        doomed = self._doomed(retention)
        DEATH.during(operation, lambda: prune(self.path, retention))
        recover(self.path)
        self._lose({step for step in doomed if not step_path(self.path, step).exists()})

    def _doomed(self, retention):
        steps = sorted(self.whole.keys() | self.damaged, reverse=True)
        stays = kept([Summary(step_path(self.path, step), step) for step in steps], retention).keys()
        if not stays & self.whole.keys() and self.whole:
            stays |= {max(self.whole)}
        return set(steps) - stays

    def _lose(self, steps):
        self.whole = {step: content for step, content in self.whole.items() if step not in steps}
        self.damaged -= steps

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
