import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distllm.data.pipeline import spool
from distllm.data.pipeline.spool import SpoolWriter, read_batches, read_documents
from distllm.data.records import Document
from distllm.data.split import TRAIN, VALID, Splitter, split_hash

TEXTS = st.text(st.characters(), max_size=30)  # lone surrogates too


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.sampled_from(["", "en", "zh"])), max_size=20))
def test_documents_come_back_as_they_were(rows):
    documents = [Document(id_, {"source": a, "target": b}, language) for id_, a, b, language in rows]
    with tempfile.TemporaryDirectory() as name:
        with SpoolWriter(Path(name), ("source", "target")) as writer:
            for document in documents:
                writer.add(document)
        assert list(read_documents(Path(name))) == documents
        assert all(list(document.fields) == ["source", "target"] for document in read_documents(Path(name)))


def test_batches_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(spool, "_BATCH_CHARS", 10)
    with SpoolWriter(tmp_path, ("text",)) as writer:
        for i in range(7):
            writer.add(Document.from_text(str(i), "x" * 4))
    assert [len(batch) for batch in read_batches(tmp_path)] == [3, 3, 1]


def test_no_document_is_a_file_too(tmp_path):
    with SpoolWriter(tmp_path, ("text",)):
        pass
    assert list(read_documents(tmp_path)) == []


IDS = st.lists(st.text(max_size=5), min_size=1, max_size=30, unique=True)


@given(IDS, st.floats(0, 0.5), st.integers(0, 5))
def test_neither_split_is_empty_unless_it_must_be(ids, fraction, seed):
    hashes = sorted(split_hash(seed, id_) for id_ in ids)
    splitter = Splitter.fit(seed, fraction, [hashes[0], hashes[-1]])
    splits = {splitter(id_) for id_ in ids}
    if int(fraction * 2**63) == 0 or len(ids) == 1:
        assert splits == {TRAIN}
    else:
        assert splits == {TRAIN, VALID}


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_held_out_share_is_as_asked(fraction):
    ids = [str(i) for i in range(4000)]
    hashes = [split_hash(0, id_) for id_ in ids]
    splitter = Splitter.fit(0, fraction, hashes)
    share = sum(splitter(id_) == VALID for id_ in ids) / len(ids)
    assert abs(share - fraction) < 0.03
