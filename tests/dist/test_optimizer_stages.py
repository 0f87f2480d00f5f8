"""Every optimizer gives the loss curve of the plain-torch twin under every ZeRO stage it may be used with,
and its state, the average of the weights included, can go from one stage to another."""

import pytest
from ranks import run_ranks

pytestmark = pytest.mark.dist
STEPS, RATE = 5, {"sgd": 0.5, "lion": 1e-3}
ANY_PART = ("adam", "sgd", "lion")
WHOLE = ("adafactor", "muon")
CASES = [
    *[(name, engine, stage) for name in ANY_PART for engine, stage in (("local", 0), *(("deepspeed", s) for s in (0, 1, 2, 3)))],
    *[(name, engine, 0) for name in WHOLE for engine in ("local", "deepspeed")],
]  # fmt: skip


def engine_of(topology, name, engine, stage):
    import engine_jobs

    from distllm.config.schema_optim import OptimConfig
    from distllm.optim.optimizers import build_optimizer

    engine_jobs.make_optimizer = lambda model: build_optimizer(model, OptimConfig(name=name, ema=0.6))
    return engine_jobs.make_engine(topology, engine, stage, "fp32")


def train(engine, topology, name, first, last):
    from engine_jobs import train_step

    losses = []
    for step in range(first, last):
        step_engine = _AtRate(engine, RATE.get(name, 0.01))
        losses.append(train_step(step_engine, topology, step)[0])
    return losses


class _AtRate:
    """An engine whose steps are all of one learning rate."""

    def __init__(self, engine, lr):
        self._engine, self._lr = engine, lr
        self.model, self.backward = engine.model, engine.backward

    def step(self, lr, accept):
        return self._engine.step(self._lr, accept)


def curves(topology):
    results, kept = {}, {}
    for name, kind, stage in CASES:
        engine = engine_of(topology, name, kind, stage)
        losses = train(engine, topology, name, 0, STEPS)
        state = dict(engine.state())
        kept[name, kind, stage] = (state, engine.optimizer_steps)
        results[f"{name} {kind} {stage}"] = {
            "losses": losses,
            "after": train(engine, topology, name, STEPS, STEPS + 2),
            "averages": [float(state[logical].norm()) for logical in sorted(state) if "/ema/" in logical],
            "slots": sorted({logical.split("/")[1] for logical in state if logical.startswith("optim/")}),
        }
    for name in ANY_PART:
        for source, target in (((2), (3)), ((3), (1))):
            state, steps = kept[name, "deepspeed", source]
            engine = engine_of(topology, name, "deepspeed", target)
            engine.load_state(state.__getitem__, steps)
            results[f"{name} {source} to {target}"] = train(engine, topology, name, STEPS, STEPS + 2)
    return results


@pytest.fixture(scope="module")
def results():
    first, second = run_ranks(curves, 2, timeout=240)
    assert first == second
    return first


@pytest.mark.parametrize(("name", "engine", "stage"), CASES)
def test_the_curve_is_that_of_the_twin(results, name, engine, stage):
    twin, found = results[f"{name} local 0"], results[f"{name} {engine} {stage}"]
    # signs and normalised steps turn the last bit of a sum into a step of their own
    assert found["losses"] == pytest.approx(twin["losses"], rel=2e-4 if name == "lion" else 1e-5)
    assert found["slots"] == twin["slots"]
    assert found["averages"] == pytest.approx(twin["averages"], rel=1e-3)
    assert twin["losses"][-1] < twin["losses"][0]


@pytest.mark.parametrize("name", ANY_PART)
@pytest.mark.parametrize("way", ["2 to 3", "3 to 1"])
def test_state_goes_from_stage_to_stage(results, name, way):
    source = way[0]
    assert results[f"{name} {way}"] == pytest.approx(
        results[f"{name} deepspeed {source}"]["after"], rel=2e-4 if name == "lion" else 1e-5
    )
