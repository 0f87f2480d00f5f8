"""A real offline run holds exactly the names, axes, tables, artifacts and alerts that docs/ promises."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytestmark = [pytest.mark.dist, pytest.mark.slow]
DOCS = (Path(__file__).resolve().parents[2] / "docs" / "dashboards.md").read_text(encoding="utf-8")
TASK = "causal_lm"
SECRET = "hunter2hunter2"


def rows(heading):
    """The cells of the table below a heading row."""
    (table,) = re.findall(rf"^\| {heading} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", DOCS, re.MULTILINE)
    return [[cell.strip().replace("`", "") for cell in row.split("|")[1:-1]] for row in table.splitlines()]


def inspected(path):
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    return [json.loads(line) for line in shown.splitlines()]


def of_kind(records, kind):
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """Two attempts with canaries: a step is skipped, rank 1 is killed, the second attempt finishes."""
    root = tmp_path_factory.mktemp("contract")
    tiny.prepare(root, "privacy.canaries.repeats=[0,8]", "privacy.canaries.space=20")
    more = (
        "engine=local", "logger=wandb", "logger.tensorboard=true", "train.max_steps=10",
        "checkpoint.every_steps=3", "chaos.faults=[nan@2:0, kill@6:1]", "cluster.max_restarts=0",
        f"logger.project=probe hf_{'a' * 20}{SECRET}", "logger.group=arms",
    )  # fmt: skip
    codes = [
        tiny.distllm("train", *tiny.overrides(root, *more), WANDB_SILENT="true").returncode for _ in "ab"
    ]
    assert codes == [70, 0]
    return root / "runs" / "tiny"


@pytest.fixture(scope="module")
def attempts(run_dir):
    return [inspected(path) for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def shown(attempts):
    """Every history item: its names without wandb's own and without the parts of a table."""
    for records in attempts:
        for item in of_kind(records, "history"):
            names = {name for name in item["item"] if not name.startswith("_") and "._" not in name}
            yield item["item"], {re.sub(r"^(eval/samples)\..*", r"\1", name) for name in names}


def test_names_are_those_of_the_table(attempts):
    promised = {row[0].replace("<task>", TASK) for row in rows("name")}
    exposure = next(row[0] for row in rows("only in some runs") if "exposure" in row[0])
    canaries = {exposure.replace("<task>", TASK).replace("<copies>", copies) for copies in ("0", "8")}
    assert set().union(*(names for _, names in shown(attempts))) == promised | canaries


def test_axes_and_summaries_are_those_of_the_table(attempts):
    defined = {}
    for metric in of_kind(attempts[0], "metric"):
        axis = metric.get("step_metric", "").removeprefix("trainer/")
        defined[metric.get("name") or metric["glob_name"]] = (axis, "".join(metric.get("summary", {})))
    for name, axis, summary, _ in rows("name"):
        name = name.replace("<task>", TASK)
        pattern = f"{name.rpartition('/')[0]}/*"
        assert defined.get(name, defined.get(pattern)) == (axis, summary), name
    for item, _ in shown(attempts):
        assert {"trainer/step", "trainer/tokens"} <= item.keys()


def test_each_step_appears_once_over_both_attempts(attempts):
    steps = [item["trainer/step"] for item, _ in shown(attempts) if "train/lr" in item]
    assert steps == list(range(1, 11))
    assert of_kind(attempts[0], "run")[0]["run_id"] == of_kind(attempts[1], "run")[0]["run_id"]


def test_samples_are_a_table_with_its_columns(attempts, run_dir):
    (promised,) = (re.findall(r"\w+", row[3])[1:5] for row in rows("name") if row[0] == "eval/samples")
    tables = list(run_dir.glob("wandb/offline-run-*/files/media/table/eval/samples*.json"))
    assert len(tables) == 4  # steps 0, 4, 8 and 10
    assert all(json.loads(path.read_text())["columns"] == promised for path in tables)


def test_artifacts_form_the_promised_chain(attempts):
    promised = {row[1] for row in rows("artifact")}
    found = {a["type"]: a for a in of_kind(attempts[1], "artifact") if a["type"] != "run_table"}
    assert set(found) == promised
    meta = {kind: json.loads(artifact["metadata"]) for kind, artifact in found.items()}
    assert [kind for kind, artifact in found.items() if artifact.get("use_after_commit")] == [
        "dataset",
        "tokenizer",
    ]
    assert meta["tokenizer"]["dataset"] == meta["dataset"]["digest"] == meta["model"]["dataset"]
    assert meta["evaluation"]["checkpoint"] == f"{found['model']['name']}:step-10"
    assert "step-10" in found["model"]["aliases"]


def test_alerts_are_raised_with_their_level(attempts):
    promised = {title: row[1] for row in rows("alert") for title in row[0].split(", ")}
    raised = [(a["title"], a["level"]) for records in attempts for a in of_kind(records, "alert")]
    assert all(level in promised[title] for title, level in raised)
    assert {"NaN", "Done"} <= {title for title, _ in raised}


def test_configuration_is_resolved_and_without_secrets(attempts, run_dir):
    config = of_kind(attempts[1], "run")[0]["config"]["update"]
    assert config["derived"]["max_steps"] == 10
    assert config["environment"]["packages_digest"]
    assert config["dataset_digest"]
    assert config["train"]["max_steps"] == 10
    assert config["logger"]["project"] == "probe [redacted]"


def test_the_id_lies_in_the_checkpoint(run_dir, attempts):
    (state,) = {
        json.loads(path.read_text())["facts"]["tracker_run_id"]
        for path in run_dir.glob("checkpoints/*/state.json")
    }
    assert state == of_kind(attempts[0], "run")[0]["run_id"]


def test_tensorboard_has_the_same_names(run_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    promised = {row[0].replace("<task>", TASK) for row in rows("name")}
    own = {name for name in promised if name.split("/")[0] != "trainer" and name != "eval/samples"}
    own |= {f"eval/{TASK}/exposure/x{copies}" for copies in (0, 8)}
    later = {f"reliability/{name}" for name in ("goodput", "ettr", "lost_steps", "restarts", "mttf_seconds")}
    assert set(events.Tags()["scalars"]) == own - later | {"trainer/tokens"}
    assert [event.step for event in events.Scalars("train/lr")][-1] == 10
