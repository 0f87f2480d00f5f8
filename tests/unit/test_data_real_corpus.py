import gzip
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from real import corpus, formats
from real.packages import LANGUAGES, PACKAGES, Package

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")

MAN_PAGE = r""".\" a comment
.de XX
hidden \\$1
..
.TH LS 1 2022 "GNU"
.SH "NAME OF IT"
ls \- list \fIthe\fP contents \(em all
of them
.PP
.BR \-a , " \-\-all"
do not ignore \(dq.\(dq
.TP 4
.B first
.nf
  two   blanks
 kept
.fi
\*(lqquoted\*(rq \[u00E9]t\('e \\ \e end\" comment
"""


def test_troff_keeps_prose_and_drops_markup():
    assert formats.troff_text(MAN_PAGE).split("\n") == [
        "NAME OF IT",
        "ls - list the contents — all of them",
        '-a, --all do not ignore "."',
        "first",
        "  two   blanks",
        " kept",
        "“quoted” été \\ \\ end",
    ]


def test_troff_of_a_redirect_has_no_text():
    assert formats.troff_text(".so man3/other.3\n") == ""


def test_troff_reads_mdoc():
    text = formats.troff_text(".Sh SYNOPSIS\n.Nm tool\n.Op Fl v\n.Bl -tag\n.It Fl x\nmeans x\n.El\n")
    assert text.split("\n") == ["SYNOPSIS", "tool v", "Fl x means x"]


def test_pod_keeps_prose_and_verbatim_blocks():
    pod = """=encoding utf8

=head1 NAME

B<bold> I<it> and C<< a->b >>,
L<text|perlfunc> E<gt> Z<>end

  my $x;

=cut
"""
    assert formats.pod_text(pod) == "NAME\nbold it and a->b, text > end\n  my $x;"


def test_mallard_leaves_metadata_out():
    page = b"""<page xmlns="http://projectmallard.org/1.0/"><info><desc>not this</desc></info>
    <title>Title</title><p>One <em>two</em>\n three.</p><list><item><p>item</p></item></list></page>"""
    assert formats.mallard_text(page) == "Title\nOne two three.\nitem"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_dictionary_entries_come_once_in_the_order_of_the_body(pack):
    body = b"header entry" + b"zoo: animals\n" + "\u00e9t\u00e9: summer".encode()
    # dictd's digits: A=0 ... M=12, N=13, P=15, Z=25
    index = "00-database-info\tA\tM\nete\tZ\tO\nzoo\tM\tN\nanimals\tM\tN\n"
    assert list(formats.dictd_entries(index, pack(body))) == [
        ("12", "zoo: animals"),
        ("25", "\u00e9t\u00e9: summer"),
    ]


def test_wordnet_lines_name_every_lemma():
    line = "00001740 03 n 02 entity(p) 0 living_thing 0 001 ~ 0000 n 0000 | that which is  \n"
    data = "  1 licence text | not this\n" + line
    assert list(formats.wordnet_entries(data)) == [("00001740", "entity, living thing: that which is")]


def test_fortunes_are_split_at_lines_of_percent():
    assert list(formats.fortunes("a 100%\nb\n%\n\n%\n  c\n")) == [("1", "a 100%\nb"), ("3", "  c")]


def test_groups_hold_everything_in_order():
    entries = [(str(i), "x" * 10 + str(i)) for i in range(7)]
    groups = list(formats.grouped(entries, size=30))
    assert [name for name, _ in groups] == ["0", "3", "6"]
    assert "\n\n".join(text for _, text in groups) == "\n\n".join(text for _, text in entries)


DDTP = """Package: a
Description-md5: 11
Description-fr: court
 une ligne
 et sa suite
 .
 deux
  mot \u00e0 mot

Package: b
Description-md5: 22
Description-fr: seul
"""


def test_descriptions_join_wrapped_lines_and_keep_verbatim_ones():
    assert list(formats.descriptions(DDTP.splitlines(keepends=True))) == [
        ("11", ["court", "une ligne et sa suite", "deux\nmot \u00e0 mot"]),
        ("22", ["seul"]),
    ]


def test_pairs_need_equally_many_paragraphs_that_differ():
    texts = {
        "en": {"1": ["short", "same", "a\tb\nc"], "2": ["one", "two"]},
        "de": {"1": ["kurz", "same", "d"], "2": ["eins"], "3": ["ohne"]},
    }
    rows = [item.data.decode() for item in corpus.items_of_descriptions(texts) if "/pairs/" in item.path]
    assert rows == ["a b c\td\n", "short\tkurz\n"]
    documents = [
        json.loads(item.data) for item in corpus.items_of_descriptions(texts) if "/jsonl/" in item.path
    ]
    assert [(d["language"], d["id"]) for d in documents] == [
        ("de", "debian-descriptions/1"),
        ("de", "debian-descriptions/2"),
        ("de", "debian-descriptions/3"),
        ("en", "debian-descriptions/1"),
        ("en", "debian-descriptions/2"),
    ]
    assert documents[3]["text"] == "short\n\nsame\n\na\tb\nc"


def test_text_of_html_is_without_tags_scripts_and_styles():
    page = b"<style>x</style><p class='a'>One &amp;\n two<script>var a = '<b>';</script><!-- no --></p>"
    assert formats.text_of_html(page) == "One & two"


def test_no_link_is_followed_or_taken(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.html").write_text("a")
    (tmp_path / "real" / "b.txt").write_text("b")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "c.html").symlink_to("real/a.html")
    assert [name for name, _ in corpus.files_of(tmp_path, r".*\.html")] == ["real/a.html"]


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_a_slice_of_an_output_misses_its_share_by_less_than_a_document(share):
    sizes = [random.Random(1).randrange(1, 5000) for _ in range(500)]
    items = [corpus.Item(f"en/html/p/{i}", b"", size) for i, size in enumerate(sizes)]
    taken = list(corpus.thinned(items, share))
    assert abs(sum(item.text for item in taken) - share * sum(sizes)) <= max(sizes)
    assert [item.path for item in taken] == [item.path for item in items if item in taken]


def test_every_package_is_named_once_and_every_language_has_text():
    names = [package.name for package in PACKAGES]
    assert len(names) == len(set(names))
    for language in LANGUAGES:
        assert sum(language in package.files for package in PACKAGES if package.kind != "mo") >= 4


def make_deb(folder: Path, name: str, files: dict[str, bytes]) -> None:
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    (root / "DEBIAN" / "control").write_text(control)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    debs = folder / "cache" / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["dpkg-deb", "-b", str(root), str(debs / f"{name}_1.0_all.deb")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of three small packages, and a corpus script that fetches nothing."""
    page = b"<html><p>%s</p></html>"
    make_deb(
        tmp_path, "manuals", {f"usr/share/doc/m/en/{i}.html": page % (b"word " * 100) for i in range(20)}
    )
    man = {f"usr/share/man/fr/man1/p{i}.1.gz": gzip.compress(b".SH NOM\nle texte\n" * 30) for i in range(10)}
    man["usr/share/man/fr/man1/q.1.gz"] = gzip.compress(b".so man1/p0.1\n")
    make_deb(tmp_path, "pages", man)
    make_deb(tmp_path, "codes", {"usr/share/locale/fr/LC_MESSAGES/iso.mo": b"\xde\x12\x04\x95rest"})
    packages = (
        Package("pages", "man", "GPL-3+", {"fr": r"usr/share/man/fr/man\d/.*\.gz"}),
        Package("manuals", "html", "MIT", {"en": r"usr/share/doc/m/en/.*\.html"}),
        Package("codes", "mo", "LGPL-2.1+", {"fr": r".*\.mo"}),
    )
    monkeypatch.setattr(corpus, "PACKAGES", packages)
    monkeypatch.setattr(corpus, "fetch", lambda cache, packages: tmp_path)
    monkeypatch.setattr(corpus, "translations", lambda _: {"en": {"1": ["short"]}, "fr": {"1": ["court"]}})
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@needs_dpkg
def test_a_build_has_every_output_and_the_same_bytes_twice(made: Path):
    corpus.build(made / "one", made / "cache")
    corpus.build(made / "two", made / "cache")
    first = contents(made / "one")
    assert first == contents(made / "two")
    sources = json.loads(first["sources.json"])
    assert {name: count["documents"] for name, count in sources["outputs"].items()} == {
        "en/html/manuals": 20,
        "en/jsonl/debian-descriptions.jsonl": 1,
        "fr/gettext": 1,
        "fr/jsonl/debian-descriptions.jsonl": 1,
        "fr/jsonl/pages.jsonl": 10,
        "fr/pairs/descriptions.tsv": 1,
    }
    assert [(p["name"], p["version"], p["licence"]) for p in sources["packages"]] == [
        ("codes", "1.0", "LGPL-2.1+"),
        ("manuals", "1.0", "MIT"),
        ("pages", "1.0", "GPL-3+"),
    ]
    assert first["fr/gettext/fr.iso.mo"] == b"\xde\x12\x04\x95rest"
    record = json.loads(first["fr/jsonl/pages.jsonl"].splitlines()[0])
    assert (record["id"], record["language"], record["license"]) == ("pages/fr/man1/p0.1.gz", "fr", "GPL-3+")
    assert record["text"].startswith("NOM\nle texte\n")
    html = sources["outputs"]["en/html/manuals"]
    assert html["bytes"] == sum(len(data) for name, data in first.items() if name.endswith(".html"))
    assert html["text_bytes"] == 20 * len(("word " * 100).strip())


@needs_dpkg
def test_a_slice_keeps_the_proportions_of_languages(made: Path):
    corpus.build(made / "one", made / "cache")
    whole = json.loads((made / "one" / "sources.json").read_text())
    corpus.cut(made / "one", made / "cut", sum(c["text_bytes"] for c in whole["languages"].values()) // 2)
    part = json.loads((made / "cut" / "sources.json").read_text())
    assert part["packages"] == whole["packages"]
    for language, documents in (("en", 10), ("fr", 5)):
        assert abs(part["languages"][language]["documents"] - documents) <= 1
        assert part["languages"][language]["text_bytes"] == pytest.approx(
            whole["languages"][language]["text_bytes"] / 2, rel=0.1
        )
    everything = b"".join(contents(made / "one").values())
    for name, data in contents(made / "cut").items():
        assert name == "sources.json" or all(line in everything for line in data.splitlines())


@needs_dpkg
def test_a_package_whose_folders_moved_is_named(made: Path, monkeypatch: pytest.MonkeyPatch):
    moved = Package("manuals", "html", "MIT", {"en": r"usr/share/doc/m/en/.*\.html", "de": "nowhere/.*"})
    monkeypatch.setattr(corpus, "PACKAGES", (moved,))
    with pytest.raises(SystemExit, match="manuals has no text in de"):
        corpus.build(made / "one", made / "cache")
    assert not (made / "one" / "sources.json").exists()


def test_a_command_that_fails_is_named():
    with pytest.raises(SystemExit, match="false failed"):
        corpus.run("false")
