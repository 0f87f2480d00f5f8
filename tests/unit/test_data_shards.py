import gzip
import json
import tarfile

import numpy as np
import pytest
import webdataset
from prepared import ShardWriter, byte_tokenizer, read_index, write_dataset

from distllm.data.shards import map_shard, token_dtype
from distllm.errors import DataError
from distllm.fsio import digest_bytes, digest_file

DOCUMENTS = [[1, 2, 3], [4] * 10, [], [5, 256], [6] * 7]


def writer_for(directory, *, shard_bytes, dtype="<u2"):
    return ShardWriter(
        directory,
        "web",
        "train",
        dtype=np.dtype(dtype),
        shard_bytes=shard_bytes,
        tokenizer_fingerprint="print",
    )


def test_dtype_follows_the_vocabulary():
    assert token_dtype(65_536) == np.dtype("<u2")
    assert token_dtype(65_537) == np.dtype("<u4")


def test_the_webdataset_library_reads_a_shard_without_help(tmp_path):
    write_dataset(tmp_path, train=DOCUMENTS)
    (sample,) = webdataset.WebDataset(str(tmp_path / "text" / "train" / "00000.tar"), shardshuffle=False)
    assert sample["__key__"] == "00000"
    ids_M = np.frombuffer(sample["tokens.bin"], dtype="<u2")
    assert ids_M.tolist() == [token for ids in DOCUMENTS for token in [0, *ids]]
    ends_D = np.frombuffer(sample["docs.idx"], dtype="<u8")
    assert ends_D.tolist() == [4, 15, 16, 19, 27]
    ids = tmp_path / "text" / "train" / "00000.ids.gz"
    assert gzip.decompress(ids.read_bytes()) == b"".join(b"train-%d\n" % i for i in range(5))
    meta = json.loads(sample["meta.json"])
    assert meta == {
        "source": "text",
        "split": "train",
        "fields": {"text": 27},
        "block_bytes": 65536,
        "ids": {"bytes": ids.stat().st_size, "digest": digest_file(ids)},
        "dtype": "uint16",
        "tokenizer": byte_tokenizer().fingerprint,
        "tokens": 27,
        "documents": 5,
        "xxh3_128": {name: digest_bytes(sample[name]) for name in ("tokens.bin", "docs.idx", "blocks.idx")},
    }


def test_payloads_are_aligned_and_indexed(tmp_path):
    write_dataset(tmp_path, train=DOCUMENTS, shard_bytes=30)
    shards = read_index(tmp_path, "text", "train")
    assert [shard.record.path for shard in shards] == [f"text/train/0000{i}.tar" for i in range(len(shards))]
    for shard in shards:
        path = tmp_path / shard.record.path
        content = path.read_bytes()
        assert (len(content), digest_file(path)) == (shard.record.bytes, shard.record.digest)
        with tarfile.open(path) as tar:
            for header in tar:
                suffix = header.name.split(".", 1)[1]
                member = shard.members[suffix]
                assert (member.offset, member.bytes) == (header.offset_data, header.size)
                assert member.offset % 512 == 0
                payload = content[member.offset : member.offset + member.bytes]
                assert digest_bytes(payload) == member.digest
                assert (header.mtime, header.uid, header.gid, header.uname) == (0, 0, 0, "")


def test_documents_are_never_cut_and_shards_stay_below_the_bound(tmp_path):
    writer = writer_for(tmp_path, shard_bytes=20)
    lengths = [3, 3, 4, 1, 25, 2]
    for i, length in enumerate(lengths):
        writer.add(str(i), np.full(length, i))
    assert [shard.record.tokens for shard in writer.close()] == [10, 1, 25, 2]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_a_mapped_shard_gives_back_the_ids(tmp_path, dtype):
    largest = np.iinfo(dtype).max
    writer = writer_for(tmp_path, shard_bytes=1000, dtype=dtype)
    writer.add("a", np.array([0, largest, 7]))
    writer.add("b", np.array([0]))
    (shard,) = writer.close()
    ids_M, ends_D = map_shard(tmp_path, shard, np.dtype(dtype))
    assert ids_M.tolist() == [0, largest, 7, 0]
    assert ends_D.tolist() == [3, 4]
    with pytest.raises(ValueError):
        ids_M[0] = 1


def test_a_split_without_documents_has_no_shards(tmp_path):
    assert writer_for(tmp_path, shard_bytes=20).close() == []
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_contradicts_itself_is_refused(tmp_path):
    write_dataset(tmp_path, train=DOCUMENTS)
    (shard,) = read_index(tmp_path, "text", "train")
    with pytest.raises(DataError, match="counts 27 tokens in 5 documents"):
        map_shard(tmp_path, shard, np.dtype("<u4"))
    for content in ("{}", "[]", '{"sources": {"text": {"train": [{}]}}}', "torn"):
        (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError, match=r"index\.json is not the index"):
            read_index(tmp_path, "text", "train")
