"""Our decoders behind the interface of the lm-evaluation-harness, so that its tasks measure them as they are.

Tokens, contexts and windows are handled as the harness handles a transformers model, so the figures are
those of the exported folder (`tests/unit/test_evaluate_harness.py`). Task files of one's own are looked up
in a folder; what they read is local. One that names Python functions is refused: reading it would run them.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.infer.generate import generate_rows
from distllm.infer.sampling import Sampling
from distllm.models.decoder import DecoderLM
from distllm.models.init import Model

_CODE = re.compile(r"!function|unsafe_code\s*:\s*true")
_MOST_TOKENS = 256

Request = tuple[tuple[str, str], list[int], list[int]]


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness is not typed
    """A decoder as a language model of the harness.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        batch_size: rows of one forward pass.

    Raises:
        ConfigError: the model is no decoder: the harness scores continuations.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, batch_size: int = 16) -> None:
        super().__init__()
        if not isinstance(model, DecoderLM):
            raise ConfigError(
                f"the harness scores how a text goes on, and the model is of family {model.shape.family}",
                where="tasks",
                remedy="evaluate it without tasks, or choose a run of a decoder",
            )
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        """The id that opens and closes documents."""
        return self._tokenizer.eot_id

    @property
    def max_length(self) -> int:
        """The longest context."""
        return self._model.shape.max_seq_len

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text; special tokens are never added."""
        return self._tokenizer.encode(string)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, in windows that do not overlap."""
        found = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self.max_length, 1)
            parts: list[Request] = [(("", ""), *make_disjoint_window(window)) for window in windows]
            found.append(sum(score for score, _ in self._loglikelihood_tokens(parts)))
        return found

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """Return for each continuation its log-likelihood, and whether each id was the likeliest."""
        found = []
        for batch in _chunks(requests, self._batch_size):
            rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in batch]
            log_probs_BTV = self._log_probs([row[:-1] for row in rows])
            for row, request, log_probs_TV in zip(rows, batch, log_probs_BTV, strict=True):
                said = torch.tensor(request[2][-len(row) :])
                said_TV = log_probs_TV[len(row) - 1 - len(said) : len(row) - 1]
                likely = bool((said_TV.argmax(-1) == said).all())
                found.append((float(said_TV.gather(1, said[:, None]).sum()), likely))
        return found

    def _log_probs(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return log-probabilities_BTV; rows end in padding that nothing before it sees."""
        longest = max(map(len, rows))
        padded = [[*row, *[self.eot_token_id] * (longest - len(row))] for row in rows]
        positions_BT = torch.arange(longest).expand(len(rows), -1)
        logits_BTV: Tensor = self._model(torch.tensor(padded), positions_BT)
        return logits_BTV.float().log_softmax(-1)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to the first stop."""
        return [self._write(*request.args) for request in requests]

    def _write(self, context: str, asked: Mapping[str, Any]) -> str:
        longest = int(asked.get("max_gen_toks", _MOST_TOKENS))
        prompt = self.tok_encode(context)[-max(1, self.max_length - longest) :] or [self.eot_token_id]
        temperature = float(asked.get("temperature", 0.0)) if asked.get("do_sample") else 0.0
        (ids,) = generate_rows(
            self._model,
            [prompt],
            vocab_size=self._tokenizer.vocab_size,
            eot_id=self.eot_token_id,
            max_tokens=longest,
            sampling=Sampling(temperature=temperature),
        )
        text, stops = self._tokenizer.decode(ids), asked.get("until") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0] if stop else text
        return text


def measure_harness(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[str], folder: Path | None, limit: int | None
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness; return their measures by task and name.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        tasks: names.
        folder: of task files of one's own.
        limit: documents of each task; None takes all.

    Raises:
        ConfigError: there is no such task, or a file of the folder would run code.
    """
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if folder is not None:
        _refuse_code(folder)
    manager = TaskManager(include_path=None if folder is None else str(folder))
    if missing := [name for name in tasks if name not in manager.all_tasks]:
        raise ConfigError(
            f"the harness has no task {', '.join(missing)}",
            where="tasks",
            remedy="name a task of lm_eval, or the folder of your own with task_dir=DIR",
        )
    results = simple_evaluate(
        HarnessModel(model, tokenizer),
        tasks=list(tasks),
        limit=limit,
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert results is not None, "there is one rank"
    return {
        task: {name.partition(",")[0]: value for name, value in measures.items() if isinstance(value, float)}
        for task, measures in results["results"].items()
    }


def _refuse_code(folder: Path) -> None:
    for file in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        if _CODE.search(file.read_text(encoding="utf-8", errors="replace")):
            raise ConfigError(
                f"{file.name} names Python code, which the harness would run",
                where=str(file),
                remedy="write the task without !function, with the harness's templates",
            )


def _chunks(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
