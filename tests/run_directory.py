"""A run directory as training leaves it, written by hand: an eventful run without training one."""

import json
import math

HOUR = 1_700_000_000.0


def write_run(directory, name="storm", steps=40, lr=1e-3, skipped=(14,), killed_at=23, note_environment=True):
    """Write metrics, ledger, configuration and environment; attempt 1 dies, attempt 2 finishes."""
    path = directory / name
    path.mkdir(parents=True)
    write_metrics(path / "metrics.jsonl", steps, lr, skipped, killed_at)
    write_ledger(path / "ledger.jsonl", steps, skipped, killed_at)
    (path / "config.yaml").write_text(f"name: {name}\n")
    explain = {
        "name": {"value": name, "from": "override", "detail": f"name={name}", "help": "name of the run"},
        "optim.lr": {
            "value": lr, "from": "override", "detail": f"optim.lr={lr}", "help": "peak learning rate",
        },
        "world_size": {"value": 2, "from": "derived", "detail": "1 x 2", "help": "derived"},
        "max_steps": {"value": steps, "from": "derived", "detail": "train.max_steps", "help": "derived"},
    }  # fmt: skip
    (path / "explain.json").write_text(json.dumps(explain))
    if note_environment:
        notes = {
            number: {
                "host": f"node{number}",
                "packages": {"torch": "2.13.0"},
                "revision": number * 40 + "+changes",
            }
            for number in "12"
        }
        (path / "environment.json").write_text(json.dumps(notes))
    return path


def write_metrics(path, steps, lr, skipped, killed_at):
    lines = [{"kind": "attempt", "attempt": 1, "time": HOUR}]
    resumed = killed_at // 10 * 10
    order = [(1, step) for step in range(1, killed_at + 1)] + [
        (2, step) for step in range(resumed + 1, steps + 1)
    ]
    for attempt, step in order:
        bad = step in skipped
        loss = 2 + 4 * math.exp(-step / 10) + 0.05 * math.sin(step)
        lines.append(
            {
                "kind": "step", "attempt": attempt, "time": HOUR + step + 20 * attempt, "step": step,
                "tokens": step * 512, "loss": "nan" if bad else loss, "lr": lr * (1 - step / steps / 2),
                "grad_norm": "inf" if bad else 1 + 1 / step, "tokens_per_second": 12_000.0 + 100 * step,
                "mfu": 0.42, "data_wait_fraction": 0.01, "overhead_fraction": 0.01,
                "memory_bytes": 500 * 2**20 + step, "eta_seconds": float(steps - step),
                "skipped_steps": sum(1 for one in skipped if one <= step), "batch_digest": "1f",
            }
        )  # fmt: skip
        if step % 10 == 0:
            record = {"kind": "eval", "attempt": attempt, "step": step, "tokens": step * 512, "loss": loss}
            lines.append(record | {"perplexity": math.exp(loss), "bits_per_byte": loss / 3, "seconds": 0.5})
            text = f" </script><b>wrote & {step}</b>"
            sample = {"kind": "sample", "attempt": attempt, "step": step, "tokens": step * 512}
            lines.append(sample | {"prompt": "the model", "text": text})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_ledger(path, steps, skipped, killed_at):
    counts = {
        "promised": steps * 16, "seen": steps * 16, "trained": (steps - len(skipped)) * 16,
        "skipped": len(skipped) * 16, "excluded": 0, "damaged": 0,
    }  # fmt: skip
    resumed = killed_at // 10 * 10
    events = [
        (0, 1, "attempt", {"host": "node1", "pid": 7, "world_size": 2}),
        (1, 1, "resumed", {"step": 0}),
        *(
            (13, 1, "skipped", {
                "step": step, "reason": "non_finite", "loss": "nan", "grad_norm": "inf",
                "samples": [16 * (step - 1), 16 * step], "ranks": [1],
            })
            for step in skipped
        ),
        (20, 1, "progress", {"first": 0, "step": resumed, "seconds": {"productive": 15.0, "data": 1.0}}),
        (20.5, 1, "saved", {"step": resumed, "samples": counts}),
        (24, 1, "killed", {"rank": 1, "signal": "SIGKILL"}),
        (30, 2, "attempt", {"host": "node2", "pid": 8, "world_size": 2}),
        (33, 2, "resumed", {"step": resumed}),
        (60, 2, "progress", {"first": resumed, "step": steps, "seconds": {"productive": 24.0, "eval": 2.0}}),
        (61, 2, "done", {"step": steps, "samples": counts}),
    ]  # fmt: skip
    lines = [{"time": HOUR + at, "attempt": n, "kind": kind} | more for at, n, kind, more in events]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
