"""`distllm search`: index texts with an encoder, and search them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

from distllm.commands.actions import Actions, run_action
from distllm.commands.arguments import parse_options
from distllm.commands.runs import require
from distllm.config.options import option
from distllm.config.schema_read import ReadConfig
from distllm.display import printable, stage_reporter
from distllm.environment import RankEnvironment
from distllm.errors import ConfigError, Interrupted, LaunchError
from distllm.units import format_bytes

if TYPE_CHECKING:
    from distllm.search.encoder import TextEncoder
    from distllm.search.index import Hit, SearchIndex

_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class BuildOptions:
    """Options of `distllm search build`."""

    corpus: str | None = option(None, "folder, file, glob or URL of the texts")
    source: Literal["auto", "text", "jsonl", "csv", "parquet", "html", "epub", "pdf", "warc", "pydocs"] = (
        option("auto", "how they are read; auto goes by the name, a folder holds text files")
    )
    out: str | None = option(None, "directory of the index; an earlier index there is replaced")
    run: str | None = option(None, "name or directory of the run whose encoder is used")
    model: str | None = option(None, "or a Hugging Face folder of an encoder")
    step: int | None = option(None, "checkpoint of the run; null takes the newest", minimum=0)
    text_key: str = option("text", "key (jsonl) or column (csv, parquet) of the text")
    id_key: str | None = option(None, "key or column of a document's name; null: file and place")
    max_bytes: int | None = option(None, "stop after this much text; null reads all", unit="bytes", minimum=1)
    passage_tokens: int = option(128, "longest passage, at most the model's context", unit="count", minimum=8)
    exact: bool = option(True, "compare with every vector; false searches a graph (HNSW) in part")
    precision: Literal["fp32", "bf16"] = option(
        "fp32", "of matrix products; bf16 takes half the time where the processor multiplies it"
    )
    ranks: int | None = option(None, "processes that embed; null: one for each core", minimum=1)
    device: Literal["cpu", "cuda"] = option("cpu", "where ranks compute")
    runs_dir: str = option("runs", "directory that holds run directories")


@dataclass(frozen=True)
class QueryOptions:
    """Options of `distllm search query`."""

    index: str | None = option(None, "directory of the index")
    text: str | None = option(None, "what is looked for")
    top: int = option(5, "documents that are shown", minimum=1)
    mode: Literal["hybrid", "vectors", "words"] = option("hybrid", "rank by both, or by one of them")
    run: str | None = option(None, "run whose encoder reads the query; null: the index knows its model")
    model: str | None = option(None, "or a Hugging Face folder")
    step: int | None = option(None, "checkpoint of the run; null takes the newest", minimum=0)
    runs_dir: str = option("runs", "directory that holds run directories")


class _NamesModel(Protocol):
    """Options that say which model is meant."""

    @property
    def run(self) -> str | None:
        """Name or directory of a run."""

    @property
    def model(self) -> str | None:
        """A folder."""

    @property
    def step(self) -> int | None:
        """The checkpoint."""

    @property
    def runs_dir(self) -> str:
        """Directory of runs."""


def run(words: Sequence[str]) -> int:
    """Build an index, or ask one."""
    return run_action("search", "key=value ...", _ACTIONS, words)


def open_index(directory: str, chosen: _NamesModel | None = None) -> SearchIndex:
    """Open an index with the model it names, or with the chosen one if that is the same.

    Raises:
        ConfigError: there is no index, its model is gone, or another one was chosen.
        DataError: the index is damaged.
    """
    from distllm.search.index import SearchIndex, model_of, read_manifest

    path = Path(directory)
    origin = model_of(read_manifest(path))
    if chosen is not None and (chosen.run or chosen.model):
        return SearchIndex(path, _encoder(chosen))
    if not Path(origin.path).is_dir():
        raise ConfigError(
            f"the model of the index is gone: {origin.path}",
            where=str(path),
            remedy="say where it is now: run=NAME or model=DIR",
        )
    return SearchIndex(path, _load(origin.kind, origin.path, origin.step, ""))


def _build(words: Sequence[str]) -> None:
    options = parse_options("search build", BuildOptions, words)
    read, out = _read_config(options), Path(require(options.out, "out", "search build"))
    _require_one_model(options, "search build")
    launcher = RankEnvironment.read(os.environ)
    if launcher is None:
        ranks = options.ranks or _default_ranks(options.device)
        if ranks > 1:
            _spawn(words, ranks)
            return
    from distllm.dist.topology import Topology, destroy_process_group, init_process_group
    from distllm.evaluate.retrieval import require_faiss
    from distllm.search.build import build_index

    require_faiss()
    topology = Topology.from_environment(device=options.device)
    encoder = _encoder(options)
    encoder.model.to(topology.device)
    if launcher is not None:
        init_process_group(topology, _TIMEOUT_SECONDS)
    shown = sys.stdout if topology.is_main else io.StringIO()
    try:
        with stage_reporter(shown) as tell:
            manifest = build_index(
                encoder,
                read,
                out,
                topology,
                passage_tokens=options.passage_tokens,
                exact=options.exact,
                precision=options.precision,
                tell=tell,
            )
    except KeyboardInterrupt as error:
        stopped = Interrupted(
            "the build was interrupted",
            where=f"{out}.work",
            remedy="the same command goes on with the vectors that are there",
        )
        stopped.everywhere = True
        raise stopped from error
    finally:
        destroy_process_group()
    if topology.is_main:
        print("\n".join(_summary(manifest, out)))


def _default_ranks(device: str) -> int:
    from distllm.machine import available_cores

    return available_cores() if device == "cpu" else 1


def _spawn(words: Sequence[str], ranks: int) -> None:
    """Run this command as ranks of this machine.

    Raises:
        SystemExit: with the code of a rank that failed and has said why.
        LaunchError: a rank was killed.
    """
    from distllm.cluster.local import run_ranks, signal_of
    from distllm.extras import require as require_package

    require_package("faiss", "searching vectors", extra="search")
    command = ["-m", "distllm.cli", "search", "build", *words]
    code = run_ranks(command, num_ranks=ranks, threads_per_rank=1)
    if name := signal_of(code):
        raise LaunchError(
            f"a rank was killed by {name}",
            where="distllm search build",
            remedy="SIGKILL often means out of memory: give ranks=N with fewer of them; "
            "the build goes on with the vectors it has made",
        )
    if code:
        raise SystemExit(code)


def _read_config(options: BuildOptions) -> ReadConfig:
    from distllm.search.corpus import kind_of

    if options.source != "pydocs":
        corpus = require(options.corpus, "corpus", "search build")
        source = kind_of(corpus) if options.source == "auto" else options.source
    else:
        corpus, source = "", "pydocs"
    return ReadConfig(
        source=source,  # type: ignore[arg-type]  # one of the kinds above
        paths=(corpus,) if corpus else (),
        text_key=options.text_key,
        id_key=options.id_key,
        max_bytes=options.max_bytes,
    )


def _require_one_model(options: _NamesModel, command: str) -> None:
    if (options.run is None) == (options.model is None):
        raise ConfigError(
            "give run=NAME or model=DIR" if options.run is None else "both a run and a model are given",
            where=f"distllm {command}",
            remedy="run=NAME of a trained encoder, or model=DIR of a Hugging Face folder",
        )


def _encoder(options: _NamesModel) -> TextEncoder:
    _require_one_model(options, "search")
    kind, path = ("run", options.run) if options.run is not None else ("folder", options.model)
    return _load(kind, str(path), options.step, options.runs_dir)


def _load(kind: str, path: str, step: int | None, runs_dir: str) -> TextEncoder:
    from distllm.commands.runs import run_of
    from distllm.search.encoder import encoder_of_folder, encoder_of_run

    if kind == "folder":
        return encoder_of_folder(Path(path))
    stored = run_of(path, runs_dir)
    return encoder_of_run(stored.directory.path, stored.resolved(), step)


def _summary(manifest: dict[str, object], out: Path) -> list[str]:
    texts, vectors, files = manifest["texts"], manifest["vectors"], manifest["files"]
    assert isinstance(texts, dict)
    assert isinstance(vectors, dict)
    assert isinstance(files, dict)
    size = format_bytes(sum(file["bytes"] for file in files.values()))
    lines = [f"index {out}: {texts['passages']} passages of {texts['documents']} documents, {size}"]
    lines += [f"  left out by {rule}: {count}" for rule, count in texts["dropped"].items()]
    if vectors["agreement"] is not None:
        lines.append(f"  the graph finds {vectors['agreement']:.1%} of the true ten nearest passages")
    return [*lines, f"next: distllm search query index={out} text='what to look for'"]


def _query(words: Sequence[str]) -> None:
    options = parse_options("search query", QueryOptions, words)
    directory = require(options.index, "index", "search query")
    text = require(options.text, "text", "search query")
    if options.run is not None or options.model is not None:
        _require_one_model(options, "search query")
    index = open_index(directory, options)
    show_hits(index.hits(text, options.top, options.mode), sys.stdout)


def show_hits(hits: Sequence[Hit], stream: TextIO) -> None:
    """Print what was found: matches stand out on a terminal, and text is plain elsewhere."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False, soft_wrap=True, no_color=not stream.isatty())
    if not hits:
        console.print("nothing was found")
    for number, hit in enumerate(hits, 1):
        title = Text(f"{number}. {printable(hit.title)}  ", style="bold")
        title.append(f"{hit.score:.4f}", style="not bold dim")
        shown = Text(f"   {printable(hit.snippet)}")
        for first, last in hit.matches:
            shown.stylize("bold yellow", first + 3, last + 3)
        console.print(title)
        console.print(shown)


_ACTIONS: Actions = {
    "build": (_build, "corpus=PATH run=NAME|model=DIR out=DIR: embed texts and write an index"),
    "query": (_query, "index=DIR text=...: the documents that fit, with the words that matched"),
}
