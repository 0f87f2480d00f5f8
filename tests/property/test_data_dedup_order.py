import tempfile
from itertools import pairwise
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from distllm.config.schema_dedup import DedupConfig
from distllm.data.dedup import Unit, decide, sign
from distllm.data.records import Document

LINES = [f"line {i} is long enough to be compared with all the others" for i in range(4)]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
TEXTS = st.one_of(
    st.lists(st.sampled_from(LINES), min_size=1, max_size=4).map("\n".join),
    st.lists(st.sampled_from(WORDS), min_size=8, max_size=12).map(" ".join),
)
CONFIG = DedupConfig(near=True, pieces="lines", ngram=2, bands=28, rows=2, near_similarity=0.5)


def decided(root, documents, cuts):
    """What becomes of each document when the list is cut into units at ``cuts``."""
    bounds = sorted({0, len(documents), *(cut for cut in cuts if cut < len(documents))})
    parts = [documents[a:b] for a, b in pairwise(bounds)]
    units = []
    for number, part in enumerate(parts):
        directory = root / f"{len(list(root.iterdir()))}-{number}"
        directory.mkdir()
        units.append(Unit(sign([part], directory, CONFIG), "s"))
    found = {}
    for part, decision in zip(parts, decide(units, CONFIG), strict=True):
        for row, document in enumerate(part):
            found[document.id] = decision.documents.get(row), decision.pieces.get(row)
    return found


@given(st.lists(TEXTS, min_size=1, max_size=9), st.randoms(), st.lists(st.integers(1, 8), max_size=4))
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_units_change_what_is_kept(texts, draw, cuts):
    documents = [Document.from_text(f"d{i}", text) for i, text in enumerate(texts)]
    shuffled = list(documents)
    draw.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as name:
        first = decided(Path(name), documents, [])
        second = decided(Path(name), shuffled, cuts)
    assert first == second
    stay = {document.text for document in documents if first[document.id][0] is None}
    assert len(stay) == sum(verdict is None for verdict, _ in first.values())
    assert all(
        keeper in first and first[keeper][0] is None
        for verdict, _ in first.values()
        if verdict
        for keeper in [verdict[1]]
    )
