"""Search: how the documents of a corpus are cut into passages, and read on after an end."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import serving
from search_folders import corpus_file

from distllm.config.schema_read import ReadConfig
from distllm.search import corpus
from distllm.search.corpus import PassageWriter, cut, find_corpus, kind_of, passages_of, read_passages


def write_passages(read, tokenizer, longest, path, tell=lambda _: None):
    return PassageWriter(find_corpus(read), read, tokenizer, longest, path, tell).write()


def test_passages_are_whole_lines_or_words_and_lose_nothing():
    words = serving.tokenizer()
    text = "the model reads a token\n\n" + "learns " * 60 + "\nfrom before\n"
    pieces = cut(text, words, 20)
    assert " ".join(" ".join(pieces).split()) == " ".join(text.split())
    assert all(len(words.encode(piece)) <= 22 for piece in pieces)
    assert len(pieces) > 3
    assert cut("", words, 20) == []
    assert cut("the model\nreads", words, 20) == ["the model\nreads"]


def test_passages_say_what_they_are_about():
    words = serving.tokenizer()
    long = "a token from before\n" * 40
    text = f"# reads\n\nthe model\n\n## reads.token\n\n{long}\n## reads.next\n\nlearns\n"
    found = passages_of(text, words, 80)
    assert all(passage.startswith("# reads\n") for passage in found)
    assert sum(passage.count("before") for passage in found) == 40
    inside = [passage for passage in found if "before" in passage]
    assert len(inside) > 2
    assert all("## reads.token" in passage for passage in inside)
    assert found[0] == "# reads\n\nthe model"
    assert found[-1] == "# reads\n## reads.next\n\nlearns"
    assert max(len(words.encode(passage)) for passage in found) <= 82
    short = "before\n\n# reads\n\nthe model\n\n# next\n\nlearns"
    assert passages_of(short, words, 200) == [f"# reads\n{short}"]


def test_a_text_without_headings_is_cut_and_a_heading_that_is_too_long_is_not_repeated():
    words = serving.tokenizer()
    for plain in ("the model\nreads", "# a comment\n# of a program\n" + "reads()\n" * 30):
        assert passages_of(plain, words, 20) == cut(plain, words, 20)
    text = f"# {'token ' * 30}\n\n" + "the model\n" * 30
    found = passages_of(text, words, 40)
    assert sum(passage.count("token") for passage in found) == 30
    assert sum(passage.count("model") for passage in found) == 30


def test_a_corpus_is_a_folder_a_file_or_lines_and_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").write_text("the model")
    (tmp_path / "in" / "a.txt").write_text(
        "a token \ud800".encode("utf-8", "surrogatepass").decode("latin-1")
    )
    (tmp_path / "in" / "c.bin").write_bytes(b"\x00\x01")
    read = ReadConfig(source="text", paths=(str(tmp_path / "in"),))
    written = write_passages(read, serving.tokenizer(), 16, tmp_path / "out.jsonl")
    found = read_passages((tmp_path / "out.jsonl").read_bytes())
    assert [passage.document for passage in found] == ["a.txt", "b.txt"]
    assert (written.documents, written.passages, written.dropped) == (2, 2, {"not_text": 1})
    (tmp_path / "half.jsonl").write_text('{"text": "half \\ud800 a pair"}\n')
    write_passages(
        ReadConfig(source="jsonl", paths=(str(tmp_path / "half.jsonl"),)),
        serving.tokenizer(), 16, tmp_path / "out.jsonl",
    )  # fmt: skip
    assert read_passages((tmp_path / "out.jsonl").read_bytes())[0].text == "half ? a pair"
    names = ("a.jsonl", "a.jsonl.gz", "A.NDJSON", "x.tsv", "x.html", "notes", "x.md", "x.v1.pdf")
    assert [kind_of(name) for name in names] == [
        "jsonl", "jsonl", "jsonl", "csv", "html", "text", "text", "pdf"
    ]  # fmt: skip


def test_reading_goes_on_after_what_was_cut_and_reads_again_what_has_changed(tmp_path, monkeypatch):
    folder, out = tmp_path / "in", tmp_path / "out.jsonl"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.txt").write_text(f"{name}: the model reads a token " * 9)
    monkeypatch.setattr("distllm.search.corpus._GROUP_BYTES", 1)
    seen, plain = [], corpus.read_part

    def counted(part, read):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(Path(part.path).name)
        return plain(part, read)

    def written():
        seen.clear()
        return write_passages(ReadConfig(source="text", paths=(str(folder),)), serving.tokenizer(), 16, out)

    whole = written()
    expected = out.read_bytes()
    for file in (*tmp_path.glob("*.passages"), *tmp_path.glob("*.json"), out):
        file.unlink()
    monkeypatch.setattr(corpus, "read_part", counted)
    with pytest.raises(KeyboardInterrupt):
        written()
    assert not out.exists()
    assert written() == whole
    assert (seen, out.read_bytes()) == (["c.txt"], expected)
    (folder / "b.txt").write_text("another text")
    written()
    assert seen == ["b.txt"]
    assert "another text" in out.read_text()


def test_how_far_reading_has_come_is_told(tmp_path):
    corpus_file(tmp_path / "texts.jsonl")
    told = []
    read = ReadConfig(source="jsonl", paths=(str(tmp_path / "texts.jsonl"),), id_key="id")
    write_passages(read, serving.tokenizer(), 32, tmp_path / "out.jsonl", told.append)
    size = (tmp_path / "texts.jsonl").stat().st_size
    assert {one.total for one in told} == {size}
    assert told[-1].done == size
    assert told[-1].note == "4 documents"
    assert [one.done for one in told] == sorted(one.done for one in told)


def test_texts_without_spaces_and_words_without_end_are_cut_to_size():
    words = serving.tokenizer()
    sentence = "模型读取一个词元，然后预测下一个词元。"
    found = cut(sentence * 20, words, 128)
    assert "".join(found) == sentence * 20
    assert max(len(words.encode(piece)) for piece in found) <= 130
    assert all(piece.endswith("。") for piece in found)
    blob = "0123456789abcdef" * 40
    pieces = cut(f"the {blob} model", words, 30)
    assert "".join(pieces).replace(" ", "") == f"the{blob}model"
    assert max(len(words.encode(piece)) for piece in pieces) <= 32


def test_ranks_share_the_groups_and_the_last_joins_them(tmp_path, monkeypatch):
    folder, words = tmp_path / "in", serving.tokenizer()
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.txt").write_text(f"{name}: the model reads a token " * 9)
    monkeypatch.setattr("distllm.search.corpus._GROUP_BYTES", 1)
    read = ReadConfig(source="text", paths=(str(folder),))
    found = corpus.Corpus.from_json(json.loads(json.dumps(asdict(find_corpus(read)))))
    assert found == find_corpus(read)
    alone = PassageWriter(found, read, words, 16, tmp_path / "alone" / "all.jsonl")
    (tmp_path / "alone").mkdir()
    alone.write()
    shared, seen, plain = replace(alone, path=tmp_path / "all.jsonl"), [], corpus.read_part

    def counted(part, read):
        seen.append(Path(part.path).name)
        return plain(part, read)

    monkeypatch.setattr(corpus, "read_part", counted)
    shared.write_share(1, 2)
    assert seen == ["b.txt", "d.txt"]
    shared.write_share(0, 2)
    seen.clear()
    shared.write()
    assert not seen
    assert shared.path.read_bytes() == alone.path.read_bytes()
