import json
import random
import unicodedata
from collections import Counter

import pytest
from ftfy.badness import is_bad

from distllm.config.schema_clean import C4Config, CleanConfig, FinewebConfig, GopherConfig, RepetitionConfig
from distllm.data.clean import Cleaner, load_profile
from distllm.data.clean.c4 import apply_c4, count_sentences
from distllm.data.clean.edits import _SUSPECT
from distllm.data.clean.language import detect_language
from distllm.data.clean.measures import Measures
from distllm.data.clean.quality import judge_fineweb, judge_gopher, judge_stop_words
from distllm.data.clean.repetition import judge_repetition
from distllm.data.records import Document, Dropped
from distllm.errors import MissingDependency

PROSE = (
    "The river rose in the night and took the bridge with it. Nobody had expected that much water, "
    "though the old men of the village had talked about the flood of their youth for years. In the "
    "morning the children stood on the bank and threw sticks into the brown water, and their mothers "
    "called them home. By noon the sun was out again, and people began to count what they had lost. "
    "Most of it was wood."
)


def clean(text, config=None, language=""):
    return Cleaner(config or CleanConfig(min_chars=0))(Document.from_text("d", text, language))


def rule(text, **config):
    item, _ = clean(text, CleanConfig(min_chars=0, **config))
    return item.rule if isinstance(item, Dropped) else None


@pytest.mark.parametrize(
    ("text", "cleaned", "changed"),
    [
        ("as it is\n\n    indented\tcode", "as it is\n\n    indented\tcode", []),
        ("a\r\nb\rc\fd\u2028e\x85f", "a\nb\nc\nd\ne\nf", ["line_breaks"]),
        ("\ufeffa\0b\x1b[0m\x9f\ud800c", "ab[0mc", ["control_characters"]),
        ("cafe\u0301", "café", ["nfc"]),
        ("\n\n a  \n\t\n\n\u00a0\nb \n", " a\n\nb", ["whitespace"]),
        ("x\r\n\0", "x", ["line_breaks", "control_characters", "whitespace"]),
    ],
)
def test_each_edit_is_made_and_named(text, cleaned, changed):
    item, edited = clean(text)
    assert (item.text, edited) == (cleaned, changed)


def test_options_edit_more():
    config = CleanConfig(min_chars=0, repair=True, normal_form="nfkc", repeated_lines=True)
    item, edited = clean("schÃ¶n ﬁne\nsame\nsame\n\nsame", config)
    assert item.text == "schön fine\nsame\n\nsame"
    assert edited == ["repair", "nfkc", "repeated_lines"]
    nested = "schön".encode().decode("latin-1").encode().decode("latin-1")
    assert clean(nested, config)[0].text == "schön"


def test_ftfy_repairs_nothing_where_no_mojibake_is_suspected():
    beyond_ascii = [chr(code) for code in range(0x80, 0x10000) if not 0xD800 <= code < 0xE000]
    assert len(beyond_ascii) - len(alone := [c for c in beyond_ascii if not _SUSPECT.search(c)]) == 36
    for around in ("a%sa", "Z%s z", "1%s.", "?%s~"):
        assert not is_bad("\n".join(around % c for c in alone))
    for code in (0x20AC, 0xE9, 0xA4, 0xBF, 0xFB01):  # beside what is written without spaces
        assert not is_bad("\n".join(f"{chr(code)}{c}{chr(code)} {c}" for c in "漢か。가\ud7a3"))
    assert all(map(_SUSPECT.search, ("Ã©", "â€™", "à¤", "Â ", "œ.", "вЂ", "\x9d")))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(MissingDependency, match="ftfy") as error:
        clean("schÃ¶n", CleanConfig(repair=True))
    assert "distllm[data]" in error.value.remedy


def test_short_documents_are_dropped():
    config = CleanConfig(min_chars=10)
    assert clean("ä" * 10, config)[0].text == "ä" * 10
    dropped = clean("ä" * 9, config)[0]
    assert (dropped.id, dropped.rule, dropped.sample) == ("d", "too_short", "ä" * 9)
    assert "9 characters" in dropped.reason
    assert clean("", CleanConfig(min_chars=0))[0].rule == "too_short"


def test_of_several_fields_each_is_edited_and_none_may_be_empty():
    web = load_profile("web")
    pair = Document("d", {"source": "short \r\n", "target": "kurz"}, "en")
    item, edited = Cleaner(web)(pair)
    assert item.fields == {"source": "short", "target": "kurz"}
    assert edited == ["line_breaks", "whitespace"]
    dropped, _ = Cleaner(web)(Document("d", {"source": "x", "target": " \n"}, "en"))
    assert (dropped.rule, dropped.reason) == ("empty_field", "nothing in the field target")


def test_of_a_conversation_the_contents_are_edited_and_stay_json():
    messages = [{"role": "user", "content": "ﬁne \r\n＂yes＂"}, {"role": "assistant", "content": "the end"}]
    document = Document("d", {"messages": json.dumps(messages, ensure_ascii=False)}, "en")
    item, edited = Cleaner(CleanConfig(normal_form="nfkc"))(document)
    assert [m["content"] for m in json.loads(item.fields["messages"])] == ['fine\n"yes"', "the end"]
    assert edited == ["line_breaks", "nfkc", "whitespace"]
    assert Cleaner(CleanConfig())(item) == (item, [])
    item, _ = Cleaner(CleanConfig(lower_case=True, stop_words="remove"))(document)
    assert [m["content"] for m in json.loads(item.fields["messages"])][1] == "end"


def question(context, *answers):
    found = [{"text": text, "start": start} for text, start in answers]
    fields = {"context": context, "question": "Which?", "answers": json.dumps(found, ensure_ascii=False)}
    return Document("d", fields, "en")


def test_answers_still_say_where_they_stand():
    context = "\n\nMay\0be May.  \r\n\r\n\r\n\r\nIt was in May, cafe\u0301, May."
    places = [context.index("May", 3 + context.index("be")), context.index("May,"), context.rindex("May")]
    document = question(context, *(("May", place) for place in places), ("cafe\u0301", None))
    item, _ = Cleaner(CleanConfig())(document)
    cleaned, answers = item.fields["context"], json.loads(item.fields["answers"])
    assert cleaned == "Maybe May.\n\nIt was in May, café, May."
    assert [a["start"] for a in answers] == [6, cleaned.index("May,"), cleaned.rindex("May"), None]
    assert answers[3]["text"] == "café"
    assert Cleaner(CleanConfig())(item) == (item, [])
    unanswerable = question("It was in May.")
    assert Cleaner(CleanConfig())(unanswerable) == (unanswerable, [])


def test_an_answer_that_cleaning_loses_drops_the_question():
    config = CleanConfig(stop_words="remove")
    kept, _ = Cleaner(config)(question("It was in May.", ("May", 10)))
    assert json.loads(kept.fields["answers"]) == [{"text": "May", "start": 0}]
    for answer in ("the", "ox x"):
        context = f"It is {answer} there."
        dropped, _ = Cleaner(config)(question(context.replace("ox x", "ox  x"), (answer, 6)))
        assert dropped.rule == "answer_lost"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("This is a simple English sentence about rivers and trees.", "en"),
        ("Dies ist ein einfacher deutscher Satz über Flüsse und Bäume.", "de"),
        ("Ceci est une phrase simple en français sur les rivières.", "fr"),
        ("这是一个关于河流和树木的简单句子。", "zh"),
        ("Esta es una frase sencilla en español sobre los ríos.", "es"),
        ("Questa è una semplice frase italiana sui fiumi e gli alberi.", "it"),
    ],
)
def test_languages_are_told_apart(text, language):
    found, probability = detect_language(text)
    assert found == language
    assert probability > 0.8
    assert clean(text, CleanConfig(min_chars=0, detect_language=True))[0].language == language
    others = tuple({"en", "de", "fr", "zh", "es", "it"} - {language})
    assert rule(text, languages=others) == "language"
    assert rule(text, languages=(language,)) is None


def test_a_declared_language_is_believed_and_an_unclear_one_refused():
    config = CleanConfig(min_chars=0, languages=("en",))
    assert clean("Dies ist ein deutscher Satz.", config, "en")[0].language == "en"
    assert clean("This is English.", config, "de")[0].rule == "language"
    assert rule("12 34 xq zzt 0x1f", languages=("en",), language_threshold=0.99) == "language_unclear"
    assert detect_language("")[1] <= 1


GOPHER_EDGES = [
    ("min_words", "few_words", 3, 4, "one two three !!"),
    ("max_words", "many_words", 3, 2, "one two three !!"),
    ("min_mean_word_length", "short_words", 3, 3.01, "aa bbbb ccc . ."),
    ("max_mean_word_length", "long_words", 3, 2.99, "aa bbbb ccc . ."),
    ("max_symbol_ratio", "hashes", 0.2, 0.19, "a b c d #"),
    ("max_symbol_ratio", "ellipses", 0.25, 0.24, "a b c…"),
    ("max_bullet_lines", "bullets", 0.5, 0.49, "- a\nb\n • c\nd"),
    ("max_ellipsis_lines", "cut_lines", 0.5, 0.49, "a...\nb\nc… \nd"),
    ("min_alpha_words", "letters", 0.5, 0.51, "a1 2 b 3_4"),
    ("min_stop_words", "stop_words", 2, 3, "the cat and the dog"),
]


def gopher(text, config):
    measures = Measures(text)
    return judge_stop_words(measures, config, "en") or judge_gopher(measures, config)


@pytest.mark.parametrize(("key", "name", "stays", "goes", "text"), GOPHER_EDGES)
def test_gopher_rules_turn_at_their_bounds(key, name, stays, goes, text):
    assert gopher(text, GopherConfig(**{key: stays})) is None
    found, reason = gopher(text, GopherConfig(**{key: goes}))
    assert found == f"gopher_{name}"
    assert "at least" in reason or "at most" in reason
    assert rule(text, gopher=GopherConfig(**{key: goes})) == found


def test_stop_words_are_those_of_the_language():
    german, config = Measures("der Hund und die Katze"), GopherConfig(min_stop_words=2)
    assert judge_stop_words(german, config, "de") is None
    assert judge_stop_words(german, config, "en") is not None
    assert judge_stop_words(Measures("猫的家在这里"), config, "zh") is None


def test_of_several_rules_that_refuse_a_text_the_cheapest_is_named():
    text = "Dieser Satz hat keine englischen Wörter { und zu wenig Sätze."
    rules = {"gopher": GopherConfig(min_words=50, min_stop_words=2), "c4": C4Config(min_sentences=5)}
    assert rule(text, **rules) == "gopher_stop_words"
    assert rule(f"the and {text}", **rules) == "c4_few_sentences"
    assert rule(f"the and {text}", gopher=rules["gopher"]) == "gopher_few_words"


FINEWEB_EDGES = [
    ("min_punctuated_lines", "punctuation", 0.5, 0.51, "a.\n\nb\nc。\nd,"),
    ("max_short_lines", "short_lines", 0.5, 0.49, "x" * 30 + "\n" + "x" * 31),
    ("max_duplicate_line_chars", "repeated_lines", 0.25, 0.24, "abc\nabc\nxyzxyz"),
    ("max_newlines_a_word", "list", 0.5, 0.49, "a b\nc d\n"),
]


@pytest.mark.parametrize(("key", "name", "stays", "goes", "text"), FINEWEB_EDGES)
def test_fineweb_rules_turn_at_their_bounds(key, name, stays, goes, text):
    assert judge_fineweb(Measures(text), FinewebConfig(**{key: stays})) is None
    assert judge_fineweb(Measures(text), FinewebConfig(**{key: goes}))[0] == f"fineweb_{name}"


def counted(words, n):
    """The direct count that the fast one must equal."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    top, times = Counter(grams).most_common(1)[0]
    seen, repeated, place = set(), 0, 0
    while place < len(grams):
        if grams[place] in seen:
            repeated += sum(map(len, grams[place]))
            place += n
        else:
            seen.add(grams[place])
            place += 1
    return (sum(map(len, top)) + n - 1) * times, repeated


@pytest.mark.parametrize("seed", range(12))
def test_ngrams_are_counted_as_a_direct_count_does(seed):
    draw = random.Random(seed)
    alphabet = ["a", "bb", "ccc", "dddd", "e", *(f"w{number}" for number in range(seed * 4))]
    words = [draw.choice(alphabet) for _ in range(draw.randrange(12, 120))]
    text = " ".join(words)
    measures = Measures(text)
    for n in range(2, 11):
        top, repeated = counted(words, n)
        for share, off in ((top / len(text), "max_top_ngram"), (repeated / len(text), "max_duplicate_ngram")):
            first = 2 if off == "max_top_ngram" else 5
            if n < first or (n > 4 and first == 2):
                continue
            at, below = ((9.0,) * (n - first) + (share + delta,) for delta in (0.0, -1e-9))
            assert judge_repetition(measures, RepetitionConfig(**{off: at})) is None
            if share:
                assert judge_repetition(measures, RepetitionConfig(**{off: below}))[0].endswith(f"_{n}gram")


@pytest.mark.parametrize(
    ("key", "stays", "goes", "text", "name"),
    [
        ("max_duplicate_lines", 0.25, 0.24, "a\nb\n\na\nc", "repeated_lines"),
        ("max_duplicate_line_chars", 0.2, 0.19, "aa\nbb\naa\nc", "repeated_lines"),
        ("max_duplicate_paragraphs", 0.25, 0.24, "a\n\nb\n\na\n\n\nc", "repeated_paragraphs"),
        ("max_duplicate_paragraph_chars", 0.2, 0.19, "aaa\n\nbb\n\naaa", "repeated_paragraphs"),
    ],
)
def test_repeated_pieces_turn_at_their_bounds(key, stays, goes, text, name):
    bound = judge_repetition(Measures(text), RepetitionConfig(**{key: goes}))
    assert bound[0] == name
    if key.endswith(("lines", "paragraphs")):
        assert judge_repetition(Measures(text), RepetitionConfig(**{key: stays})) is None


ALL_C4 = C4Config(
    min_line_words=3,
    max_word_length=1000,
    terminal_punctuation=True,
    boilerplate=True,
    curly_bracket=True,
    lorem_ipsum=True,
    min_sentences=2,
)


@pytest.mark.parametrize(
    "line",
    [
        "Two words.",
        "x" * 1001 + " is too long.",
        "This does not end",
        "This trails off...",
        "Please enable JavaScript now.",
        "We value you: see our Privacy Policy.",
        "Wir schätzen sie: the coo\u212aie Policy.",
    ],
)
def test_c4_removes_lines(line):
    text = f"A first good line.\n{line}\nA second good line."
    assert apply_c4(text, ALL_C4) == ("A first good line.\nA second good line.", None)
    assert apply_c4(text, C4Config()) == (text, None)


@pytest.mark.parametrize(
    ("line", "name"),
    [("int main() { return; }.", "curly_bracket"), ("Now Lorem Ipsum dolor.", "lorem_ipsum")],
)
def test_c4_drops_documents(line, name):
    text = f"A first good line.\n{line}\nA second good line."
    assert apply_c4(text, ALL_C4)[1][0] == f"c4_{name}"
    assert apply_c4(text.replace(line, "A third good line."), ALL_C4)[1] is None


def test_c4_counts_sentences_and_removes_citation_marks():
    assert apply_c4("This is one sentence[1].", ALL_C4)[1] == ("c4_few_sentences", "1 sentences, at least 2")
    assert apply_c4("This is one[2]. This is two.", ALL_C4) == ("This is one. This is two.", None)
    for line, count in [("One. Two! Three?", 3), ("one", 1), ("v1.2.3 is out. yes", 2), ("你好。再见。", 2)]:
        assert count_sentences(line) == count
    assert count_sentences("so... and on") == 1
    assert count_sentences('He said "no." Then') == 2


def test_lines_that_go_are_an_edit_and_may_leave_too_little():
    text = f"{PROSE}\nRead our privacy policy here."
    item, edited = clean(text, CleanConfig(min_chars=64, c4=ALL_C4))
    assert (item.text, edited) == (PROSE, ["c4_lines"])
    little = "One good line here. And another one here.\n" + "no end\n" * 20
    assert clean(little, CleanConfig(min_chars=64, c4=ALL_C4))[0].rule == "too_short"


def test_blank_lines_stay_and_count_for_nothing_after_lines_have_gone():
    text = "\n\n".join(f"Line number {i} ends here." for i in range(9))
    config = CleanConfig(
        min_chars=0, c4=C4Config(min_line_words=3), fineweb=FinewebConfig(max_newlines_a_word=0.2)
    )
    assert clean(text, config)[0].text == text
    assert rule(text, fineweb=FinewebConfig(max_newlines_a_word=0.2)) == "fineweb_list"


def test_baselines_lose_case_and_stop_words():
    config = load_profile("classical")
    text = "The Quick Fox, which is brown, jumps over the lazy dog beside the old river every single day."
    item, edited = clean(text, config)
    assert item.text == "quick fox, brown, jumps lazy dog beside old river every single day."
    assert "baseline" in edited
    assert (
        clean("Der Hund und die Katze", CleanConfig(min_chars=0, stop_words="remove"), "de")[0].text
        == "Hund Katze"
    )
    assert clean("the and of", CleanConfig(min_chars=0, stop_words="remove"), "en")[0].rule == "too_short"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("İSTANBUL I IŞIK", "tr", "istanbul ı ışık"),
        ("ISTANBUL", "az", "ıstanbul"),
        ("ΟΔΟΣ", "el", "οδο\u03c2"),
        ("A do you to", "pl", "a do you to"),  # no list, so nothing goes: these are Polish words
        ("The cat", "", "cat"),
        ("i\u0307stanbul i", "en", "i\u0307stanbul"),  # a mark belongs to its letter, which is no stop word
    ],
)
def test_baselines_follow_the_language(text, language, expected):
    config = CleanConfig(min_chars=0, lower_case=True, stop_words="remove")
    assert clean(text, config, language)[0].text == unicodedata.normalize("NFC", expected)
