"""The model card: README.md of an exported folder, filled from the facts of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from distllm.config.shape import ModelShape
from distllm.units import format_count

_CARD = """\
---
library_name: {library}
{pipeline}tags:
- distllm
- {model_type}
---

# {name}

A model of {num_params} parameters (`{model_type}`), trained with distllm.

```python
{usage}
```

In training every document began with `{eot}`{advice}.

## Model

{shape}

## Training

{facts}
{config}"""

_PIPELINES = {"decoder": "pipeline_tag: text-generation\n"}
_KINDS = {"decoder": "CausalLM", "encoder_decoder": "Seq2SeqLM"}
_GENERATES = """\
from transformers import AutoModelFor{kind}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = AutoModelFor{kind}.from_pretrained("path/to/this/folder")
inputs = tokenizer(tokenizer.bos_token + "Once", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))"""
_READS = """\
from transformers import {model_class}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
model = {model_class}.from_pretrained("path/to/this/folder")
print(model(**tokenizer("Once", return_tensors="pt")))"""
_EMBEDS = """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
print(model.similarity(model.encode("a query"), model.encode(["a passage", "another one"])))"""
_CONFIG = """
## Configuration

```json
{config}
```
"""


def model_card(
    shape: ModelShape, facts: Mapping[str, Any], eot: str, model_type: str, model_class: str, *, embeds: bool
) -> str:
    """Return the text of the card.

    Args:
        shape: the model's.
        facts: plain values of the run, such as ``step``, ``tokens``, ``valid_loss``, ``dataset``;
            ``config`` may hold the whole configuration.
        eot: the token that opens and closes documents.
        model_type: its architecture in transformers.
        model_class: its class there.
        embeds: whether it gives vectors of texts, and the folder is one of sentence-transformers.
    """
    config = facts.get("config")
    name = config.get("name", "model") if isinstance(config, Mapping) else "model"
    rows = {
        "hidden size": shape.hidden_size,
        "layers": shape.num_layers,
        "query heads": shape.num_heads,
        "key/value heads": shape.num_kv_heads,
        "MLP width": shape.intermediate_size,
        "vocabulary (padded)": shape.vocab_size,
        "context": shape.max_seq_len,
        "tied embeddings": shape.tie_embeddings,
    }
    plain = {key: value for key, value in facts.items() if key != "config" and value is not None}
    return _CARD.format(
        name=name,
        num_params=format_count(shape.num_params),
        model_type=model_type,
        pipeline=_PIPELINES.get(shape.family, ""),
        library="sentence-transformers" if embeds else "transformers",
        usage=_usage(shape, model_class, embeds=embeds),
        advice="" if embeds else ": begin prompts with it, as above",
        eot=eot,
        shape=_table(rows),
        facts=_table(plain) if plain else "No facts of the training are known.",
        config="" if config is None else _CONFIG.format(config=json.dumps(config, indent=2)),
    )


def _usage(shape: ModelShape, model_class: str, *, embeds: bool) -> str:
    if embeds:
        return _EMBEDS
    if shape.family in _KINDS:
        return _GENERATES.format(kind=_KINDS[shape.family])
    return _READS.format(model_class=model_class)


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
