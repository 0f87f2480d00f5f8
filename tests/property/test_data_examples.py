"""Rows of examples: every example once an epoch, whole, in its own segment, whatever the ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import byte_tokenizer, write_sources

from distllm.config.schema import Config, DataConfig, TaskConfig
from distllm.data.batch import IGNORE_INDEX
from distllm.data.open import open_split
from distllm.data.order import SampleOrder
from distllm.data.stream import StepStream

T, S = 24, 20
EOT = byte_tokenizer().eot_id
text = st.lists(st.integers(1, 256), min_size=1, max_size=12)


def split_of(root, pairs, family="encoder_decoder", shard_bytes=1 << 20):
    write_sources(
        root, {"pairs": {"train": pairs, "valid": pairs[:1]}},
        shard_bytes=shard_bytes, fields={"pairs": ("source", "target")},
    )  # fmt: skip
    config = Config(data=DataConfig(out=str(root), seq_len=T, source_len=S), task=TaskConfig(name="seq2seq"))
    object.__setattr__(config.model, "family", family)
    return open_split(config, "train")


def examples_of(batch):
    """The (source, target) pairs of a batch, read back from its segments."""
    found = []
    for row in range(batch.tokens_BT.shape[0]):
        segments = batch.segments_BT[row]
        for segment in range(int(segments.max()) + 1):
            here = segments == segment
            targets = batch.targets_BT[row][here]
            if (targets == IGNORE_INDEX).all():
                continue  # padding
            source = batch.source.tokens_BS[row][batch.source.segments_BS[row] == segment]
            tokens, positions = batch.tokens_BT[row][here], batch.positions_BT[row][here]
            assert positions.tolist() == list(range(tokens.size))
            assert tokens[0] == EOT == targets[-1] == source[-1]
            assert tokens[1:].tolist() == targets[:-1].tolist()
            found.append((source[:-1].tolist(), targets[:-1].tolist()))
    return found


@settings(max_examples=10, deadline=None)
@given(
    pairs=st.lists(st.tuples(text, text), min_size=2, max_size=30),
    shard_bytes=st.sampled_from([64, 400, 1 << 20]),
    world=st.sampled_from([1, 2]),
)
def test_every_pair_comes_once_an_epoch_on_any_number_of_ranks(tmp_path_factory, pairs, shard_bytes, world):
    split = split_of(tmp_path_factory.mktemp("pairs") / "data", pairs, shard_bytes=shard_bytes)
    assert split.num_examples == len(pairs)
    order = SampleOrder.single(split.num_samples, seed=3)
    rows = split.num_samples * 2
    streams = [
        StepStream(split, order, sequences_per_step=rows, micro_batch_size=1, rank=rank, world_size=world)
        for rank in range(world)
    ]
    batches = [batch for stream in streams for batch in stream.step(0)]
    for stream in streams:
        stream.close()
    found = [pair for batch in batches for pair in examples_of(batch)]
    assert sorted(found) == sorted([(list(a), list(b)) for a, b in pairs] * 2)
    by_name = {int(batch.sample_ids_B[0]): batch.tokens_BT[0].tolist() for batch in batches}
    alone = StepStream(split, order, sequences_per_step=rows, micro_batch_size=1, rank=0, world_size=1)
    assert by_name == {int(b.sample_ids_B[0]): b.tokens_BT[0].tolist() for b in alone.step(0)}
    alone.close()


def test_packed_rows_hold_several_pairs_and_leave_the_source_a_column_of_padding(tmp_path):
    pairs = [([5, 6], [7, 8, 9])] * 10
    split = split_of(tmp_path / "data", pairs)
    batch = split.batch(np.arange(split.num_samples), np.arange(split.num_samples))
    assert split.num_samples == 2  # six pairs of 4 tokens and of 3 source tokens, then four
    assert batch.segments_BT.max(axis=1).tolist() == [5, 4]
    assert batch.source.segments_BS.max(axis=1).tolist() == [6, 4]
    last = batch.source.segments_BS.max(axis=1)
    assert (batch.source.segments_BS[:, -1] == last).all()
    assert (batch.source.tokens_BS[:, -1] == EOT).all()
    assert split.padding == pytest.approx(1 - 40 / 48)


def test_a_decoder_reads_source_and_target_as_one_text_and_is_scored_on_the_target(tmp_path):
    split = split_of(tmp_path / "data", [([5, 6], [7, 8])], family="decoder")
    batch = split.batch(np.array([0]), np.array([0]))
    between = byte_tokenizer().encode("\n=> ")
    assert batch.source is None
    assert batch.tokens_BT[0][: 5 + len(between)].tolist() == [EOT, 5, 6, *between, 7, 8]
    scored = batch.targets_BT[0][batch.targets_BT[0] != IGNORE_INDEX]
    assert scored.tolist() == [7, 8, EOT]
    assert batch.targets_BT[0][2 + len(between)] == 7
