"""One record of a step and one of an evaluation, for tests of sinks."""

from distllm.observe.metrics import EvalRecord, StepRecord

STEP = StepRecord(
    step=2,
    tokens=8192,
    loss=7.5,
    lr=1e-3,
    grad_norm=2.5,
    tokens_per_second=1000.0,
    mfu=0.5,
    data_wait_fraction=0.25,
    overhead_fraction=0.004,
    memory_bytes=1024,
    eta_seconds=9.0,
    skipped_steps=1,
    attempt=1,
    batch_digest="1f3a",
)
EVAL = EvalRecord(step=2, tokens=8192, loss=7.0, perplexity=1096.6, bits_per_byte=2.5, seconds=1.0)
