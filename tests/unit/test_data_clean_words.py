"""Words and sentences as spaCy's English tokenizer has them; the expected ones are its answers."""

import time

import pytest

from distllm.data.clean import tokens
from distllm.data.clean.affixes import make_rules
from distllm.data.clean.measures import Measures
from distllm.data.clean.punctuation import SENTENCE_ENDS, SYMBOLS, TERMINAL_PUNCTUATION
from distllm.data.clean.specials import make_specials
from distllm.data.clean.tokens import count_sentences, words_of
from distllm.data.clean.words import QUALITY_STOP_WORDS

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
    "5US$ US$5 10km/h. km. :-)).": "5|US$|US$|5|10|km/h|.|km|.|:-))|.",
    "a--b 1--2 a——b x…… a---b": "a|--|b|1|-|-2|a|——|b|x|……|a|---|b",
}


@pytest.mark.parametrize("text", CASES)
def test_words_are_those_of_spacy(text):
    assert words_of(text.split()) == CASES[text].split("|")


def test_characters_of_scripts_without_spaces_are_words():
    assert words_of(["我们use工具。"]) == ["我", "们", "use", "工", "具", "。"]


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
        ("One. ", 1),
        ("One.  ", 2),
        ("One.\t. two", 3),
        ("One\t! 𑁇 two", 2),
        ("你好。再见。", 2),
    ],
)
def test_sentences_are_those_of_spacy(line, count):
    assert count_sentences(line) == count


TEXTS = [*CASES, "我们use工具。 42 im (•) ... -- $5 \x80\x81 a1", "", "x" * 501 + ".", "don’t im\u3000I'm"]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_measured_as_a_direct_count_does(text, monkeypatch):
    words = words_of(text.split())
    plain = [word for word in words if not SYMBOLS.issuperset(word)]
    for size in (1 << 16, 1):
        monkeypatch.setattr(tokens, "_MOST_REMEMBERED", size)
        measures = Measures(text)
        assert measures.words_count == len(words)
        assert measures.plain_words == (len(plain), len("".join(plain)))
        assert measures.words_with_letters == sum(any(map(str.isalpha, word)) for word in words)
    for known in QUALITY_STOP_WORDS.values():
        found = len(known.intersection(words))
        assert Measures(text).count_any(known, found + 1) == found
        assert Measures(text).count_any(known, found) >= found


def test_what_is_remembered_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr(tokens, "_MOST_REMEMBERED", 3)
    words_of(f"bounded{number}," for number in range(20))
    assert len(tokens._WORDS) <= 3
    words_of(["x" * 501])
    assert "x" * 501 not in tokens._WORDS


def test_strings_that_are_asked_for_again_stay_remembered(monkeypatch):
    monkeypatch.setattr(tokens, "_MOST_REMEMBERED", 3)
    computed = []
    memory = tokens._Memory(lambda key: computed.append(key) or key.upper())
    for number in range(10):
        assert memory["common"] == "COMMON"
        assert memory[f"rare{number}"] == f"RARE{number}"
    assert computed.count("common") == 1
    assert len(memory) + len(memory._old) <= 6
    memory["rare0"]
    assert computed.count("rare0") == 2


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
    words = words_of([unit * 50_000])
    assert time.process_time() - begin < 2
    assert "".join(words) == unit * 50_000
    assert "".join(words_of([unit * 100])) == unit * 100
