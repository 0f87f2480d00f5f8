import asyncio
import json
from types import SimpleNamespace

import pytest
import serving
import torch

from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.data.tokenizer.chat import CHATML
from distllm.errors import ConfigError
from distllm.models.init import build_model
from distllm.serve.answers import Pending, all_or_none, on_model_thread, refuse_failed, sampling_of
from distllm.serve.app import _stream, page
from distllm.serve.backend import Backend
from distllm.serve.guard import Refused
from distllm.serve.scheduler import Overloaded, _settled
from distllm.serve.schema import ChatBody, CompletionBody, Message, usage


@pytest.fixture(scope="module")
def words():
    return serving.tokenizer()


def encoder(words, **options):
    config = ModelConfig(family="encoder", hidden_size=32, num_layers=2, num_heads=4, init_std=0.2)
    shape = settle_shape(config, words.vocab_size, serving.CONTEXT)
    return build_model(shape, seed=1, **options).eval()


def test_what_a_model_can_do_follows_from_its_family(words):
    decoder = Backend("d", serving.model(words.vocab_size), words)
    assert decoder.abilities == ["completions", "chat", "answer", "embeddings"]
    reader = Backend("e", encoder(words), words, index=object())
    assert reader.abilities == ["embeddings", "search"]
    with pytest.raises(ConfigError, match="e is an encoder and cannot do 'chat'") as error:
        reader.require("chat")
    assert "embeddings, search" in str(error.value)


@pytest.mark.parametrize("head", ["embedding", "masked_lm"])
def test_an_encoder_embeds_whole_texts_between_ends(words, head):
    model = encoder(words, head=head)
    (vector,) = Backend("e", model, words).embed(["the model"])
    assert torch.tensor(vector).norm() == pytest.approx(1.0, abs=1e-5)
    if head == "embedding":
        ids_1T = torch.tensor([[words.eot_id, *words.encode("the model"), words.eot_id]])
        with torch.no_grad():
            expected = model(ids_1T, torch.arange(ids_1T.shape[1])[None])[0]
        torch.testing.assert_close(torch.tensor(vector), expected)


def test_a_decoder_embeds_by_the_mean_of_its_last_states_and_makes_no_logits(words):
    model, seen = serving.model(words.vocab_size), []
    handle = model.lm_head.register_forward_hook(lambda _m, _given, out: seen.append(out.shape[1]))
    (vector,) = Backend("d", model, words).embed(["the model is"])
    handle.remove()
    assert not seen
    ids_1T = torch.tensor([[words.eot_id, *words.encode("the model is")]])
    place_1T = torch.arange(ids_1T.shape[1])[None]
    with torch.no_grad():
        states_TC = model.decoder(model.embed_tokens(ids_1T, place_1T), place_1T)[0]
    expected = torch.nn.functional.normalize(states_TC.mean(0), dim=0)
    torch.testing.assert_close(torch.tensor(vector), expected)


@pytest.mark.parametrize("family", ["decoder", "encoder"])
def test_texts_have_the_vectors_that_they_have_alone(words, family):
    model = serving.model(words.vocab_size) if family == "decoder" else encoder(words, head="embedding")
    backend, texts = Backend("m", model, words), ["the model is", "a", "the model reads a token", "it"] * 10
    torch.testing.assert_close(
        torch.tensor(backend.embed(texts)), torch.tensor([backend.embed([text])[0] for text in texts])
    )


def test_a_text_longer_than_the_context_is_cut(words):
    backend = Backend("d", serving.model(words.vocab_size), words)
    long, longer = backend.embed(["the " * 500, "the " * 600])
    assert long == longer


def test_the_oldest_turns_are_left_out_where_a_conversation_no_longer_fits(words):
    backend = Backend("d", serving.model(words.vocab_size), words)
    said = [
        {"role": role, "content": f"{content} the model"}
        for role, content in [
            ("system", "s"),
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("user", "d"),
        ]
    ]
    whole = backend.chat_ids(said)
    assert backend.recent_chat_ids(said, len(whole)) == (whole, 0)
    assert backend.recent_chat_ids(said, len(whole) - 1) == (backend.chat_ids([said[0], *said[3:]]), 2)
    last = backend.chat_ids([said[0], said[4]])
    assert backend.recent_chat_ids(said, len(last)) == (last, 3)
    assert backend.recent_chat_ids(said, 1) == (last, 3)  # a question is never left out
    begun = [{"role": "assistant", "content": "hello"}, {"role": "user", "content": "x"}]
    assert backend.recent_chat_ids(begun, 1000)[1] == 0
    assert backend.recent_chat_ids(begun, 1)[1] == 1


def test_messages_of_several_parts_and_of_developers_are_plain_text():
    message = Message(
        role="developer", content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    )
    assert message.plain() == {"role": "system", "content": "ab"}
    assert ChatBody(messages=[{"role": "user", "content": "x"}], unknown=3).messages[0].content == "x"


def test_how_a_request_wants_its_tokens():
    plain = sampling_of(CompletionBody(max_tokens=500, seed=7, stop="\n"), room=40)
    assert (plain.max_tokens, plain.seed, plain.stop) == (40, 7, ["\n"])
    newer = sampling_of(CompletionBody(max_completion_tokens=5, max_tokens=9, stop=["", "a"]), room=40)
    assert (newer.max_tokens, newer.stop) == (5, ["a"])
    assert sampling_of(CompletionBody(), 40).seed != sampling_of(CompletionBody(), 40).seed
    assert usage(3, 4) == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(("ending", "status"), [("timeout", 504), ("cancelled", 503), ("error", 500)])
def test_an_answer_that_did_not_end_by_itself_is_an_error(ending, status):
    with pytest.raises(Refused) as refused:
        refuse_failed(ending)
    assert refused.value.status == status
    refuse_failed("stop")


def test_a_full_server_says_503():
    def full(*_):
        raise Overloaded

    crowded = SimpleNamespace(submit=full, run=full)

    async def ask():
        Pending(crowded, [1], sampling_of(CompletionBody(), 5), 1.0)

    for work in (ask(), on_model_thread(crowded, lambda: None, 1.0)):
        with pytest.raises(Refused) as refused:
            asyncio.run(work)
        assert refused.value.status == 503


def test_when_one_of_several_answers_fails_the_rest_are_given_up():
    left = []
    pending = [SimpleNamespace(cancel=lambda n=n: left.append(n)) for n in range(2)]

    def fails():
        with all_or_none(pending[:1]) as started:
            started.append(pending[1])
            raise Refused(504, "late")

    with pytest.raises(Refused):
        fails()
    assert left == [0, 1]
    with all_or_none(pending):
        pass
    assert left == [0, 1]


def test_a_turn_of_the_assistant_ends_with_the_mark_of_its_template(words):
    def stops(template):
        words.chat_template = template
        return Backend("d", serving.model(words.vocab_size), words).chat_stops

    assert stops(None) == ["\nUser:"]
    assert stops(CHATML) == ["<|im_end|>"]
    words.chat_template = None


def test_a_stream_that_fails_ends_with_the_error():
    class Late(SimpleNamespace):
        ending = None

        async def pieces(self):
            yield "the"
            self.ending = "timeout"

    async def collect():
        answer = _stream([Late()], {"id": "x"}, lambda index, text, reason, first: {"text": text})
        return [json.loads(event.removeprefix("data: ")) async for event in answer.body_iterator]

    first, last = asyncio.run(collect())
    assert first == {"id": "x", "choices": [{"text": "the"}]}
    assert "longer than this server allows" in last["error"]["message"]


@pytest.mark.parametrize(
    ("text", "stop", "settled"),
    [
        ("abc", [], "abc"),
        ("ab\ufffd", [], "ab"),
        ("ab<", ["<end>"], "ab"),
        ("a<en", ["<end>"], "a"),
        ("a<x", ["<end>"], "a<x"),
    ],
)
def test_only_what_cannot_change_is_sent(text, stop, settled):
    assert _settled(text, stop) == settled


def test_the_page_loads_nothing_from_elsewhere():
    text, policy = page()
    assert "src=" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in policy
    assert "unsafe-inline'; connect" in policy
    assert "script-src 'sha256-" in policy


@pytest.mark.slow
def test_a_hugging_face_folder_is_served_as_it_is(tmp_path, words):
    """A folder of transformers' own, with a tokenizer beside it, through what the command uses."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from distllm.commands.serve import Options, _backend

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    theirs = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "llama")
    words.save(tmp_path / "llama")
    served = _backend(Options(model=str(tmp_path / "llama")))
    assert served.name == "llama"
    assert "chat" in served.abilities
    ids_1T = torch.tensor([served.prompt_ids("the model reads")])
    with torch.no_grad():
        ours_1TV = served.model(ids_1T, torch.arange(ids_1T.shape[1])[None])
        torch.testing.assert_close(
            ours_1TV[..., : words.vocab_size], theirs(ids_1T).logits, rtol=0, atol=1e-4
        )
