"""Formats of Debian's documentation, turned into plain text: troff, dictd, WordNet, POD, Mallard, DDTP.

Standard library only. Every function is pure: the same bytes give the same documents in the same order.
"""

import gzip
import html
import re
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

GROUP_CHARS = 4000
_BASE64 = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

_GLYPHS = {
    "aq": "'", "cq": "’", "oq": "‘", "lq": "“", "rq": "”", "dq": '"', "em": "—", "en": "–", "bu": "•",
    "co": "©", "rg": "®", "tm": "™", "ha": "^", "ti": "~", "rs": "\\", "ga": "`", "la": "⟨", "ra": "⟩",
    "Fo": "«", "Fc": "»", "+-": "±", "mu": "×", "->": "→", "<-": "←", "<=": "≤", ">=": "≥", "!=": "≠",
    "hy": "-", "mi": "−", "aa": "´", "at": "@", "sh": "#", "Do": "$", "Eu": "€", "lB": "[", "rB": "]",
    "lC": "{", "rC": "}", "ba": "|", "or": "|", "ss": "ß", "'e": "é", "`e": "è", "^e": "ê", "`a": "à",
    ":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü", ",c": "ç", "'E": "É", "12": "½",
    "if": "∞", "sq": "□", "dg": "†", "de": "°", "*m": "μ", "*a": "α", "*b": "β", "*p": "π", "nq": "≢",
}  # fmt: skip
_TROFF_ESCAPE = re.compile(
    r"\\(?:f(?:\[[^\]]*\]|\(..|.)|s[-+]?\d{1,2}|\[u(?P<code>[0-9A-Fa-f]{4,6})\]|\[(?P<long>[^\]]*)\]"
    r"|\((?P<short>..)|\*(?:\[[^\]]*\]|\((?P<string>..)|(?P<string1>.))|[hvwoDlL]'[^']*'"
    r"|[mMFn](?:\[[^\]]*\]|\(..|.)|(?P<char>.))"
)
_TROFF_CHARS = {"e": "\\", "-": "-", "(": "(", "~": " ", "0": " ", " ": " ", "\\": "\\", "'": "´", "`": "`"}
_NO_TEXT = {
    "TH", "Dd", "Dt", "Os", "so", "de", "ig", "ds", "nr", "if", "ie", "el", "ft", "ps", "ta", "in",
    "ti", "hy", "nh", "ad", "na", "ne", "sp", "br", "PD", "DT", "UC", "tr", "ll", "mso", "rm", "cs",
    "fam", "als", "rn", "char", "fchar", "hcode", "tm", "do", "nop", "pl", "po", "vs", "ss", "lf",
    "cflags",
}  # fmt: skip
_HEADINGS = frozenset({"SH", "SS", "Sh", "Ss"})
_MDOC = re.compile(r"^[A-Z][a-z]$")


def troff_text(source: str) -> str:
    """Return the prose of a man page: one paragraph a line of text, headings on lines of their own.

    Knows the ``man`` and ``mdoc`` macros by what becomes of their arguments. Definitions of macros,
    conditions, comments and page furniture are left out; a page that only redirects gives "".
    """
    paragraphs: list[list[str]] = [[]]
    skipping_to, filled = "", True
    for raw in source.replace("\\\n", "").splitlines():
        if skipping_to:
            skipping_to = "" if raw.rstrip() == skipping_to else skipping_to
            continue
        if not raw.startswith((".", "'")):
            _add_line(paragraphs, unescape_troff(raw), filled)
            continue
        name, _, rest = raw[1:].strip().partition(" ")
        if name in ("de", "ig", "am"):
            skipping_to = ".." if name == "ig" or len(rest.split()) < 2 else f".{rest.split()[1]}"
        elif name in ("nf", "EX", "Bd", "fi", "EE", "Ed"):
            filled = name in ("fi", "EE", "Ed")
            paragraphs.append([])
        elif name in _HEADINGS:
            paragraphs += [[" ".join(_arguments(rest))], []]
        elif name and not name.startswith(('\\"', '"')) and name not in _NO_TEXT:
            _add_macro(paragraphs, name, _arguments(rest), filled)
    return "\n".join(text for lines in paragraphs if (text := " ".join(lines).rstrip()))


def _add_line(paragraphs: list[list[str]], text: str, filled: bool) -> None:
    if not text.strip():
        paragraphs.append([])
    elif filled:
        paragraphs[-1].append(text.strip())
    else:
        paragraphs += [[text.rstrip()], []]


def _add_macro(paragraphs: list[list[str]], name: str, arguments: list[str], filled: bool) -> None:
    if len(name) == 2 and set(name) <= set("BIR") and name[0] != name[1]:
        _add_line(paragraphs, "".join(arguments), filled) if arguments else None
    elif name in ("B", "I", "SM", "SB", "R", "MR", "UR", "MT", "ME", "UE"):
        _add_line(paragraphs, " ".join(arguments), filled) if arguments else None
    elif _MDOC.match(name) and name not in ("Pp", "It", "Bl", "El"):
        _add_line(paragraphs, " ".join(a for a in arguments if not _MDOC.match(a)), filled)
    else:
        paragraphs.append([])
        if name == "It" or (name == "IP" and arguments):
            paragraphs[-1].append(" ".join(arguments[:1] if name == "IP" else arguments))


def _arguments(rest: str) -> list[str]:
    found = re.findall(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s"])+)', rest.split('\\"', maxsplit=1)[0])
    return [unescape_troff(quoted.replace('""', '"') or plain) for quoted, plain in found]


def unescape_troff(text: str) -> str:
    """Return ``text`` without fonts and sizes, with special characters as themselves."""

    def character(match: re.Match[str]) -> str:
        if match["code"]:
            return chr(int(match["code"], 16))
        name = match["long"] or match["short"] or match["string"] or match["string1"]
        if name:
            return _GLYPHS.get(name, "")
        return _TROFF_CHARS.get(match["char"] or "", "")

    return _TROFF_ESCAPE.sub(character, text.split('\\"', maxsplit=1)[0])


def pod_text(source: str) -> str:
    """Return the prose of a POD file: formatting codes and commands removed, verbatim blocks kept."""
    blocks = []
    for block in re.split(r"\n\s*\n", source):
        command = re.match(r"=(\w+)[ \t]*", block)
        if command:
            block = (
                ""
                if command[1] in ("encoding", "over", "back", "cut", "pod", "for")
                else block[command.end() :]
            )
        if not block.startswith((" ", "\t")):
            block = " ".join(block.split())
        previous = None
        while previous != block:
            previous = block
            block = re.sub(r"L<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m[1] or m[2], block)
            block = re.sub(r"[ZX]<[^<>]*>", "", block)
            block = re.sub(
                r"E<(\w+)>",
                lambda m: {"lt": "\x01", "gt": "\x02"}.get(m[1], html.unescape(f"&{m[1]};")),
                block,
            )
            block = re.sub(
                r"[BICFS](?:<< (.*?) >>|<([^<>]*)>)", lambda m: m[1] or m[2] or "", block, flags=re.DOTALL
            )
        if block.strip():
            blocks.append(block.replace("\x01", "<").replace("\x02", ">").rstrip())
    return "\n".join(blocks)


def mallard_text(page: bytes) -> str:
    """Return the text of a GNOME help page: titles, paragraphs, items; metadata left out."""
    root = ElementTree.fromstring(page)
    blocks = {"title", "p", "item", "td", "screen", "code"}
    found: list[str] = []

    def walk(node: ElementTree.Element) -> None:
        name = node.tag.rpartition("}")[2]
        if name in ("info", "revision"):
            return
        inner = [child.tag.rpartition("}")[2] for child in node.iter()][1:]
        if name in blocks and not blocks & set(inner) - {"code"}:
            text = " ".join("".join(node.itertext()).split())
            if text:
                found.append(text)
            return
        for child in node:
            walk(child)

    walk(root)
    return "\n".join(found)


def dictd_entries(index: str, dictionary: bytes) -> Iterator[tuple[str, str]]:
    """Yield ``(offset, entry)`` of a dictd dictionary in the order of its body.

    ``index`` has lines ``headword TAB offset TAB length`` in dictd's base 64; several headwords may
    name one entry, which is given once. ``dictionary`` is the body, gzip (.dz) or plain.
    """
    body = gzip.decompress(dictionary) if dictionary.startswith(b"\x1f\x8b") else dictionary
    places = set()
    for line in index.splitlines():
        headword, offset, length = line.split("\t")[:3]
        if not headword.startswith("00"):
            places.add((_number(offset), _number(length)))
    for offset, length in sorted(places):
        entry = body[offset : offset + length].decode("utf-8", errors="replace")
        if text := "\n".join(line.rstrip() for line in entry.splitlines()).strip():
            yield str(offset), text


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = value * 64 + _BASE64[digit]
    return value


def wordnet_entries(data: str) -> Iterator[tuple[str, str]]:
    """Yield ``(synset offset, "lemma, lemma: gloss")`` for each line of a WordNet ``data.*`` file."""
    for line in data.splitlines():
        if line.startswith("  ") or " | " not in line:
            continue
        head, _, gloss = line.partition(" | ")
        columns = head.split()
        lemmas = [columns[4 + 2 * i].split("(")[0].replace("_", " ") for i in range(int(columns[3], 16))]
        yield columns[0], f"{', '.join(lemmas)}: {gloss.strip()}"


def fortunes(text: str) -> Iterator[tuple[str, str]]:
    """Yield ``(number, fortune)`` of a file whose entries are separated by lines of ``%``."""
    for number, entry in enumerate(re.split(r"^%+[ \t]*$", text, flags=re.MULTILINE), 1):
        if entry.strip():
            yield str(number), entry.strip("\n").rstrip()


def grouped(entries: Iterable[tuple[str, str]], size: int = GROUP_CHARS) -> Iterator[tuple[str, str]]:
    """Join entries that follow each other until a group has ``size`` characters; its id is its first's."""
    first, held, chars = "", [], 0
    for name, text in entries:
        first = first or name
        held.append(text)
        chars += len(text)
        if chars >= size:
            yield first, "\n\n".join(held)
            first, held, chars = "", [], 0
    if held:
        yield first, "\n\n".join(held)


def descriptions(translation: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield ``(md5 of the English description, [short, paragraph, ...])`` of a DDTP Translation file.

    Wrapped lines are joined; verbatim lines (two leading blanks or more) stay lines of their paragraph.
    """
    md5, paragraphs = "", [""]
    for line in (*translation, "\n"):
        line = line.rstrip("\n")
        if not line:
            if md5 and paragraphs[0]:
                yield md5, [paragraph for paragraph in paragraphs if paragraph]
            md5, paragraphs = "", [""]
        elif line.startswith("Description-md5: "):
            md5 = line.partition(": ")[2].strip()
        elif line.startswith("Description-"):
            paragraphs = [line.partition(":")[2].strip(), ""]
        elif line.startswith(" ."):
            paragraphs.append("")
        elif line.startswith("  "):
            paragraphs[-1] += ("\n" if paragraphs[-1] else "") + line[2:].rstrip()
        elif line.startswith(" "):
            paragraphs[-1] += (" " if paragraphs[-1] else "") + line.strip()


def text_of_html(page: bytes) -> str:
    """Return what is left of a page without scripts, styles and tags: an estimate of its text."""
    text = re.sub(rb"(?is)<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", b" ", page)
    return " ".join(html.unescape(text.decode("utf-8", errors="replace")).split())
