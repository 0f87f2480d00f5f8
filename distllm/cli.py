"""The `distllm` command: finds the sub-command, runs it, and turns errors into exit codes.

Nothing heavy is imported here, so that ``distllm --help`` and a mistyped command answer at once.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from distllm.errors import ConfigError, DistllmError, StorageError
from distllm.registry import did_you_mean

COMMANDS = {
    "demo": "raw text to a trained, resumed, exported model in a few minutes",
    "prepare": "turn raw text into a tokenizer and shards",
    "data": "verify, inspect, count, merge or repair datasets; forget documents",
    "train": "train a run, or resume it",
    "plan": "memory, time, cost and failures of a run before it is queued",
    "launch": "train on several machines without a scheduler: hostfile, or torchrun",
    "submit": "check a run and queue it with SLURM",
    "jobs": "every run with its job, state, progress and time left",
    "status": "the state of one run, and its starts",
    "logs": "the output of the ranks of a run; live with -f",
    "why": "why a run ended: the earliest error over all ranks",
    "stop": "let a run save and end",
    "save": "let a run save now and continue",
    "requeue": "let a run save and queue again, without the nodes you name",
    "cancel": "end a run now, and keep it from being started again",
    "job": "for job scripts: checks nodes, starts ranks, queues the job again",
    "evaluate": "held-out loss and scores of a checkpoint, or of every one of a live run",
    "generate": "continue a prompt with a trained model",
    "translate": "translate or summarise with a model trained on pairs",
    "answer": "answer a question from a text, or from a search index",
    "search": "index texts with a trained encoder, and search them",
    "serve": "serve a trained model over HTTP, with a page to talk to it",
    "export": "write a Hugging Face folder",
    "explain": "where a configuration value came from, and what an error means",
    "inspect": "the exact text of any batch of any step",
    "report": "a run, or several side by side, as one page for the browser",
    "checkpoint": "list, verify, convert or prune the checkpoints of a run",
    "dashboard": "the layout of the Weights & Biases dashboard, as code",
    "sweep": "a Weights & Biases sweep, generated from the schema",
    "ledger": "where a run's time went, and what happened to it",
    "chaos": "inject faults into an experiment and score how it survives them",
    "doctor": "check this machine, with a remedy for each problem",
}
_VERBOSE = ("-v", "--verbose")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (see `distllm.errors`)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Readers of a pipe or a log see each line as soon as it is printed.
        sys.stdout.reconfigure(line_buffering=True)
    warnings.formatwarning = _format_warning
    gc.disable()  # start-up makes little garbage; long-running commands turn the collector on again
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbose = any(flag in words for flag in _VERBOSE)
    words = [word for word in words if word not in _VERBOSE]
    try:
        return _dispatch(words)
    except DistllmError as error:
        return _show(error, verbose)
    except KeyboardInterrupt:
        print("distllm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _drop_output()  # the reader of a pipe has ended
        return 0
    except OSError as error:
        known = _environment_error(error)
        if known is None:
            raise
        return _show(known, verbose)


def _show(error: DistllmError, verbose: bool) -> int:
    """Print an error, on rank 0 only if every rank has it, and return its exit code."""
    if verbose:
        sys.excepthook(*sys.exc_info())
    if not (error.everywhere and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"):
        from distllm.messages import shown
        from distllm.redact import redact_text

        print(f"distllm: {redact_text(shown(error))}", file=sys.stderr)
    return error.exit_code


def _drop_output() -> None:
    """Discard the rest of the output: flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _environment_error(error: OSError) -> DistllmError | None:
    """Return an error about standard output or the working directory; None if neither is the reason."""
    if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        _drop_output()
        return StorageError(
            "the disk that the output is written to is full",
            where="standard output",
            remedy="free space on it",
        )
    try:
        Path.cwd()
    except FileNotFoundError:
        return ConfigError(
            "the working directory was removed",
            where="working directory",
            remedy="cd to a directory that exists, and run the command there",
        )
    return None


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] == "--version":
        from distllm import __version__

        print(__version__)
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise ConfigError(
            f"unknown command {name!r}", where="command line", remedy=did_you_mean(name, COMMANDS)
        )
    module = importlib.import_module(f"distllm.commands.{name}")
    code: int = module.run(rest)
    return code


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Format a warning of distllm as a sentence, and one of another package with its file and line."""
    if category.__module__.startswith("distllm."):
        return f"distllm: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def usage() -> str:
    """Return the text of ``distllm --help``."""
    lines = [f"  {name:<12}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: distllm COMMAND [key=value ...]",
            "",
            *lines,
            "",
            "distllm COMMAND --help   the options of a command",
            "distllm -v COMMAND ...   show tracebacks of errors",
            "exit codes: 0 done, 64 configuration, 65 damaged data, 70 retry, 74 disk, 75 stopped and saved",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
