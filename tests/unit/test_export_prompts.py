"""A model from elsewhere begins as transformers has it begin; one of ours as it was trained."""

import json

import pytest
import torch
import transformers

from distllm.commands.models import ModelOptions, open_model
from distllm.config.schema_tokenizer import TokenizerConfig
from distllm.data.tokenizer import Tokenizer
from distllm.errors import IntegrityError
from distllm.export.prompts import prompt_builder_of
from distllm.infer.generate import write_texts

BOS = "<s>"
LLAMA = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One that puts a token of its own before every text and the end of text after sources."""
    from tokenizers.processors import TemplateProcessing

    folder = tmp_path_factory.mktemp("tokenizer")
    mine = Tokenizer.train(["the cat sat"], TokenizerConfig(vocab_size=270, special_tokens=(BOS, "<pad>")))
    mine.save(folder)
    return mine, transformers.AutoTokenizer.from_pretrained(folder, bos_token=BOS), TemplateProcessing


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "bare", "t5"])
def test_a_text_is_continued_as_by_transformers(tokenizer, tmp_path, kind):
    mine, theirs, template = tokenizer
    bos, pad = mine.special_ids([BOS, "<pad>"])
    eos = mine.eot_id
    around = {"llama": f"{BOS} $A", "bare": "$A", "t5": "$A <|endoftext|>"}[kind]
    ids = [(BOS, bos), ("<|endoftext|>", eos)]
    theirs.backend_tokenizer.post_processor = template(single=around, special_tokens=ids)
    named = {"vocab_size": mine.vocab_size, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    torch.manual_seed(1)
    if kind != "t5":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **named)).eval()
    else:
        config = transformers.T5Config(**T5, **named, decoder_start_token_id=pad)
        model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape) * 0.35)
    model.save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)

    given = theirs("the cat", return_tensors="pt")
    row = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=pad)[0].tolist()
    new = row[1:] if kind == "t5" else row[given["input_ids"].shape[1] :]
    expected = mine.decode(new[: new.index(eos)] if eos in new else new)
    backend = open_model(ModelOptions(model=str(tmp_path)), "generate")
    asked = backend.prompts.to_continue("the cat")
    assert write_texts(backend.model, backend.tokenizer, [asked], max_tokens=8) == [expected]
    if kind == "bare":
        assert backend.prompts.to_continue("").ids == [bos]

    task = {"name": "seq2seq", "prompt": "{source}: "}
    (tmp_path / "distllm.json").write_text(json.dumps({"facts": {"config": {"task": task}}}))
    ours = open_model(ModelOptions(model=str(tmp_path)), "generate").prompts
    assert ours.opened() == [eos]
    assert ours.translates


@pytest.mark.parametrize(
    "facts", [[], {"config": 1}, {"config": {"task": None}}, {"config": {"task": {"name": "none"}}}]
)
def test_a_damaged_note_of_the_task_is_named(tokenizer, tmp_path, facts):
    (tmp_path / "distllm.json").write_text(json.dumps({"facts": facts}))
    with pytest.raises(IntegrityError, match="does not say what the model was trained on"):
        prompt_builder_of(tmp_path, tokenizer[0], "decoder")
