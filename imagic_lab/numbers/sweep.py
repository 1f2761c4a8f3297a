"""Test sweeps: kill -9 at random moments, ten thousand jobs, and the arithmetic of a large run.

python -m imagic_lab.numbers.sweep kills             # twenty random kills: is nothing lost, and nothing done twice?
python -m imagic_lab.numbers.sweep jobs [--jobs N]   # 10,000 jobs of stub work: time and memory of the bookkeeping
python -m imagic_lab.numbers.sweep large             # hours of a TEdBench-sized run on 1, 8, 64 GPUs, from step counts

Each writes its table into docs/cluster.md; `jobs` with another number only prints it.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from PIL import Image

from imagic_lab.benchmark import markdown_table
from imagic_lab.numbers.report import ROOT, command_line, put
from imagic_lab.sweep import Job, engines, run, sweep
from imagic_lab.sweep.work import FACTS, Setup, read_results
from imagic_lib import stage1_embedding, stage2_finetuning, stage4_inference
from imagic_lib.edit import ETAS
from imagic_lib.planning.memory import MARGIN, plan

DOCUMENT = ROOT / "docs" / "cluster.md"
KILLS, MANY = 20, 10_000
PAIRS_OF_TEDBENCH, NOISES, GPUS = 100, 8, (1, 8, 64)  # pairs of picture and text; seeds for each
KIND, MODEL = "stable-diffusion", "CompVis/stable-diffusion-v1-4"
LARGE_GPU = 80.0  # GiB, enough for the first way of each method, which takes the least time
# Seconds of one step on one GPU, ASSUMED rather than measured. A training step is one forward and one backward pass of
# the UNet at 512 x 512, a sampling step two forward passes, for guidance.
ASSUMED = {"embedding": 0.2, "full": 0.3, "lora": 0.2, "sampling": 0.1}
STARTING = 60.0  # seconds for a worker to load the model, also assumed


def stub_job(job: Job, folder: Path, setup: Setup) -> dict:
    """Draw one small picture, which costs next to nothing."""
    Image.new("RGB", (16, 16), "tan").save(folder / "eta-0-seed-0.png")
    picture = {"eta": 0.0, "seed": 0, "file": "eta-0-seed-0.png", "distance": 0.0, "psnr": 99.0}
    return {"pictures": [picture], "mark": random.SystemRandom().random()}


def slow_stub_job(job: Job, folder: Path, setup: Setup) -> dict:
    time.sleep(0.05)
    return stub_job(job, folder, setup)


def write_jobs(folder: Path, count: int) -> Path:
    Image.new("RGB", (32, 32), "tan").save(folder / "in.png")
    with (folder / "jobs.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "text", "etas"], *(["in.png", f"a car {k}", 0] for k in range(count))])
    return folder / "jobs.csv"


def marks_in(out: Path) -> dict[str, float]:
    return {path.parent.name: read_results(path)["mark"] for path in (out / "edits").glob(f"[0-9a-f]*/{FACTS}")}


def child(path: Path, out: Path, work: str) -> list[str]:
    """Return the command of a sweep that measures itself (`measure_sweep`)."""
    module = "imagic_lab.numbers.sweep"
    options = ["--table", str(path), "--out", str(out), "--work", f"{module}:{work}"]
    return [sys.executable, "-m", module, "child", *options]


def kills() -> None:
    """Run a sweep of 200 short jobs; kill it at random times and start it again, until it was killed twenty times."""
    rng, known, lost, twice, moments = random.Random(0), {}, 0, 0, []

    def check() -> None:
        nonlocal known, lost, twice
        now = marks_in(out)
        lost += len(known.keys() - now.keys())
        twice += sum(now.get(name) != mark for name, mark in known.items())
        known = now

    with tempfile.TemporaryDirectory() as folder:
        path, out = write_jobs(Path(folder), 200), Path(folder) / "out"
        command = child(path, out, "slow_stub_job")
        while len(moments) < KILLS:
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(list(out.glob("edits/[0-9a-f]*"))) <= len(known):
                time.sleep(0.001)  # until it is at work again
            time.sleep(rng.random() * 0.5)
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            check()
            moments.append(len(known))
        done = sweep(path, out, work=command[-1]).done
        check()
    row = [str(len(moments)), ", ".join(map(str, moments)), str(done), str(lost), str(twice)]
    head = ["kills", "finished at each", "finished at the end", "lost", "done twice"]
    put(DOCUMENT, "kills", markdown_table(head, [row]))


def jobs(most: int) -> None:
    """Measure the cost of the bookkeeping, with up to `most` jobs that do nothing."""
    rows = []
    for count in (most // 100, most // 10, most):
        with tempfile.TemporaryDirectory() as folder:
            path, out = write_jobs(Path(folder), count), Path(folder) / "out"
            command = child(path, out, "stub_job")
            found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        working, report, again, early, late = map(float, found.split()[-5:])
        times = [f"{1000 * working / count:.1f} ms", f"{report:.1f} s", f"{again:.1f} s"]
        rows.append([f"{count:,}", *times, f"{early / 2**20:.0f} MiB", f"{late / 2**20:.0f} MiB"])
    header = ["jobs", "a job", "the report", "a second start", "memory at a tenth", "memory at the end"]
    text = markdown_table(header, rows)
    put(DOCUMENT, "jobs", text) if most == MANY else print(text)


def measure_sweep(path: Path, out: Path, work: str) -> None:
    """Print the seconds of the jobs, the report and a second start, and this process's bytes after a tenth of the jobs
    and at the end."""
    moments, sizes = [], []

    def measured(jobs, setup, look):
        tenth = len(jobs) // 10
        for some in (jobs[:tenth], jobs[tenth:]):
            engines.run_local(some, setup, look)
            sizes.append(psutil.Process().memory_info().rss)
        moments.append(time.monotonic())

    run.ENGINES["local"] = measured
    began = time.monotonic()
    sweep(path, out, work=work)
    ended, size = time.monotonic(), psutil.Process().memory_info().rss
    sweep(path, out, work=work)
    print(moments[0] - began, ended - moments[0], time.monotonic() - ended, sizes[0], size)


def large() -> None:
    """Multiply the stages' default numbers of steps by the assumed seconds."""
    embedding = stage1_embedding.DEFAULTS[KIND]["steps"]
    sampling = stage4_inference.DEFAULTS[KIND]["steps"]
    rows, ways = [], plan(MODEL, LARGE_GPU).ways
    for method, defaults in stage2_finetuning.DEFAULTS.items():
        fitting, pictures = defaults[KIND]["steps"], NOISES * len(ETAS)
        seconds = embedding * ASSUMED["embedding"] + fitting * ASSUMED[method]
        seconds += pictures * sampling * ASSUMED["sampling"]
        peak = next(way.peak for way in ways if way.method == method) + MARGIN
        steps = f"{embedding:,} + {fitting:,} + {pictures} × {sampling}"
        for gpus in GPUS:
            rounds = -(-PAIRS_OF_TEDBENCH // gpus)  # edits can't be split, so in the last round GPUs can be idle
            hours = (rounds * seconds + STARTING) / 3600
            edit = f"{seconds / 60:.0f} min"
            rows.append([method, f"{peak:.0f} GiB", steps, edit, str(gpus), str(rounds), f"{hours:.1f} h"])
    steps = "steps of an edit: stage 1 + stage 2 + pictures × sampling"
    header = ["method", "memory", steps, "an edit", "GPUs", "edits a GPU, at most", "all"]
    told = ", ".join(f"{name} {seconds:g} s" for name, seconds in ASSUMED.items())
    text = f"\nAssumed, not measured, for one step: {told}; {STARTING:g} s to load the model.\n"
    put(DOCUMENT, "large", markdown_table(header, rows) + text)


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("what", choices=("kills", "jobs", "large", "child"))
    options.add_argument("--jobs", type=int, default=MANY, help=f"number of jobs, 100 or more (default: {MANY})")
    for name, kind in {"--table": Path, "--out": Path, "--work": str}.items():
        options.add_argument(name, type=kind, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.what == "child":
        measure_sweep(args.table, args.out, args.work)
    else:
        {"kills": kills, "jobs": lambda: jobs(args.jobs), "large": large}[args.what]()


if __name__ == "__main__":
    main()
