"""How well `distllm search` finds what was asked for: words, vectors and both, on judged queries.

    python tests/bench/search_bench.py FOLDER [DIRECTORY]

FOLDER is a sentence encoder as a Hugging Face folder; DIRECTORY keeps the index (build/search). An index
that is there is used. Prints nDCG, MRR and recall at ten documents, and the queries that fail.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from judged_search import PLACES, judged, score, write_corpus

from distllm.cli import main
from distllm.search.encoder import encoder_of_folder
from distllm.search.index import SearchIndex


def bench(folder, directory):
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "index").exists():
        write_corpus(directory / "stdlib.jsonl")
        words = (f"corpus={directory}/stdlib.jsonl", "id_key=id", f"model={folder}", f"out={directory}/index")
        assert main(["search", "build", *words]) == 0
    index = SearchIndex(directory / "index", encoder_of_folder(folder))
    asked = judged(index.documents)
    print(f"{len(asked)} queries, {len(index.documents)} documents\n")
    print(f"{'':<10}{'nDCG@10':>10}{'MRR@10':>10}{'recall@10':>10}")
    for mode in ("words", "vectors", "hybrid"):
        ranked = [[hit.title for hit in index.hits(query, PLACES, mode)] for query, _ in asked]
        scores = score(ranked, [right for _, right in asked])
        print(f"{mode:<10}" + "".join(f"{value:>10.3f}" for value in scores.values()))
    missed = [
        (query, row[:3]) for (query, right), row in zip(asked, ranked, strict=True) if not right & set(row)
    ]
    for query, row in missed:
        print(f"not among ten: {query} (first: {', '.join(row)})")


if __name__ == "__main__":
    bench(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "build/search"))
