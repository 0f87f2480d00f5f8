"""Which Debian packages the corpus is made of, and which of their files are in which language."""

from dataclasses import dataclass, field

# Language -> apt's names of its translations; where two describe the same package the later one wins.
LANGUAGES = {
    "en": ("en",),
    "de": ("de",),
    "fr": ("fr",),
    "zh": ("zh", "zh_CN"),
    "es": ("es",),
    "it": ("it",),
}
_REGIONS = {"en": "en-US", "de": "de-DE", "fr": "fr-FR", "zh": "zh-CN", "es": "es-ES", "it": "it-IT"}


@dataclass(frozen=True)
class Package:
    """A package: ``files`` maps a language to the pattern of its files (whole path below the root).

    ``kind`` says how they are read: html and mo are kept as they are; man, pod, mallard, dict, wordnet
    and fortunes become JSONL. ``licence`` is what Debian's copyright file says of most of the text.
    """

    name: str
    kind: str
    licence: str
    files: dict[str, str] = field(default_factory=dict)


def _html(name: str, licence: str, folder: str = "", language: str = "en") -> Package:
    # lilypond repeats each book on one "-big-page".
    pages = r"(?!.*-big-page\.).*\.html"
    return Package(name, "html", licence, {language: rf"usr/share/{folder or f'doc/{name}'}/{pages}"})


def _man(name: str, language: str, licence: str = "GPL-3+") -> Package:
    folder = {"en": "", "zh": "zh_(CN|TW)/"}.get(language, rf"{language}/")
    return Package(name, "man", licence, {language: rf"usr/share/man/{folder}man\d/.*\.gz"})


PACKAGES = (
    Package("dict-gcide", "dict", "GPL-2+", {"en": r".*\.dict\.dz"}),
    Package("dict-foldoc", "dict", "GFDL-1.1+", {"en": r".*\.dict\.dz"}),
    Package("dict-jargon", "dict", "public-domain", {"en": r".*\.dict\.dz"}),
    Package("wordnet-base", "wordnet", "WordNet3.0", {"en": r".*/data\.(noun|verb|adj|adv)"}),
    _html("linux-doc-6.1", "GPL-2", "doc/linux-doc-6.1/html"),
    _html("python3.11-doc", "PSF-2", "doc/python3.11/html"),
    _html("postgresql-doc-15", "PostgreSQL", "doc/postgresql-doc-15/html"),
    _html("sqlite3-doc", "public-domain", "doc/sqlite3"),
    _html("git-doc", "GPL-2"),
    _html("debian-policy", "GPL-2+"),
    Package("perl-doc", "pod", "GPL-1+ or Artistic", {"en": r".*\.pod"}),
    _man("manpages", "en", "Linux-man-pages-copyleft and others"),
    _man("manpages-dev", "en", "Linux-man-pages-copyleft and others"),
    _man("manpages-de", "de"),
    _man("manpages-de-dev", "de"),
    _man("manpages-fr", "fr"),
    _man("manpages-fr-dev", "fr"),
    _man("manpages-es", "es"),
    _man("manpages-es-dev", "es"),
    _man("manpages-it", "it"),
    _man("manpages-it-dev", "it"),
    _man("manpages-zh", "zh", "GFDL-1.2+"),
    *(
        _html(f"libreoffice-help-{folder.lower()}", "MPL-2.0", f"libreoffice/help/{folder}/text", language)
        for language, folder in {**{code: code for code in _REGIONS}, "en": "en-US", "zh": "zh-CN"}.items()
    ),
    _html("lilypond-doc-html", "GFDL-1.3+ and GPL-3+", "doc/lilypond"),
    _html("lilypond-doc-html-de", "GFDL-1.3+ and GPL-3+", "doc/lilypond", "de"),
    _html("lilypond-doc-html-fr", "GFDL-1.3+ and GPL-3+", "doc/lilypond", "fr"),
    *(
        _html(f"kicad-doc-{code}", "GPL-3+", f"doc/kicad/help/{code}", code)
        for code in ("en", "de", "fr", "zh")
    ),
    Package(
        "debian-handbook",
        "html",
        "GPL-2.0+ or CC-BY-SA-3.0",
        {code: rf"usr/share/doc/debian-handbook/html/{region}/.*\.html" for code, region in _REGIONS.items()},
    ),
    Package(
        "installation-guide-amd64",
        "html",
        "GPL-2",
        {
            code: rf"usr/share/doc/installation-guide-amd64/{'zh_CN' if code == 'zh' else code}/.*\.html"
            for code in _REGIONS
        },
    ),
    Package(
        "gnome-user-docs",
        "mallard",
        "CC-BY-SA-3.0",
        {
            code: rf"usr/share/help/{ {'en': 'C', 'zh': 'zh_CN'}.get(code, code) }/.*\.page"
            for code in _REGIONS
        },
    ),
    Package("fortunes", "fortunes", "BSD-like", {"en": r"usr/share/games/fortunes/[^/.]+"}),
    Package("fortunes-de", "fortunes", "GPL-2+", {"de": r"usr/share/games/fortunes/de/[^/.]+"}),
    Package("fortunes-zh", "fortunes", "GPL-3+", {"zh": r"usr/share/games/fortunes/[^/.]+"}),
    Package(
        "iso-codes",
        "mo",
        "LGPL-2.1+",
        {
            code: rf"usr/share/locale/{'zh_(CN|TW)' if code == 'zh' else code}/LC_MESSAGES/.*\.mo"
            for code in _REGIONS
            if code != "en"
        },
    ),
)
