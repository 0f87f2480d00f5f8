"""Make clean_verdicts.jsonl: what each rule of datatrove's filters says of real and of constructed documents.

Run with the Python of an environment that has datatrove 0.10.1 and spaCy (tests/bench/peers.sh builds it):

    PEER_PYTHON tests/golden/make_clean_verdicts.py DOCUMENTS.jsonl > tests/golden/clean_verdicts.jsonl

Each line of DOCUMENTS holds id, text and language; an older clean_verdicts.jsonl will do. Every rule judges
alone, with its published threshold; a rule is named by its key below ``clean``. Constructed documents stand
on both sides of the edge of each rule: the tool finds the edge by asking datatrove.

A document whose script has no spaces is judged with spaces around its characters, because each is a
word of its own here; ``as_is`` holds what datatrove says without that.
"""

import contextlib
import functools
import hashlib
import io
import json
import re
import sys
from pathlib import Path

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
MOST_STEPS = 80
SENTENCE = "the quick brown fox and that lazy dog have to be with us of course today"
PROSE = SENTENCE.split()
TOP, DUPLICATE = (0.2, 0.18, 0.16), (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)


def load_filters():
    """Return each rule as a filter of its own, and the whole filters in the order of FineWeb's chain."""
    from datatrove.pipeline import filters

    def gopher(**on):
        off = dict.fromkeys(
            ("min_doc_words", "max_doc_words", "min_avg_word_length", "max_avg_word_length",
             "max_symbol_word_ratio", "max_bullet_lines_ratio", "max_ellipsis_lines_ratio",
             "max_non_alpha_words_ratio", "min_stop_words")
        )  # fmt: skip
        return filters.GopherQualityFilter(**(off | on))

    def repetition(**on):
        off = dict.fromkeys(("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac"))
        return filters.GopherRepetitionFilter(**(off | {"top_n_grams": (), "dup_n_grams": ()} | on))

    def c4(**on):
        off = {"filter_no_terminal_punct": False, "filter_lorem_ipsum": False, "filter_curly_bracket": False}
        return filters.C4QualityFilter(**(off | {"min_num_sentences": -1} | on))

    def fineweb(**on):
        off = {"line_punct_thr": 0, "short_line_thr": 1, "char_duplicates_ratio": 1, "new_line_ratio": 1e9}
        return filters.FineWebQualityFilter(**(off | on))

    rules = {
        "gopher.min_words": gopher(min_doc_words=50),
        "gopher.max_words": gopher(max_doc_words=100_000),
        "gopher.min_mean_word_length": gopher(min_avg_word_length=3),
        "gopher.max_mean_word_length": gopher(max_avg_word_length=10),
        "gopher.max_symbol_ratio": gopher(max_symbol_word_ratio=0.1),
        "gopher.max_bullet_lines": gopher(max_bullet_lines_ratio=0.9),
        "gopher.max_ellipsis_lines": gopher(max_ellipsis_lines_ratio=0.3),
        "gopher.min_alpha_words": gopher(max_non_alpha_words_ratio=0.8),
        "gopher.min_stop_words": gopher(min_stop_words=2),
        "repetition.max_duplicate_lines": repetition(dup_line_frac=0.3),
        "repetition.max_duplicate_line_chars": repetition(dup_line_char_frac=0.2),
        "repetition.max_duplicate_paragraphs": repetition(dup_para_frac=0.3),
        "repetition.max_duplicate_paragraph_chars": repetition(dup_para_char_frac=0.2),
        **{f"repetition.max_top_ngram.{n}": repetition(top_n_grams=((n, s),)) for n, s in enumerate(TOP, 2)},
        **{
            f"repetition.max_duplicate_ngram.{n}": repetition(dup_n_grams=((n, s),))
            for n, s in enumerate(DUPLICATE, 5)
        },
        "c4.curly_bracket": c4(filter_curly_bracket=True),
        "c4.lorem_ipsum": c4(filter_lorem_ipsum=True),
        "c4.min_sentences": c4(min_num_sentences=5),
        "fineweb.min_punctuated_lines": fineweb(line_punct_thr=0.12),
        "fineweb.max_short_lines": fineweb(short_line_thr=0.67),
        "fineweb.max_duplicate_line_chars": fineweb(char_duplicates_ratio=0.01),
        "fineweb.max_newlines_a_word": fineweb(new_line_ratio=0.3),
    }
    chain = [
        filters.GopherRepetitionFilter(),
        filters.GopherQualityFilter(),
        filters.C4QualityFilter(filter_no_terminal_punct=False),
        filters.FineWebQualityFilter(),
    ]
    return rules, chain, c4(), c4(filter_no_terminal_punct=True)


@functools.cache
def split(kind, spaced, text, language="en"):
    """Split into words or sentences as datatrove does, once a text."""
    from datatrove.utils import text as datatrove

    if spaced:
        text = re.sub(f"([{UNSPACED}])", r" \1 ", text)
    return getattr(datatrove, f"split_into_{kind}")(text, language)


@contextlib.contextmanager
def splitting(spaced):
    """Let datatrove's filters split with `split`."""
    import importlib

    users = [("words", name) for name in ("gopher_quality_filter", "gopher_repetition_filter")]
    users += [("words", "fineweb_quality_filter"), ("sentences", "c4_filters")]
    for kind, name in users:
        module = importlib.import_module(f"datatrove.pipeline.filters.{name}")
        setattr(module, f"split_into_{kind}", functools.partial(split, kind, spaced))
    yield


class Judge:
    """All verdicts of datatrove."""

    def __init__(self):
        self.rules, self.chain, self.lines, self.ended_lines = load_filters()

    def refuses(self, rule, text):
        from datatrove.data import Document

        return self.rules[rule].filter(Document(text=text, id="x")) is not True

    def __call__(self, text, spaced=True):
        from datatrove.data import Document

        with splitting(spaced):
            kept, ended, document = (Document(text=text, id="x") for _ in range(3))
            self.lines.filter(kept)
            self.ended_lines.filter(ended)
            return {
                "refused": [rule for rule in self.rules if self.refuses(rule, text)],
                "chain": all(judge.filter(document) is True for judge in self.chain),
                "lines": digest(kept.text),
                "ended_lines": digest(ended.text),
            }


def digest(text):
    """Return the digest of the lines that are not blank, spaces between words made single."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return hashlib.sha256("\n".join(line for line in lines if line).encode()).hexdigest()[:16]


def families():
    """Yield rules, and documents that grow step by step over the edge of each."""
    prose, sentence = " ".join(PROSE * 4), " ".join(PROSE)

    def lines(count, make, other):
        return "\n".join([make(i) for i in range(count)] + [other(i) for i in range(20 - count)])

    def phrases(n):
        phrase = " ".join(f"again{i}" for i in range(n))
        return lambda k: " ".join(
            [f"{w}{i}" for i, w in enumerate(PROSE * 9)] + [f"{phrase} {i}x" for i in range(k)]
        )

    yield "gopher.min_words", lambda k: " ".join((PROSE * 9)[: k + 20])
    yield "gopher.min_mean_word_length", lambda k: prose + " a b" * k
    yield "gopher.max_mean_word_length", lambda k: prose + " counterrevolutionaries" * k
    yield "gopher.max_symbol_ratio", lambda k: prose + " #" * k
    yield "gopher.max_symbol_ratio", lambda k: prose + " so..." * k
    yield (
        "gopher.max_bullet_lines",
        lambda k: lines(k, lambda i: f" - {sentence} {i}", lambda i: f"{i} {sentence}"),
    )
    yield "gopher.max_ellipsis_lines", lambda k: lines(k, lambda i: f"{sentence} {i}...", lambda i: sentence)
    yield "gopher.min_alpha_words", lambda k: prose + "".join(f" {1000 + i}" for i in range(k))
    yield "gopher.min_stop_words", lambda k: "quick brown fox " * 20 + " ".join(("have", "of", "and")[:k])
    for glue, what in (("\n", "line"), ("\n\n", "paragraph")):
        yield (
            f"repetition.max_duplicate_{what}s",
            lambda k, glue=glue: glue.join([f"{sentence} {i}" for i in range(20)] + ["short again"] * k),
        )
        yield (
            f"repetition.max_duplicate_{what}_chars",
            lambda k, glue=glue: glue.join(
                [f"{sentence} {i}" for i in range(20)] + [f"{sentence} again"] * k
            ),
        )
    for n in range(2, 5):
        yield f"repetition.max_top_ngram.{n}", phrases(n)
    for n in range(5, 11):
        yield f"repetition.max_duplicate_ngram.{n}", phrases(n)
    yield "c4.curly_bracket", lambda k: sentence + " {}" * k
    yield "c4.lorem_ipsum", lambda k: sentence + " Lorem Ipsum" * k
    yield "c4.min_sentences", lambda k: " ".join(f"The {w} is {i}." for i, w in enumerate(PROSE[:k]))
    yield (
        "fineweb.min_punctuated_lines",
        lambda k: lines(k, lambda i: f"{sentence}。", lambda i: f"{i} {sentence}"),
    )
    yield (
        "fineweb.max_short_lines",
        lambda k: lines(k, lambda i: f"{i:02} " + "x" * 27, lambda i: f"{i:02} " + "x" * 28),
    )
    yield "fineweb.max_duplicate_line_chars", lambda k: lines(0, str, lambda i: f"{i} {sentence}") + "\na" * k
    yield "fineweb.max_newlines_a_word", lambda k: sentence + "\nx" * k


def constructed(judge):
    """Yield documents on both sides of the edge of each rule, then documents that lose lines."""
    with splitting(True):
        for number, (rule, make) in enumerate(families()):
            first = judge.refuses(rule, make(0))
            edge = next(k for k in range(1, MOST_STEPS) if judge.refuses(rule, make(k)) is not first)
            for k in (edge - 1, edge):
                yield {"id": f"{number:02}-{rule}-{k}", "text": make(k)}
    for times in (100_000, 100_001):
        yield {"id": f"gopher.max_words-{times}", "text": "many ", "times": times}
    good = " ".join(PROSE) + "."
    for name, line in {
        "script": "Enable JavaScript to see this.", "policy": "This site USES COOKIES, you know.",
        "long-word": f"{'x' * 1001} is a word.", "longest-word": f"{'x' * 1000} is a word.",
        "two-words": "Two words.", "three-words": "Three words here.", "citation": "Cited[1] [edit] here[].",
        "only-citations": "[1] [2] [citation needed]", "no-end": "This does not end",
        "cut": "It trails off...",
        "quoted": 'He said "so it is"', "spaces": "  One.   Two .  ) Three?! Four  ", "blank": " \n\n\t\n",
        "contractions": "We can't go. I'd've said so. Don't they? It's 8am, e.g. at Dr. Who's.",
        "marks": "See http://example.org/a?b=c, (e.g. a/b) C++ :-) 3km 1,000.5 $5 x=y foo.bar() -- 'tis.",
    }.items():  # fmt: skip
        yield {"id": f"line-{name}", "text": f"{good}\n{line}\n\n{good} Really.\n{line}\n" * 2}


def main(path):
    """Judge the documents of ``path`` and the constructed ones."""
    with Path(path).open(encoding="utf-8") as stream:
        real = [json.loads(line) for line in stream]
    real = [{key: item[key] for key in ("id", "text", "language")} for item in real if "/" in item["id"]]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = Judge()
        found = []
        for document in [*constructed(judge), *real]:
            text = document["text"] * document.get("times", 1)
            verdicts = judge(text)
            if re.search(f"[{UNSPACED}]", text):
                verdicts["as_is"] = judge(text, spaced=False)["refused"]
            found.append({**document, **verdicts})
    for line in found:
        print(json.dumps(line, ensure_ascii=False, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
