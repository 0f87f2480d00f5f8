import json
import re

import pytest
import run_directory

from distllm.report.facts import gather
from distllm.report.html import figure, number, table
from distllm.report.page import page_data
from distllm.report.sections import (
    comparison,
    differences,
    environments,
    evaluations,
    headline,
    lead,
    samples,
    spikes,
    where_time_went,
)


def facts_of(path):
    return gather(path, lambda step, first: "text")


@pytest.fixture
def storm(tmp_path):
    return run_directory.write_run(tmp_path, "storm")


def widths(html):
    return [float(share) for share in re.findall(r'<span style="width:([\d.]+)%', html)]


def test_the_bar_is_as_long_as_the_wall_time(storm):
    shown = widths(where_time_went(facts_of(storm)))
    assert len(shown) == 6
    assert sum(shown) == pytest.approx(100, abs=0.1)


def test_attempts_lie_on_the_time_axis_where_they_were(storm):
    html = where_time_went(facts_of(storm))
    first, second = re.findall(r'class="try ([a-z]*)" style="left:([\d.]+)%;width:([\d.]+)%"', html)
    assert first[0] == "failed"
    assert second[0] == ""
    assert float(first[1]) == 0
    assert float(second[1]) == pytest.approx(100 * 30 / 61, abs=0.1)
    assert float(second[1]) + float(second[2]) == pytest.approx(100, abs=0.1)
    assert len(re.findall(r'class="mark"', html)) == 3  # the skip, the kill and the end


def test_an_attempt_that_never_said_how_it_ended_is_shown_as_failed(storm):
    path = storm / "ledger.jsonl"
    kept = [line for line in path.read_text().splitlines() if '"done"' not in line]
    path.write_text("\n".join(kept) + "\n")
    assert "attempt 2, ended without a word" in where_time_went(facts_of(storm))
    assert "unfinished" in lead([facts_of(storm)])


def test_a_run_without_ledger_shows_what_it_has(storm):
    (storm / "ledger.jsonl").unlink()
    facts = facts_of(storm)
    assert "kept no ledger" in where_time_went(facts)
    assert "goodput" not in dict(headline(facts))
    assert dict(headline(facts))["step"] == "40"


def test_headlines_stand_side_by_side(storm, tmp_path):
    other = run_directory.write_run(tmp_path, "a<b", lr=3e-4, skipped=())
    (other / "ledger.jsonl").unlink()
    html = comparison([facts_of(storm), facts_of(other)])
    assert "a&lt;b" in html
    rows = re.findall(r"<tr><td class=.name.*?</tr>", html)
    assert len({row.count("<td") for row in rows}) == 1
    assert "–" in rows[1]


def test_the_best_evaluation_is_marked_and_every_measure_is_a_column(storm):
    path = storm / "metrics.jsonl"
    more = {"kind": "eval", "attempt": 2, "step": 45, "tokens": 9, "loss": 9.5, "bleu": 31.25}
    path.write_text(path.read_text() + json.dumps(more) + "\n")
    facts = facts_of(storm)
    html = evaluations([facts])
    (best,) = re.findall(r'<tr class=best><td class="n">(\d+)', html)
    assert best == str(min(facts.evals, key=lambda row: row["loss"])["step"])
    assert ">bleu<" in html
    assert "31.25" in html
    assert "bleu" in [chart["column"] for chart in page_data([facts])["charts"]]


def test_canaries_are_one_chart_with_a_line_for_each_number_of_copies(storm, tmp_path):
    from distllm.report.figures import write_figures

    path = storm / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            bits = {"x0": 1.5, "x64": line["step"] / 8, "x8": 2.25}
            line |= {"exposure": bits, "sources": {}}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = facts_of(storm)
    data = page_data([facts])
    (chart,) = (chart for chart in data["charts"] if "xposure" in chart["title"])
    assert chart["columns"] == ["exposure_x0", "exposure_x8", "exposure_x64"]
    assert data["runs"][0]["evals"]["exposure_x64"] == [1.25, 2.5, 3.75, 5.0]
    assert not any("sources" in chart["column"] for chart in data["charts"])  # there is one source
    html = evaluations([facts])
    assert ">exposure x64<" in html
    assert ">5<" in html
    assert "{" not in html
    assert [file.stem for file in write_figures({**data, "charts": [chart]}, tmp_path)] == ["exposure"]


def test_evaluations_stand_at_the_time_of_their_step(storm):
    run = page_data([facts_of(storm)])["runs"][0]
    when = dict(zip(run["steps"]["step"], run["steps"]["time"], strict=True))
    assert run["evals"]["time"] == [when[step] for step in run["evals"]["step"]]


def test_nothing_is_said_in_words(storm):
    kept = [line for line in (storm / "metrics.jsonl").read_text().splitlines() if '"step"' in line[:20]]
    (storm / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    (storm / "environment.json").unlink()
    lines = [line for line in (storm / "ledger.jsonl").read_text().splitlines() if '"skipped",' not in line]
    (storm / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    facts = facts_of(storm)
    assert "No evaluation was made." in evaluations([facts])
    assert "No sample was drawn." in samples([facts])
    assert "No step was skipped." in spikes([facts])
    assert "did not note" in environments([facts])
    assert "are equal" in differences([facts, facts])


def test_older_samples_are_folded_away(storm):
    path = storm / "metrics.jsonl"
    more = [
        {"kind": "sample", "attempt": 2, "step": step, "tokens": 1, "prompt": "p", "text": "t"}
        for step in range(50, 60)
    ]
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in more))
    html = samples([facts_of(storm)])
    before, _, after = html.partition("<details>")
    assert (before.count("<pre>"), after.count("<pre>")) == (6, 8)
    assert before.index("step 59") < before.index("step 54")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.23456789, "1.2346"),
        (123456.789, "1.2346e+05"),
        ("nan", "nan"),
        (None, "–"),
        (float("inf"), "inf"),
        (True, "True"),
    ],
)
def test_numbers_fit_a_table(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.00012345678, "0.00012346"),
        (True, "true"),
        (None, "–"),
        ([1, 2], "[1, 2]"),
        ("x" * 200, "x" * 160 + "…"),
    ],
)
def test_values_of_a_configuration_fit_a_table(value, shown):
    assert figure(value) == shown


def test_titles_of_a_table_are_text():
    assert "<th>a&amp;b</th>" in table(["a&b"], [])
