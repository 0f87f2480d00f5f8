"""What is reached without a model on the validation split of a run: baselines.py RUN_DIRECTORY

- tasks that predict tokens: the loss of the frequencies of all targets of the training split; of hidden
  spans also that of frequencies which know the next sentinel, and not where it comes;
- pairs of a decoder: ROUGE of the first sentence, and of the first three, of the source;
- questions: exact match and F1 of the commonest answer of the training split that stands in the context
  (``no answer`` where none does), and of never answering.
"""

import re
import sys
from collections import Counter
from itertools import islice

import numpy as np

from distllm.commands.runs import run_of
from distllm.data.batch import IGNORE_INDEX
from distllm.data.examples import ExampleSplit
from distllm.data.examples.answers import CONTEXT, answers_of
from distllm.data.examples.pairs import SOURCE, TARGET
from distllm.data.open import open_split, sentinel_ids
from distllm.data.tokenizer import Tokenizer
from distllm.evaluate.answers import score_answers
from distllm.evaluate.text import score_summaries

EXAMPLES = 200
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def target_counts(split, vocab_size):
    """Return how often each id is a target of a split."""
    counts_V = np.zeros(vocab_size)
    for start in range(0, split.num_samples, 64):
        rows_B = np.arange(start, min(start + 64, split.num_samples))
        targets_BT = split.batch(rows_B, rows_B).targets_BT
        counts_V += np.bincount(targets_BT[targets_BT != IGNORE_INDEX], minlength=vocab_size)
    return counts_V


def unigram(train, valid, tokenizer, alike=None):
    """Return the cross-entropy of the validation's targets under the frequencies of the training's.

    The ids in ``alike`` count as one.
    """
    known_V = target_counts(train, tokenizer.vocab_size) + 1
    asked_V = target_counts(valid, tokenizer.vocab_size)
    for counts_V in (known_V, asked_V) if alike else ():
        counts_V[alike[:1]] = counts_V[alike].sum()
        counts_V[alike[1:]] = 0
    known_V = np.maximum(known_V, 1e-9)
    return float(-(asked_V * np.log(known_V / known_V.sum())).sum() / asked_V.sum())


def leads(valid, tokenizer):
    """Yield name and ROUGE of the first sentences of the sources."""
    records = [record for _, record in islice(valid.documents(), EXAMPLES)]
    right, sources = (
        [tokenizer.decode(record[field].tolist()) for record in records] for field in (TARGET, SOURCE)
    )
    for count in (1, 3):
        told = [" ".join(SENTENCE.split(source)[:count]) for source in sources]
        yield f"first {count} sentences", score_summaries(told, right)


def answers(train, valid, tokenizer):
    """Yield name, exact match and F1 of the commonest answer in the context, and of never answering."""
    common = Counter()
    for _, record in train.documents():
        common.update(answer["text"] for answer in answers_of(record, tokenizer)[:1])
    ranked = [text for text, _ in common.most_common()]
    given, right = {}, {}
    for number, (_, record) in enumerate(islice(valid.documents(), EXAMPLES)):
        context = tokenizer.decode(record[CONTEXT].tolist())
        given[str(number)] = next((text for text in ranked if text in context), "")
        right[str(number)] = [answer["text"] for answer in answers_of(record, tokenizer)]
    yield "commonest answer in the context", score_answers(given, right)
    yield "no answer", score_answers(dict.fromkeys(right, ""), right)


def main(run):
    """Print the baselines of a run's task."""
    stored = run_of(run, "runs")
    train, valid = (open_split(stored.config, name) for name in ("train", "valid"))
    tokenizer, task = Tokenizer.load(stored.dataset), stored.config.task.name
    if task in ("extractive_qa", "instruct") and isinstance(valid, ExampleSplit):
        for name, scores in answers(train, valid, tokenizer):
            print(name, scores)
    if task not in ("extractive_qa", "contrastive", "dpo"):
        print(f"frequencies of the targets: loss {unigram(train, valid, tokenizer):.4f}")
    if task == "span_corruption":
        sentinels = sentinel_ids(tokenizer, stored.dataset)
        print(f"that know the next sentinel: loss {unigram(train, valid, tokenizer, sentinels):.4f}")
    if task == "seq2seq":
        for name, scores in leads(valid, tokenizer):
            print(name, scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
