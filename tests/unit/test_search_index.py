"""Search: what is cut, embedded, written and found, and what is refused with cause and remedy."""

import io
import json
import sys

import numpy as np
import pytest
import serving
from search_folders import TEXTS, corpus_file, encoder_folder

from distllm.cli import main
from distllm.commands.search import show_hits
from distllm.errors import ConfigError, DataError
from distllm.evaluate.retrieval import BM25, VectorIndex, search_exact
from distllm.export.load import shape_of
from distllm.search.build import BATCH, batches_of
from distllm.search.encoder import encoder_of_folder
from distllm.search.index import Hit, SearchIndex, fuse
from distllm.search.snippets import around, snippet


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with an encoder, a corpus and the index of both."""
    root = tmp_path_factory.mktemp("search")
    encoder_folder(root / "encoder")
    corpus_file(root / "texts.jsonl")
    assert build(root, "index") == 0
    return root


def build(root, out, *more, corpus="texts.jsonl"):
    words = (f"corpus={root}/{corpus}", "id_key=id", f"model={root}/encoder", f"out={root}/{out}", "ranks=1")
    return main(["search", "build", *words, *more])


def ask(root, capsys, text, *more, index="index"):
    code = main(["search", "query", f"index={root}/{index}", f"text={text}", *more])
    told = capsys.readouterr()
    return code, told.out + told.err


def titles(printed):
    return [line.split()[1] for line in printed.splitlines() if line[:1].isdigit()]


def test_words_find_the_document_that_holds_them(place, capsys):
    code, printed = ask(place, capsys, "mill shares", "mode=words")
    assert code == 0
    assert titles(printed) == ["stocks", "rain"]
    assert "A broker sold all shares of the mill." in printed
    assert "\x1b" not in printed
    assert titles(ask(place, capsys, "mill", "mode=words", "top=1")[1]) == ["rain"]
    assert "nothing was found" in ask(place, capsys, "zebra", "mode=words")[1]


def test_vectors_find_the_same_text_and_hybrid_knows_both(place, capsys):
    index = SearchIndex(place / "index", encoder_of_folder(place / "encoder"))
    (best, *others) = index.hits(TEXTS["cook"], 4, "vectors")
    assert best.title == "cook"
    assert len({hit.title for hit in others} | {"cook"}) == 4
    both = index.hits("pasta", 4)
    words, vectors = index.hits("pasta", 1, "words"), index.hits("pasta", 4, "vectors")
    place_of = {hit.title: at for at, hit in enumerate(vectors, 1)}
    assert words[0].title == "cook"
    assert {hit.title: hit.score for hit in both}["cook"] == pytest.approx(
        1 / 61 + 1 / (60 + place_of["cook"])
    )
    found = index.search("pasta", 1)[0]
    assert set(found) == {"title", "score", "snippet", "matches", "passage"}
    json.dumps(found)


def test_an_index_knows_its_model_and_refuses_another(place, capsys):
    manifest = json.loads((place / "index" / "manifest.json").read_text())
    assert manifest["model"]["path"] == str(place / "encoder")
    assert manifest["texts"]["documents"] == manifest["texts"]["passages"] == 4
    encoder_folder(place / "other", seed=2)
    assert ask(place, capsys, "mill", f"model={place}/encoder")[0] == 0
    code, said = ask(place, capsys, "mill", f"model={place}/other")
    assert code == 64
    assert f"made with model={place}/encoder" in said
    assert f"not with model={place}/other" in said
    assert "remedy:" in said


def test_pooling_is_part_of_the_model_and_survives_its_folder(tmp_path):
    first = encoder_of_folder(encoder_folder(tmp_path / "mean"))
    second = encoder_of_folder(encoder_folder(tmp_path / "cls", pooling="cls"))
    assert shape_of(tmp_path / "cls").pooling == "cls"
    assert first.facts()["digest"] != second.facts()["digest"]
    assert not np.allclose(first.embed(["a token"]), second.embed(["a token"]))


@pytest.mark.slow
def test_a_model_that_has_moved_is_named(place, tmp_path, capsys):
    (tmp_path / "encoder").symlink_to(place / "encoder")
    corpus_file(tmp_path / "texts.jsonl")
    assert build(tmp_path, "index") == 0
    (tmp_path / "encoder").unlink()
    code, said = ask(tmp_path, capsys, "mill")
    assert code == 64
    assert "the model of the index is gone" in said
    assert ask(tmp_path, capsys, "mill", f"model={place}/encoder")[0] == 0


def test_what_cannot_be_built_says_why(place, tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "encoder").symlink_to(place / "encoder")
    assert build(tmp_path, "index", corpus="empty.jsonl") == 65
    assert "the corpus holds no text" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert build(tmp_path, "index", corpus="absent.jsonl") == 65
    said = capsys.readouterr().err
    assert "does not exist" in said
    assert "data." not in said
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    corpus_file(tmp_path / "texts.jsonl")
    assert build(tmp_path, "mine") == 64
    assert "not written by this command" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_words_that_are_missing_or_too_many(place, capsys):
    assert main(["search", "build", "out=x", "run=a"]) == 64
    assert "corpus=... is missing" in capsys.readouterr().err
    assert main(["search", "build", "corpus=a", "out=x"]) == 64
    assert "give run=NAME or model=DIR" in capsys.readouterr().err
    assert main(["search", "build", "corpus=a", "out=x", "run=a", "model=b"]) == 64
    assert "both a run and a model" in capsys.readouterr().err
    assert ask(place, capsys, " ")[0] == 64
    assert "did you mean 'build'" in refused_action(capsys)


def refused_action(capsys):
    assert main(["search", "bild"]) == 64
    return capsys.readouterr().err


def test_a_directory_without_an_index_and_a_damaged_one(place, tmp_path, capsys):
    code, said = ask(tmp_path, capsys, "mill", index="nowhere")
    assert code == 64
    assert "holds no search index" in said
    corpus_file(tmp_path / "texts.jsonl")
    (tmp_path / "encoder").symlink_to(place / "encoder")
    assert build(tmp_path, "index") == 0
    for name in ("passages.jsonl", "vectors.faiss", "words.safetensors"):
        file = tmp_path / "index" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, said = ask(tmp_path, capsys, "mill")
        assert code == 65
        assert f"{name} is not what was written" in said
        file.write_bytes(whole)
    (tmp_path / "index" / "manifest.json").write_text('{"format": 99}')
    assert "format 99" in ask(tmp_path, capsys, "mill")[1]
    (tmp_path / "index" / "manifest.json").write_text("{")
    assert "not valid JSON" in ask(tmp_path, capsys, "mill")[1]


def test_only_encoders_have_vectors(tmp_path, capsys):
    words = serving.tokenizer()
    decoder = serving.model(words.vocab_size)
    from distllm.export.hf import export_hf

    export_hf(decoder.state_dict(), decoder.shape, words, tmp_path / "llama", {})
    with pytest.raises(ConfigError, match="family decoder, which gives no vectors") as error:
        encoder_of_folder(tmp_path / "llama")
    assert "task=contrastive" in str(error.value)


def test_without_faiss_the_extra_is_named(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert build(place, "no") == 64
    assert "pip install 'distllm[search]'" in capsys.readouterr().err
    assert not (place / "no").exists()


def test_batches_hold_every_passage_once_and_alike_lengths():
    sizes = [number * 7 % 50 for number in range(3 * BATCH + 5)]
    batches = batches_of(sizes)
    assert sorted(place for batch in batches for place in batch) == list(range(len(sizes)))
    assert [len(batch) for batch in batches] == [BATCH] * 3 + [5]
    lengths = [sizes[place] for batch in batches for place in batch]
    assert lengths == sorted(lengths)


def test_rankings_are_fused_by_reciprocal_places():
    fused = fuse([[3, 1], [1, 2]])
    assert [passage for passage, _ in fused] == [1, 3, 2]
    assert dict(fused)[1] == pytest.approx(1 / 62 + 1 / 61)
    assert fuse([[5], [4]]) == [(4, 1 / 61), (5, 1 / 61)]
    assert fuse([]) == []


def test_bm25_and_vectors_come_back_from_their_bytes():
    texts = list(TEXTS.values())
    words = BM25(texts)
    again = BM25.from_arrays(words.to_arrays())
    np.testing.assert_array_equal(words.search(["water mill", "x"], 4), again.search(["water mill", "x"], 4))
    assert again.matching("water zebra", 9).tolist() == words.matching("water", 9).tolist()
    assert again.informative_words("the water zebra Night") == ["water", "night"]
    assert BM25.from_arrays(BM25([""]).to_arrays()).matching("x", 3).tolist() == []
    vector_PC = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    for exact in (True, False):
        content = VectorIndex(vector_PC, exact=exact).to_bytes()
        assert VectorIndex(vector_PC, exact=exact).to_bytes() == content
        found = VectorIndex.from_bytes(content).search(vector_PC[:5], 3)
        assert (found[:, 0] == search_exact(vector_PC[:5], vector_PC, 1)[:, 0]).all()


LONG = "one two three four five six seven eight nine ten " * 9 + "needle in the hay " + "more and more " * 30


def test_words_of_a_script_without_spaces_are_found_one_by_one():
    words = BM25(["模型读取词元。", "今天下雨。", "the model reads"])
    assert words.matching("读取模型", 9).tolist() == [0]
    assert words.matching("Model", 9).tolist() == [2]


def test_a_snippet_shows_matches_within_its_width():
    shown, matches = snippet(LONG, ["needle", "hay"], 100)
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert len(shown) <= 102
    assert [shown[a:b] for a, b in matches] == ["needle", "hay"]
    shown, matches = snippet("The  cat\nsat", ["the", "sat"])
    assert shown == "The cat sat"
    assert [shown[a:b] for a, b in matches] == ["The", "sat"]
    assert snippet("no match here " * 50, ["x"], 40) == ("no match here no match here no match…", [])
    assert snippet("x" * 100, [], 10) == ("x" * 10 + "…", [])


@pytest.mark.parametrize("at", [0, 5, 441, len(LONG) - 4])
def test_what_is_around_a_place_holds_it(at):
    shown, ((begin, end),) = around(LONG, (at, at + 4), 60)
    assert shown[begin:end] == LONG[at : at + 4]
    assert len(shown) <= 100


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_matches_stand_out_on_a_terminal_and_control_characters_do_not_reach_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    hit = Hit("a\x1b[2Jb", 0.5, "the mill \x1b[0m", [(4, 8)], "")
    terminal, plain = Terminal(), io.StringIO()
    show_hits([hit], terminal)
    show_hits([hit], plain)
    assert "\x1b[1;33mmill" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()
    assert (
        plain.getvalue()
        == "1. a\N{REPLACEMENT CHARACTER}[2Jb  0.5000\n   the mill \N{REPLACEMENT CHARACTER}[0m\n"
    )


def test_vectors_that_are_not_seen_are_named(tmp_path):
    from distllm.search.build import _gathered
    from distllm.search.parts import parts_of

    with pytest.raises(DataError, match="rank 0 does not see vectors that a rank has made"):
        _gathered(parts_of([[0]], ["a"], tmp_path, "a model", 8))


def test_a_build_that_was_ended_goes_on_and_ends_in_the_same_bytes(tmp_path, monkeypatch, capsys):
    """A part is taken as it is only whole, of the same texts, model and precision."""
    from distllm.search.encoder import TextEncoder

    encoder_folder(tmp_path / "encoder")
    texts = {f"{number}": f"{number} mills and the water " * (1 + number % 7) for number in range(40)}
    corpus_file(tmp_path / "texts.jsonl", texts)
    monkeypatch.setattr("distllm.search.build.BATCH", 4)
    monkeypatch.setattr("distllm.search.parts.PART", 2)
    embed, seen, room = TextEncoder.embed, [], [100]

    def counted(self, batch, precision="fp32"):
        if len(seen) == room[0]:
            raise KeyboardInterrupt
        seen.append(len(batch))
        return embed(self, batch, precision)

    monkeypatch.setattr(TextEncoder, "embed", counted)

    def embedded(out, *more, room_for=100):
        seen.clear()
        room[0] = room_for
        code = build(tmp_path, out, *more)
        return code, len(seen)

    assert embedded("whole") == (0, 10)
    assert embedded("index", room_for=5) == (75, 5)  # ended in its third part
    assert "the same command goes on" in capsys.readouterr().err
    kept = sorted((tmp_path / "index.work").glob("*.vectors"))
    assert len(kept) == 2
    assert not (tmp_path / "index").exists()
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"\0")
    (tmp_path / "index.work" / "index").mkdir()  # killed while the index was written
    (tmp_path / "index.work" / "index" / "half").touch()
    capsys.readouterr()
    assert embedded("index") == (0, 8)
    assert "check       5 of 5 parts (100%)" in (said := capsys.readouterr().out)
    assert "1 made before" in said
    assert not (tmp_path / "index.work").exists()
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "index" / file.name).read_bytes(), file.name
    embedded("other", room_for=5)
    assert embedded("other", "precision=bf16") == (0, 10)
    embedded("changed", room_for=9)
    corpus_file(tmp_path / "texts.jsonl", {**texts, "0": "another text, longer than all others " * 9})
    code, count = embedded("changed")
    assert code == 0
    assert 2 <= count < 10
