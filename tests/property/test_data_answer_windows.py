"""Wherever an answer stands, in whatever script: a window that holds it marks exactly its characters."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import byte_tokenizer

from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples.windows import CANDIDATE, END, START, AnswerSpans

TOKENIZER = byte_tokenizer()
WINDOW, STRIDE = 40, 9
letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)


def windows_of(context, question, answer, start):
    framing = AnswerSpans(TOKENIZER, WINDOW, STRIDE)
    answers = json.dumps([{"text": answer, "start": start}], ensure_ascii=False)
    texts = {"context": context, "question": question, "answers": answers}
    record = {name: np.array(TOKENIZER.encode(text), dtype=np.int64) for name, text in texts.items()}
    measured = framing.measure({name: np.array([ids.size]) for name, ids in record.items()}, None)
    examples = [framing.frame(record, part) for part in measured.part_E.tolist()]
    sizes = [example.segments[0].tokens_P.size for example in examples]
    assert sizes == measured.tokens_E.tolist()
    assert max(sizes) <= WINDOW
    return record, [example.segments[0] for example in examples]


@settings(max_examples=60, deadline=None)
@given(context=letters, question=letters.filter(lambda t: len(t.encode()) <= 20), data=st.data())
def test_the_marked_ids_decode_to_the_answer(context, question, data):
    start = data.draw(st.integers(0, len(context) - 1))
    answer = context[start : data.draw(st.integers(start + 1, len(context)))]
    record, windows = windows_of(context, question, answer, start)
    before = len(context[:start].encode())
    stop = before + len(answer.encode())
    asked, seen = len(question.encode()), set()
    for part, window in enumerate(windows):
        flags, ids = window.targets_P, window.tokens_P
        (first,) = np.flatnonzero((flags != IGNORE_INDEX) & (flags & START > 0))
        (last,) = np.flatnonzero((flags != IGNORE_INDEX) & (flags & END > 0))
        held = ids[asked + 2 : -1]
        low = part * STRIDE
        assert held.tolist() == record["context"][low : low + held.size].tolist()
        assert (flags[asked + 2 : -1] >= CANDIDATE).all()
        assert (flags[1 : asked + 2] == IGNORE_INDEX).all()
        seen |= set(range(low, low + held.size))
        if low <= before and stop <= low + held.size:
            assert TOKENIZER.decode(ids[first : last + 1].tolist()) == answer
            assert first == asked + 2 + before - low
        else:
            assert first == last == 0
    assert seen == set(range(record["context"].size))  # no id of the context is in no window
