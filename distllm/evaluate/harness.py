"""A decoder behind the model interface of the lm-evaluation-harness.

Tokens, contexts and windows are handled as the harness does for a transformers model, so the scores equal
those of the exported folder (`tests/unit/test_evaluate_harness.py`). A user's own task files come from a
folder. A file that names Python functions is refused, because reading it would run them.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.infer.batches import by_length
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
        ConfigError: the model is not a decoder.
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
        parts: list[Request] = []
        ends = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.eot_token_id, self.max_length, 1)
            parts += [(("", ""), *make_disjoint_window(window)) for window in windows]
            ends.append(len(parts))
        scores = [score for score, _ in self._loglikelihood_tokens(parts)]
        return [sum(scores[begin:end]) for begin, end in pairwise([0, *ends])]

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """Return for each continuation its log-likelihood, and whether all its ids were the likeliest."""
        rows = [(context + said)[-(self.max_length + 1) :] for _, context, said in requests]
        found = [(0.0, False)] * len(rows)
        for places in by_length([len(row) for row in rows], self._batch_size):
            logits_BTV = self._logits([rows[place][:-1] for place in places])
            for place, logits_TV in zip(places, logits_BTV, strict=True):
                row = rows[place]
                said = torch.tensor(requests[place][2][-len(row) :])
                said_TV = logits_TV[len(row) - 1 - len(said) : len(row) - 1].float().log_softmax(-1)
                likely = bool((said_TV.argmax(-1) == said).all())
                found[place] = float(said_TV.gather(1, said[:, None]).sum()), likely
        return found

    def _logits(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return logits_BTV; rows are padded at the end, where causal attention cannot see."""
        longest = max(map(len, rows))
        padded = [[*row, *[self.eot_token_id] * (longest - len(row))] for row in rows]
        positions_BT = torch.arange(longest).expand(len(rows), -1)
        logits_BTV: Tensor = self._model(torch.tensor(padded), positions_BT)
        return logits_BTV

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return what the model writes after each context, up to the first stop text."""
        alike: dict[tuple[int, float], list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            asked = request.args[1]
            temperature = float(asked.get("temperature", 0.0)) if asked.get("do_sample") else 0.0
            alike[int(asked.get("max_gen_toks", _MOST_TOKENS)), temperature].append(place)
        texts = [""] * len(requests)
        for (longest, temperature), group in alike.items():
            written = self._write([requests[place].args[0] for place in group], longest, temperature)
            for place, text in zip(group, written, strict=True):
                texts[place] = _until(text, requests[place].args[1].get("until") or [])
        return texts

    def _write(self, contexts: Sequence[str], longest: int, temperature: float) -> list[str]:
        """Return the continuation of each context, at most ``longest`` tokens."""
        kept = max(1, self.max_length - longest)
        prompts = [self.tok_encode(context)[-kept:] or [self.eot_token_id] for context in contexts]
        texts = [""] * len(prompts)
        for turn, places in enumerate(by_length([len(prompt) for prompt in prompts], self._batch_size)):
            written = generate_rows(
                self._model,
                [prompts[place] for place in places],
                vocab_size=self._tokenizer.vocab_size,
                eot_id=self.eot_token_id,
                max_tokens=longest,
                sampling=Sampling(temperature=temperature),
                first_row=turn * self._batch_size,
            )
            for place, ids in zip(places, written, strict=True):
                texts[place] = self._tokenizer.decode(ids)
        return texts


def measure_harness(
    model: Model, tokenizer: Tokenizer, tasks: Sequence[str], folder: Path | None, limit: int | None
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness; return their measures by task and name.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        tasks: names.
        folder: of the user's own task files.
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


def _until(text: str, stops: str | Sequence[str]) -> str:
    """Return a text up to the first stop."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop, maxsplit=1)[0] if stop else text
    return text
