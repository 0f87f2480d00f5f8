"""Words and sentences as spaCy's English tokenizer has them; the expected ones are its answers."""

import time

import pytest

from distllm.data.clean.affixes import make_rules
from distllm.data.clean.punctuation import SENTENCE_ENDS, SYMBOLS, TERMINAL_PUNCTUATION
from distllm.data.clean.specials import make_specials
from distllm.data.clean.tokens import count_sentences, words_of

CASES = {
    "(e.g. [Dr. “can't i.e.) a.m.,": "(|e.g.|[|Dr.|“|ca|n't|i.e.|)|a.m.|,",
    "plain words here": "plain|words|here",
    '"Hello," (she) said...': '"|Hello|,|"|(|she|)|said|...',
    "can't I'd've won’t its Its": "ca|n't|I|'d|'ve|wo|n’t|its|Its",
    "dog's dogs' 's cannot gonna": "dog|'s|dogs|'|'s|can|not|gon|na",
    "Dr. Who, e.g. at 8am. vs. Fig.": "Dr.|Who|,|e.g.|at|8|am|.|vs.|Fig|.",
    "well-known 5-3 and/or a/b x=y": "well|-|known|5|-|3|and/or|a|/|b|x|=|y",
    "3km 1,000.5 $5 5$ 10% 20°C.": "3|km|1,000.5|$|5|5|$|10|%|20|°|C|.",
    "foo.bar foo.Bar FOO. Foo. U.S.A. a,b 1,2": "foo.bar|foo|.|Bar|FOO|.|Foo|.|U.S.A.|a|,|b|1,2",
    "f(x) foo_bar __init__ #tag :-) (: C++": "f(x|)|foo_bar|_|_|init|_|_|#|tag|:-)|(:|C++",
    "http://x.org/a?b=c, me@x.org. 10.0.0.1": "http://x.org/a?b=c|,|me@x.org|.|10.0.0.1",
    "A... b…c → d→e “Schön” »größer«": "A|...|b|…|c|→|d→e|“|Schön|”|»|größer|«",
    "--help -v ---- 'quoted' ''": "--help|-v|----|'|quoted|'|''",
    "Жизнь.Смерть ελληνικά.": "Жизнь|.|Смерть|ελληνικά|.",
}


@pytest.mark.parametrize("text", CASES)
def test_words_are_those_of_spacy(text):
    assert words_of(text) == CASES[text].split("|")


def test_characters_of_scripts_without_spaces_are_words():
    assert words_of("我们use工具。") == ["我", "们", "use", "工", "具", "。"]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One. Two! Three?", 3),
        ("one", 1),
        ("", 0),
        ("v1.2.3 is out. yes", 2),
        ("so... and on", 1),
        ('He said "no." Then', 2),
        ("Dr. Who met Mr. X at 8 a.m. today", 1),
        ("Really?! (Yes.) Well", 3),
        ("One.  ) two", 2),
        ("你好。再见。", 2),
    ],
)
def test_sentences_are_those_of_spacy(line, count):
    assert count_sentences(line) == count


def test_special_chunks_join_to_themselves():
    specials = make_specials()
    assert len(specials) == 1343
    assert all("".join(words) == chunk for chunk, words in specials.items())
    assert make_rules().respelled < specials.keys()


def test_classes_of_characters():
    assert (len(TERMINAL_PUNCTUATION), len(SENTENCE_ENDS)) == (159, 128)
    assert SENTENCE_ENDS < TERMINAL_PUNCTUATION < SYMBOLS
    assert SYMBOLS.isdisjoint("\t\na1•€")


@pytest.mark.parametrize("unit", ["a:", "((((", "é.", "a@b.", "'s", "x", "我", "1.2/"])
def test_a_chunk_without_spaces_costs_time_in_proportion(unit):
    begin = time.process_time()
    words = words_of(unit * 50_000)
    assert time.process_time() - begin < 2
    assert "".join(words) == unit * 50_000
    assert "".join(words_of(unit * 100)) == unit * 100
