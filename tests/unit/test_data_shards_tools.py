"""Writing with many fields, finding documents, merging, indexing again, counting."""

import dataclasses
import gzip
import json
import subprocess
import tarfile

import numpy as np
import pytest
import webdataset
from prepared import ShardWriter, byte_tokenizer, read_index, write_dataset, write_sources

from distllm.data import shards
from distllm.data.manifest import Manifest, SplitRecord
from distllm.data.shards.format import ids_path
from distllm.data.shards.ids import decode_ids, encode_ids
from distllm.data.tokenizer import Tokenizer
from distllm.errors import DataError
from distllm.fsio import digest_bytes

U2 = np.dtype("<u2")
PAIRS = [([1, 2], [3]), ([], [4, 5, 6]), ([7], [])]


@pytest.fixture
def many(tmp_path):
    directory = tmp_path / "many"
    sources = {
        "web": {"train": [[i] * 9 for i in range(1, 30)], "valid": [[30, 31]]},
        "pairs": {"train": PAIRS},
    }
    write_sources(directory, sources, fields={"pairs": ("source", "target")}, shard_bytes=120)
    return directory


def disk(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def test_every_field_has_its_members_and_webdataset_reads_them(many):
    (sample,) = webdataset.WebDataset(str(many / "pairs" / "train" / "00000.tar"), shardshuffle=False)
    suffixes = {name for name in sample if not name.startswith("__")}
    assert suffixes == {
        "source.bin", "source.idx", "target.bin", "target.idx", "blocks.idx", "meta.json",
    }  # fmt: skip
    for field, parts in zip(("source", "target"), zip(*PAIRS, strict=True), strict=True):
        ids_M = np.frombuffer(sample[f"{field}.bin"], U2)
        ends_D = np.frombuffer(sample[f"{field}.idx"], "<u8").astype(int)
        assert [part.tolist() for part in np.split(ids_M, ends_D[:-1])] == list(parts)
    assert json.loads(sample["meta.json"])["fields"] == {"source": 3, "target": 4}


def test_webdataset_reads_all_shards_of_a_source_in_order(many):
    urls = [str(many / shard.record.path) for shard in read_index(many, "web", "train")]
    assert len(urls) > 3
    keys = [sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False)]
    assert keys == [f"{number:05d}" for number in range(len(urls))]


def test_a_field_that_a_shard_lacks_is_named(many):
    (shard,) = read_index(many, "pairs", "train")
    assert shard.fields == ("source", "target")
    with pytest.raises(DataError, match="has no field 'text'") as error:
        shards.map_shard(many, shard, U2)
    assert error.value.remedy == "use one of: source, target"


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    column = (np.arange(10), np.array([4, 10]))
    for name, dtype in (("a", np.int64), ("b", np.uint16)):
        columns = {"text": (column[0].astype(dtype), column[1].astype(dtype))}
        entry = shards.write_shard(tmp_path / name, "web/train/00007.tar", ["x", "y"], columns, U2, "print")
        assert shards.decode_entry(json.loads(json.dumps(shards.encode_entry(entry)))) == entry
    for file in ("00007.tar", "00007.ids.gz"):
        a, b = (tmp_path / name / "web" / "train" / file for name in "ab")
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("ids", "ends", "problem"),
    [([1, 2], [1], "has 1 of 2"), ([1, 2], [1, 3], "has 2 of 2"), ([1, 70_000], [1, 2], "cannot hold"),
     ([1, -1], [1, 2], "cannot hold")],
)  # fmt: skip
def test_columns_that_contradict_each_other_are_a_mistake_of_the_caller(tmp_path, ids, ends, problem):
    columns = {"text": (np.array(ids), np.array(ends))}
    with pytest.raises(ValueError, match=problem):
        shards.write_shard(tmp_path, "web/train/00000.tar", ["x", "y"], columns, U2, "print")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a b", "index.json", ".hidden"])
def test_a_source_that_cannot_name_a_directory_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="cannot name a source") as error:
        write_dataset(tmp_path, source=name, train=[[1]])
    assert "letters" in error.value.remedy


@pytest.mark.parametrize("field", ["tokens", "docs", "blocks", "meta", "A", "a.b", "a/b", ""])
def test_a_field_that_cannot_name_a_member_is_refused(tmp_path, field):
    with pytest.raises(DataError, match="cannot name a field"):
        write_sources(tmp_path, {"a": {"train": [([1],)]}}, fields={"a": (field,)})


def test_a_list_of_ids_is_plain_gzip_without_a_date():
    names = ["file:1", "with\nbreak", "back\\slash", "\\n", "\\-", "", None, "\ud800"]
    content = encode_ids(names)
    assert decode_ids(content, "x") == names
    assert content[4:8] == b"\0\0\0\0"
    assert gzip.decompress(encode_ids(["a", "b"])) == b"a\nb\n"
    for bad in (content[:-4], b"plain", gzip.compress(b"\xff\n")):
        with pytest.raises(DataError, match="is no list of document ids"):
            decode_ids(bad, "x")


def test_the_disk_holds_hardly_more_than_the_ids(tmp_path):
    random = np.random.default_rng(0)
    documents, length = 4_000, 1_000
    ids_M = random.integers(0, 50_000, documents * length).astype("<u2")
    writer = ShardWriter(
        tmp_path, "web", "train", dtype=U2, shard_bytes=4 << 20, tokenizer_fingerprint="print"
    )
    for number in range(documents):
        name = f"corpus/part-{number // 700:04d}.jsonl:{number % 700 + 1}"
        writer.add(name, ids_M[number * length : (number + 1) * length])
    shards.write_index(tmp_path, {"web": {"train": writer.close()}})
    ratio = disk(tmp_path) / ids_M.nbytes
    assert 1.0 < ratio <= 1.01, ratio


def test_documents_are_found_by_name_and_by_number(many):
    index = shards.load_index(many)
    (place,) = shards.find_documents(many, index, ["train-17"], "web")
    assert place == shards.document_at(many, index, "web", "train", 17)
    ids = shards.read_document(many, index["web"]["train"][place.shard], place.row, U2)
    assert ids["text"].tolist() == [0, *[18] * 9]
    both = shards.find_documents(many, index, ["train-0", "valid-0"])
    assert [(p.source, p.split, p.number) for p in both] == [
        ("pairs", "train", 0), ("web", "train", 0), ("web", "valid", 0),
    ]  # fmt: skip
    for source, split, number in (("web", "train", 29), ("web", "test", 0), ("no", "train", 0)):
        with pytest.raises(DataError, match=f"no document {number} in split '{split}'") as error:
            shards.document_at(many, index, source, split, number)
        assert "source=web split=train document=0..28" in error.value.remedy


def test_the_exact_text_of_every_field_comes_back(tmp_path):
    tokenizer = byte_tokenizer()
    texts = ("grüß\n dich", "你好 <|endoftext|>")
    sources = {
        "a": {"train": [tokenizer.encode(texts[0])]},
        "b": {"train": [tuple(tokenizer.encode(text) for text in texts)]},
    }
    write_sources(tmp_path, sources, fields={"b": ("source", "target")})
    index = shards.load_index(tmp_path)
    ids = shards.read_document(tmp_path, index["a"]["train"][0], 0, U2)
    assert shards.document_texts(ids, tokenizer) == {"text": texts[0]}
    ids = shards.read_document(tmp_path, index["b"]["train"][0], 0, U2)
    assert shards.document_texts(ids, tokenizer) == {"source": texts[0], "target": texts[1]}


def test_a_list_of_ids_that_does_not_fit_its_shard_is_refused(many):
    (shard,) = read_index(many, "pairs", "train")
    short = encode_ids(["only one"])
    (many / ids_path(shard.record.path)).write_bytes(short)
    with pytest.raises(DataError, match="not what was written"):
        shards.shard_ids(many, shard)
    changed = dataclasses.replace(shard, ids=dataclasses.replace(shard.ids, digest=digest_bytes(short)))
    with pytest.raises(DataError, match="names 1 documents, its shard has 3"):
        shards.shard_ids(many, changed)


def test_the_index_is_made_again_from_the_tars_alone(many):
    before = (many / "index.json").read_bytes()
    for damage in (b"", b"{}", before.replace(b'"offset": 512', b'"offset": 1024')):
        (many / "index.json").write_bytes(damage)
        with pytest.raises(DataError) as error:
            Manifest.load(many)
        assert f"distllm data reindex out={many}" in error.value.remedy
        manifest = shards.reindex(many)
        assert (many / "index.json").read_bytes() == before
        assert manifest == Manifest.load(many)
        assert manifest.lineage == ()


@pytest.mark.skipif(
    not hasattr(tarfile, "data_filter"), reason="extraction has filters from Python 3.11.4 on"
)
def test_tars_packed_anew_by_another_tool_are_indexed_and_followed(many, tmp_path):
    old = Manifest.load(many)
    for shard in read_index(many, "web", "train"):
        tar = many / shard.record.path
        folder = tmp_path / "unpacked"
        with tarfile.open(tar) as archive:
            archive.extractall(folder, filter="data")
        names = sorted(path.name for path in folder.iterdir())[::-1]
        subprocess.run(["tar", "--format=gnu", "-C", folder, "-cf", tar, *names], check=True)
        for name in names:
            (folder / name).unlink()
    manifest = shards.reindex(many)
    assert shards.verify(many) == manifest
    assert manifest.lineage == (old.digest,)
    assert manifest.splits["train"].tokens == old.splits["train"].tokens
    index = shards.load_index(many)
    place = shards.document_at(many, index, "web", "train", 17)
    ids = shards.read_document(many, index["web"]["train"][place.shard], place.row, U2)
    assert ids["text"].tolist() == [0, *[18] * 9]


def test_a_tar_with_other_documents_is_not_indexed(many, tmp_path):
    write_dataset(tmp_path / "b", source="web", train=[[i + 1] * 9 for i in range(1, 30)], shard_bytes=120)
    for file in ("00000.tar", "00000.ids.gz"):
        (many / "web" / "train" / file).write_bytes((tmp_path / "b" / "web" / "train" / file).read_bytes())
    with pytest.raises(DataError, match="the manifest names a shard with other content"):
        shards.reindex(many)


def test_merged_datasets_hold_all_sources_and_names_that_clash_are_numbered(many, tmp_path):
    write_dataset(tmp_path / "b", source="web", train=[[40, 41]], valid=[[42]])
    write_dataset(tmp_path / "c", source="web-2", train=[[50]])
    merged = shards.merge([many, tmp_path / "c", tmp_path / "b"], tmp_path / "out")
    assert shards.verify(tmp_path / "out") == merged
    assert set(merged.sources) == {"web", "pairs", "web-2", "web-3"}
    assert merged.fields["pairs"] == ("source", "target")
    assert merged.total.kept == 33 + 1 + 2
    index = shards.load_index(tmp_path / "out")
    for source, number, ids in (("web", 3, [4] * 9), ("web-2", 0, [50]), ("web-3", 0, [40, 41])):
        place = shards.document_at(tmp_path / "out", index, source, "train", number)
        shard = index[source]["train"][place.shard]
        assert shards.read_document(tmp_path / "out", shard, place.row, U2)["text"].tolist() == [0, *ids]
        assert place.id == f"train-{number}"
    path = index["web"]["train"][0].record.path
    assert (tmp_path / "out" / path).samefile(many / path)
    assert Tokenizer.load(tmp_path / "out").fingerprint == byte_tokenizer().fingerprint


def test_forgetting_in_a_merged_dataset_leaves_the_others_alone(many, tmp_path):
    shards.merge([many], tmp_path / "out")
    shards.forget(tmp_path / "out", ["train-3"])
    shards.verify(many)
    assert shards.verify(tmp_path / "out").forgotten.count == 1
    again = shards.merge([tmp_path / "out", many], tmp_path / "both")
    assert again.forgotten.count == 1


def test_what_cannot_be_merged_is_named(many, tmp_path):
    with pytest.raises(DataError, match="exists"):
        shards.merge([many], many)
    write_dataset(tmp_path / "b", source="b", train=[[40, 41]])
    manifest = Manifest.load(tmp_path / "b")
    other = dataclasses.replace(manifest, tokenizer_fingerprint="x", sources={"b": {}})
    shards.write_index(tmp_path / "b", {"b": {}})
    index = digest_bytes((tmp_path / "b" / "index.json").read_bytes())
    dataclasses.replace(other, files={**other.files, "index.json": index}).save(tmp_path / "b")
    (tmp_path / "b" / "b" / "train" / "00000.tar").unlink()
    with pytest.raises(DataError, match="another tokenizer than") as error:
        shards.merge([many, tmp_path / "b"], tmp_path / "out")
    assert f"tokenizer.path={many / 'tokenizer.json'}" in error.value.remedy
    (many / "pairs" / "train" / "00000.tar").unlink()
    with pytest.raises(DataError, match="is missing"):
        shards.merge([many], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_stats_count_every_split(many):
    found = {(s.source, s.split): s for s in shards.split_stats(many, Manifest.load(many))}
    assert set(found) == {("web", "train"), ("web", "valid"), ("pairs", "train")}
    web, pairs = found["web", "train"], found["pairs", "train"]
    assert (web.documents, web.tokens, web.text_bytes) == (29, 290, 261)
    assert web.bytes_per_token == pytest.approx(0.9)
    assert set(web.lengths) == {10}
    assert (pairs.tokens, pairs.lengths[0], pairs.lengths[-1]) == (7, 1, 3)
    files = (many / "web" / "train").iterdir()
    assert web.disk_ratio == sum(path.stat().st_size for path in files) / 580


def test_stats_of_an_empty_split_are_zero(tmp_path):
    manifest = write_dataset(tmp_path, train=[[1]], valid=[])
    empty = next(s for s in shards.split_stats(tmp_path, manifest) if s.split == "valid")
    assert (empty.lengths, empty.bytes_per_token, empty.disk_ratio) == ((), 0.0, 0.0)


def test_splits_add_up_over_sources(many):
    manifest = Manifest.load(many)
    train = manifest.splits["train"]
    assert (train.documents, train.tokens) == (32, 297)
    assert len(train.shards) == sum(len(splits["train"].shards) for splits in manifest.sources.values())
    parts = [SplitRecord(1, 1, 1, (), {"de": 1}), SplitRecord(2, 2, 2, (), {"de": 1, "fr": 1})]
    assert SplitRecord.total(parts) == SplitRecord(3, 3, 3, (), {"de": 2, "fr": 1})
