"""Make clean_verdicts.jsonl: what datatrove's filters say of real and of constructed documents.

Run with the Python of an environment that has datatrove 0.10.1 and its processing extra:

    PEER_PYTHON tests/golden/make_clean_verdicts.py DOCUMENTS.jsonl > tests/golden/clean_verdicts.jsonl

Each line of DOCUMENTS holds id, text and language. Verdicts are taken twice: with datatrove's own
splitter of words (spaCy), and with ours put in its place, which tells rules apart from words.
"""

import contextlib
import io
import json
import re
import sys
from pathlib import Path

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+|[^\\w\\s]")


def our_words(text, *_):
    return WORD.findall(text)


def filters():
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    return {
        "gopher": GopherQualityFilter(),
        "repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }


def verdicts(text):
    from datatrove.data import Document

    found = {}
    for name, judge in filters().items():
        answer = judge.filter(Document(text=text, id="x"))
        found[name] = True if answer is True else answer[1]
    return found


@contextlib.contextmanager
def with_our_words():
    import importlib

    names = ("gopher_quality_filter", "gopher_repetition_filter", "fineweb_quality_filter")
    modules = [importlib.import_module(f"datatrove.pipeline.filters.{name}") for name in names]
    before = [module.split_into_words for module in modules]
    for module in modules:
        module.split_into_words = our_words
    try:
        yield
    finally:
        for module, splitter in zip(modules, before, strict=True):
            module.split_into_words = splitter


def constructed():
    """Yield documents on both sides of the edges of rules."""
    word = "the quick brown fox and that lazy dog have to be with us of course today"
    base = word.split()
    for count in (49, 50, 51):
        yield f"words-{count}", " ".join((base * 4)[:count])
    for hashes in (5, 6, 7):
        yield f"hashes-{hashes}", " ".join((base * 4)[:60]) + " #" * hashes
    for dots in (5, 6, 7, 8):
        yield f"ellipses-{dots}", " ".join((base * 4)[:60]) + " so..." * dots
    for bullets in (8, 9, 10):
        lines = [f"- {word} {i}" for i in range(bullets)] + [f"{word} {i}." for i in range(10 - bullets)]
        yield f"bullets-{bullets}", "\n".join(lines)
    for cut in (2, 3, 4):
        lines = [f"{word} {i}..." for i in range(cut)] + [f"{word} {i}." for i in range(10 - cut)]
        yield f"cut-{cut}", "\n".join(lines)
    for numbers in (10, 12, 14, 16):
        yield f"numbers-{numbers}", " ".join((base * 4)[:60] + [str(1000 + i) for i in range(numbers)])
    for again in (1, 2, 3, 4):
        lines = [f"{word} number {i} comes here" for i in range(10 - again)] + [
            f"{word} number 0 comes here"
        ] * again
        yield f"lines-{again}", "\n".join(lines)
        yield f"paragraphs-{again}", "\n\n".join(lines)
    for times in (2, 4, 8, 16):
        yield (
            f"phrase-{times}",
            " ".join([f"{w}{i}" for i, w in enumerate(base * 6)] + ["again and again"] * times),
        )
    for short in (6, 7, 8):
        lines = ["short line here."] * 0 + [f"short line {i}." for i in range(short)]
        lines += [f"{word} which makes it long {i}." for i in range(10 - short)]
        yield f"short-{short}", "\n".join(lines)
    for ended in (1, 2, 3):
        lines = [f"{word} {i}." for i in range(ended)] + [f"{word} {i}" for i in range(10 - ended)]
        yield f"ended-{ended}", "\n".join(lines)
    yield "brace", f"{word}. {word} {{}}. " * 3
    yield "lorem", f"{word}. Lorem ipsum dolor sit amet. {word}."
    yield "script", f"{word}.\nEnable JavaScript to see this.\n{word}.\n" * 3
    yield "policy", f"{word}.\nThis site uses cookies, you know.\n{word}.\n" * 3
    yield "long-word", f"{word}.\n{'x' * 1001} is a word.\n{word}.\n" * 3
    for sentences in (3, 4, 5, 6):
        yield f"sentences-{sentences}", " ".join([f"The {w} is {i}." for i, w in enumerate(base[:sentences])])
    yield "short-words", "a b c d e f g h i j to of the and " * 6
    yield "long-words", "internationalization counterrevolutionaries the and that have " * 12


def main(path):
    with Path(path).open(encoding="utf-8") as stream:
        real = [json.loads(line) for line in stream]
    documents = [{"id": id_, "text": text, "language": "en"} for id_, text in constructed()] + real
    lines = []
    with contextlib.redirect_stdout(io.StringIO()):
        for document in documents:
            own = verdicts(document["text"])
            with with_our_words():
                same_words = verdicts(document["text"])
            lines.append({**document, "datatrove": own, "same_words": same_words})
    for line in lines:
        print(json.dumps(line, ensure_ascii=False, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1])
