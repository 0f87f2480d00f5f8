"""Words by language: its commonest, which every running text holds, and how it writes them small."""

from __future__ import annotations

import re
from types import MappingProxyType

_LISTS = {
    "en": "a about after all also an and any are as at be because been but by can could do for from had has "
    "have he her his how i if in into is it its just me more most my no not now of on only or other "
    "our out over she so some such than that the their them then there these they this to two up us "
    "very was we were what when where which who will with would you your",
    "de": "aber alle als also am an auch auf aus bei bis da damit das dass dem den der des die dies diese "
    "dir doch du durch ein eine einem einen einer es für hat hatte haben ich ihr im in ist ja kann "
    "kein man mehr mit muss nach nicht noch nur ob oder ohne sein seine sich sie sind so über um und "
    "uns unter vom von vor war was wenn werden wie wir wird zu zum zur",
    "fr": "à au aux avec ce ces cette comme dans de des du elle elles en est et être eu fait il ils je la "
    "le les leur lui mais me même mes moi ne nos notre nous on ont ou où par pas plus pour qu que qui "
    "sa sans se ses si son sont sur ta te tu un une vos votre vous y",
    "es": "a al algo como con cuando de del desde donde el ella ellos en entre era es esta este esto fue ha "
    "hasta hay la las le les lo los más me mi muy ni no nos o os otro para pero por que qué se sin "
    "sobre son su sus también te tiene todo tu un una uno y ya yo",
    "it": "a ai al alla anche che chi ci come con cosa da dal dalla dei del della delle di dove e è era gli "
    "ha hanno i il in io la le lei lo loro lui ma mi mia ne nel nella noi non o per perché più quando "
    "questa questo se si sia sono su sua suo tra tu un una uno",
    "zh": "的 了 在 是 我 有 和 就 不 人 都 一 上 也 很 到 说 要 去 你 会 着 看 好 这 那 个 们 为 与 "
    "以 而 及 其 于 被 把",
}

STOP_WORDS = MappingProxyType({language: frozenset(words.split()) for language, words in _LISTS.items()})
"""Words that ``clean.stop_words=remove`` removes."""

QUALITY_STOP_WORDS = MappingProxyType(
    {**STOP_WORDS, "en": frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))}
)
"""Words of which a good document holds some; the English ones are those of Gopher."""

# Turkish and Azerbaijani have two letters i: with the dot (İ i) and without (I ı).
_TWO_I = str.maketrans({"I": "ı", "İ": "i"})
_DOTTED = frozenset(("tr", "az"))
# A word takes its marks along: written apart from their letters, they are no part of ``\w``.
_WORD_OR_NOT = re.compile(r"(\w[\w\u0300-\u036f]*)")
_SPACES = re.compile(r"[^\S\n]{2,}")


def lower(text: str, language: str) -> str:
    """Return ``text`` in lower case, as ``language`` writes it."""
    return (text.translate(_TWO_I) if language in _DOTTED else text).lower()


def without_stop_words(text: str, language: str) -> str:
    """Remove the stop words of ``language``; spaces close up.

    A text of an unknown language is taken for English; of a language without a list nothing is removed, nor
    of one that is written without spaces, where a character of the list may be a part of another word.
    """
    gone = STOP_WORDS.get(language or "en", frozenset())
    kept = "".join(part for part in _WORD_OR_NOT.split(text) if part.lower() not in gone)
    return "\n".join(_SPACES.sub(" ", line).strip() for line in kept.split("\n"))
