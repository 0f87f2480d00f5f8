"""The server as clients see it: a real socket, the official client, many at once, and a stop."""

import contextlib
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import serving
import tiny
import torch

from distllm.commands.serve import is_loopback
from distllm.commands.serve import run as serve_command
from distllm.config.schema import ModelConfig
from distllm.config.shape import settle_shape
from distllm.errors import ConfigError, MissingDependency
from distllm.models.init import build_model
from distllm.serve.backend import Backend

pytestmark = pytest.mark.slow
CLIENTS = 64


@pytest.fixture(scope="module")
def backend():
    return serving.backend()


@pytest.fixture(scope="module")
def address(backend):
    with serving.running(backend) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0) as client:
        yield client


def post(address, path, **body):
    return httpx.post(f"{address}/v1/{path}", json=body, timeout=60)


def test_openai_client_completes(client):
    first = client.completions.create(model="small", prompt="the model", max_tokens=8, temperature=0.0)
    again = client.completions.create(model="small", prompt="the model", max_tokens=8, temperature=0.0)
    assert first.choices[0].text == again.choices[0].text
    assert 0 < first.usage.completion_tokens <= 8
    assert first.choices[0].finish_reason == ("stop" if first.usage.completion_tokens < 8 else "length")
    many = client.completions.create(model="small", prompt=["the", "model"], max_tokens=4, echo=True)
    assert [choice.text[:5] for choice in many.choices][1] == "model"


def test_another_model_than_the_one_that_is_served_is_not_found(client):
    from openai import NotFoundError

    (served,) = client.models.list()
    assert client.models.retrieve(served.id) == served
    asks = [
        lambda name: client.completions.create(model=name, prompt="the model", max_tokens=1),
        lambda name: client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "the"}], max_tokens=1, stream=True
        ).close(),
        lambda name: client.embeddings.create(model=name, input="the"),
        client.models.retrieve,
    ]
    for ask in asks:
        ask(served.id)
        with pytest.raises(NotFoundError, match=f"no model 'gpt-4o' here, only '{served.id}'") as caught:
            ask("gpt-4o")
        assert caught.value.code == "model_not_found"


def test_several_prompts_are_streamed_each_under_its_number(client):
    settings = {"model": "small", "prompt": ["the", "model"], "max_tokens": 6, "seed": 3, "echo": True}
    whole = client.completions.create(**settings)
    with client.completions.create(**settings, stream=True) as stream:
        pieces = [piece.choices[0] for piece in stream]
    for choice in whole.choices:
        mine = [piece for piece in pieces if piece.index == choice.index]
        assert "".join(piece.text for piece in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason


def test_a_chat_ends_where_its_template_says(backend, address, monkeypatch):
    ask = {"messages": [{"role": "user", "content": "the model"}], "max_tokens": 12, "seed": 3}
    whole = post(address, "chat/completions", **ask).json()["choices"][0]["message"]["content"]
    monkeypatch.setattr(backend, "chat_stops", [whole[4:7]])
    (choice,) = post(address, "chat/completions", **ask).json()["choices"]
    assert choice["message"]["content"] == whole.partition(whole[4:7])[0]
    assert choice["finish_reason"] == "stop"


def test_openai_client_streams_a_chat_as_it_answers_one(client):
    settings = {"model": "small", "messages": [{"role": "user", "content": "the model"}], "max_tokens": 12}
    whole = client.chat.completions.create(**settings, seed=3)
    counted = {"include_usage": True}
    with client.chat.completions.create(**settings, seed=3, stream=True, stream_options=counted) as stream:
        *pieces, last = stream
    assert last.choices == []
    assert last.usage == whole.usage
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert text == whole.choices[0].message.content
    assert len(pieces) > 3
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_conversation_longer_than_the_context_is_refused_unless_it_may_be_cut(address):
    turns = [{"role": "user", "content": "the model " * 40}, {"role": "user", "content": "a token"}]
    refused = post(address, "chat/completions", messages=turns, max_tokens=4)
    assert refused.status_code == 400
    assert "the model's context" in refused.json()["error"]["message"]
    for stream in (False, True):
        cut = post(
            address, "chat/completions", messages=turns, max_tokens=4, truncation="auto", stream=stream
        )
        assert cut.status_code == 200
        assert cut.headers["x-turns-left-out"] == "1"


def test_openai_client_embeds(client):
    found = client.embeddings.create(model="small", input=["the model reads", "a token", "the model reads"])
    vectors = [torch.tensor(item.embedding) for item in found.data]
    assert all(vector.norm() == pytest.approx(1.0, abs=1e-5) for vector in vectors)
    assert torch.equal(vectors[0], vectors[2])
    assert not torch.allclose(vectors[0], vectors[1])


def test_openai_client_lists_the_model(client):
    (model,) = client.models.list().data
    assert model.id == "small"


def test_a_question_is_answered_from_its_context(address):
    answer = post(address, "answer", question="what?", context="the model " * 40, max_tokens=4).json()
    assert isinstance(answer["answer"], str)
    assert answer["sources"] == []


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ("completions", {"prompt": "the " * 200}, "tokens, and the model's context 64"),
        ("translate", {"text": "x"}, "is a decoder and cannot do 'translate'"),
        ("search", {"query": "x"}, "cannot do 'search'"),
        ("completions", {"prompt": "x", "logprobs": 3}, "logprobs is not supported by this server"),
        ("completions", {"prompt": "x", "presence_penalty": 0.5}, "presence_penalty is not supported"),
    ],
)
def test_errors_say_what_is_wrong(address, path, body, told):
    answer = post(address, path, **body)
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "body", "told"),
    [
        (
            "application/json",
            b'{"prompt": 5',
            "the body is no JSON, at character 12: Expecting ',' delimiter",
        ),
        ("application/x-www-form-urlencoded", b'{"prompt": "x"}', "header Content-Type: application/json"),
    ],
)
def test_a_body_that_is_not_read_as_json_is_told_so(address, kind, body, told):
    answer = httpx.post(f"{address}/v1/completions", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert told in answer.json()["error"]["message"]


def test_what_asks_for_nothing_is_taken_and_what_is_nowhere_is_said(address):
    nothing = {"tools": [], "logprobs": None, "response_format": {"type": "text"}, "max_tokens": None}
    asked = {"prompt": "the", "stop": ["e"], "user": "me", "stream_options": None, **nothing}
    assert post(address, "completions", **asked).status_code == 200
    answer = post(address, "responses", input="x")
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("POST /v1/responses: Not Found")


def test_64_clients_at_once_are_all_answered(address, capsys):
    def one(number):
        began = time.perf_counter()
        answer = post(address, "completions", prompt=f"the {number}", max_tokens=16, seed=number)
        return answer.status_code, time.perf_counter() - began, answer.json()["choices"][0]["finish_reason"]

    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(one, range(CLIENTS)))
    assert [code for code, _, _ in answers] == [200] * CLIENTS
    assert {reason for _, _, reason in answers} <= {"length", "stop"}
    seconds = sorted(seconds for _, seconds, _ in answers)
    with capsys.disabled():
        p50, p90, p99 = (seconds[int(share * (CLIENTS - 1))] for share in (0.5, 0.9, 0.99))
        print(f"\n{CLIENTS} clients at once: p50 {p50:.2f} s, p90 {p90:.2f} s, p99 {p99:.2f} s")


def test_a_client_that_leaves_is_forgotten(address):
    body = {"prompt": "the", "max_tokens": 60, "stream": True, "temperature": 0.0}
    with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as stream:
        next(stream.iter_lines())
    for _ in range(500):
        if httpx.get(f"{address}/health", timeout=60).json()["running"] == 0:
            return
        time.sleep(0.02)
    pytest.fail("the request still runs")


def test_the_token_is_the_api_key(backend):
    from openai import AuthenticationError, OpenAI

    with serving.running(backend, token="secret") as (address, _):
        wrong, right = (
            OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) for key in ("wrong", "secret")
        )
        with pytest.raises(AuthenticationError):
            wrong.models.list()
        assert right.models.list().data[0].id == "small"


def test_limits_answer_413_429_and_504(backend):
    limits = serving.Limits(max_bytes=2000, per_minute=2)
    with serving.running(backend, limits) as (address, _):
        assert post(address, "completions", prompt="x" * 3000).status_code == 413
        codes = [post(address, "completions", prompt="x", max_tokens=1).status_code for _ in range(6)]
        assert codes[0] == 200
        assert codes[-1] == 429
    with serving.running(backend, serving.Limits(seconds=0.0)) as (address, _):
        assert post(address, "completions", prompt="x", max_tokens=40).status_code == 504


def test_no_other_origin_is_let_in(address):
    answer = httpx.options(
        f"{address}/v1/completions",
        headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
    )
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_stop_lets_answers_under_way_finish(backend):
    text = {}
    with serving.running(backend) as (address, server):

        def ask():
            body = {"prompt": "the", "max_tokens": 50, "stream": True, "temperature": 0.0}
            with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=60) as stream:
                lines = [line for line in stream.iter_lines() if line]
            text["last"] = lines[-1]

        asking = threading.Thread(target=ask)
        asking.start()
        while httpx.get(f"{address}/health", timeout=60).json()["running"] == 0 and asking.is_alive():
            time.sleep(0.001)
        server.should_exit = True
        asking.join(60)
    assert text["last"] == "data: [DONE]"


def test_an_encoder_decoder_translates(backend):
    config = ModelConfig(family="encoder_decoder", hidden_size=32, num_layers=2, num_heads=4, init_std=0.2)
    vocab = backend.tokenizer.vocab_size
    model = build_model(settle_shape(config, vocab, serving.CONTEXT), seed=1).eval()
    served = Backend("pairs", model, backend.tokenizer)
    with serving.running(served) as (address, _):
        alone = [
            post(address, "translate", text=t, max_tokens=6).json()["translations"][0]
            for t in ("a", "the model")
        ]
        both = post(address, "translate", text=["a", "the model"], max_tokens=6).json()["translations"]
        assert both == alone
        assert post(address, "completions", prompt="x").status_code == 400


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("node7", False),
    ],
)
def test_only_loopback_is_private(host, loopback):
    assert is_loopback(host) is loopback


def test_others_are_not_let_in_without_a_token(monkeypatch):
    monkeypatch.delenv("DISTLLM_TOKEN", raising=False)
    with pytest.raises(ConfigError) as error:
        serve_command(["run=x", "host=0.0.0.0"])
    assert "export DISTLLM_TOKEN=" in str(error.value)
    with pytest.raises(ConfigError, match="nothing is given"):
        serve_command([])


def test_a_taken_port_is_said(address):
    from distllm.serve.server import listen

    taken = int(address.rpartition(":")[2])
    with pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", taken)


def test_the_command_serves_a_run_and_stops_on_a_signal(tmp_path):
    """What a user starts: a run, a free port, a token, and SIGTERM."""
    root = tiny.prepare(tmp_path)
    trained = tiny.distllm("train", *tiny.overrides(root, "engine=local", "eval=none", "train.max_steps=2"))
    assert trained.returncode == 0, trained.stderr
    command = tiny.command("serve", "run=tiny", "name=small-talk", f"runs_dir={root / 'runs'}", "port=0")
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env=tiny.environment(DISTLLM_TOKEN="secret", PYTHONUNBUFFERED=""),
    ) as process:
        try:
            assert process.stdout.readline().startswith("small-talk: completions, chat")
            address = process.stdout.readline().split()[1].rstrip("/")
            for _ in range(300):
                with contextlib.suppress(httpx.ConnectError):
                    assert httpx.get(f"{address}/health", timeout=60).status_code == 200
                    break
                time.sleep(0.1)
            assert httpx.get(f"{address}/v1/models", timeout=60).status_code == 401
            headers = {"authorization": "Bearer secret"}
            body = {"prompt": "the", "max_tokens": 3}
            answer = httpx.post(f"{address}/v1/completions", json=body, headers=headers, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["model"] == "small-talk"
            page = httpx.get(address, timeout=60)
            assert page.headers["content-type"].startswith("text/html")
            assert "script-src 'sha256-" in page.headers["content-security-policy"]
            body = {"prompt": "the", "max_tokens": 50, "temperature": 0.0, "stream": True}
            with httpx.stream(
                "POST", f"{address}/v1/completions", json=body, headers=headers, timeout=60
            ) as stream:
                lines = filter(None, stream.iter_lines())
                pieces = [next(lines)]
                process.send_signal(signal.SIGTERM)
                pieces += lines
            assert pieces[-1] == "data: [DONE]"
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_without_its_packages_the_command_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distllm.serve.server", None)
    with pytest.raises(MissingDependency) as error:
        serve_command(["run=x"])
    assert "distllm[serve]" in str(error.value)
