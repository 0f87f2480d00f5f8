import pickle
import time
from collections import Counter
from typing import get_args

import pytest
from bench.privacy_quality import measure
from privacy_corpus import samples

from distllm.config.problems import Problems
from distllm.config.schema import Config
from distllm.config.schema_privacy import PrivacyConfig, PrivacyKind
from distllm.config.validate import build
from distllm.data.privacy import Finding, Scrubber, placeholder
from distllm.errors import ConfigError, MissingDependency

KINDS = get_args(PrivacyKind)
EVERYTHING = Scrubber(PrivacyConfig(scrub=KINDS))
KEY_LINES = "\n".join(["MIIEpAIBAAKCAQEA04up8hoqzS1+APIB0RhjXyObwHQnOzhAk5Bd7mhkSbPkyhP1"] * 3)


def kinds_in(text, **config):
    scrubber = Scrubber(PrivacyConfig(scrub=KINDS, **config))
    return [(each.kind, text[each.start : each.stop]) for each in scrubber.find(text)]


FOUND = [
    ("email", "bob.smith+x@mail.example.co.uk"),
    ("email", "anna@müller.de"),
    ("ip", "8.8.8.8"),
    ("ip", "2001:4860:4860::8888"),
    ("credit_card", "4111 1111 1111 1111"),
    ("credit_card", "378282246310005"),
    ("credit_card", "3782-822463-10005"),
    ("iban", "DE89 3704 0044 0532 0130 00"),
    ("iban", "gb82west12345698765432"),
    ("national_id", "123-45-6789"),
    ("national_id", "AB 12 34 56 C"),
    ("national_id", "1 84 12 76 451 089 46"),
    ("national_id", "86095742719"),
    ("national_id", "12345678Z"),
    ("national_id", "X1234567L"),
    ("national_id", "RSSMRA85T10A562S"),
    ("national_id", "11010519491231002X"),
    ("phone", "+49 30 12345678"),
    ("phone", "0033 1 42 68 53 00"),
    ("phone", "(415) 555-2671"),
    ("phone", "1-415-555-2671"),
    ("phone", "020 7946 0958"),
    ("phone", "01.42.68.53.00"),
    ("phone", "138 0013 8000"),
    ("api_key", "AKIAIOSFODNN7EXAMPLE"),
    ("api_key", "ghp_" + "aB3" * 12),
    ("api_key", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r"),
    ("private_key", f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_LINES}\n-----END RSA PRIVATE KEY-----"),
    ("private_key", f"-----BEGIN PRIVATE KEY-----\n{KEY_LINES}"),
    ("private_key", f"{KEY_LINES}\nMIIE\n-----END PRIVATE KEY-----"),
    ("private_key", "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\n" + KEY_LINES + "\n=aB3d\n"
     "-----END PGP PRIVATE KEY BLOCK-----"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), FOUND, ids=[value[:24] for _, value in FOUND])
@pytest.mark.parametrize("around", ["see {}\nthere", "值“{}”。", "({})"])
def test_each_form_is_found_whole(kind, value, around):
    assert kinds_in(around.format(f"\n{value}" if kind == "private_key" else value)) == [(kind, value)]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # Luhn
        "DE88 3704 0044 0532 0130 00",  # check digits
        "DE89 3704 0044 0532 0130 001",  # too long for its country
        "000-12-3456 and 666-12-3456 and 912-34-5678 and 123-00-4567",
        "GB123456A",
        "184127645108947",
        "12345678A",
        "RSSMRA85T10A562X",
        "110105194902310021",  # 31 February
        "86095742710",
        "version 1.2.3.4, v8.8.8.8, numpy==8.8.4.4, pkg-8.8.8.8, OID 1.3.6.1.4.1",
        "Mozilla/5.0 (Windows; rv:1.8.1.1) Gecko/20061204 Firefox/2.0.0.1",
        "2011-04-13 (3.7.6.1) and Policy 4.6.2.0, zlib 1.2.3.4 or “2.3.0.0”",
        "\n2.6.1.2. Data formats\n\n17.4.1.6 Developer options",
        "256.8.8.8 and 08.8.8.8",
        "12:34:56 and std::vector and dead::beef and fe80::1",
        "git@github.com:org/repo and icon@2x.png and pkg@1.2.3 and user@localhost and @app.route",
        "0144 100 and 0.062  0.251  0.806  0.380 and 612 345 678",
        "0212 0515 0525 0322 0417 0043 0503 0560",
        "ISBN 978-3-16-148410-0",
        'password: "correct horse battery", token = make_token_for_the_current_user',
        'secret="aaaaaaaaaaaaaaaaaaaaaaaaa1"',
        "-----BEGIN PUBLIC KEY-----\n" + KEY_LINES + "\n-----END PUBLIC KEY-----",
        "--private-key=tpm2-pcr-private.pem",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_lookalikes_are_left_alone(text):
    assert kinds_in(f"see {text} there") == []


@pytest.mark.parametrize(
    "text",
    [
        "the IP 4.2.2.1",
        "nameserver 9.9.9.10",
        "address is 4.2.2.1",
        "4.2.2.0/24",
        "4.2.2.1:53",
        "地址为4.2.2.1",
    ],
)
def test_small_numbers_are_an_address_where_something_says_so(text):
    assert [kind for kind, _ in kinds_in(f"see {text} there")] == ["ip"]


def test_a_word_for_phone_makes_the_difference():
    assert kinds_in("costs 4155552671 yen") == []
    assert kinds_in("hotel 4155552671") == []
    assert kinds_in("call 4155552671") == [("phone", "4155552671")]
    assert kinds_in("手机13800138000") == [("phone", "13800138000")]


def test_only_the_configured_regions_have_national_formats():
    assert kinds_in("020 7946 0958", phone_regions=("GB",)) == [("phone", "020 7946 0958")]
    assert kinds_in("020 7946 0958 or +442079460958", phone_regions=("US",)) == [("phone", "+442079460958")]


def test_a_region_without_numbers_is_refused():
    with pytest.raises(ConfigError, match="'UK' is no region") as error:
        Scrubber(PrivacyConfig(scrub=("phone",), phone_regions=("US", "UK")))
    assert (error.value.where, "GB" in error.value.remedy) == ("privacy.phone_regions", True)
    Scrubber(PrivacyConfig(scrub=("email",), phone_regions=("UK",)))


def test_private_addresses_are_found_only_when_asked_for():
    text = "10.0.0.1 192.168.1.7 fe80::1 8.8.8.8"
    assert kinds_in(text) == [("ip", "8.8.8.8")]
    assert [value for _, value in kinds_in(text, private_ips=True)] == text.split()


def test_a_cut_key_ends_where_prose_begins():
    text, _ = EVERYTHING.scrub(f"-----BEGIN PRIVATE KEY-----\n{KEY_LINES}\nThis is prose.")
    assert text == "<PRIVATE_KEY>\nThis is prose."
    text, _ = EVERYTHING.scrub(f"This is prose.\n{KEY_LINES}\n-----END PRIVATE KEY-----\nMore.")
    assert text == "This is prose.\n<PRIVATE_KEY>\nMore."


def test_what_is_not_asked_for_stays_and_is_not_taken_for_something_else():
    scrub = Scrubber(PrivacyConfig(scrub=("phone",))).scrub
    text = "card 4111 1111 1111 1111, bob@example.com, call 415-555-2671"
    assert scrub(text) == ("card 4111 1111 1111 1111, bob@example.com, call <PHONE>", Counter(phone=1))
    assert Scrubber(PrivacyConfig()).scrub(text) == (text, Counter())
    tax_id = "call 69024235180"
    assert scrub(tax_id) == (tax_id, Counter())
    assert EVERYTHING.scrub(tax_id)[0] == "call <NATIONAL_ID>"


def test_a_card_is_found_behind_another_group_of_digits():
    assert kinds_in("9999\u00a04111\u00a01111\u00a01111\u00a01111") == [
        ("credit_card", "4111\u00a01111\u00a01111\u00a01111")
    ]


def test_counts_places_and_text_agree():
    text = "a@b.com 8.8.8.8 a@b.com"
    assert EVERYTHING.scrub(text) == ("<EMAIL> <IP> <EMAIL>", Counter(email=2, ip=1))
    assert EVERYTHING.find(text) == [Finding("email", 0, 7), Finding("ip", 8, 15), Finding("email", 16, 23)]


def test_what_a_replacement_sets_free_is_found_too():
    text = "4111 1111 1111 1111 020 7946 0958"
    out, counts = EVERYTHING.scrub(text)
    assert out == "<CREDIT_CARD> <PHONE>"
    assert counts == Counter(credit_card=1, phone=1)
    assert [text[each.start : each.stop] for each in EVERYTHING.find(text)] == [text[:19], text[20:]]


def test_a_scrubber_travels_to_another_process():
    copy = pickle.loads(pickle.dumps(EVERYTHING))
    assert copy.scrub("bob@example.com +442079460958") == ("<EMAIL> <PHONE>", Counter(email=1, phone=1))


def test_phones_need_their_package_and_nothing_else_does(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "phonenumbers", None)
    assert Scrubber(PrivacyConfig(scrub=("email", "national_id"))).scrub("a@b.com 1")[0] == "<EMAIL> 1"
    with pytest.raises(MissingDependency, match="phonenumbers") as error:
        Scrubber(PrivacyConfig(scrub=("phone",)))
    assert "distllm[data]" in error.value.remedy


def test_an_unknown_kind_is_a_problem_with_a_suggestion():
    problems = Problems()
    build(Config, {"privacy": {"scrub": ["emial"]}}, problems)
    with pytest.raises(Exception, match=r"privacy\.scrub") as error:
        problems.raise_if_any()
    assert "did you mean 'email'" in str(error.value)


@pytest.mark.parametrize("seed", [3, 4])
def test_recall_and_precision_hold_for_every_kind(seed):
    quality = measure(samples(480, seed))
    for kind in (*KINDS, "all"):
        assert quality.there[kind] >= 60
        assert quality.recall(kind) >= 0.99, quality.wrong
        assert quality.precision(kind) >= 0.95, quality.wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    ["a@a.", "1", "1 ", ":", "a:", "1.", "sk-", "eyJ", "-----BEGIN PRIVATE KEY-----", "=", "token:", "+1",
     "(0", "4111 ", "0123 ", "DE89 ", "AB12 ", "A\n", "a@", "AAAA\n-----END PRIVATE KEY-----\n"],
)  # fmt: skip
def test_time_is_linear_whatever_the_text(unit):
    def seconds(size):
        text = unit * (size // len(unit))
        started = time.process_time()
        EVERYTHING.find(text)
        return time.process_time() - started

    seconds(1000)
    assert seconds(80_000) < 24 * max(seconds(10_000), 0.01)


def test_every_kind_has_its_own_placeholder():
    assert len({placeholder(kind) for kind in KINDS}) == len(KINDS)
    assert EVERYTHING.find(" ".join(map(placeholder, KINDS))) == []
