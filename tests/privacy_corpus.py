"""Generated documents with personal data at known places, and with things that only look like it.

Check digits are computed here a second time, by other means than the detectors'.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass, field

import phonenumbers

Rng = random.Random
UPPER, LOWER, DIGITS = string.ascii_uppercase, string.ascii_lowercase, string.digits
ALNUM = string.ascii_letters + DIGITS
NAMES = ["anna", "bob.smith", "li-wei", "j_doe", "maria.garcia+news", "x", "o'neil", "dev42", "Jean.Dupont"]
HOSTS = [
    "example.com",
    "mail.uni-koeln.de",
    "firma.co.uk",
    "correo.es",
    "qq.com",
    "a-b.io",
    "posta.it",
    "müller.de",
]
FILLER = [
    "The committee met on 2024-03-05 and adopted 17 changes.",
    "Der Preis stieg um 3,5 % auf 1.234,56 Euro.",
    "Le rapport de 1998 compte 312 pages et 24 tableaux.",
    "El envío llegará entre el 12/05/2023 y el 15/05/2023.",
    "会议于2023年5月12日举行，共有128人参加。",
    "Il treno delle 14:35 parte dal binario 7.",
    "A plain sentence without any numbers.",
]


def pick(rng: Rng, letters: str, size: int) -> str:
    return "".join(rng.choices(letters, k=size))


def email(rng: Rng) -> str:
    return f"{rng.choice(NAMES)}{rng.choice(['', '', '7'])}@{rng.choice(HOSTS)}"


def ipv4(rng: Rng) -> str:
    first = rng.choice([5, 8, 23, 45, 62, 80, 91, 104, 130, 151, 185, 195, 209])
    return ".".join(map(str, [first, rng.randint(20, 99), rng.randint(0, 255), rng.randint(1, 254)]))


def ipv6(rng: Rng) -> str:
    groups = [f"2a0{rng.randint(0, 9)}", *(f"{rng.randint(1, 65535):x}" for _ in range(7))]
    return ":".join(groups) if rng.random() < 0.5 else f"{':'.join(groups[:4])}::{groups[-1]}"


def luhn_digit(body: str) -> str:
    for last in DIGITS:
        total = 0
        for place, digit in enumerate(reversed(body + last)):
            value = int(digit) * (2 if place % 2 else 1)
            total += value - 9 if value > 9 else value
        if total % 10 == 0:
            return last
    raise AssertionError


def card(rng: Rng) -> str:
    prefix, size = rng.choice(
        [("4", 16), ("52", 16), ("2305", 16), ("37", 15), ("6011", 16), ("3530", 16), ("36", 14), ("62", 16)]
    )
    body = prefix + pick(rng, DIGITS, size - 1 - len(prefix))
    number = body + luhn_digit(body)
    gap = rng.choice(["", "", " ", "-", "\u00a0"])
    cuts = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[size]
    at, groups = 0, []
    for cut in cuts:
        groups.append(number[at : at + cut])
        at += cut
    return gap.join(groups)


def iban(rng: Rng) -> str:
    country, bank, digits = rng.choice(
        [("DE", "", 18), ("FR", "", 23), ("GB", "NWBK", 14), ("ES", "", 20), ("NL", "ABNA", 10),
         ("IT", "X", 22), ("CH", "", 17), ("NO", "", 11), ("MT", "MALT", 23)]
    )  # fmt: skip
    body = bank + pick(rng, DIGITS, digits)
    value = 0
    for letter in body + country + "00":
        number = DIGITS.find(letter) if letter in DIGITS else UPPER.index(letter) + 10
        value = (value * (100 if number > 9 else 10) + number) % 97
    whole = f"{country}{98 - value:02d}{body}"
    if rng.random() < 0.5:
        whole = " ".join(whole[i : i + 4] for i in range(0, len(whole), 4))
    return whole.lower() if rng.random() < 0.1 else whole


def phone(rng: Rng) -> tuple[str, str]:
    """Return a valid number as people write it, and the words before it."""
    region = rng.choice(["US", "GB", "FR", "DE", "ES", "IT", "CN"])
    kind = rng.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
    example = phonenumbers.example_number_for_type(region, kind)
    while True:
        text = str(example.national_number)
        number = phonenumbers.PhoneNumber(
            country_code=example.country_code,
            national_number=int(text[:-5] + pick(rng, DIGITS, 5)),
            italian_leading_zero=example.italian_leading_zero,
        )
        if phonenumbers.is_valid_number(number):
            break
    style = rng.randrange(4)
    words = [
        "Tel.: ",
        "Phone ",
        "Téléphone : ",
        "Telefon ",
        "Móvil: ",
        "cell. Tel ",
        "电话：",
        "手机",
        "☎ ",
        "Fax: ",
    ]
    formats = phonenumbers.PhoneNumberFormat
    if style == 0:
        return phonenumbers.format_number(number, formats.E164), rng.choice(["", "at ", "unter "])
    if style == 1:
        return phonenumbers.format_number(number, formats.INTERNATIONAL), rng.choice(["or ", "sous ", "拨"])
    written = phonenumbers.format_number(number, formats.NATIONAL)
    bare = region in ("GB", "FR", "DE", "US") and " " in written
    return written, rng.choice(words if style == 2 or not bare else ["at ", "or ", "bei ", "au "])


def national_id(rng: Rng) -> tuple[str, str]:
    makers = [ssn, nino, nir, tax_id, dni, nie, codice_fiscale, chinese_id]
    return rng.choice(makers)(rng)


def ssn(rng: Rng) -> tuple[str, str]:
    parts = [f"{rng.randint(1, 665):03d}", f"{rng.randint(1, 99):02d}", f"{rng.randint(1, 9999):04d}"]
    named = rng.random() < 0.3
    return "".join(parts) if named else "-".join(parts), "SSN: " if named else "number "


def nino(rng: Rng) -> tuple[str, str]:
    gap = rng.choice(["", " "])
    pairs = [pick(rng, DIGITS, 2) for _ in range(3)]
    return gap.join([rng.choice(["AB", "CE", "JT", "SR"]), *pairs, rng.choice("ABCD")]), "NI number "


def nir(rng: Rng) -> tuple[str, str]:
    where, value = rng.choice([("2A", "19"), ("2B", "18"), ("75", "75"), ("13", "13")])
    head = f"{rng.choice('12')}{rng.randint(30, 99):02d}{rng.randint(1, 12):02d}"
    tail = pick(rng, DIGITS, 6)
    key = f"{97 - int(head + value + tail) % 97:02d}"
    gap = rng.choice(["", " "])
    return gap.join([head[0], head[1:3], head[3:], where, tail[:3], tail[3:], key]), "sécurité sociale "


def tax_id(rng: Rng) -> tuple[str, str]:
    digits = rng.sample(DIGITS, 9)
    digits.insert(rng.randrange(10), rng.choice(digits))
    if digits[0] == "0":
        digits = digits[::-1] if digits[-1] != "0" else ["1", *digits[1:]]
    if len(set(digits)) != 9:
        return tax_id(rng)
    state = 10
    for digit in digits:
        total = (int(digit) + state) % 10
        state = (2 * (total or 10)) % 11
    number = "".join(digits) + str((11 - state) % 10)
    spaced = f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"
    return rng.choice([number, spaced]), "Steuer-ID "


def dni(rng: Rng) -> tuple[str, str]:
    value = rng.randint(10_000_000, 99_999_999)
    return f"{value}{rng.choice(['', '-'])}{'TRWAGMYFPDXBNJZSQVHLCKE'[value % 23]}", "DNI "


def nie(rng: Rng) -> tuple[str, str]:
    first, value = rng.randrange(3), rng.randint(0, 9_999_999)
    return f"{'XYZ'[first]}{value:07d}{'TRWAGMYFPDXBNJZSQVHLCKE'[(first * 10**7 + value) % 23]}", "NIE: "


def codice_fiscale(rng: Rng) -> tuple[str, str]:
    body = pick(rng, "BCDFGLMNPRST", 6) + pick(rng, DIGITS, 2) + rng.choice("ABCDEHLMPRST")
    body += f"{rng.randint(1, 71):02d}{rng.choice('ABCDEFGHI')}{pick(rng, DIGITS, 3)}"
    odd = [1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23]
    total = 0
    for place, letter in enumerate(body, 1):
        value = int(letter) if letter in DIGITS else UPPER.index(letter)
        total += odd[value] if place % 2 else value
    return body + UPPER[total % 26], "codice fiscale "


def chinese_id(rng: Rng) -> tuple[str, str]:
    body = f"{rng.choice(['110105', '310101', '440305'])}{rng.randint(1950, 2010)}"
    body += f"{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}{pick(rng, DIGITS, 3)}"
    for last in "0123456789X":
        value = sum((10 if d == "X" else int(d)) * pow(2, 17 - place) for place, d in enumerate(body + last))
        if value % 11 == 1:
            return body + last, "身份证号"
    raise AssertionError


def api_key(rng: Rng) -> tuple[str, str]:
    url = ALNUM + "-_"
    jwt = f"eyJ{pick(rng, url, 30)}.eyJ{pick(rng, url, 60)}.{pick(rng, url, 43)}"
    return rng.choice(
        [
            ("AKIA" + pick(rng, UPPER + "234567", 16), "aws_access_key_id = "),
            ("ghp_" + pick(rng, ALNUM, 36), "git clone with "),
            ("github_pat_" + pick(rng, ALNUM, 22) + "_" + pick(rng, ALNUM, 59), "token "),
            ("glpat-" + pick(rng, ALNUM, 20), "PRIVATE-TOKEN: "),
            (f"xoxb-{pick(rng, DIGITS, 12)}-{pick(rng, DIGITS, 12)}-{pick(rng, ALNUM, 24)}", "slack "),
            ("sk_live_" + pick(rng, ALNUM, 24), 'stripe.api_key = "'),
            ("AIza" + pick(rng, ALNUM, 35), "?key="),
            ("sk-" + pick(rng, ALNUM, 48), "OPENAI_API_KEY="),
            ("sk-proj-" + pick(rng, ALNUM, 60), "use "),
            ("sk-ant-api03-" + pick(rng, ALNUM, 80) + "AA", "x-api-key: "),
            ("hf_" + pick(rng, string.ascii_letters, 34), "login "),
            (jwt, "Authorization: Bearer "),
            (pick(rng, ALNUM + "+/", 38) + "z9", 'secret = "'),
            (pick(rng, "0123456789abcdef", 32) + "a1b2", "client_secret: "),
            (pick(rng, ALNUM, 23) + "7", "'token': '"),
        ]
    )


def private_key(rng: Rng) -> str:
    name = rng.choice(
        ["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "ENCRYPTED PRIVATE KEY"]
    )
    lines = [pick(rng, ALNUM + "+/", 64) for _ in range(rng.randint(2, 12))] + [pick(rng, ALNUM, 30) + "=="]
    form = rng.randrange(5)
    newline = "\\n" if form == 4 else "\n"
    parts = [f"-----BEGIN {name}-----", *lines, f"-----END {name}-----"]
    if form == 0:
        parts = parts[:-1]
    elif form == 1:
        parts = parts[1:]
    return newline.join(parts)


POSITIVES: dict[str, Callable[[Rng], tuple[str, str]]] = {
    "email": lambda rng: (
        email(rng),
        rng.choice(["Write to ", "邮箱：", "mailto:", "E-Mail an ", "<a href='"]),
    ),
    "phone": phone,
    "ip": lambda rng: (
        rng.choice([ipv4, ipv4, ipv6])(rng),
        rng.choice(["from ", "host ", "IP地址", "ping "]),
    ),
    "credit_card": lambda rng: (card(rng), rng.choice(["Visa ", "card no ", "Karte ", "卡号："])),
    "iban": lambda rng: (iban(rng), rng.choice(["IBAN: ", "Konto ", "compte ", ""])),
    "national_id": national_id,
    "api_key": api_key,
    "private_key": lambda rng: (private_key(rng), rng.choice(["key:\n", "\n"])),
}

NEGATIVES: tuple[Callable[[Rng], str], ...] = (
    lambda rng: f"version {rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}.{rng.randint(0, 99)}",
    lambda rng: (
        f"upgrade to v{rng.randint(1, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}.{rng.randint(0, 99)}"
    ),
    lambda rng: f"numpy=={rng.randint(1, 2)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}.{rng.randint(0, 9)}",
    lambda rng: (
        f"host {rng.choice(['10.0', '192.168', '172.16', '127.0'])}.{rng.randint(0, 9)}.{rng.randint(1, 254)}"
    ),
    lambda rng: (
        f"section {rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 9)} says"
    ),
    lambda rng: (
        f"\n{rng.randint(1, 20)}.{rng.randint(1, 9)}.{rng.randint(1, 9)}.{rng.randint(1, 31)}. Known issues\n"
    ),
    lambda rng: (
        f"{rng.randint(2000, 2025)}-04-13 ({rng.randint(1, 9)}.{rng.randint(0, 30)}."
        f"{rng.randint(0, 9)}.{rng.randint(0, 9)}) fixes"
    ),
    lambda rng: "OID 1.3.6.1.4.1." + pick(rng, DIGITS[1:], 4),
    lambda rng: f"{rng.randint(1990, 2029)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d} 12:34:56.789",
    lambda rng: f"am {rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1990, 2029)} um 08:15:00",
    lambda rng: "commit " + pick(rng, "0123456789abcdef", 40),
    lambda rng: (
        f"ISBN 978-3-16-{pick(rng, DIGITS, 6)}-{rng.randint(0, 9)}, ISBN 0-306-{pick(rng, DIGITS, 5)}-X"
    ),
    lambda rng: f"order {pick(rng, DIGITS[1:], rng.choice([8, 10, 12, 14]))} shipped",
    lambda rng: f"π is 3.14159265358979{pick(rng, DIGITS, 6)} and e is 2.718281828459045",
    lambda rng: "-".join(pick(rng, "0123456789abcdef", n) for n in (8, 4, 4, 4, 12)),
    lambda rng: (
        f"@app.route('/x{rng.randint(0, 9)}')\ndef f(a: int = {pick(rng, DIGITS, 6)}) -> std::vector: pass"
    ),
    lambda rng: "\n".join(" ".join(f"{rng.randint(0, 9999):4d}" for _ in range(6)) for _ in range(4)),
    lambda rng: "\n".join("  ".join(f"{rng.random():.3f}" for _ in range(5)) for _ in range(4)),
    lambda rng: "\n".join(" ".join(f"{rng.randint(0, 511):04o}" for _ in range(8)) for _ in range(3)),
    lambda rng: (
        f"git clone git@github.com:org/repo{rng.randint(0, 9)}.git; npm i left-pad@1.{rng.randint(0, 9)}.0"
    ),
    lambda rng: (
        f"icon@{rng.randint(2, 3)}x.png, user@localhost, see https://medium.com/@me/p-{pick(rng, DIGITS, 12)}"
    ),
    lambda rng: 'token = get_token_from_environment(); password: "changeme"; api_key=os.environ["KEY"]',
    lambda rng: (
        f"secret_name: my-application-{rng.choice(['prod', 'test'])}-database, token: <your-token-here>"
    ),
    lambda rng: (
        f"sk-learn and sk-{rng.choice(['north', 'south'])}-region, AKIA is a prefix, eyJhbGciOiJ is base64"
    ),
    lambda rng: "-----BEGIN PUBLIC KEY-----\n" + pick(rng, ALNUM, 64) + "\n-----END PUBLIC KEY-----",
    lambda rng: f"population {rng.randint(1, 99)} {pick(rng, DIGITS, 3)} {pick(rng, DIGITS, 3)} in 2020",
    lambda rng: f"MAC 00:1a:2b:3c:4d:{pick(rng, DIGITS, 2)}, ratio 16:9, time 23:59:59:12, a::b and Foo::bar",
    lambda rng: (
        f"invoice DE{pick(rng, DIGITS, 9)} for part AB12-{pick(rng, UPPER, 4)}-{pick(rng, DIGITS, 6)}"
    ),
    lambda rng: (
        f"sizes 120-{rng.randint(40, 90)}-{rng.randint(200, 900)} mm, pages 123-{rng.randint(124, 999)}"
    ),
    lambda rng: f"timestamp {rng.randint(1_500_000_000, 1_700_000_000)}{pick(rng, DIGITS, 3)} ms",
)


@dataclass
class Sample:
    """A text and the places ``(kind, start, stop)`` that must be found, and no others."""

    text: str = ""
    truth: list[tuple[str, int, int]] = field(default_factory=list)

    def say(self, words: str) -> None:
        self.text += words

    def hide(self, kind: str, rng: Rng) -> None:
        value, before = POSITIVES[kind](rng)
        self.say(before)
        self.truth.append((kind, len(self.text), len(self.text) + len(value)))
        self.say(value)


def samples(count: int, seed: int = 0) -> list[Sample]:
    """Return documents that each hold one kind (or two) amid filler and lookalikes."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        sample = Sample()
        kinds = [list(POSITIVES)[number % len(POSITIVES)], *rng.choices(list(POSITIVES), k=number % 2)]
        sample.say(rng.choice(FILLER) + rng.choice([" ", "\n"]))
        for kind in kinds:
            sample.hide(kind, rng)
            sample.say(
                rng.choice(["\n", "\n\n"]) if kind == "private_key" else rng.choice([". ", "\n", " , ", '" '])
            )
            sample.say(f"{rng.choice(FILLER)}\n{rng.choice(NEGATIVES)(rng)}\n{rng.choice(NEGATIVES)(rng)}\n")
        made.append(sample)
    return made
