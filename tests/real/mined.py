"""Preferences among what a model of pairs writes itself: mined.py RUN_DIRECTORY OUT.jsonl [EVERY]

Of every EVERY-th pair of the training split (1 takes all) the model writes eight targets, the likeliest
and seven that are drawn. ``chosen`` is the one that is nearest to the ``right`` one, by chrF of the sentence,
``rejected`` the one that is farthest. There is no pair where they are less than ten points apart, and
none of a source that leaves no room to answer. The same run gives the same bytes.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from distllm.commands.runs import run_of
from distllm.data.examples.pairs import SOURCE, TARGET
from distllm.data.examples.prompts import PromptBuilder
from distllm.data.open import open_split
from distllm.extras import require
from distllm.infer.generate import write_texts
from distllm.infer.load import load_trained
from distllm.infer.sampling import GREEDY, Sampling

DRAWN, APART, TOGETHER, LONGEST = 7, 10.0, 16, 64


def candidates(model, tokenizer, asked, first_row):
    """Return the texts that the model writes for each of ``asked``, the greedy one first."""
    alone = write_texts(model, tokenizer, asked, max_tokens=LONGEST, sampling=GREEDY)
    copies = [each for each in asked for _ in range(DRAWN)]
    drawn = write_texts(
        model,
        tokenizer,
        copies,
        max_tokens=LONGEST,
        sampling=Sampling(temperature=1.0),
        first_row=DRAWN * first_row,
    )
    return [[text, *drawn[DRAWN * n : DRAWN * (n + 1)]] for n, text in enumerate(alone)]


def main(run, out, every="1"):
    """Write the preferences, and say how many there are."""
    stored = run_of(run, "runs")
    resolved = stored.resolved()
    trained = load_trained(stored.directory.checkpoints, resolved)
    model, tokenizer = trained.model, trained.tokenizer
    prompts = PromptBuilder(tokenizer, resolved.shape.family, stored.config.task)
    chrf = require("sacrebleu.metrics", "chrF", "eval").CHRF()
    documents = open_split(stored.config, "train").documents()
    longest = resolved.shape.max_seq_len - LONGEST
    pairs = []
    for _, record in islice(documents, None, None, int(every)):
        source, right = (tokenizer.decode(record[field].tolist()) for field in (SOURCE, TARGET))
        asked = prompts.to_translate(source)
        if len(asked.ids) <= longest:
            pairs.append((asked, source, right))
    pairs.sort(key=lambda pair: len(pair[0].ids))  # texts of one length are written together
    count = 0
    with Path(out).open("w", encoding="utf-8") as file:
        for start in range(0, len(pairs), TOGETHER):
            some = pairs[start : start + TOGETHER]
            written = candidates(model, tokenizer, [asked for asked, _, _ in some], start)
            for (_, source, right), texts in zip(some, written, strict=True):
                scored = sorted((chrf.sentence_score(text, [right]).score, text) for text in texts if text)
                if not scored or scored[-1][0] - scored[0][0] < APART:
                    continue
                record = {"prompt": source, "chosen": scored[-1][1], "rejected": scored[0][1], "right": right}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    print(f"{count} preferences of {len(pairs)} prompts")


if __name__ == "__main__":
    main(*sys.argv[1:])
