"""Draw a run's training and validation loss: python tests/real/curve.py RUN_DIRECTORY OUT.png [LAST_STEP]"""

import json
import sys
from pathlib import Path


def main(run: str, out: str, last: str = "1000000000") -> None:
    """Read the run's metrics.jsonl and write the picture."""
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    figure, axes = plt.subplots(figsize=(6, 3.5))
    for kind, style in (("step", "-"), ("eval", "o-")):
        points = {x["step"]: x["loss"] for x in lines if x["kind"] == kind and x["step"] <= int(last)}
        label = "training" if kind == "step" else "validation"
        axes.plot(list(points), list(points.values()), style, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
