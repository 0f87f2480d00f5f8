import re
from html.parser import HTMLParser

import pytest
import run_directory
import tiny

from distllm.commands.report import _directories, run
from distllm.errors import ConfigError, MissingDependency
from distllm.provenance import environment
from distllm.report.facts import gather
from distllm.report.figures import write_figures
from distllm.report.page import page_data, render


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    run_directory.write_run(root, "storm")
    run_directory.write_run(root, "calm", lr=3e-4, skipped=(), note_environment=False)
    return root


@pytest.fixture(scope="module")
def page(runs):
    return render([gather(runs / name, lambda step, first: "the <batch>") for name in ("storm", "calm")])


class Reader(HTMLParser):
    """The links and sources of a page, and its text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.sources, self.text, self.inside = [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.inside.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href")]

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self.inside):
            self.text += data


def test_the_page_refers_to_nothing_outside_and_forbids_it(page):
    assert all(source.startswith("#") for source in Reader(page).sources)
    assert "default-src 'none'" in page
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", page)


def test_what_a_model_wrote_is_text_and_no_markup(page):
    assert "<b>wrote" not in page
    assert " </script><b>wrote & 40</b>" in Reader(page).text
    assert "the <batch>" in Reader(page).text


def test_every_part_tells_what_the_run_directory_holds(page):
    text = Reader(page).text
    for fact in (
        "2 runs side by side",
        "goodput 63.9% of 1m01s",
        "1 × killed by SIGKILL",
        "lost steps 3",
        "samples skipped 16",
        "attempt 2 on node2 (pid 8), 2 ranks",
        "step 14 non finite",
        "override: optim.lr=0.001",
        "derived: train.max_steps",
        "storm: host was node1 before attempt 2, now node2",
    ):
        assert fact in re.sub(r"\s+", " ", text), fact


def test_differences_are_those_of_the_configurations(page):
    (shown,) = re.findall(r'<div class="card" id="differences">(.*?)</table>', page, re.DOTALL)
    assert re.findall(r'class="key-name">([^<]+)<', shown) == ["optim.lr"]
    assert "0.001" in shown
    assert "0.0003" in shown


def test_measurements_of_a_later_version_get_a_curve():
    from distllm.report.facts import RunFacts

    more = RunFacts(
        "x", None, "done", [{"step": 1, "time": 0.0, "z_loss": 0.5}], [], [], None, [], [], [], {}
    )
    charts = page_data([more])["charts"]
    assert [c["title"] for c in charts if c["column"] == "z_loss"] == ["Z loss"]


@pytest.mark.slow
def test_curves_become_png_files(runs, tmp_path):
    facts = [gather(runs / "storm", lambda step, first: "")]
    written = write_figures(page_data(facts), tmp_path / "png")
    assert {path.stem for path in written} >= {"loss", "perplexity", "lr", "grad_norm", "mfu", "memory_bytes"}
    assert all(path.read_bytes()[:4] == b"\x89PNG" and path.stat().st_size > 5000 for path in written)


def test_png_without_matplotlib_names_the_extra(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependency) as error:
        write_figures({"charts": [], "runs": []}, tmp_path)
    assert "distllm[report]" in str(error.value)


def test_the_command_writes_into_the_run_directory(runs, capsys):
    assert run(["run=storm", f"runs_dir={runs}"]) == 0
    assert str(runs / "storm" / "report.html") in capsys.readouterr().out
    assert "the batch cannot be shown" in (runs / "storm" / "report.html").read_text()
    with pytest.raises(ConfigError, match="no run 'nothing'"):
        run(["run=storm,nothing", f"runs_dir={runs}"])


@pytest.mark.slow
@pytest.mark.dist
def test_a_real_run_notes_its_environment_and_shows_the_text_of_a_skipped_step(tmp_path):
    tiny.prepare(tmp_path)
    more = ("engine=local", "eval=none", "train.max_steps=4", "chaos.faults=[nan@3:1]")
    done = tiny.distllm("train", *tiny.overrides(tmp_path, *more))
    assert done.returncode == 0, done.stderr
    done = tiny.distllm("report", "run=tiny", f"runs_dir={tmp_path / 'runs'}")
    assert done.returncode == 0, done.stderr
    text = Reader((tmp_path / "runs" / "tiny" / "report.html").read_text()).text
    shown = tiny.distllm("inspect", "run=tiny", "step=3", "rank=1", f"runs_dir={tmp_path / 'runs'}").stdout
    row = next(line for line in shown.splitlines() if line.startswith("=== row 0"))
    assert row in text
    assert environment()["packages_digest"] in text
    assert "2 x cpu" in text


def test_names_of_a_sweep_may_hold_the_commas_that_part_names(tmp_path):
    names = ["sweep.lr=1,seed=0", "sweep.lr=1,seed=1", "sweep.lr=1"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert [path.name for path in _directories(",".join(names), str(tmp_path))] == names
    with pytest.raises(ConfigError, match="no run 'seed=2'"):
        _directories("sweep.lr=1,seed=2", str(tmp_path))
