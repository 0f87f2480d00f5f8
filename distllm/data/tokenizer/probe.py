"""Texts on which two encoders must agree before one may replace the other."""

from __future__ import annotations

_WORDS = (
    "The quick brown fox's tail, isn't it? We'll see; THEY'VE said I'M \"here\".",
    "Größenwahn straße ÄÖÜ Œuvre naïve façade, l’été où ça çà; mañana ¿qué? ¡sí!",
    "Быстрая лиса. Ταχεία αλεπού. שועל מהיר. الثعلب السريع ١٢٣٤٥ ۴۵۶",
    "敏捷的棕色狐狸，跳过了懒狗。素早い茶色の狐は怠け者の犬を飛び越える。빠른 갈색 여우",
    "तेज भूरी लोमड़ी १२३ எழுத்து ภาษาไทยไม่มีช่องว่าง ខ្មែរ မြန်မာ ქართული አማርኛ",
)
_SPACES = (
    "", " ", "  ", "   x", "x   ", "\n", "\n\n\n", "a\n\n  b", "\t\t x\t", "\r\n\r\n", "\u2028x\u2029",
    "a\u00a0b\u2009c\u3000d", "\x85y", "\ufeffbom", "a\u200bb\u200c\u200dc", " \n \n", "\n a", "  \n\n  ",
)  # fmt: skip
_DIGITS = (
    "0", "12", "123", "1234567890", "3.14159", "1,234,567.89", "x1y22z333", "½ ² Ⅷ ① ௧௨",
    "2024-01-31T12:34:56Z",
)  # fmt: skip
_CODE = (
    "def f(x: int) -> str:\n    return f'{x!r}'  # über\n\n\n\tif a != b && c >= d { e[i]++; }\n",
    'https://example.com/a_b?c=d&e=%20#f user@host.org C:\\dir\\file.txt <a href="x">&amp;</a>',
    "!!!???...---___***===+++///\\\\\\|||~~~```'''\"\"\"()[]{}<>@#$%^&",
)
_SYMBOLS = (
    "😀 👨\u200d👩\u200d👧 🇩🇪🇫🇷 👍🏽 ❤\ufe0f ☎\ufe0e 🏴\U000e0067\U000e0062\U000e007f",
    "e\u0301 é A\u030a Å \u0301x", "ﬁ ﬂ ㍿ ﷺ", "\0\x01\x07\x1b[0m\x7f\x80\x9f",
    "\ue000\uf8ff\ufffd\ufffe\uffff\U0010ffff", "𝔘𝔫𝔦 𝟙𝟚 𐍈 𒀀 𓀀", "ǅ ǆ Ǆ ß ẞ \u0130 \u0131 \u017f \u212a",
    "'s 'S 't 'LL \u2019s \u02bcs '\u017f don't DON'T", "\u00ad\u180e\u2060x", "\u0378's \U000e0fff's",
)  # fmt: skip
_SPECIALS = (
    "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>", "</s>", "<s> x </s>", "[CLS] a [SEP] b [MASK]",
    "<unk><pad>[UNK][PAD]", "<0x0A><0xFF>", "▁x ▁▁y", "##ing Ġthe Ċ",
)  # fmt: skip

PROBE: tuple[str, ...] = (
    *_WORDS,
    *_SPACES,
    *_DIGITS,
    *_CODE,
    *_SYMBOLS,
    *_SPECIALS,
    " ".join(_WORDS) * 3,
    "a" * 300,
    " " * 130 + "x",
    "ab" * 200 + "漢" * 100,
    "".join(map(chr, range(0x20, 0x180))),
)
