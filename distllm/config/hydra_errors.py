"""Hydra's own errors as problems of a command line: which word, why, and what to write in its place."""

from __future__ import annotations

from collections.abc import Sequence

from distllm.config.overrides import split_override
from distllm.config.problems import Problems


def note_hydra_error(error: Exception, overrides: Sequence[str], problems: Problems) -> None:
    """Note what Hydra refused: every word that it cannot read or would sweep, else its own sentence.

    Args:
        error: what its composition raised.
        overrides: the words of the command line, as the user wrote them.
        problems: where to note it.
    """
    noted = len(problems)
    for word in overrides:
        _note_word(word, problems)
    if len(problems) == noted:
        _note_composition(" ".join(str(error).split()), problems)


def _note_word(word: str, problems: Problems) -> None:
    """Note a word that is no override in Hydra's grammar, or one that asks for several runs."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    prefix, key, value = split_override(word)
    try:
        parsed = OverridesParser.create().parse_override(word)
    except HydraException:
        quoted = str(value).replace("\\", "\\\\").replace("'", "\\'")
        nested = str(value).lstrip().startswith(("[", "{"))
        problems.add(
            f"cannot read {value!r}: only numbers, and words of ASCII letters, digits and /-_.:@%?*|, go "
            "without quotes",
            where=key,
            remedy="close its brackets, and quote each text in it: ['a b',c]"
            if nested
            else f"\"{prefix}{key}='{quoted}'\"",
        )
        return
    if parsed.is_sweep_override():
        problems.add(
            f"{value!r} is several values, one for each run of a sweep",
            where=key,
            remedy=f"{key}=[{value}] for a list, \"{key}='{value}'\" for a text, or -m for a run of each",
        )


def _note_composition(cause: str, problems: Problems) -> None:
    """Note an error that no single word has, with what cures those that users meet."""
    remedy = "quote values that hold spaces or punctuation, as in 'eval.prompt=\"a, b\"'"
    if cause.startswith("Could not append"):
        cause, remedy = cause.partition(". Either")[0], "write key=value, without the '+'"
    elif cause.startswith("Could not delete"):
        remedy = "write ~KEY alone, for a key that a chosen file sets; any other has its default already"
    elif "defaults" in cause:
        remedy = "write defaults as a list of other choices of the group that ends with _self_"
    problems.add(f"Hydra cannot compose it: {cause}", where="configuration", remedy=remedy)
