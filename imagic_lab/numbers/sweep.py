"""Sweeps: kill -9 at random moments, ten thousand jobs, and the arithmetic of a large run.

python -m imagic_lab.numbers.sweep kills      # twenty kills at random moments: nothing lost, nothing done twice
python -m imagic_lab.numbers.sweep jobs       # 10,000 jobs of stub work: time and memory of the bookkeeping
python -m imagic_lab.numbers.sweep large      # hours of a TEdBench-sized run on 1, 8, 64 GPUs, from step counts

Each writes its table into docs/cluster.md.
"""

from __future__ import annotations

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from imagic_lab.numbers.report import ROOT, put, table
from imagic_lab.sweep import Job, sweep
from imagic_lab.sweep.work import FACTS, Setup, read_json
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.edit import ETAS
from imagic_lib.planning.memory import plan

DOCUMENT = ROOT / "docs" / "cluster.md"
KILLS, JOBS = 20, 10_000
PAIRS, SEEDS, GPUS = 100, 8, (1, 8, 64)  # TEdBench has 100 pairs of picture and text
KIND, MODEL = "stable-diffusion", "CompVis/stable-diffusion-v1-4"
LARGE_GPU = 80.0  # GiB: large enough for the first strategy of each method, which needs least time
# Seconds of one step on one GPU: ASSUMED, nothing of it was measured. A training step is one forward and one backward
# pass of the UNet at 512 x 512, a sampling step two forward passes, for guidance.
ASSUMED = {"embedding": 0.2, "full": 0.3, "lora": 0.2, "sampling": 0.1}
STARTING = 60.0  # seconds for a worker to load the model: assumed as well


def stub(job: Job, folder: Path, setup: Setup) -> dict:
    """Work that costs nothing: one small picture."""
    Image.new("RGB", (16, 16), "tan").save(folder / "eta-0-seed-0.png")
    picture = {"eta": 0.0, "seed": 0, "file": "eta-0-seed-0.png", "distance": 0.0, "psnr": 99.0}
    return {"pictures": [picture], "mark": random.SystemRandom().random()}


def slow_stub(job: Job, folder: Path, setup: Setup) -> dict:
    time.sleep(0.05)
    return stub(job, folder, setup)


def write_jobs(folder: Path, count: int) -> Path:
    Image.new("RGB", (32, 32), "tan").save(folder / "in.png")
    with (folder / "jobs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "text", "etas"], *(["in.png", f"a car {k}", 0] for k in range(count))])
    return folder / "jobs.csv"


def finished(out: Path) -> dict[str, float]:
    return {path.parent.name: read_json(path)["mark"] for path in (out / "edits").glob(f"[0-9a-f]*/{FACTS}")}


def child(path: Path, out: Path, work: str) -> list[str]:
    """The command of a sweep that also prints its memory, in KiB: at a tenth of the jobs, and at its end."""
    return [sys.executable, str(Path(__file__)), "child", "--table", str(path), "--out", str(out), "--work", work]


def kills() -> None:
    """A sweep of 200 short jobs, killed after a random time, started again, until it was killed twenty times."""
    rng, known, lost, twice, moments = random.Random(0), {}, 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        path, out = write_jobs(Path(folder), 200), Path(folder) / "out"
        while len(moments) < KILLS:
            process = subprocess.Popen(child(path, out, "sweep:slow_stub"), stderr=subprocess.DEVNULL)
            before = len(known)
            while process.poll() is None and len(list(out.glob("edits/[0-9a-f]*"))) <= before:
                time.sleep(0.001)  # until it is at work again
            time.sleep(rng.random() * 0.5)
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            now = finished(out)
            lost += len(known.keys() - now.keys())
            twice += sum(now.get(name) != mark for name, mark in known.items())
            known, moments = now, [*moments, len(now)]
        done = sweep(path, out, work="sweep:slow_stub").done
        now = finished(out)
        lost += len(known.keys() - now.keys())
        twice += sum(now.get(name) != mark for name, mark in known.items())
    row = [str(len(moments)), ", ".join(map(str, moments)), str(done), str(lost), str(twice)]
    put(DOCUMENT, "kills", table(["kills", "finished at each", "finished at the end", "lost", "done twice"], [row]))


def jobs() -> None:
    """Ten thousand jobs of no work: what the bookkeeping costs."""
    rows = []
    for count in (JOBS // 100, JOBS // 10, JOBS):
        with tempfile.TemporaryDirectory() as folder:
            path, out = write_jobs(Path(folder), count), Path(folder) / "out"
            done = subprocess.run(child(path, out, "sweep:stub"), stdout=subprocess.PIPE, text=True, check=True)
            early, late, report, working, again = map(float, done.stdout.split()[-5:])
        rows.append(
            [
                f"{count:,}",
                f"{1000 * working / count:.1f} ms",
                f"{report:.1f} s",
                f"{again:.1f} s",
                f"{early / 1024:.0f} MiB",
                f"{late / 1024:.0f} MiB",
            ]
        )
    header = ["jobs", "a job", "the report", "a second start", "memory at a tenth", "memory at the end"]
    put(DOCUMENT, "jobs", table(header, rows))


def memory() -> int:
    """KiB of this process, now."""
    import psutil

    return psutil.Process().memory_info().rss // 1024


def run_child(path: Path, out: Path, work: str) -> None:
    from imagic_lab.sweep import engines, read_table, run

    count, early, seen = len(read_table(path)), [], []

    def noted(jobs, setup, note):
        def watched(job, state):
            seen.append(1)
            if len(seen) == count // 10:
                early.append(memory())
            note(job, state)

        engines.run_local(jobs, setup, watched)
        seen.append(time.monotonic())

    run.ENGINES["local"] = noted
    began = time.monotonic()
    sweep(path, out, work=work)
    worked, ended, late = seen[-1], time.monotonic(), memory()
    sweep(path, out, work=work)
    print(early[0], late, ended - worked, worked - began, time.monotonic() - ended)


def large() -> None:
    """Step counts from the stages' own defaults, times the assumed seconds."""
    embedding = stage1_embedding.DEFAULTS[KIND]["steps"]
    sampling = stage4_inference.DEFAULTS[KIND]["steps"]
    rows, found = [], plan(MODEL, LARGE_GPU)
    for method, defaults in stage2_finetuning.DEFAULTS.items():
        fitting, pictures = defaults[KIND]["steps"], SEEDS * len(ETAS)
        seconds = embedding * ASSUMED["embedding"] + fitting * ASSUMED[method]
        seconds += pictures * sampling * ASSUMED["sampling"]
        peak = next(row.peak for row in found.rows if row.strategy.method == method) + found.margin
        steps = f"{embedding:,} + {fitting:,} + {pictures} × {sampling}"
        for gpus in GPUS:
            rounds = -(-PAIRS // gpus)  # an edit is not divided: the last round may leave GPUs idle
            hours = (rounds * seconds + STARTING) / 3600
            rows.append(
                [method, f"{peak:.0f} GiB", steps, f"{seconds / 60:.0f} min", str(gpus), str(rounds), f"{hours:.1f} h"]
            )
    steps = "steps of an edit: stage 1 + stage 2 + pictures × sampling"
    header = ["method", "memory", steps, "an edit", "GPUs", "edits a GPU, at most", "all"]
    told = ", ".join(f"{name} {seconds:g} s" for name, seconds in ASSUMED.items())
    text = table(header, rows) + f"\nAssumed, not measured, for one step: {told}; {STARTING:g} s to load the model.\n"
    put(DOCUMENT, "large", text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("what", choices=("kills", "jobs", "large", "child"))
    for name in ("--table", "--out"):
        options.add_argument(name, type=Path, help=argparse.SUPPRESS)
    options.add_argument("--work", help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.what == "child":
        run_child(args.table, args.out, args.work)
    else:
        {"kills": kills, "jobs": jobs, "large": large}[args.what]()


if __name__ == "__main__":
    main()
