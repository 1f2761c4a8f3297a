"""ToyEdit: how many edits succeed, how much of the input they keep, with stage 2 and without?

python benchmarks/toyedit.py dev      # 40 edits, about a minute each on 2 cores; goes on where it was
python benchmarks/toyedit.py test     # 60 edits; one row an edit and variant in data/experiments/toyedit-test.csv

The edits are a sweep (imagic_lib.sweep) in runs/toyedit; --engine ray or slurm spreads them over machines.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from report import ROOT, table

import imagic_lib as imagic
from imagic_lib.models import DATA
from imagic_lib.pictures import psnr
from imagic_lib.sweep import Job, sweep
from imagic_lib.sweep.table import read_table
from imagic_lib.sweep.work import FACTS, Setup, pipeline, read_json
from imagic_lib.toyworld.edits import KINDS, VERSION, toyedit
from imagic_lib.toyworld.reader import Reader, load_reader
from imagic_lib.training.checkpoints import write_atomically

ETAS, SEEDS, STEPS = (0.0, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0), tuple(range(8)), 20
VARIANTS = {"Imagic": 1.0, "without fine-tuning": 0.0}  # name: scale
GOOD_PSNR = 28.0  # dB: from here on a picture at η = 0 counts as the input


def measure(edit: imagic.ImagicEdit, scale: float, scene, change: dict, reader: Reader) -> dict:
    """One variant of one edit: counts of the seeds, means of the rest, a column for each η."""
    truth, found = scene.edit(**change), {}
    rows = edit.pictures(ETAS, SEEDS, scale=scale, steps=STEPS)
    rebuilt = [psnr(row[0], edit.reconstruction) for row in rows]
    found["psnr"], found["rebuilt"] = round(float(np.mean(rebuilt)), 2), sum(p >= GOOD_PSNR for p in rebuilt)
    for column, eta in enumerate(ETAS):
        drawn = [row[column] for row in rows]
        reports = [reader.report(p, truth, scene) for p in drawn]
        found[f"right {eta:g}"], found[f"well {eta:g}"] = sum(r.right for r in reports), sum(r.well for r in reports)
        found[f"success {eta:g}"] = sum(r.success for r in reports)
        found[f"kept {eta:g}"] = round(float(np.mean([r.kept for r in reports])), 3)
        found[f"distance {eta:g}"] = round(float(np.mean([r.distance for r in reports])), 4)
    return found


class Rows:
    """A CSV file, one row an edit and variant, whole after every row; a run that was stopped goes on with it."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        if path.exists():
            self.rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
            if any(row.get("version") != VERSION for row in self.rows):
                raise ValueError(f"{path} is of another version of ToyEdit than {VERSION}: move it away, and run again")

    def has(self, index: int, variant: str) -> bool:
        return any(int(row["edit"]) == index and row["variant"] == variant for row in self.rows)

    def add(self, row: dict) -> None:
        self.rows.append({name: str(value) for name, value in row.items()})
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(self.rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, lambda tmp: tmp.write_text(text.getvalue(), encoding="utf-8"))


def run(split: str, rows: Rows, folder: Path, engine: str) -> None:
    """Those edits that have no rows yet, as a sweep in the folder; then their rows, in the order of the edits."""
    left = [k for k in range(len(toyedit(split))) if not all(rows.has(k, variant) for variant in VARIANTS)]
    if not left:
        return
    jobs = read_table(write_table(split, left, folder))
    found = sweep(jobs, folder / "sweep", engine, work="toyedit:work")
    for index, job in zip(left, jobs, strict=True):
        if (path := folder / "sweep" / "edits" / job.name / FACTS).is_file():
            for row in read_json(path)["rows"]:
                if not rows.has(index, row["variant"]):
                    rows.add(row)
    if found.failed or found.left:
        sys.exit(f"{found.failed} edits failed, {found.left} are open: see {folder / 'sweep' / 'errors.csv'}")


def write_table(split: str, indices: list[int], folder: Path) -> Path:
    """The table of these edits, and their input pictures beside it: SPLIT-3.png is the fourth."""
    lines = [["image", "text"]]
    folder.mkdir(parents=True, exist_ok=True)
    for index in indices:
        scene, change = toyedit(split)[index]
        scene.render().save(folder / f"{split}-{index}.png")
        lines.append([f"{split}-{index}.png", scene.edit(**change).caption()])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_atomically(folder / f"{split}.csv", lambda tmp: tmp.write_text(text.getvalue(), encoding="utf-8"))
    return folder / f"{split}.csv"


reader_of_toyedit = cache(load_reader)


def work(job: Job, folder: Path, setup: Setup) -> dict:
    """What the sweep does for each job: train one edit, measure both variants."""
    split, _, index = Path(job.image).stem.partition("-")
    scene, change = toyedit(split)[int(index)]
    pipe = pipeline(job.model, setup.device)
    began = time.monotonic()
    edit = imagic.run_edit(pipe, imagic.load_image(job.image, pipe), job.text, folder=folder)
    facts = {"version": VERSION, "edit": int(index), "kind": next(iter(change)), "from": scene.caption()}
    seconds, rows = round(time.monotonic() - began, 1), []
    for variant, scale in VARIANTS.items():
        own = {"to": job.text, "variant": variant, "seconds": seconds}
        rows.append(facts | own | measure(edit, scale, scene, change, reader_of_toyedit()))
    return {"rows": rows}


def interval(values: list[float], repeats: int = 2000) -> str:
    """Mean and 95 % interval by a bootstrap over the pictures, as text in percent."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (repeats, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * np.mean(values):.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def summary(rows: list[dict]) -> str:
    """For each kind of edit and variant: at the one η that is best for the kind, and at the best η of each edit."""
    lines = []
    for kind in KINDS:
        for variant in VARIANTS:
            own = [row for row in rows if row["kind"] == kind and row["variant"] == variant]
            if not own:
                continue

            def share(row: dict, what: str, eta: float) -> float:
                return float(row[f"{what} {eta:g}"]) / (len(SEEDS) if what != "kept" else 1)

            eta = max(ETAS, key=lambda e, own=own, share=share: np.mean([share(row, "success", e) for row in own]))
            best: Callable = lambda row, share=share: max(share(row, "success", e) for e in ETAS)  # noqa: E731
            lines.append(
                [
                    kind,
                    variant,
                    f"{np.mean([float(row['psnr']) for row in own]):.1f}",
                    f"{eta:g}",
                    interval([share(row, "success", eta) for row in own]),
                    interval([share(row, "kept", eta) for row in own]),
                    f"{100 * np.mean([best(row) for row in own]):.0f} %",
                ]
            )
    header = ["kind", "variant", "PSNR at η = 0, dB", "η", "success", "details kept", "success, best η of each edit"]
    return table(header, lines)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("split", choices=("dev", "test"))
    options.add_argument("--out", type=Path, help="the CSV file (default: data/experiments/toyedit-SPLIT.csv)")
    options.add_argument("--engine", choices=("local", "ray", "slurm"), default="local", help="(default: local)")
    args = options.parse_args()
    rows = Rows(args.out or DATA / "experiments" / f"toyedit-{args.split}.csv")
    run(args.split, rows, ROOT / "runs" / "toyedit", args.engine)
    print(summary(rows.rows))


if __name__ == "__main__":
    main()
