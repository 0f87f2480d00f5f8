"""The server's page in a real browser: four tabs, streaming, keyboard, a token, a phone."""

import json
import re

import pytest
import serving
from browser_pages import chromium, needs_chromium

expect = pytest.importorskip("playwright.sync_api").expect
pytestmark = [needs_chromium, pytest.mark.slow]


class Able(serving.Backend):
    """A decoder that also translates and searches, in ways a test can predict."""

    @property
    def abilities(self):
        return ["chat", "completions", "embeddings", "translate", "answer", "search"]

    def translate(self, texts, max_tokens):
        return [text.upper() for text in texts]

    def search(self, query, top):
        return [
            {
                "title": "one.txt",
                "score": 0.5,
                "snippet": f"<b>\N{CAT FACE} {query} b",
                "matches": [[5, 5 + len(query)]],
                "passage": query,
            }
        ]


@pytest.fixture(scope="module")
def small():
    words = serving.tokenizer()
    return Able("small", serving.model(words.vocab_size, context=512), words, index=True)


@pytest.fixture(scope="module")
def address(small):
    with serving.running(small) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def seeded(route):
    """Pass a question on with a seed, so that the random weights answer alike in every run."""
    route.continue_(post_data=json.dumps({**route.request.post_data_json, "seed": 7}))


def opened(browser, address, width=1000, **options):
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    page.route("**/chat/completions", seeded)
    page.noted = []
    page.on("console", lambda message: page.noted.append(message.text))
    page.on("pageerror", lambda error: page.noted.append(str(error)))
    page.on("request", lambda request: request.url.startswith(address) or page.noted.append(request.url))
    page.goto(address)
    expect(page.locator("#model")).to_have_text("small")
    return page


def test_chat_streams_and_remembers(browser, address):
    page = opened(browser, address)
    page.keyboard.type("the model")  # the field has the focus from the start
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.assistant:not(.busy)")
    assert page.locator(".turn.user").inner_text() == "the model"
    assert page.locator(".turn.assistant").inner_text()
    with page.expect_request("**/chat/completions") as asked:
        page.keyboard.type("a token")
        page.keyboard.press("Enter")
    assert [m["role"] for m in asked.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    page.wait_for_selector(".turn.busy", state="detached")
    page.click(".clear")
    assert page.locator(".turn").count() == 0
    assert page.noted == []


def test_chat_outlives_the_context_of_the_model(browser, address):
    page = opened(browser, address)
    for question in ("the model " * 50, "a token " * 30):
        page.fill("#chat textarea", question)
        page.press("#chat textarea", "Enter")
        page.wait_for_selector(".turn.assistant:not(.busy)")
        page.wait_for_selector(".turn.busy", state="detached")
    assert page.locator(".turn.forgotten").count() == 2
    assert page.locator(".turn.error").count() == 0
    assert page.noted == []


def test_a_failed_question_is_not_remembered(browser, address):
    page = opened(browser, address)
    page.route("**/chat/completions", lambda route: route.abort(), times=1)
    page.keyboard.type("lost")
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.error")
    with page.expect_request("**/chat/completions") as asked:
        page.keyboard.type("kept")
        page.keyboard.press("Enter")
    assert [m["content"] for m in asked.value.post_data_json["messages"]] == ["kept"]


def test_escape_stops_an_answer(browser, address, small):
    page = opened(browser, address)
    page.route("**/chat/completions", lambda route: None)  # never answered
    page.keyboard.type("the model")
    page.keyboard.press("Enter")
    page.wait_for_selector(".stop:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector(".turn.busy", state="detached")
    assert page.locator(".stop").is_hidden()


def test_the_other_tabs_do_their_work_from_the_keyboard(browser, address):
    page = opened(browser, address)
    page.focus("#tab-chat")
    page.keyboard.press("ArrowRight")
    assert page.locator("#translate").is_visible()
    page.fill("#translate textarea", "hello")
    page.press("#translate textarea", "Enter")
    page.wait_for_selector("#translate .card")
    assert page.locator("#translate .card").inner_text() == "HELLO"

    page.click("#tab-answer")
    page.keyboard.type("what")
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .card small")
    assert "one.txt" in page.locator("#answer .out").inner_text()

    page.click("#tab-search")
    page.keyboard.type("token")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search mark")
    assert page.locator("#search mark").inner_text() == "token"
    assert "<b>\N{CAT FACE} token b" in page.locator("#search .card").inner_text()
    page.focus("#tab-search")
    page.keyboard.press("Home")
    assert page.locator("#chat").is_visible()
    assert page.noted == []


def test_an_error_is_told_and_the_page_goes_on(browser, address):
    page = opened(browser, address)
    page.keyboard.type("the " * 900)
    page.keyboard.press("Enter")
    page.wait_for_selector(".turn.error")
    assert "context 512" in page.locator(".turn.error").inner_text()
    assert page.locator(".send:visible").is_enabled()


def test_tabs_of_what_the_model_cannot_do_are_closed(browser):
    with serving.running(serving.backend()) as (address, _):
        page = opened(browser, address)
        closed = [
            page.locator(f"#tab-{name}").is_disabled() for name in ("chat", "translate", "answer", "search")
        ]
    assert closed == [False, True, False, True]


def test_the_page_asks_for_the_token(browser, small):
    with serving.running(small, token="secret") as (address, _):
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("dialog[open]")
        page.fill("dialog input", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("small")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser, address, scheme):
    page = opened(browser, address, width=360, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour))) > 600) == (scheme == "light")
