"""Whatever joins and leaves, each row of the pool holds exactly its own positions, in order."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.serve.guard import Rate
from distllm.serve.pool import Pool
from distllm.serve.sampling import Sampling, draw_each
from distllm.serve.scheduler import _settled

CAPACITY, SLOTS = 12, 3
SHAPE = settle_shape(
    ModelConfig(hidden_size=8, num_layers=2, num_heads=2, num_kv_heads=1), vocab_size=32, seq_len=CAPACITY
)


def filled(values):
    """Keys (and values) of positions that each hold one number."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, 1, SHAPE.head_dim)


class PoolRows(RuleBasedStateMachine):
    """The pool beside lists of what each active row must hold."""

    @initialize()
    def begin(self):
        self.pool = Pool(SHAPE, SLOTS, CAPACITY, torch.device("cpu"), torch.float32)
        self.rows = []
        self.next = 1.0

    def fresh(self, count):
        values = [self.next + step for step in range(count)]
        self.next += count
        return values

    @precondition(lambda self: len(self.rows) < SLOTS)
    @rule(length=st.integers(1, CAPACITY - 1))
    def join(self, length):
        values = self.fresh(length)
        self.pool.admit([(filled(values), -filled(values))] * SHAPE.num_layers)
        self.rows.append(values)

    @precondition(lambda self: self.rows and max(map(len, self.rows)) < CAPACITY)
    @rule()
    def advance(self):
        self.pool.make_room()
        values = self.fresh(len(self.rows))
        column_B1KD = torch.cat([filled([value]) for value in values])
        for layer in self.pool.layers:
            starts = [0] * len(self.rows) if self.pool.starts_B is None else self.pool.starts_B.tolist()
            k_BSKD, v_BSKD = layer.extend(column_B1KD, -column_B1KD)
            for row, start in enumerate(starts):
                expected = [*self.rows[row], values[row]]
                assert k_BSKD[row, start:, 0, 0].tolist() == expected
                assert v_BSKD[row, start:, 0, 0].tolist() == [-value for value in expected]
        self.pool.advance()
        for row, value in zip(self.rows, values, strict=True):
            row.append(value)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data):
        row = data.draw(st.integers(0, len(self.rows) - 1))
        self.pool.release(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last
        assert self.pool.rows == len(self.rows)


PoolRows.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestPoolRows = PoolRows.TestCase


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-20, 20), min_size=2, max_size=20),
    temperature=st.floats(0.0, 3.0),
    top_p=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**31 - 1),
)
def test_what_is_drawn_is_an_id_within_the_mass(logits, temperature, top_p, seed):
    logits_V = torch.tensor(logits)
    (drawn,) = draw_each(logits_V[None], [Sampling(1, temperature, top_p, seed)], [0])
    assert 0 <= drawn < len(logits)
    if temperature < 1e-4:
        assert logits_V[drawn] == logits_V.max()
        return
    probs_V = (logits_V.double() / temperature).softmax(dim=0)
    likelier = float(probs_V[probs_V > probs_V[drawn]].sum())
    assert likelier < top_p + 1e-9


@given(text=st.text(max_size=30), stop=st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_what_is_sent_is_a_beginning_that_no_stop_text_can_take_back(text, stop):
    sent = _settled(text, stop)
    assert text.startswith(sent)
    for mark in stop:
        for cut in range(1, len(mark)):
            assert not sent.endswith(mark[:cut]) or sent != text.rstrip("\N{REPLACEMENT CHARACTER}")


@given(
    per_minute=st.integers(1, 50),
    waits=st.lists(st.floats(0.0, 30.0), min_size=1, max_size=60),
)
def test_no_address_gets_more_than_its_rate_and_one_burst(per_minute, waits):
    now = 0.0
    rate = Rate(per_minute, clock=lambda: now)
    let_through = 0
    for wait in waits:
        now += wait
        let_through += rate.wait("a") == 0.0
    assert let_through <= per_minute + now * per_minute / 60 + 1e-6
