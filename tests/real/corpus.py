"""Build a real corpus from Debian packages: raw inputs in the formats that `distllm prepare` reads.

usage: python tests/real/corpus.py [DIRECTORY] [--cache DIRECTORY] [--slice MB] [--packages NAME,...]

Needs apt-get, dpkg-deb and a Debian mirror; nothing is installed, nothing outside DIRECTORY (default
data/real) and the cache is written. Of each language: html/<package>/, jsonl/<package>.jsonl,
pairs/descriptions.tsv (English TAB translation), gettext/*.mo. ``sources.json`` is written last and
pins every package (version, sha256, licence) and counts every output; a directory that has it is
taken as it is. With ``--packages`` only those are taken, and no package descriptions. ``--slice`` also
writes DIRECTORY-slice: MB megabytes (10**6) of text with the same proportions. The same packages give
the same bytes.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real import formats
from real.packages import LANGUAGES, PACKAGES, Package

DDTP = "debian-descriptions"
DDTP_LICENCE = "of each package; translations as Debian's DDTP publishes them"


@dataclass(frozen=True)
class Item:
    """One document on its way to disk: ``data`` is a whole file, or one line of it if ``line``."""

    path: str
    data: bytes
    text: int
    line: bool = False

    @property
    def output(self) -> str:
        """What the document is counted under: its file, or the directory of its package or kind."""
        return (
            self.path if self.line else "/".join(self.path.split("/")[: 2 if "/gettext/" in self.path else 3])
        )


def run(*command: str | Path, cwd: Path | None = None) -> bytes:
    """Run a command; its error output is shown when it fails."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr.decode(errors='replace')}")
    return done.stdout


def private_apt(cache: Path) -> Path:
    """Write an apt configuration with its own lists, so that translations can be asked for."""
    state = cache / "apt"
    for directory in ("lists/partial", "cache/archives/partial"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    wanted = " ".join(f'"{code}";' for codes in LANGUAGES.values() for code in codes)
    conf = state / "apt.conf"
    conf.write_text(
        "#clear Acquire::Languages;\n"
        f"Acquire::Languages {{ {wanted} }};\n"
        f'Dir::State "{state}";\nDir::State::status "/var/lib/dpkg/status";\n'
        f'Dir::Cache "{state}/cache";\nAPT::Sandbox::User "root";\n'
    )
    return conf


def fetch(cache: Path, packages: Sequence[Package]) -> Path:
    """Download the lists and each package that is not in ``cache`` yet; return apt's lists."""
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    conf = private_apt(cache)
    lists = conf.parent / "lists"
    if not any(lists.glob("*_Packages*")):
        run("apt-get", "-c", conf, "update", "-qq")
    missing = [package.name for package in packages if not any(debs.glob(f"{package.name}_*.deb"))]
    if missing:
        print(f"fetching {len(missing)} packages", flush=True)
        run("apt-get", "-c", conf, "download", "-qq", *missing, cwd=debs)
    return lists


def files_of(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    """Yield ``(relative name, file)`` in order of name; no symbolic link is followed or taken."""
    for directory, folders, names in os.walk(root, followlinks=False):
        folders.sort()
        for name in names:
            path = Path(directory) / name
            relative = path.relative_to(root).as_posix()
            if not path.is_symlink() and re.fullmatch(pattern, relative):
                yield relative, path


def items_of_package(package: Package, root: Path) -> Iterator[Item]:
    """Yield the documents of an unpacked package, language by language."""
    for language, pattern in sorted(package.files.items()):
        for name, path in sorted(files_of(root, pattern)):
            if package.kind == "html":
                page = path.read_bytes()
                text = len(formats.text_of_html(page).encode())
                yield Item(f"{language}/html/{package.name}/{short(name)}", page, text)
            elif package.kind == "mo":
                # The folder (zh_CN, zh_TW) is kept in the name: one language code can have several.
                folder = name.split("/")[-3]
                yield Item(f"{language}/gettext/{folder}.{path.name}", path.read_bytes(), path.stat().st_size)
            else:
                for number, text_ in documents_of(package.kind, path):
                    identity = f"{package.name}/{short(name)}" + (f":{number}" if number else "")
                    yield json_item(identity, text_, language, package.licence, package.name)


def short(name: str) -> str:
    """Drop the folders every package shares."""
    return re.sub(r"^usr/share/(doc/|man/|help/|games/|libreoffice/)?", "", name)


def documents_of(kind: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(number in the file, text)``; the number is empty where a file is one document."""
    data = path.read_bytes()
    if kind == "dict":
        yield from formats.grouped(
            formats.dictd_entries(
                path.with_name(path.name.replace(".dict.dz", ".index")).read_text("utf-8"), data
            )
        )
        return
    if kind == "mallard":
        yield "", formats.mallard_text(data)
        return
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", errors="replace")
    if kind == "man":
        yield "", formats.troff_text(text)
    elif kind == "pod":
        yield "", formats.pod_text(text)
    elif kind == "wordnet":
        yield from formats.grouped(formats.wordnet_entries(text))
    else:
        yield from formats.grouped(formats.fortunes(text))


def json_item(identity: str, text: str, language: str, licence: str, package: str) -> Item:
    """Return one line of ``<language>/jsonl/<package>.jsonl``."""
    record = {"id": identity, "text": text, "language": language, "license": licence, "package": package}
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="replace") + b"\n"
    return Item(f"{language}/jsonl/{package}.jsonl", line, len(text.encode("utf-8", errors="replace")), True)


def translations(lists: Path) -> dict[str, dict[str, list[str]]]:
    """Return, by language, the paragraphs of each package description by its md5."""
    found: dict[str, dict[str, list[str]]] = {}
    for language, codes in LANGUAGES.items():
        texts = found.setdefault(language, {})
        for code in codes:
            for path in sorted(lists.glob(f"*_Translation-{code.replace('_', '%5f')}*")):
                lines = run("/usr/lib/apt/apt-helper", "cat-file", path).decode("utf-8").split("\n")
                texts.update(formats.descriptions(lines))
    return found


def items_of_descriptions(texts: dict[str, dict[str, list[str]]]) -> Iterator[Item]:
    """Yield the descriptions as documents, and what is aligned with English as pairs.

    A short description or a paragraph is a pair where both sides have equally many and differ.
    """
    for language, described in sorted(texts.items()):
        for md5, paragraphs in sorted(described.items()):
            yield json_item(f"{DDTP}/{md5}", "\n\n".join(paragraphs), language, DDTP_LICENCE, DDTP)
        pairs = set()
        for md5, paragraphs in sorted(described.items()) if language != "en" else ():
            english = texts["en"].get(md5, [])
            if len(english) == len(paragraphs):
                pairs |= {
                    (a, b) for a, b in zip(map(flat, english), map(flat, paragraphs), strict=True) if a != b
                }
        for source, target in sorted(pairs):
            row = f"{source}\t{target}\n".encode()
            yield Item(f"{language}/pairs/descriptions.tsv", row, len(row), True)


def flat(paragraph: str) -> str:
    """Put a paragraph on one line without tabs, for a TSV cell."""
    return " ".join(paragraph.split())


def items(cache: Path, packages: Sequence[Package]) -> Iterator[Item]:
    """Yield every document of the packages; one is unpacked while its documents are taken."""
    for package in sorted(packages, key=lambda package: package.name):
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            run("dpkg-deb", "-x", deb_of(package, cache), folder)
            taken = [item for item in items_of_package(package, Path(folder)) if item.text]
        without = sorted(set(package.files) - {item.path[:2] for item in taken})
        if without:
            sys.exit(f"{package.name} has no text in {', '.join(without)}: its folders have moved")
        yield from taken


def deb_of(package: Package, cache: Path) -> Path:
    """Return the fetched file of a package."""
    return max((cache / "debs").glob(f"{package.name}_*.deb"), key=lambda path: path.name)


def write(directory: Path, documents: Iterable[Item]) -> dict[str, dict[str, int]]:
    """Write the documents below ``directory``; return bytes, text bytes and documents of each output."""
    counts: dict[str, dict[str, int]] = {}
    opened = ""
    stream = None
    for item in documents:
        path = directory / item.path
        if opened != item.path:
            if stream is not None:
                stream.close()
            path.parent.mkdir(parents=True, exist_ok=True)
            stream, opened = path.open("ab" if item.line else "wb"), item.path
        stream.write(item.data)
        count = counts.setdefault(item.output, {"documents": 0, "bytes": 0, "text_bytes": 0})
        count["documents"] += 1
        count["bytes"] += len(item.data)
        count["text_bytes"] += item.text
    if stream is not None:
        stream.close()
    return dict(sorted(counts.items()))


def pins_of(cache: Path, packages: Sequence[Package]) -> list[dict[str, str]]:
    """Return name, version, sha256 and licence of every package that went in."""
    found = []
    for package in sorted(packages, key=lambda package: package.name):
        deb = deb_of(package, cache)
        version = run("dpkg-deb", "-f", deb, "Version").decode().strip()
        found.append(pin(package.name, version, deb.read_bytes(), package.licence))
    return found


def pins_of_descriptions(lists: Path) -> list[dict[str, str]]:
    """Return the same of every list of descriptions."""
    found = []
    for path in sorted(lists.glob("*_Translation-*")):
        body = run("/usr/lib/apt/apt-helper", "cat-file", path)
        name = re.sub(r"\.\w+$", "", path.name.replace("%5f", "_")).rpartition("_dists_")[2]
        found.append(pin(name, "", body, DDTP_LICENCE))
    return found


def pin(name: str, version: str, content: bytes, licence: str) -> dict[str, str]:
    """Return one entry of ``packages`` in sources.json."""
    digest = hashlib.sha256(content).hexdigest()
    return {"name": name, "version": version, "sha256": digest, "licence": licence}


def languages_of(outputs: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Sum the outputs that are text by language; pairs and gettext repeat it and are left out."""
    totals: dict[str, dict[str, int]] = {}
    for name, count in outputs.items():
        language, kind = name.split("/")[:2]
        if kind in ("html", "jsonl"):
            total = totals.setdefault(language, dict.fromkeys(count, 0))
            for key, value in count.items():
                total[key] += value
    return totals


def save_sources(directory: Path, packages: list[dict[str, str]], outputs: dict[str, dict[str, int]]) -> None:
    """Write ``sources.json``, the mark of a complete corpus, in one step."""
    content = {"packages": packages, "languages": languages_of(outputs), "outputs": outputs}
    part = directory / "sources.json.part"
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(directory / "sources.json")


def build(directory: Path, cache: Path, names: Sequence[str] = ()) -> None:
    """Fetch, convert and write the whole corpus, or only the named packages."""
    packages = [package for package in PACKAGES if not names or package.name in names]
    unknown = set(names) - {package.name for package in packages}
    if unknown:
        sys.exit(f"no such packages: {', '.join(sorted(unknown))}; tests/real/packages.py lists them")
    cache.mkdir(parents=True, exist_ok=True)
    lists = fetch(cache, packages)
    for language in LANGUAGES:
        shutil.rmtree(directory / language, ignore_errors=True)
    described = () if names else items_of_descriptions(translations(lists))
    outputs = write(directory, itertools.chain(items(cache, packages), described))
    pins = pins_of(cache, packages) + ([] if names else pins_of_descriptions(lists))
    save_sources(directory, pins, outputs)


def thinned(documents: Iterable[Item], share: float) -> Iterator[Item]:
    """Yield documents of one output, evenly spread, that hold about ``share`` of its text.

    Error diffusion: what a document leaves over is carried to the next, so the error of an output is
    less than its largest document and no random number is needed.
    """
    credit = 0.0
    for item in documents:
        credit += item.text * share
        if credit >= item.text / 2:
            credit -= item.text
            yield item


def items_of_output(directory: Path, output: str) -> Iterator[Item]:
    """Read the documents of one output of a built corpus again."""
    path = directory / output
    if path.is_file():
        with path.open("rb") as lines:
            for line in lines:
                text = len(json.loads(line)["text"].encode()) if output.endswith(".jsonl") else len(line)
                yield Item(output, line, text, True)
        return
    for name, file in sorted(files_of(path, ".*")):
        data = file.read_bytes()
        text = len(formats.text_of_html(data).encode()) if "/html/" in output else len(data)
        yield Item(f"{output}/{name}", data, text)


def cut(directory: Path, target: Path, text_bytes: int) -> None:
    """Write a slice of a built corpus: the same outputs, each thinned to the same share."""
    sources = json.loads((directory / "sources.json").read_text(encoding="utf-8"))
    total = sum(count["text_bytes"] for count in sources["languages"].values())
    share = min(1.0, text_bytes / total)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    outputs = write(
        target,
        (
            item
            for output in sources["outputs"]
            for item in thinned(items_of_output(directory, output), share)
        ),
    )
    save_sources(target, sources["packages"], outputs)


def show(directory: Path) -> None:
    """Print documents and megabytes (10**6 bytes) of each language."""
    sources = json.loads((directory / "sources.json").read_text(encoding="utf-8"))
    print(f"{directory}: language, documents, MB on disk, MB of text")
    rows = sources["languages"]
    total = {key: sum(count[key] for count in rows.values()) for key in ("documents", "bytes", "text_bytes")}
    for language, count in (*rows.items(), ("all", total)):
        sizes = f"{count['bytes'] / 1e6:8.1f} {count['text_bytes'] / 1e6:8.1f}"
        print(f"  {language:3} {count['documents']:8,} {sizes}")


def main() -> None:
    """Build the corpus and, if asked, a slice of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", nargs="?", type=Path, default=Path("data/real"))
    parser.add_argument("--cache", type=Path, help="where packages are kept; default DIRECTORY/.cache")
    parser.add_argument("--packages", default="", metavar="NAME,...", help="take only these")
    parser.add_argument("--slice", type=float, metavar="MB", help="also write DIRECTORY-slice of this size")
    arguments = parser.parse_args()
    directory = arguments.directory.resolve()
    cache = (arguments.cache or directory / ".cache").resolve()
    if not (directory / "sources.json").exists():
        build(directory, cache, [name for name in arguments.packages.split(",") if name])
    show(directory)
    if arguments.slice:
        target = directory.with_name(f"{directory.name}-slice")
        cut(directory, target, int(arguments.slice * 1e6))
        show(target)


if __name__ == "__main__":
    main()
