"""What preparing costs as the corpus grows, and that its memory does not grow with it.

Cost: `distllm prepare` runs on growing slices of the corpus that tests/real/corpus.py builds, with a
tokenizer trained once before, each run from nothing. CPU seconds and the largest process's peak RSS come
from wait4 of the command (it waits for its workers, so they are included). A straight line is fitted; the
bar is on the marginal cost: a MB at the largest size against a MB at the smallest.

Memory: a corpus of ``5 x --memory`` MB of text is prepared under that limit, over all processes of the
command together: their anonymous and shared memory, sampled from /proc/*/smaps_rollup (shared pages
count once), and above the limit they are killed and the check has failed. File pages that the kernel can
drop are not counted. The usual limits do not fit: RLIMIT_AS and RLIMIT_DATA also refuse what allocators
reserve and never touch (1.4 GB against 0.3 GB in use, measured), and a cgroup needs rights that few have.
If the real corpus is too small it is repeated with the lines of each document in another order, so that
few copies are exact duplicates of their originals.

usage: scale_bench.py CORPUS [--sizes MB,MB,...] [--memory MB] [--workers N] [--figure SVG] [key=value ...]

Sizes are 10**6 bytes of text. Overrides are handed to every run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MB = 10**6
WANTED_MARGINAL = 1.2
CORPUS_OVER_LIMIT = 5
SAMPLE_SECONDS = 0.05
TOKENIZER_MB = 2


@dataclass(frozen=True)
class Cost:
    """One run: text in bytes, times in seconds, memory in bytes."""

    text: int
    cpu: float
    wall: float
    peak_process: int
    peak_tree: int = 0


def records(corpus: Path) -> Iterator[tuple[str, str]]:
    """Yield ``(id, text)`` of every JSON line of the corpus, in order of file name."""
    paths = sorted(corpus.glob("*/jsonl/*.jsonl"))
    if not paths:
        sys.exit(f"{corpus} has no */jsonl/*.jsonl: build it with tests/real/corpus.py {corpus}")
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                yield record["id"], record["text"]


def copies(corpus: Path) -> Iterator[tuple[str, str]]:
    """Yield the corpus without end; from the second time on with each document's lines shuffled."""
    yield from records(corpus)
    round_ = 1
    while True:
        for name, text in records(corpus):
            lines = text.split("\n")
            random.Random(f"{round_} {name}").shuffle(lines)
            yield f"{name}#{round_}", "\n".join(lines)
        round_ += 1


def write_slice(path: Path, documents: Iterator[tuple[str, str]], wanted: int, share: float = 1.0) -> int:
    """Write ``share`` of the documents, evenly spread, until ``wanted`` bytes of text; return the bytes."""
    written, credit = 0, 0.0
    with path.open("w", encoding="utf-8") as out:
        for name, text in documents:
            if written >= wanted:
                break
            size = len(text.encode())
            credit += size * share
            if credit >= size / 2:
                credit -= size
                written += size
                out.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
    return written


def prepare(source: Path, out: Path, workers: int, overrides: list[str]) -> list[str]:
    """Return the command that prepares ``source``."""
    command = Path(sys.executable).with_name("distllm")
    return [
        str(command), "prepare", "data=jsonl", f"data.paths=[{source}]", f"data.out={out}",
        f"data.workers={workers}", *overrides,
    ]  # fmt: skip


def tree(root: int) -> list[int]:
    """Return ``root`` and its living descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended while the list was read
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def held_bytes(pids: list[int]) -> int:
    """Return the anonymous and shared memory of processes; shared pages count once (PSS)."""
    total = 0
    for pid in pids:
        try:
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it ended since the tree was read
            continue
        for line in rollup.splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                total += int(line.split()[1]) * 1024
    return total


def watch(pid: int, limit: int, stop: threading.Event, peak: list[int]) -> None:
    """Keep the largest memory of a process tree in ``peak[0]``; kill its session above ``limit``."""
    while not stop.wait(SAMPLE_SECONDS):
        peak[0] = max(peak[0], held_bytes(tree(pid)))
        if peak[0] > limit:
            os.killpg(pid, signal.SIGKILL)
            return


def measure(command: list[str], text: int, limit: int = 0) -> Cost:
    """Run a command to its end; with ``limit`` its memory is watched.

    A command that fails ends the benchmark with its output, unless it was killed for its memory: its
    ``peak_tree`` is then above ``limit``.
    """
    began = time.perf_counter()
    stop, peak = threading.Event(), [0]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        sampler = threading.Thread(target=watch, args=(process.pid, limit, stop, peak))
        if limit:
            sampler.start()
        # The process is reaped only after the sampler ended, so its number names no other process.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        stop.set()
        if limit:
            sampler.join()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and peak[0] <= limit:
            output.seek(0)
            sys.exit(f"{' '.join(command)}\nfailed ({process.returncode}):\n{output.read().decode()[-3000:]}")
    return Cost(
        text, usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss * 1024, peak[0]
    )


def fresh(out: Path) -> Path:
    """Remove a dataset and its finished stages, so that a run does all the work."""
    for path in (out, out.with_name(f"{out.name}.work")):
        shutil.rmtree(path, ignore_errors=True)
    return out


def costs_by_size(
    corpus: Path, sizes: list[float], workers: int, work: Path, tokenizer: Path, overrides: list[str]
) -> list[Cost]:
    """Prepare a slice of each size, spread over the whole corpus, and return what each cost."""
    total = sum(len(text.encode()) for _, text in records(corpus))
    found = []
    for size in sizes:
        source = work / "slice.jsonl"
        text = write_slice(source, records(corpus), round(size * MB), min(1.0, size * MB / total))
        command = prepare(source, fresh(work / "out"), workers, [f"tokenizer.path={tokenizer}", *overrides])
        found.append(measure(command, text))
        print(row(found[-1]), flush=True)
    fresh(work / "out")
    return found


def row(cost: Cost) -> str:
    """Return one line of the table."""
    megabytes = cost.text / MB
    return (
        f"{megabytes:10.1f} {cost.cpu:9.1f} {cost.wall:9.1f} {megabytes / cost.cpu:10.2f}"
        f" {cost.peak_process / MB:12.0f}"
    )


def fit(costs: list[Cost]) -> tuple[float, float]:
    """Return start in seconds and slope in seconds a byte of the least-squares line of CPU over text."""
    n = len(costs)
    mean_x, mean_y = sum(c.text for c in costs) / n, sum(c.cpu for c in costs) / n
    slope = sum((c.text - mean_x) * (c.cpu - mean_y) for c in costs) / sum(
        (c.text - mean_x) ** 2 for c in costs
    )
    return mean_y - slope * mean_x, slope


def marginal(costs: list[Cost]) -> float:
    """Return the cost of a byte between the two largest sizes over that between the two smallest."""
    (a, b), (c, d) = costs[:2], costs[-2:]
    return ((d.cpu - c.cpu) / (d.text - c.text)) / ((b.cpu - a.cpu) / (b.text - a.text))


def plain_plot(costs: list[Cost], width: int = 60) -> str:
    """Draw CPU seconds as bars; ``|`` stands where the fitted line is."""
    start, slope = fit(costs)
    scale = width / max(c.cpu for c in costs)
    lines = []
    for cost in costs:
        bar = list("#" * round(cost.cpu * scale) + " " * (width + 2 - round(cost.cpu * scale)))
        bar[min(width + 1, max(0, round((start + slope * cost.text) * scale)))] = "|"
        lines.append(f"{cost.text / MB:8.1f} MB {''.join(bar).rstrip()} {cost.cpu:.1f} s")
    return "\n".join(lines)


def svg_plot(costs: list[Cost], width: int = 640, height: int = 400) -> str:
    """Draw CPU seconds over MB of text, with the fitted line, as an SVG of its own."""
    left, bottom, top, right = 64, height - 48, 40, width - 24
    most_x, most_y = (nice(max(values)) for values in ([c.text / MB for c in costs], [c.cpu for c in costs]))

    def x(megabytes: float) -> float:
        return round(left + (right - left) * megabytes / most_x, 1)

    def y(seconds: float) -> float:
        return round(bottom - (bottom - top) * seconds / most_y, 1)

    start, slope = fit(costs)
    last = max(c.text for c in costs) / MB
    shapes = []
    for tick in range(6):
        mb, s = most_x * tick / 5, most_y * tick / 5
        shapes += [
            f'<path class="grid" d="M{left} {y(s)}H{right}"/>',
            f'<text x="{left - 8}" y="{y(s) + 4}" text-anchor="end">{s:g}</text>',
            f'<text x="{x(mb)}" y="{bottom + 18}" text-anchor="middle">{mb:g}</text>',
        ]
    shapes += [
        f'<path class="fit" d="M{x(0)} {y(start)}L{x(last)} {y(start + slope * last * MB)}"/>',
        *(f'<circle cx="{x(c.text / MB)}" cy="{y(c.cpu)}" r="4"/>' for c in costs),
        f'<text x="{(left + right) / 2}" y="{height - 8}" text-anchor="middle">MB of text</text>',
        f'<text x="{left}" y="22">CPU seconds of distllm prepare;'
        f" line: {start:.1f} s + {slope * MB:.3f} s a MB</text>",
    ]
    style = (
        "text{font:13px sans-serif;fill:#444}.grid{stroke:#ccc}.fit{stroke:#c60;stroke-width:2;fill:none}"
        "circle{fill:#06c}rect{fill:#fff}"
    )
    body = "\n".join(shapes)
    size = f'width="{width}" height="{height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {size}>\n'
        f"<style>{style}</style>\n<rect {size}/>\n{body}\n</svg>\n"
    )


def nice(value: float) -> float:
    """Round up to 1, 2, 2.5 or 5 times a power of ten."""
    power = 10.0 ** (len(str(int(value))) - 1)
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def check_memory(corpus: Path, limit: int, workers: int, work: Path, prepared: list[str]) -> bool:
    """Prepare a corpus of five times ``limit`` bytes of text under it; say what was held."""
    source = work / "large.jsonl"
    text = write_slice(source, copies(corpus), CORPUS_OVER_LIMIT * limit)

    cost = measure(prepare(source, fresh(work / "out"), workers, prepared), text, limit)
    fresh(work / "out")
    held = cost.peak_tree <= limit
    print(
        f"memory: {text / MB:.0f} MB of text under a limit of {limit / MB:.0f} MB, {workers} worker(s):"
        f" {'kept' if held else 'EXCEEDED, killed'}\n"
        f"  largest anonymous and shared memory of all processes together: {cost.peak_tree / MB:.0f} MB\n"
        f"  largest RSS of one process, dropable file pages included: {cost.peak_process / MB:.0f} MB\n"
        f"  {cost.cpu:.0f} CPU s, {cost.wall:.0f} s"
    )
    return held


def main() -> int:
    """Measure, print, draw; return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--sizes", default="8,16,32,64,128", help="MB of text; empty skips the cost")
    parser.add_argument("--memory", type=int, help="limit in MB; without it memory is not checked")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--figure", type=Path, help="where to write the SVG")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    sizes = [float(size) for size in arguments.sizes.split(",") if size]
    good = True
    with tempfile.TemporaryDirectory(prefix="scale-bench-") as folder:
        work = Path(folder)
        source, tokenizer = work / "tokenizer.jsonl", work / "tokenizer" / "tokenizer.json"
        total = sum(len(text.encode()) for _, text in records(arguments.corpus))
        text = write_slice(source, records(arguments.corpus), TOKENIZER_MB * MB, TOKENIZER_MB * MB / total)
        trained = measure(prepare(source, tokenizer.parent, arguments.workers, arguments.overrides), text)
        print(f"{arguments.corpus}: {total / MB:.1f} MB of text")
        print(f"a tokenizer and shards of {text / MB:.1f} MB: {trained.cpu:.1f} CPU s; it is used below")
        if sizes:
            print(f"{'MB of text':>10} {'CPU s':>9} {'wall s':>9} {'MB/CPU s':>10} {'peak RSS MB':>12}")
            costs = costs_by_size(
                arguments.corpus, sizes, arguments.workers, work, tokenizer, arguments.overrides
            )
            print(plain_plot(costs))
            start, slope = fit(costs)
            print(f"line: {start:.1f} s + {slope * MB:.3f} s a MB")
            if len(costs) > 2:
                ratio = marginal(costs)
                good &= ratio <= WANTED_MARGINAL
                print(f"a MB at the end costs {ratio:.2f} x a MB at the start, wanted <= {WANTED_MARGINAL}")
            if arguments.figure:
                arguments.figure.parent.mkdir(parents=True, exist_ok=True)
                arguments.figure.write_text(svg_plot(costs), encoding="utf-8")
        if arguments.memory:
            prepared = [f"tokenizer.path={tokenizer}", *arguments.overrides]
            limit = arguments.memory * MB
            good &= check_memory(arguments.corpus, limit, arguments.workers, work, prepared)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
