"""`distllm export`: a Hugging Face folder of a run's checkpoint, checked against transformers.

Adapters are merged in that folder, and lie in one of their own as well.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distllm.commands.arguments import parse_options
from distllm.config.options import option
from distllm.config.schema_optim import Weights


@dataclass(frozen=True)
class Options:
    """Options of `distllm export`."""

    run: str | None = option(None, "name or directory of the run")
    out: str | None = option(None, "folder to write; null means hf/ in the run directory")
    adapter: str | None = option(
        None, "folder for the adapters of a run with model.lora; null means adapter/ in the run directory"
    )
    step: int | None = option(None, "checkpoint to export; null takes the newest", minimum=0)
    weights: Weights = option("last", "those after the last update, or their average (optim.ema)")
    verify: bool = option(True, "load it with transformers and compare logits")
    runs_dir: str = option("runs", "directory that holds run directories")


def run(words: Sequence[str]) -> int:
    """Write the folder; with ``verify``, refuse to call it good unless logits agree."""
    options = parse_options("export", Options, words)
    from distllm.commands.runs import require, run_of

    stored = run_of(require(options.run, "run", "export"), options.runs_dir)
    resolved = stored.resolved()
    gc.enable()
    from distllm.export.hf import export_hf
    from distllm.export.plain import fold_output_multiplier
    from distllm.export.verify import verify_export
    from distllm.infer.load import load_trained
    from distllm.models.heads import head_of

    trained = load_trained(stored.directory.checkpoints, resolved, options.step, options.weights)
    out = Path(options.out) if options.out else stored.directory.path / "hf"
    head = head_of(resolved.config.task.name)
    fold_output_multiplier(trained.model)
    weights = trained.model.state_dict()
    export_hf(weights, trained.model.shape, trained.tokenizer, out, trained.facts, head=head)
    print(f"wrote {out}")
    if trained.adapters:
        from distllm.export.adapter import export_adapter

        model, folder = resolved.config.model, Path(options.adapter or stored.directory.path / "adapter")
        export_adapter(
            trained.adapters, trained.learned, resolved.shape, model.lora, str(model.init_from), folder,
            trained.facts, head=head,
        )  # fmt: skip
        print(f"wrote {folder}: the adapters alone, for peft, on top of {model.init_from}")
    if options.verify:
        difference = verify_export(out, trained.model)
        print(f"transformers agrees: largest difference of logits {difference:.1e}")
    return 0
