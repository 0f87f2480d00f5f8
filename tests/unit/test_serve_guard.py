import asyncio
import json

import pytest

from distllm.serve import guard
from distllm.serve.guard import Guard, Rate


async def inner(scope, receive, send):
    """An application that says how long the body was."""
    message = await receive()
    body = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def guarded(**more):
    settings = {
        "token": None,
        "max_bytes": 100,
        "per_minute": 1000,
        "hosts": None,
        "policy": "default-src 'none'",
    }
    return Guard(inner, **{**settings, **more})


def ask(app, *parts, path="/v1/x", headers=(), client="10.0.0.1", silent=False):
    """Send a request; return status, headers and body."""
    messages = [
        {"type": "http.request", "body": part, "more_body": silent or number < len(parts) - 1}
        for number, part in enumerate(parts or (b"",))
    ]
    sent = []

    async def receive():
        if not messages:
            await asyncio.sleep(60)
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": list(headers), "client": (client, 1)}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


def bearer(token):
    return [(b"authorization", f"Bearer {token}".encode())]


@pytest.mark.parametrize(
    "headers",
    [[], bearer("wrong"), bearer(""), [(b"authorization", b"Basic secret")], [(b"authorization", b"secret")]],
)
def test_without_the_token_there_is_no_answer(headers):
    status, answer, body = ask(guarded(token="secret"), headers=headers)
    assert status == 401
    assert answer[b"www-authenticate"] == b"Bearer"
    assert "token" in json.loads(body)["error"]["message"]


def test_with_the_token_there_is_and_the_page_needs_none():
    app = guarded(token="secret")
    assert ask(app, headers=bearer("secret"))[0] == 200
    assert ask(app, path="/")[0] == ask(app, path="/health")[0] == 200


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []

    def digest(a, b):
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(guard.hmac, "compare_digest", digest)
    ask(guarded(token="secret"), headers=bearer("other"))
    assert compared == [(b"other", b"secret")]


def test_bodies_are_measured_as_they_arrive():
    app = guarded()
    assert ask(app, b"x" * 60, b"x" * 40)[::2] == (200, b"100")
    assert ask(app, b"x" * 60, b"x" * 41)[0] == 413
    assert ask(app, headers=[(b"content-length", b"101")])[0] == 413
    assert ask(app, b"x" * 101, headers=[(b"content-length", b"5")])[0] == 413


def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    assert ask(guarded(), b"x", silent=True)[0] == 408


def test_a_body_that_is_cut_off_is_not_handed_on():
    app, messages, sent = guarded(), [{"type": "http.request", "body": b"half", "more_body": True}], []

    async def receive():
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app({"type": "http", "path": "/v1/x", "headers": []}, receive, send))
    assert sent[0]["status"] == 400


def test_one_address_cannot_take_everything():
    app = guarded(per_minute=3)
    codes = [ask(app)[0] for _ in range(5)]
    assert codes == [200, 200, 200, 429, 429]
    status, headers, _ = ask(app)
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert ask(app, client="10.0.0.2")[0] == 200


def test_the_rate_recovers_evenly():
    now = 0.0
    rate = Rate(60, clock=lambda: now)
    assert [rate.wait("a") for _ in range(60)] == [0.0] * 60
    assert rate.wait("a") == pytest.approx(1.0)
    now = 0.5
    assert rate.wait("a") == pytest.approx(0.5)
    now = 1.0
    assert rate.wait("a") == 0.0
    now = 1000.0
    assert [rate.wait("a") > 0 for _ in range(61)] == [False] * 60 + [True]


def test_addresses_do_not_fill_memory(monkeypatch):
    monkeypatch.setattr(guard, "_MOST_CLIENTS", 10)
    rate = Rate(5)
    for number in range(100):
        rate.wait(str(number))
    assert len(rate._buckets) <= 10


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("LocalHost", 200),
        ("evil.example", 421),
        ("", 421),
        ("[::1", 421),
        ("localhost@evil.example", 421),
    ],
)
def test_pages_of_other_sites_cannot_reach_a_server_on_loopback(host, status):
    app = guarded(hosts=frozenset({"localhost", "127.0.0.1", "::1"}))
    assert ask(app, headers=[(b"host", host.encode())])[0] == status


def test_answers_forbid_framing_sniffing_and_other_origins():
    for path in ("/", "/v1/x"):
        _, headers, _ = ask(guarded(), path=path)
        assert headers[b"content-security-policy"] == b"default-src 'none'"
        assert headers[b"x-content-type-options"] == b"nosniff"
        assert not [name for name in headers if name.startswith(b"access-control")]
