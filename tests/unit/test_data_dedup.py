import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup import Decontaminator, Removals, Unit, decide, sign
from distllm.data.records import Document, Dropped
from distllm.data.shingles import hash_ngrams, hash_words, words_of
from distllm.errors import DataError

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def prose(seed, words=200):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) + draw.choice(WORDS) for _ in range(words))


def thinned(text, seed, share=0.02):
    draw = random.Random(seed)
    return " ".join(word for word in text.split() if draw.random() >= share)


def signed(tmp_path, units, config):
    """Sign lists of documents, or of (id, text), as units of one source."""
    made = []
    for documents in units:
        directory = tmp_path / f"unit{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        batch = [d if isinstance(d, Document) else Document.from_text(*d) for d in documents]
        made.append(Unit(sign([batch], directory, config), "s"))
    return made


def gone(tmp_path, units, config):
    """Map the id of each document that goes to its rule and keeper."""
    decisions = decide(signed(tmp_path, units, config), config)
    return {
        (document.id if isinstance(document, Document) else document[0]): verdict
        for documents, decision in zip(units, decisions, strict=True)
        for row, document in enumerate(documents)
        if (verdict := decision.documents.get(row))
    }


def test_of_equal_texts_the_lowest_id_hash_stays_wherever_it_stands(tmp_path):
    texts = [("a", "one"), ("b", "two"), ("c", "one"), ("d", "three"), ("e", "one")]
    first = gone(tmp_path, [texts], DedupConfig())
    assert len(first) == 2
    assert {rule for rule, _ in first.values()} == {"duplicate"}
    assert gone(tmp_path, [texts[::-1]], DedupConfig()) == first
    assert gone(tmp_path, [[item] for item in texts], DedupConfig()) == first


def test_the_lower_priority_number_stays(tmp_path):
    config = DedupConfig()
    left, right = signed(tmp_path, [[("a", "same")], [("b", "same")]], config)
    for first, second in ((0, 1), (1, 0)):
        units = [Unit(left.signed, "l", first), Unit(right.signed, "r", second)]
        decisions = decide(units, config)
        assert [bool(decision.documents) for decision in decisions] == [first > second, second > first]


def test_what_was_seen_before_stays_and_is_never_named_to_go(tmp_path):
    config = DedupConfig(near=True)
    text = prose(1)
    old, new = signed(
        tmp_path, [[("old", text), ("old2", text)], [("new", text), ("near", thinned(text, 1))]], config
    )
    decisions = decide([Unit(old.signed, "old", 9, fixed=True), Unit(new.signed, "n", 0)], config)
    assert decisions[0].documents == {}
    assert {rule for rule, _ in decisions[1].documents.values()} == {"duplicate", "near_duplicate"}
    assert all(keeper.startswith("old") for _, keeper in decisions[1].documents.values())


def test_one_id_for_two_texts_is_named_but_ids_of_two_sources_may_be_equal(tmp_path):
    config = DedupConfig(documents=False)
    units = signed(tmp_path, [[("a", "short"), ("a", "much longer")], [("a", "other")]], config)
    decisions = decide([units[0], Unit(units[1].signed, "another")], config)
    assert decisions[0].documents == {0: ("duplicate_id", "a")}
    assert decisions[1].documents == {}


def test_without_documents_equal_texts_stay(tmp_path):
    assert gone(tmp_path, [[("a", "x"), ("b", "x")]], DedupConfig(documents=False)) == {}


def test_near_copies_are_found_and_others_are_not(tmp_path):
    config = DedupConfig(near=True)
    texts = {f"t{i}": prose(i, 600) for i in range(320)}
    copies = {f"c{i}": thinned(text, i) for i, text in enumerate(texts.values())}
    found = gone(tmp_path, [list(texts.items()), list(copies.items())], config)
    pairs = {tuple(sorted((gone_id, keeper))) for gone_id, (_, keeper) in found.items()}
    assert pairs <= {(f"c{i}", f"t{i}") for i in range(320)}
    assert len(pairs) / 320 >= 0.95
    assert {rule for rule, _ in found.values()} == {"near_duplicate"}


@pytest.mark.parametrize("similarity", [0.7, 0.8])
def test_the_bands_find_what_their_curve_says(tmp_path, similarity):
    """Sets of shingles with a known Jaccard similarity, without the check of the estimate."""
    pairs, size, config = 400, 300, DedupConfig(near=True, ngram=1, near_similarity=0.0)
    shared = round(size * 2 * similarity / (1 + similarity))
    units = [[], []]
    for pair in range(pairs):
        words = [f"w{pair}x{i}" for i in range(2 * size - shared)]
        units[0].append((f"a{pair}", " ".join(words[:size])))
        units[1].append((f"b{pair}", " ".join(words[size - shared :])))
    found = len(gone(tmp_path, units, config)) / pairs
    expected = 1 - (1 - similarity**8) ** 14
    assert abs(found - expected) < 4 * (expected * (1 - expected) / pairs) ** 0.5


def test_a_chain_does_not_become_one_cluster(tmp_path):
    """Each text is like the next, the ends are not: what goes is like what stays."""
    base = prose(7, 400).split()
    chain = [" ".join(base[i * 14 : i * 14 + 200]) for i in range(12)]
    config = DedupConfig(near=True, bands=56, rows=2)
    found = gone(tmp_path, [[(f"c{i}", text) for i, text in enumerate(chain)]], config)
    grams = [set(hash_ngrams(hash_words(words_of(text)), 5).tolist()) for text in chain]
    assert 2 <= len(chain) - len(found) < len(chain)
    for document, (_, keeper) in found.items():
        a, b = grams[int(document[1:])], grams[int(keeper[1:])]
        assert len(a & b) / len(a | b) > 0.5, (document, keeper)


def test_pieces_that_stand_elsewhere_are_cut_out(tmp_path):
    long = "This footer stands below each page of the whole site."
    texts = [("a", f"{prose(1, 9)}\n{long}\nend"), ("b", f"{prose(2, 30)}\n{long}"), ("c", f"{long}\n{long}")]
    config = DedupConfig(pieces="lines")
    units = signed(tmp_path, [texts], config)
    (decision,) = decide(units, config)
    removals = Removals.save(tmp_path / "r.json", decision)
    documents = [removals.apply(row, Document.from_text(*each)) for row, each in enumerate(texts)]
    assert documents[1].text == texts[1][1]  # the longest has precedence
    assert documents[0].text == texts[0][1].replace(f"\n{long}", "")
    assert isinstance(documents[2], Dropped)
    assert documents[2].rule == "duplicate_lines"


def test_short_pieces_and_pieces_of_documents_that_go_do_not_count(tmp_path):
    line = "a line of more than forty characters, to be sure"
    longest = f"{prose(3, 50)}\n{line}"
    texts = [("a", longest), ("b", longest), ("c", f"}}\nfirst\n{line}"), ("d", "}\nsecond")]
    config = DedupConfig(pieces="lines")
    (decision,) = decide(signed(tmp_path, [texts], config), config)
    assert len(decision.documents) == 1
    assert decision.pieces == {2: [2]}


def test_paragraphs_are_cut_at_blank_lines(tmp_path):
    same = "A paragraph of two lines\nwhich stands in both of these texts."
    texts = [("a", f"{prose(1, 40)}\n\n{same}"), ("b", f"{same}\n\n{prose(2, 20)}")]
    config = DedupConfig(pieces="paragraphs")
    (decision,) = decide(signed(tmp_path, [texts], config), config)
    assert decision.pieces == {1: [0]}
    left = Removals.save(tmp_path / "r", decision).apply(1, Document.from_text(*texts[1]))
    assert left.text == prose(2, 20)


def test_pieces_are_compared_a_range_of_hashes_at_a_time(tmp_path, monkeypatch):
    line = "a line of more than forty characters, number {}"
    texts = [(f"d{i}", "\n".join(line.format(j) for j in range(i, i + 30))) for i in range(20)]
    config = DedupConfig(pieces="lines")
    units = signed(tmp_path, [texts[:9], texts[9:]], config)
    whole = list(decide(units, config))
    monkeypatch.setattr(sys.modules["distllm.data.dedup.decide"], "_PIECES_AT_ONCE", 50)
    assert list(decide(units, config, tmp_path)) == whole


def test_removals_name_the_keeper_and_their_digest_follows_them(tmp_path):
    config = DedupConfig()
    units = signed(tmp_path, [[("a", "same"), ("b", "same"), ("c", "other")]], config)
    (decision,) = decide(units, config)
    removals = Removals.save(tmp_path / "one.json", decision)
    row, (_, keeper) = next(iter(decision.documents.items()))
    dropped = removals.apply(row, Document.from_text("x", "same"))
    assert (dropped.rule, dropped.reason, dropped.sample) == ("duplicate", f"same text as {keeper}", "same")
    assert removals.apply(2, Document.from_text("c", "other")).text == "other"
    assert Removals.save(tmp_path / "two.json", decision).digest == removals.digest
    decision.documents[2] = ("duplicate", "a")
    assert Removals.save(tmp_path / "two.json", decision).digest != removals.digest


def test_other_fields_are_compared_but_not_cut(tmp_path):
    config = DedupConfig(pieces="lines", min_piece_chars=1)
    pair = {"source": "one\ntwo", "target": "eins\nzwei"}
    documents = [Document("a", pair), Document("b", pair), Document("c", {**pair, "target": "drei"})]
    (decision,) = decide(signed(tmp_path, [documents], config), config)
    assert len(decision.documents) == 1
    assert decision.pieces == {}


def test_words_of_scripts_without_spaces_are_characters():
    assert words_of("Ein Haus, 3 Häuser!") == ["ein", "haus", "3", "häuser"]
    assert words_of("机器学习 model") == ["机", "器", "学", "习", "model"]
    near = hash_ngrams(hash_words(words_of("今天天气很好我们去公园")), 5)
    far = hash_ngrams(hash_words(words_of("昨天下雨了所以我在家里")), 5)
    assert near.size == 7
    assert not np.isin(near, far).any()


def test_short_texts_have_one_shingle_and_empty_ones_none():
    one = hash_ngrams(hash_words(["a", "b"]), 5)
    assert one.size == 1
    assert one != hash_ngrams(hash_words(["a", "b", "c"]), 5)
    assert hash_ngrams(hash_words([]), 5).size == 0


SCRIPT = """
import sys, pathlib
from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup import sign
from distllm.data.records import Document
out = pathlib.Path(sys.argv[1]); out.mkdir()
texts = [Document.from_text(str(i), f"word{i} and word{i * i} are in text number {i}") for i in range(50)]
sign([texts], out, DedupConfig(near=True, pieces="lines"))
"""


@pytest.mark.slow
def test_signatures_do_not_depend_on_the_process(tmp_path):
    contents = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", SCRIPT, str(out)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        contents.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9


EVAL = "the quick brown fox jumps over the lazy dog while the cat sleeps on the mat"


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "eval.txt").write_text(f"{EVAL}\nWho wrote the seventh symphony?\nshort\n")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": ["unrelated"], "a": {"text": EVAL.upper()}}) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", ["eval.txt", "eval.jsonl"])
def test_thirteen_shared_words_spoil_an_evaluation(sets, name):
    check = Decontaminator([str(sets / name)], 13)
    words = EVAL.split()
    spoiled = check(Document.from_text("d", "It says: " + ", ".join(words[2:15]).title() + " again."))
    assert (spoiled.rule, str(sets / name) in spoiled.reason) == ("contaminated", True)
    assert "brown fox jumps" in spoiled.reason
    clean = Document.from_text("d", " ".join(words[:12]) + " and " + " ".join(words[12:]))
    assert check(clean) is clean


def test_short_items_count_whole_and_very_short_ones_not_at_all(sets):
    check = Decontaminator([str(sets / "eval.txt")], 13)
    assert check(Document.from_text("d", "So, who wrote the seventh symphony, then?")).rule == "contaminated"
    for text in ("who wrote the eighth symphony", "short", ""):
        assert isinstance(check(Document.from_text("d", text)), Document)


def test_the_digest_follows_the_content_of_the_sets(sets):
    paths = [str(sets / "eval.txt")]
    before = Decontaminator(paths, 13).digest
    assert Decontaminator(paths, 13).digest == before != Decontaminator(paths, 12).digest
    (sets / "eval.txt").write_text("something else")
    assert Decontaminator(paths, 13).digest != before


def test_bad_sets_are_named(sets):
    with pytest.raises(DataError, match="neither a file nor a dataset"):
        Decontaminator([str(sets / "missing.txt")], 13).digest  # noqa: B018
    (sets / "bad.jsonl").write_text('{"a": "b"}\n{"a": \n')
    with pytest.raises(DataError, match=r"line 2 of the evaluation set .* is not JSON"):
        Decontaminator([str(sets / "bad.jsonl")], 13)(Document.from_text("d", "text"))


def test_no_sets_no_work():
    document = Document.from_text("d", EVAL)
    assert Decontaminator([], 13)(document) is document
