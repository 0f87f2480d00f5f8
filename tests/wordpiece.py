"""A WordPiece tokenizer as BERT has one, in a folder: lower case, no accents, words in pieces."""

import json
import string

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ("the", "in", "house", "lives", "cat", "who", "of", "was", "million", "mill", "##ion", "##s")


def write_wordpiece(directory):
    """Write the folder and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation, "ß", "漢"]
    names = dict.fromkeys([*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters)])
    inner = tokenizers.Tokenizer(
        models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    )
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    inner.add_special_tokens(SPECIAL)
    inner.save(str(directory / "tokenizer.json"))
    settings = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory
