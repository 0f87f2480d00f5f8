import sqlite3
import sys
from dataclasses import replace

import pytest
from records import EVAL, STEP

from distllm.config.schema import Config, LoggerConfig
from distllm.errors import MissingDependency
from distllm.observe.scalar_sinks import MlflowSink, TensorBoardSink, TrackioSink
from distllm.observe.tracked import TrackedRun


def tracked(directory, **logger):
    return TrackedRun(
        Config(name="tiny", logger=LoggerConfig(project="probe", **logger)), directory, run_id="a1"
    )


def use(sink, steps=(1, 2)):
    for step in steps:
        sink.log_step(replace(STEP, step=step, loss=float(step)))
    sink.log_eval(EVAL)
    sink.log_sample(2, 8192, "the", " text\nand more")
    sink.close()


@pytest.mark.slow
def test_tensorboard_shows_numbers_and_texts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    use(TensorBoardSink(tracked(tmp_path)))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 2.0)]
    assert events.Scalars("eval/causal_lm/bits_per_byte")[0].value == 2.5
    (text,) = events.Tensors("eval/samples/text_summary")
    assert b"    the text" in text.tensor_proto.string_val[0]


@pytest.mark.slow
def test_mlflow_goes_on_with_the_run_it_knows(tmp_path):
    from mlflow import MlflowClient

    store = f"file:{tmp_path / 'store'}"
    use(MlflowSink(tracked(tmp_path, mlflow=store)))
    use(MlflowSink(tracked(tmp_path, mlflow=store)), steps=(2, 3))
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("probe").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.run_name == "tiny"
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.name"] == "adamw"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/lr")] == [1, 2, 2, 3]


@pytest.mark.slow
def test_trackio_gets_each_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    sink = TrackioSink(replace(tracked(tmp_path), shown={"step": 1}))
    use(sink, steps=(1, 2, 2, 3))
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics order by step").fetchall()
    assert [step for step, metrics in rows if b"train/lr" in metrics] == [2, 3]


@pytest.mark.parametrize(
    ("module", "build"),
    [
        ("torch.utils.tensorboard", TensorBoardSink),
        ("mlflow", MlflowSink),
        ("trackio", TrackioSink),
    ],
)
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, module, build):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependency) as error:
        build(tracked(tmp_path, mlflow="file:x"))
    assert "distllm[loggers]" in str(error.value)
