"""Deduplication of more than memory holds: what is spilled, what is kept, and in how many bytes."""

import errno
import multiprocessing
import sys
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup import Removals, SignedDocuments, Unit, decide, grouping, sign
from distllm.data.dedup.spill import RECORD, repeats
from distllm.data.records import Document
from distllm.data.scratch import Scratch
from distllm.errors import DataError, StorageError


def records(seed, count, values):
    draw = np.random.default_rng(seed)
    made = np.empty(count, dtype=RECORD)
    made["hash"] = draw.integers(0, 2**63, values, dtype=np.uint64)[draw.integers(0, values, count)] * 2
    made["rank"], made["place"] = draw.permutation(count), draw.integers(0, 9, count)
    return made


def as_sorted(arrays):
    found = np.concatenate([np.empty(0, dtype=RECORD), *arrays])
    return sorted(found.tolist())


def repeats_one_by_one(made):
    seen, again = set(), []
    for record in sorted(made.tolist(), key=lambda each: each[1:]):
        (again.append if record[0] in seen else lambda _: None)(record)
        seen.add(record[0])
    return sorted(again)


@pytest.mark.parametrize("at_once", [1, 7, 64, 500, 10_000])
@pytest.mark.parametrize("values", [1, 40, 2000])
def test_repeats_are_those_of_a_set(tmp_path, at_once, values):
    made = records(values, 500, values)
    batches = np.split(made, [0, 3, 3, 250, 499])
    assert as_sorted(repeats(batches, 500, at_once, tmp_path)) == repeats_one_by_one(made)
    assert list(tmp_path.iterdir()) == []


def test_no_records_no_repeats(tmp_path):
    assert as_sorted(repeats([], 0, 10, tmp_path)) == []
    assert as_sorted(repeats([records(0, 0, 1)], 0, 10, tmp_path)) == []


def test_a_hash_of_nearly_all_records_fills_no_file(tmp_path):
    """Of a footer on every page one record a batch is spilled, not one a page."""
    made = records(0, 4000, 1)
    largest = 0
    for _ in repeats([made], 4000, 100, tmp_path):
        sizes = [file.stat().st_size for file in tmp_path.rglob("*.bin")]
        largest = max(largest, *sizes, 0) if sizes else largest
    assert 0 < largest <= 40 * RECORD.itemsize


def synthetic_unit(directory, number, documents, pieces):
    """A unit as `sign` writes it, of random digests; a third of lines, bands and ids repeat."""
    directory.mkdir()
    draw = np.random.default_rng(number)
    total = documents * pieces
    hashes = draw.integers(0, 2**62, total, dtype=np.uint64)
    common = draw.random(total) < 1 / 3
    hashes[common] = draw.integers(0, 50, int(common.sum()))
    rows = np.repeat(np.arange(documents), pieces)
    np.save(directory / "digests.npy", draw.integers(0, 2**63, (documents, 2), dtype=np.uint64))
    np.save(directory / "id_hashes.npy", draw.integers(0, 3000, documents, dtype=np.uint64))
    np.save(directory / "bands.npy", draw.integers(0, 3000, (4, documents), dtype=np.uint64))
    np.save(directory / "signatures.npy", draw.integers(0, 2, (documents, 8), dtype=np.uint32))
    np.save(directory / "lengths.npy", draw.integers(64, 9999, documents))
    np.save(directory / "pieces.npy", hashes)
    np.save(directory / "places.npy", np.stack([rows, np.tile(np.arange(pieces), documents)], axis=1))
    ids = [f"{number}-{i}".encode() for i in range(documents)]
    np.save(directory / "ids.npy", np.frombuffer(b"".join(ids), dtype=np.uint8))
    np.save(directory / "id_ends.npy", np.cumsum([len(id_) for id_ in ids]))


def peak_bytes(directories, scratch):
    """Runs in a process of its own: other tests leave threads and caches whose memory is not decide's."""
    grouping.SPAN = 500
    sys.modules["distllm.data.dedup.decide"]._PIECES_AT_ONCE = 2_000
    units = [Unit(SignedDocuments(directory), "s") for directory in directories]
    peaks = []
    for count in (1, len(units) // 4, len(units)):  # the first allocates what is allocated once in a process
        tracemalloc.start()
        decisions = decide(units[:count], DedupConfig(pieces="lines", near=True, bands=4, rows=2), scratch)
        gone = [len(decision.documents) + sum(map(len, decision.pieces.values())) for decision in decisions]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return peaks, sum(gone)


@pytest.mark.slow
def test_memory_grows_neither_with_documents_nor_with_what_goes(tmp_path):
    documents, pieces, count = 300, 40, 48
    directories = [tmp_path / str(number) for number in range(count)]
    for number, directory in enumerate(directories):
        synthetic_unit(directory, number, documents, pieces)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        (_, quarter, whole), gone = process.submit(peak_bytes, directories, tmp_path).result()
    assert gone > 2 * count * documents
    assert whole < 1.15 * quarter  # a few numbers a document would be more


@pytest.mark.parametrize("span", [1, 3, 1000])
@pytest.mark.parametrize("values", [1, 5, 10**6])
def test_places_and_repeats_are_those_of_numpy(monkeypatch, span, values):
    monkeypatch.setattr(grouping, "SPAN", span)
    drawn = np.random.default_rng(values).integers(0, values, 50).astype(np.uint64) << np.uint64(40)
    distinct, inverse, counts = np.unique(drawn, return_inverse=True, return_counts=True)
    place = grouping.places(drawn, Scratch())
    assert place.tolist() == inverse.tolist()
    assert grouping.numbers_in_order(place, Scratch()).tolist() == np.argsort(drawn, kind="stable").tolist()
    ordered = np.sort(place << grouping.HALF | np.arange(50, dtype=np.uint64))
    again, first = (np.concatenate(each).tolist() for each in zip(*grouping.repeats_of(ordered), strict=True))
    assert len(again) == counts.sum() - distinct.size
    assert all(f == drawn.tolist().index(drawn[a]) < a for a, f in zip(again, first, strict=True))


def test_nothing_has_no_places():
    assert grouping.places(np.zeros(0, dtype=np.uint64), Scratch()).size == 0
    assert list(grouping.repeats_of(np.zeros(0, dtype=np.uint64))) == []


def one_unit(directory):
    directory.mkdir()
    return Unit(sign([[Document.from_text(name, name) for name in "abc"]], directory, DedupConfig()))


def test_a_full_disk_is_named_before_anything_is_mapped(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "no space")

    unit = one_unit(tmp_path / "unit")
    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(StorageError, match=f"no space left while writing {tmp_path}"):
        decide([unit], DedupConfig(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["unit"]


def test_more_documents_than_have_numbers_are_refused(tmp_path, monkeypatch):
    unit = one_unit(tmp_path / "unit")
    monkeypatch.setattr(sys.modules["distllm.data.dedup.decide"], "MOST", 3)
    with pytest.raises(DataError, match="3 documents are more than") as raised:
        decide([unit], DedupConfig(), tmp_path)
    assert "dedup.against" in str(raised.value)


def test_decisions_are_a_sequence_that_can_be_cut(tmp_path):
    units = []
    for number in range(4):
        directory = tmp_path / str(number)
        directory.mkdir()
        texts = [Document.from_text(f"{number}-{i}-\udcff", f"text {i}") for i in range(number + 1)]
        units.append(Unit(sign([texts], directory, DedupConfig()), "s"))
    decisions = decide(units, DedupConfig())
    assert len(decisions) == 4
    assert list(decisions[1:]) == [decisions[1], decisions[2], decisions[3]]
    assert decisions[1:][1:][0] == decisions[2]
    assert decisions[-1] == decisions[3]
    assert len(decisions[2:]) == 2
    with pytest.raises(IndexError):
        decisions[4]
    gone = {f"{n}-{row}" for n, each in enumerate(decisions) for row in each.documents}
    keepers = {keeper for each in decisions for _, keeper in each.documents.values()}
    assert len(gone) == 6
    assert all(keeper.endswith("-\udcff") for keeper in keepers)
    assert not gone & {keeper.removesuffix("-\udcff") for keeper in keepers}


def test_bands_are_hashes_of_their_rows(tmp_path):
    config = DedupConfig(near=True, bands=7, rows=4)
    texts = [Document.from_text(str(i), f"a text of {i} words {i * i} and {i + 7} more") for i in range(9)]
    signed = sign([texts], tmp_path, config)
    assert signed.bands().shape == (7, 9)
    rows = signed.signatures().reshape(9, 7, 4)
    for band in range(7):
        same = (rows[:, None, band] == rows[None, :, band]).all(axis=-1)
        assert ((signed.bands()[band][:, None] == signed.bands()[band][None, :]) == same).all()


def test_a_removal_survives_its_file_with_an_id_of_any_characters(tmp_path):
    texts = [Document.from_text("\udcffa\n", "same"), Document.from_text("b", "same")]
    (tmp_path / "unit").mkdir()
    (decision,) = decide([Unit(sign([texts], tmp_path / "unit", DedupConfig()))], DedupConfig())
    removals = Removals.save(tmp_path / "r.json", decision)
    results = [removals.apply(row, document) for row, document in enumerate(texts)]
    assert sum(result is document for result, document in zip(results, texts, strict=True)) == 1
