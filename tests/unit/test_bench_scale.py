import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench import scale_bench as scale

MB = scale.MB


def costs(*seconds: float) -> list[scale.Cost]:
    return [scale.Cost(2**i * MB, cpu, cpu, 100 * MB) for i, cpu in enumerate(seconds)]


def test_a_straight_line_is_found_exactly():
    start, slope = scale.fit(costs(3.0, 4.0, 6.0, 10.0))
    assert (start, slope * MB) == (pytest.approx(2.0), pytest.approx(1.0))
    assert scale.marginal(costs(3.0, 4.0, 6.0, 10.0)) == pytest.approx(1.0)


def test_quadratic_cost_misses_the_bar():
    assert scale.marginal(costs(1.0, 4.0, 16.0, 64.0)) == pytest.approx(4.0)
    assert scale.marginal(costs(1.0, 4.0, 16.0, 64.0)) > scale.WANTED_MARGINAL


@pytest.mark.parametrize(
    ("value", "rounded"), [(0.3, 1), (1, 1), (1.1, 2), (2.4, 2.5), (26, 50), (501, 1000)]
)
def test_axes_end_at_round_numbers(value, rounded):
    assert scale.nice(value) == rounded


def test_the_figure_is_an_image_with_every_point_inside():
    root = ElementTree.fromstring(scale.svg_plot(costs(3.0, 4.1, 6.0, 10.0)))
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 4
    assert all(0 < float(c.attrib["cx"]) < 640 and 0 < float(c.attrib["cy"]) < 400 for c in circles)
    heights = [float(c.attrib["cy"]) for c in circles]
    assert heights == sorted(heights, reverse=True)


def test_the_plain_plot_shows_every_run():
    lines = scale.plain_plot(costs(3.0, 4.0, 6.0, 10.0)).splitlines()
    assert [line.split()[0] for line in lines] == ["1.0", "2.0", "4.0", "8.0"]
    assert lines[-1].count("#") > 2 * lines[0].count("#")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for language in ("en", "fr"):
        folder = tmp_path / language / "jsonl"
        folder.mkdir(parents=True)
        rows = [{"id": f"{language}{i}", "text": f"first {i}\nsecond\nthird"} for i in range(50)]
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def written(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_slice_is_spread_over_the_corpus(corpus):
    total = sum(len(text) for _, text in scale.records(corpus))
    size = scale.write_slice(corpus / "slice", scale.records(corpus), total // 2, 0.5)
    languages = [row["id"][:2] for row in written(corpus / "slice")]
    assert abs(size - total // 2) < 50
    assert abs(languages.count("en") - languages.count("fr")) <= 1


def test_a_corpus_can_be_made_larger_without_equal_ids(corpus):
    total = sum(len(text) for _, text in scale.records(corpus))
    size = scale.write_slice(corpus / "large", scale.copies(corpus), 3 * total)
    rows = written(corpus / "large")
    assert 3 * total <= size < 3 * total + 50
    assert len({row["id"] for row in rows}) == len(rows) == 300
    assert len({row["text"] for row in rows}) > 150
    assert all(sorted(row["text"].split("\n"))[1:] == ["second", "third"] for row in rows)


def test_a_corpus_that_was_not_built_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"build it with tests/real/corpus\.py"):
        list(scale.records(tmp_path))


def test_a_command_above_its_memory_is_killed():
    greedy = "import time; block = bytearray(b'x') * (256 * 2**20); time.sleep(60)"
    cost = scale.measure([sys.executable, "-c", greedy], MB, limit=100 * MB)
    assert cost.peak_tree > 100 * MB
    assert cost.wall < 30


def test_memory_of_children_counts():
    child = "import time; block = bytearray(b'x') * 80_000_000; time.sleep(0.2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cost = scale.measure([sys.executable, "-c", parent], MB, limit=1000 * MB)
    assert cost.peak_tree > 80 * MB
    assert cost.peak_process > 80 * MB


def test_a_command_that_fails_shows_its_output():
    with pytest.raises(SystemExit, match="the reason"):
        scale.measure([sys.executable, "-c", "raise SystemExit('the reason')"], MB, limit=1000 * MB)
