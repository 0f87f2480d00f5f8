"""The order of a run's samples: a pure function, with nothing to store and random access both ways."""

from distllm.data.order.pattern import LARGEST_BLOCK, BlockPattern, Pattern, pattern_of, quotas_of
from distllm.data.order.permutation import permute, unpermute
from distllm.data.order.sample_order import Phase, SampleOrder
from distllm.data.order.shuffle import EpochShuffle, SourceSamples
from distllm.data.order.tree import LARGEST_TOTAL, TreePattern

__all__ = [
    "LARGEST_BLOCK",
    "LARGEST_TOTAL",
    "BlockPattern",
    "EpochShuffle",
    "Pattern",
    "Phase",
    "SampleOrder",
    "SourceSamples",
    "TreePattern",
    "pattern_of",
    "permute",
    "quotas_of",
    "unpermute",
]
