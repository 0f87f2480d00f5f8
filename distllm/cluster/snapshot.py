"""What a queued job runs: a copy of this package and of the configuration, made at submission.

Later edits of the checkout, or of a directory of configuration groups, do not change queued jobs.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distllm
from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.validate import build
from distllm.config.yaml import from_yaml
from distllm.errors import ConfigError
from distllm.fsio import atomic_write_json, atomic_write_text, digest_bytes, read_json, storage_errors

SUBMISSIONS = Path("slurm") / "submissions"
SETTLED_VARIABLE = "DISTLLM_SETTLED"
"""Environment variable with the file of the configuration that the ranks' own must be equal to."""
_FACTS, _CONFIG, CODE, SCRIPT, _GROUPS, CODE_ORIGIN = (
    "submission.json", "config.yaml", "code", "job.sbatch", "groups", "origin.json",
)  # fmt: skip
_NUMBER = re.compile(r"\d{3,}")


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as it was submitted.

    Attributes:
        path: ``RUN/slurm/submissions/001``.
        words: overrides and flags of the ranks' command line.
        code: directory that holds the copy of this package.
        directory: the working directory of the ranks.
    """

    path: Path
    words: tuple[str, ...]
    code: Path
    directory: Path

    @property
    def run_dir(self) -> Path:
        """The run directory."""
        return self.path.parents[2]

    @property
    def script(self) -> Path:
        """The script that was submitted."""
        return self.path / SCRIPT

    @property
    def config_file(self) -> Path:
        """The composed configuration."""
        return self.path / _CONFIG

    def config(self) -> Config:
        """Read the configuration.

        Raises:
            ConfigProblems: another version wrote it.
        """
        problems = Problems()
        config = build(Config, from_yaml(self.config_file), problems)
        problems.raise_if_any()
        return config

    def facts(self) -> dict[str, Any]:
        """Return what was recorded at submission: command, time, host, image."""
        return dict(read_json(self.path / _FACTS))

    @classmethod
    def load(cls, path: Path) -> Submission:
        """Open a submission.

        Raises:
            IntegrityError: there is none.
        """
        facts = read_json(path / _FACTS)
        return cls(path, tuple(facts["words"]), Path(facts["code"]), Path(facts["directory"]))


def is_submission(path: str) -> bool:
    """Whether ``path`` is the directory of a submission."""
    return (Path(path) / _FACTS).is_file()


def submissions_of(run_dir: Path) -> list[Path]:
    """Return the directories of a run's submissions, oldest first."""
    home = run_dir / SUBMISSIONS
    found = [path for path in home.glob("*") if _NUMBER.fullmatch(path.name)] if home.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def keep_submission(
    run_dir: Path,
    words: Sequence[str],
    config_yaml: str,
    config_dir: Path | None,
    *,
    code: Path | None = None,
    facts: dict[str, Any] | None = None,
) -> Submission:
    """Store what a job will run as a new submission.

    Args:
        run_dir: the run directory.
        words: the overrides of the ranks' command line.
        config_yaml: the composed configuration.
        config_dir: a user's directory of groups, which is copied.
        code: a copy of this package that another submission has made; None makes one.
        facts: further facts to record.

    Raises:
        StorageError: the run directory cannot be written.
    """
    path = _own_directory(run_dir.absolute())
    with storage_errors(path):
        if config_dir is not None:
            shutil.copytree(config_dir, path / _GROUPS)
            words = [*words, "--config-dir", str(path / _GROUPS)]
        if code is None:
            code = path / CODE
            _copy_package(code)
    atomic_write_text(path / _CONFIG, config_yaml)
    content = {
        "words": list(words),
        "code": str(code),
        "directory": str(Path.cwd()),
        "time": time.time(),
        "host": platform.node(),
        "python": sys.executable,
        **(facts or {}),
    }
    atomic_write_json(path / _FACTS, content)
    return Submission.load(path)


def _own_directory(run_dir: Path) -> Path:
    """Create a new directory; two processes that submit at the same time get different ones."""
    home = run_dir / SUBMISSIONS
    with storage_errors(home):
        home.mkdir(parents=True, exist_ok=True)
        number = max([0, *(int(path.name) for path in submissions_of(run_dir))])
        while True:
            number += 1
            try:
                (home / f"{number:03d}").mkdir()
            except FileExistsError:
                continue
            return home / f"{number:03d}"


def _copy_package(target: Path) -> None:
    package = Path(distllm.__file__).parent
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, target / "distllm", ignore=ignore)  # follows the links to kernels, conf, …
    content = b"".join(
        str(path.relative_to(target)).encode() + path.read_bytes()
        for path in sorted(target.rglob("*"))
        if path.is_file()
    )
    origin = {"package": str(package), "digest": digest_bytes(content), **_commit_of(package)}
    atomic_write_json(target / CODE_ORIGIN, origin)


def _commit_of(package: Path) -> dict[str, str]:
    """Return the commit of a checkout and the uncommitted changes; nothing for an installed package."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout if done.returncode == 0 else ""

    if shutil.which("git") is None or not (package.parent / ".git").exists():
        return {}
    return {"commit": git("rev-parse", "HEAD").strip(), "changes": git("diff", "HEAD", "--", ".")}


def require_same(config_yaml: str, settled: Path) -> None:
    """Check that the configuration composed in the job is equal to the submitted one.

    Raises:
        ConfigError: it is not: an environment variable that it reads has another value here.
    """
    before = settled.read_text(encoding="utf-8")
    if before == config_yaml:
        return
    old, new = set(before.splitlines()), config_yaml.splitlines()
    differ = [line.strip() for line in new if line not in old]
    raise ConfigError(
        f"the configuration is not the one that was submitted: {json.dumps(differ[:5])}",
        where=str(settled),
        remedy="write values instead of ${oc.env:...}, or export the same variables in cluster.setup",
    )


def python_of(config: Config) -> str:
    """Return the interpreter of the compute nodes."""
    return config.cluster.slurm.python or os.path.abspath(sys.executable)  # noqa: PTH100
