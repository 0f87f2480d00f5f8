"""The model that turns texts into vectors, from a run or a Hugging Face folder, and its identity.

Shapes: N texts, C channels, T positions.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from distllm.config.peft import with_file
from distllm.config.resolve import Resolved
from distllm.data.examples.split import laid_out
from distllm.data.tokenizer import TOKENIZER_FILE, LossyTokenizer, Tokenizer
from distllm.errors import ConfigError
from distllm.export.load import load_model, shape_of
from distllm.infer.load import load_trained
from distllm.models.init import Model

Precision = Literal["fp32", "bf16"]
_TOGETHER = 32
_PROBE = "The quick brown Fox jumps over 13 lazy dogs; naïve?\n\tdef f(x): return x"
_REMEDY = "use an encoder: a run of task=contrastive (experiment=embed), its export, or a sentence encoder"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model came from, as an index records it.

    Attributes:
        kind: ``run`` or ``folder``.
        path: the run directory or the folder.
        step: the checkpoint, of a run.
    """

    kind: str
    path: str
    step: int | None = None

    def __str__(self) -> str:
        """The arguments that name it on a command line."""
        if self.kind == "folder":
            return f"model={self.path}"
        return f"run={self.path}" + (f" step={self.step}" if self.step is not None else "")


class TextEncoder:
    """Gives each text a unit vector.

    Args:
        model: an encoder with an embedding head, in evaluation mode.
        tokenizer: of the model.
        origin: where it came from.

    Attributes:
        room: the most ids of a text that the model reads.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, origin: Origin) -> None:
        self.model, self.tokenizer, self.origin = model, tokenizer, origin
        self.room = model.shape.max_seq_len - 2

    def facts(self) -> dict[str, Any]:
        """Return what an index records of its model; equal digests mean equal vectors. Reads all weights."""
        shape = self.model.shape
        # The ids of a text, not the fingerprint: an export's differs from the run's for the same tokenizer.
        ids = self.tokenizer.enclosed(self.tokenizer.encode(_PROBE)).tolist()
        digest = xxhash.xxh3_128(f"{shape.pooling} {self.tokenizer.vocab_size} {ids}".encode())
        for name, weight in sorted(self.model.named_parameters()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
        return {
            "kind": self.origin.kind,
            "path": self.origin.path,
            "step": self.origin.step,
            "pooling": shape.pooling,
            "channels": shape.hidden_size,
            "digest": digest.hexdigest(),
        }

    def sizes(self, texts: Sequence[str]) -> list[int]:
        """Return how many ids each text has, without those that enclose it."""
        return [len(ids) for ids in self.tokenizer.encode_batch(texts)] if texts else []

    @torch.no_grad()
    def embed(self, texts: Sequence[str], precision: Precision = "fp32") -> NDArray[np.float32]:
        """Return unit vectors_NC; texts longer than the model's context are cut.

        Args:
            texts: any number.
            precision: of matrix products; norms and softmax stay in fp32.
        """
        kind = next(self.model.parameters()).device.type
        with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16"):
            parts = [self._embed(texts[at : at + _TOGETHER]) for at in range(0, len(texts), _TOGETHER)]
        return np.concatenate([np.empty((0, self.model.shape.hidden_size), dtype=np.float32), *parts])

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[self.tokenizer.enclosed(ids[: self.room])] for ids in self.tokenizer.encode_batch(texts)]
        arrays = laid_out(rows, max(ids.size for (ids,) in rows), self.tokenizer.eot_id)
        device = next(self.model.parameters()).device
        found: NDArray[np.float32] = (
            self.model(*(torch.from_numpy(array).to(device) for array in arrays)).float().cpu().numpy()
        )
        return found


def encoder_of_run(directory: Path, resolved: Resolved, step: int | None = None) -> TextEncoder:
    """Load the encoder of a run, from its newest checkpoint or that of ``step``.

    Raises:
        ConfigError: the run was not trained to embed texts.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    task = resolved.config.task.name
    if task != "contrastive":
        raise ConfigError(
            f"the run has learned {task}, which gives no vectors of texts",
            where=str(directory),
            remedy=_REMEDY,
        )
    trained = load_trained(directory / "checkpoints", resolved, step)
    origin = Origin("run", str(directory.absolute()), trained.step)
    return TextEncoder(trained.model, trained.tokenizer, origin)


def encoder_of_folder(folder: Path) -> TextEncoder:
    """Load the encoder of a Hugging Face folder.

    Raises:
        ConfigError: it is not an encoder.
        CheckpointError: its weights do not fit.
        TokenizerError: it holds no tokenizer that can be used.
    """
    family = shape_of(folder).family
    if family != "encoder":
        name = family.replace("_", "-")
        raise ConfigError(
            f"the model is of the family {name}, which gives no vectors of texts",
            where=str(folder),
            remedy=_REMEDY,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LossyTokenizer)  # texts are only read with it
        tokenizer = Tokenizer.load(with_file(folder, TOKENIZER_FILE))
    model = load_model(folder, head="embedding")
    return TextEncoder(model, tokenizer, Origin("folder", str(folder.absolute())))
