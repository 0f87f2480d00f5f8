import threading
import time

import numpy as np
import pytest
import serving
import torch
from generation import generate
from wordpiece import write_wordpiece

from distllm.data.tokenizer import Tokenizer
from distllm.errors import ConfigError
from distllm.serve.pool import Pool
from distllm.serve.sampling import Sampling, draw_each
from distllm.serve.scheduler import Overloaded, Request, Scheduler, Stopped
from distllm.serve.text import TextStream

GREEDY = Sampling(max_tokens=10, temperature=0.0)


@pytest.fixture(scope="module")
def words():
    return serving.tokenizer()


@pytest.fixture(scope="module")
def model(words):
    return serving.model(words.vocab_size)


@pytest.fixture
def scheduler(model, words):
    made = Scheduler(model, words, slots=4, waiting=64)
    yield made
    made.close()


class Asked:
    """A request and what it was told."""

    def __init__(self, scheduler, ids, sampling=GREEDY, seconds=60.0):
        self.text, self.ending, self.pieces = "", None, 0
        self.done, self.begun = threading.Event(), threading.Event()
        self.request = Request(ids, sampling, time.monotonic() + seconds, self.tell)
        scheduler.submit(self.request)

    def tell(self, text, ending):
        self.text += text
        self.pieces += bool(text)
        self.begun.set()
        if ending is not None:
            self.ending = ending
            self.done.set()

    def result(self):
        assert self.done.wait(60)
        return self.request.new_ids


def test_a_prompt_makes_logits_after_its_last_token_only(model, words):
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _m, _given, out: seen.append(tuple(out.shape[:2])))
    scheduler = Scheduler(model, words, slots=4, waiting=64)
    said = Asked(scheduler, words.encode("the model is"), Sampling(max_tokens=3, temperature=0.0)).result()
    scheduler.close()
    handle.remove()
    assert seen == [(1, 1)] * len(said)


def draw(logits_V, sampling, position):
    return draw_each(logits_V[None], [sampling], [position])[0]


def prompts(count, longest=20):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


def test_greedy_answers_are_those_of_the_plain_generator(model, words, scheduler):
    for ids in prompts(4):
        plain = generate(
            model, ids, vocab_size=words.vocab_size, eot_id=words.eot_id, max_tokens=10, temperature=0.0
        )
        assert Asked(scheduler, ids).result() == plain


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_an_answer_does_not_depend_on_who_else_is_served(scheduler, temperature):
    """More requests than slots, of many lengths, that join and leave at different times."""
    asked = [
        (ids, Sampling(max_tokens=5 + 7 * number % 30, temperature=temperature, top_p=0.9, seed=number))
        for number, ids in enumerate(prompts(14))
    ]
    alone = [Asked(scheduler, *one).result() for one in asked]
    together = [Asked(scheduler, *one) for one in asked]
    assert [one.result() for one in together] == alone
    assert {one.ending for one in together} <= {"length", "stop"}


def test_an_answer_ends_with_the_context(scheduler):
    asked = Asked(scheduler, [5] * 50, Sampling(max_tokens=1000, temperature=0.0))
    new = asked.result()
    assert asked.ending == "length"
    assert 50 + len(new) == serving.CONTEXT


def test_a_text_to_stop_before_is_not_part_of_the_answer(scheduler, words):
    ids = prompts(1)[0]
    whole = Asked(scheduler, ids, Sampling(max_tokens=20, temperature=0.0))
    whole.result()
    mark = whole.text[4:7]
    cut = Asked(scheduler, ids, Sampling(max_tokens=20, temperature=0.0, stop=[mark]))
    cut.result()
    assert cut.ending == "stop"
    assert cut.text == whole.text[: whole.text.index(mark)]


def test_a_cancelled_request_gives_its_slot_back(scheduler):
    endless = Sampling(max_tokens=1000, temperature=0.0)
    first = Asked(scheduler, [3], endless)
    first.begun.wait(60)
    first.request.cancelled = True
    first.result()
    assert first.ending in ("cancelled", "length")
    assert len(Asked(scheduler, [4]).result()) <= 10
    while scheduler.load["running"]:
        time.sleep(0.01)
    assert scheduler.load == {"running": 0, "waiting": 0}


def test_a_request_that_takes_too_long_is_given_up(scheduler):
    late = Asked(scheduler, [3], GREEDY, seconds=-1.0)
    late.result()
    assert late.ending == "timeout"


def test_what_does_not_fit_is_refused_at_once(scheduler):
    for ids in ([], [1] * serving.CONTEXT):
        with pytest.raises(ConfigError, match="tokens"):
            Asked(scheduler, ids)


def test_a_full_queue_refuses_and_the_rest_is_answered(model, words):
    held = threading.Event()
    scheduler = Scheduler(model, words, slots=1, waiting=2)
    scheduler.run(lambda: held.wait(30))
    while scheduler.load["waiting"]:
        time.sleep(0.01)
    waiting = [Asked(scheduler, [3]), Asked(scheduler, [3])]
    with pytest.raises(Overloaded):
        Asked(scheduler, [3])
    held.set()
    assert all(one.result() for one in waiting)
    scheduler.close()


def test_a_failing_model_ends_the_request_and_not_the_server(model, words, caplog):
    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.shape, self.broken = model, model.shape, True

        def forward(self, *arguments, **options):
            if self.broken:
                raise RuntimeError("out of luck")
            return self.inner(*arguments, **options)

    moody = Moody()
    scheduler = Scheduler(moody, words, slots=2, waiting=4)
    failed = Asked(scheduler, [3])
    failed.result()
    assert failed.ending == "error"
    assert "out of luck" in caplog.text
    moody.broken = False
    assert Asked(scheduler, [3]).result()
    scheduler.close()


def test_other_work_runs_on_the_thread_of_the_model(scheduler):
    assert scheduler.run(lambda: threading.current_thread().name).result(30) == "model"
    with pytest.raises(ZeroDivisionError):
        scheduler.run(lambda: 1 / 0).result(30)


def test_closing_cancels_what_runs_and_what_waits(model, words):
    scheduler = Scheduler(model, words, slots=1, waiting=8)
    held = threading.Event()
    scheduler.run(lambda: held.wait(30))
    asked = [Asked(scheduler, [3]) for _ in range(3)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    time.sleep(0.1)
    held.set()
    closing.join(30)
    assert {one.ending for one in asked if one.done.wait(10)} <= {"cancelled", "length", "stop"}
    assert all(one.ending for one in asked)


def test_closing_ends_other_work_that_waits_and_takes_no_more(model, words):
    scheduler = Scheduler(model, words, slots=1, waiting=8)
    held = threading.Event()
    scheduler.run(lambda: held.wait(30))
    waits = [scheduler.run(lambda: 1) for _ in range(3)]
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    time.sleep(0.1)
    held.set()
    closing.join(30)
    assert any(isinstance(one.exception(10), Stopped) for one in waits)
    with pytest.raises(Stopped):
        scheduler.run(lambda: 1)
    with pytest.raises(Stopped):
        Asked(scheduler, [3])


def test_a_pool_that_fails_ends_its_requests_and_not_the_server(model, words, monkeypatch):
    scheduler = Scheduler(model, words, slots=2, waiting=4)

    def fail():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(scheduler._pool, "make_room", fail)
    failed = Asked(scheduler, [3])
    failed.result()
    assert failed.ending == "error"
    monkeypatch.undo()
    assert Asked(scheduler, [3]).result()
    scheduler.close()


@pytest.mark.filterwarnings("ignore::distllm.data.tokenizer.LossyTokenizer")
@pytest.mark.parametrize("folder", ["bytes", "wordpiece"])
def test_ids_decoded_one_by_one_are_the_text_of_all(words, folder, tmp_path):
    tokenizer = words if folder == "bytes" else Tokenizer.load(write_wordpiece(tmp_path))
    random = np.random.default_rng(0)
    texts = ["größer 漢字 👩\u200d👧 don't , stop .", ""]
    answers = [tokenizer.encode(text) for text in texts]
    answers += random.integers(0, tokenizer.vocab_size, (20, 30)).tolist()
    for ids in answers:
        stream = TextStream(tokenizer)
        for count, id_ in enumerate(ids, 1):
            assert stream.add(id_) == tokenizer.decode(ids[:count])


def test_the_cost_of_a_token_does_not_grow_with_the_answer(words):
    class Counting:
        longest = 0

        def decode(self, ids):
            self.longest = max(self.longest, len(ids))
            return words.decode(ids)

    counting = Counting()
    stream = TextStream(counting)
    for id_ in words.encode("the model is " * 300):
        stream.add(id_)
    assert counting.longest < 10


def test_the_pool_refuses_what_has_no_room(model):
    pool = Pool(model.shape, 1, 8, torch.device("cpu"), torch.float32)
    kv = (torch.ones(1, 3, 2, 8), torch.ones(1, 3, 2, 8))
    with pytest.raises(ValueError, match="no room"):
        pool.admit([(torch.ones(1, 8, 2, 8), torch.ones(1, 8, 2, 8))] * 2)
    pool.admit([kv] * 2)
    assert (pool.rows, pool.first, pool.end) == (1, 0, 3)
    with pytest.raises(ValueError, match="no room"):
        pool.admit([kv] * 2)


def test_the_pool_moves_left_when_its_end_is_reached(model):
    pool = Pool(model.shape, 2, 8, torch.device("cpu"), torch.float32)
    long, short = ((torch.full((1, n, 2, 8), float(n)),) * 2 for n in (6, 2))
    pool.admit([long] * 2)
    pool.admit([short] * 2)
    pool.release(0)
    assert pool.starts == [4]
    for value in (7.0, 8.0, 9.0):
        pool.make_room()
        pool.layers[0].extend(torch.full((1, 1, 2, 8), value), torch.full((1, 1, 2, 8), value))
        pool.advance()
    k_BSKD = pool.layers[0].k_BSKD[0, pool.first : pool.end, 0, 0]
    assert k_BSKD.tolist() == [2.0, 2.0, 7.0, 8.0, 9.0]
    assert pool.end == 5


def test_draws_follow_temperature_mass_and_seed():
    logits_V = torch.tensor([1.0, 3.0, 2.0, -9.0])
    assert draw(logits_V, Sampling(1, temperature=0.0), 0) == 1
    narrow = {draw(logits_V, Sampling(1, top_p=0.5, seed=s), 0) for s in range(50)}
    assert narrow == {1}
    wide = [draw(logits_V, Sampling(1, temperature=2.0, seed=s), 0) for s in range(200)]
    assert set(wide) >= {0, 1, 2}
    assert draw(logits_V, Sampling(1, seed=3), 7) == draw(logits_V, Sampling(1, seed=3), 7)


def test_a_temperature_next_to_nothing_takes_the_likeliest():
    logits_V = torch.tensor([0.0, 2.0, 1.0])
    for temperature in (0.0, 1e-308, 1e-9, 1e-5):
        for top_p in (0.1, 1.0):
            for seed in range(5):
                sampling = Sampling(1, temperature=temperature, top_p=top_p, seed=seed)
                assert draw(logits_V, sampling, 0) == 1


def test_prompts_of_one_slot_follow_each_other(model, words):
    scheduler = Scheduler(model, words, slots=1, waiting=16)
    asked = [Asked(scheduler, ids) for ids in prompts(5)]
    answers = [one.result() for one in asked]
    scheduler.close()
    wide = Scheduler(model, words, slots=5, waiting=16)
    together = [Asked(wide, ids) for ids in prompts(5)]
    assert [one.result() for one in together] == answers
    wide.close()


def test_text_comes_in_pieces_that_make_up_the_answer(scheduler, words):
    asked = Asked(scheduler, prompts(1)[0], Sampling(max_tokens=25, temperature=0.8, seed=5))
    new = asked.result()
    assert asked.text == words.decode(new)
    assert asked.pieces >= 2 or len(new) < 3
