"""The order of a run's samples: a pure function, with nothing to store and random access both ways."""

from distllm.data.order.pattern import LARGEST_BLOCK, Pattern, pattern_of, quotas_of
from distllm.data.order.permutation import locate, permute, unpermute
from distllm.data.order.sample_order import Phase, SampleOrder
from distllm.data.order.shuffle import EpochShuffle, SourceSamples

__all__ = [
    "LARGEST_BLOCK",
    "EpochShuffle",
    "Pattern",
    "Phase",
    "SampleOrder",
    "SourceSamples",
    "locate",
    "pattern_of",
    "permute",
    "quotas_of",
    "unpermute",
]
