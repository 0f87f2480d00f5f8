"""Chunks of text that are split in a way of their own: contractions, abbreviations, emoticons.

The table is that of spaCy's English tokenizer (MIT licence), whose words the published rules count. It is
written as the rules that generate it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_ONE_WORD = r"""
' '' \") <space> C++ \t \n — ä. ö. ü. em ll nuff 'em 'll 'nuff 'S 's ‘S ‘s and/or w/o 're 'd 'Cause 'cause
'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif.
Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich.
Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va.
Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md.
Messrs. Mo. Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s. :) :-) :)) :-)) :))) :-))) (:
(-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-: =(
>:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() >:o :* :-* :3 :-3
=3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__-
v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-)
(._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
"""
_DROPPED_G = "doin goin nothin nuthin ol somethin lovin havin"
_SEVERAL_WORDS = (
    "y'|all y|all how|'d|'y How|'d|'y not|'ve not|ve Not|'ve Not|ve can|not Can|not gon|na Gon|na got|ta "
    "Got|ta let|'s Let|'s c'm|on C'm|on °|c|. °|f|. °|k|. °|C|. °|F|. °|K|."
)
_WORDS_THEMSELVES = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"

_WILL = ("'ll", "'d", "'ll|'ve", "'d|'ve")
_ENDINGS = (
    ("i", ("'m", "'m|a")),
    ("i you he she it we they", _WILL),
    ("i you we they", ("'ve",)),
    ("you we they", ("'re",)),
    ("he she it", ("'s",)),
    ("who what when where why how there that this these those", _WILL),
    ("who what when where why how there that this", ("'s",)),
    ("who what when where why how there these those", ("'re", "'ve")),
    ("ca could do does did had may might must need ought sha should wo would", ("n't", "n't|'ve")),
    ("could might must should would", ("'ve",)),
    ("ai are is was were have has dare", ("n't",)),
)
"""Words and what contracts with them; each also without apostrophes and with a capital."""


def make_specials() -> dict[str, tuple[str, ...]]:
    """Return the words of each chunk that has a way of its own."""
    table: dict[str, tuple[str, ...]] = {}
    for parts in _all_parts():
        for apostrophe in ("'", "’"):
            words = tuple(word.replace("'", apostrophe) for word in parts)
            table["".join(words)] = words
    for chunk in _WORDS_THEMSELVES.split():
        table.pop(chunk, None)
    return table


def _all_parts() -> Iterator[list[str]]:
    for chunk in (*_ONE_WORD.split(), *(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyz")):
        yield [chunk]
    for word in _cased(_DROPPED_G.split()):
        yield from ([word], [word + "'"])
    for chunk in _SEVERAL_WORDS.split():
        yield chunk.split("|")
    for hour in range(1, 13):
        yield from ([str(hour), half] for half in ("a.m.", "am", "p.m.", "pm"))
    for words, endings in _ENDINGS:
        for word in _cased(words.split()):
            for ending in endings:
                yield [word, *ending.split("|")]
                yield [word, *ending.replace("'", "").split("|")]


def _cased(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        yield from (word, word.title())
