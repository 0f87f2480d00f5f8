"""What a sink knows about the run that it shows."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distllm.config.schema import Config
from distllm.fsio import atomic_write_text
from distllm.redact import redacted

RUN_ID_FILE = "wandb-run-id"
RUN_ID_FACT = "tracker_run_id"
"""Name of the run's id in a checkpoint's facts."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run, for dashboards.

    Attributes:
        config: the experiment.
        directory: the run directory.
        attempt: number of this attempt, from 1.
        run_id: id of the run, which all its attempts share.
        derived: the derived numbers by name.
        environment: see `distllm.provenance.environment`.
        dataset: digest of the dataset's manifest.
        tokenizer: fingerprint of its tokenizer.
        is_exportable: whether transformers has a class for the model.
        shown: the highest step that earlier attempts have logged to this dashboard, by kind of record.
    """

    config: Config
    directory: Path
    attempt: int = 1
    run_id: str = ""
    derived: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    tokenizer: str = ""
    is_exportable: bool = True
    shown: Mapping[str, int] = field(default_factory=dict)

    def configuration(self) -> dict[str, Any]:
        """Return everything worth filtering runs by, without secrets."""
        tree: dict[str, Any] = redacted(asdict(self.config))
        return {
            **tree,
            "derived": dict(self.derived),
            "environment": dict(self.environment),
            "dataset_digest": self.dataset,
            "tokenizer_fingerprint": self.tokenizer,
        }


def settle_run_id(run_dir: Path, facts: Mapping[str, Any]) -> str:
    """Return the run's id for dashboards, and store it in the run directory.

    A resumed run keeps the id from its directory or checkpoint; a trial of a sweep uses the id from its
    agent; any other run draws a random one.
    """
    path = run_dir / RUN_ID_FILE
    known = path.read_text(encoding="utf-8").strip() if path.exists() else str(facts.get(RUN_ID_FACT) or "")
    given = os.environ.get("WANDB_RUN_ID", "") if "WANDB_SWEEP_ID" in os.environ else ""
    run_id = known or given or secrets.token_hex(4)
    if not path.exists():
        atomic_write_text(path, run_id + "\n")
    return run_id
