"""The methods, compared: tables, the figure of quality against time, and the pictures behind the numbers.

    python -m imagic_lib benchmark --split dev      # some core-hours each; they go on where they were stopped
    python -m imagic_lib benchmark --split test
    python benchmarks/methods.py                    # seconds; reads their rows and pictures

It writes the tables of benchmarks/README.md, data/experiments/methods.png and data/experiments/methods.jpg with the
texts beside it. `--community PATH` as in the benchmark.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from report import ROOT, put
from sweeps import FOLDER

from imagic_lib.experiments.benchmark import (
    SHEET,
    VERSIONS,
    all_methods,
    best_value,
    job_for,
    measured,
    numbers_in,
    tables,
    worth,
    write_table,
)
from imagic_lib.sweep.table import read_table
from imagic_lib.training.checkpoints import write_atomically

RUNS = ROOT / "runs" / "benchmark"
SHOWN = ("imagic", "imagic-scale", "imagic-lora", "no-stage-2", "sdedit", "p2p", "ledits")
EDITS = 12  # in the sheet of pictures: three of each kind
SIDE = 128
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def rows_of(split: str) -> list[dict]:
    return list(csv.DictReader((FOLDER / f"toyedit-{split}.csv").read_text(encoding="utf-8").splitlines()))


def point(rows: list[dict], dev: list[dict], name: str) -> dict[str, float]:
    """Mean success, details kept, both, seconds and evaluations of a method at the value that was best on dev."""
    own, best = measured(rows, name), best_value(dev, name)
    kept = [numbers_in(row["kept"])[best] for row in own]
    found = {"kept": float(np.nanmean(kept))}
    found["both"] = float(np.mean([worth(row)[best] for row in own]))
    found["success"] = float(np.mean([numbers_in(row["success"])[best] for row in own]))
    for what in ("seconds", "evaluations"):
        found[what] = float(np.mean([float(row[what]) + numbers_in(row[f"{what}_a_picture"])[best] for row in own]))
    return found


def figure(points: dict[str, dict[str, float]], titles: dict[str, str]) -> Figure:
    """Left, the share of successes against the time of one picture; right, what they keep of the input."""
    whole = Figure(figsize=(11, 4.6), layout="constrained")
    panels = whole.subplots(1, 2, sharex=True)
    for axis, (what, label) in zip(
        panels, (("success", "edits that succeed, %"), ("kept", "details kept, %")), strict=True
    ):
        for k, (name, found) in enumerate(points.items()):
            axis.scatter(
                found["seconds"],
                100 * found[what],
                s=70,
                color=COLOURS[k % len(COLOURS)],
                marker="os^Dv"[k // len(COLOURS)],
                label=titles[name],
            )
        axis.set(xscale="log", ylim=(0, 105))
        axis.set_xlabel("seconds for one edited picture, training included", fontsize=12)
        axis.set_ylabel(label, fontsize=12)
        axis.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=10)
    return whole


def sheet(split: str, names: list[str], methods: dict, dev: list[dict], folder: Path) -> tuple[Image.Image, list[dict]]:
    """A row for each edit: the input, the right answer, and one picture of each method; and what each row is about."""
    jobs, about = read_table(write_table(split, range(EDITS), folder)), []
    whole = Image.new("RGB", (SIDE * (2 + len(names)), SIDE * EDITS), "white")
    for line, base in enumerate(jobs):
        for column, name in enumerate(names):
            path = folder / "sweep" / "edits" / job_for(base, name, methods[name]).name / SHEET
            with Image.open(path) as drawn:
                if column == 0:
                    whole.paste(drawn.crop((0, 0, 2 * SIDE, SIDE)), (0, SIDE * line))
                left = SIDE * (2 + best_value(dev, name))
                whole.paste(drawn.crop((left, 0, left + SIDE, SIDE)), (SIDE * (2 + column), SIDE * line))
        about.append({"edit": line, "text": base.text})
    return whole, about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--community", type=Path)
    asked = parser.parse_args()
    rows, dev = rows_of("test"), rows_of("dev")
    methods = {name: method for name, method in all_methods(asked.community).items() if measured(rows, name)}
    put(ROOT / "benchmarks" / "README.md", "methods", tables(methods, rows, dev))
    points = {name: point(rows, dev, name) for name in methods}
    points = {name: found for name, found in points.items() if not math.isnan(found["kept"])}
    titles = {name: method.title for name, method in methods.items()}
    figure(points, titles).savefig(FOLDER / "methods.png", dpi=80)
    versions = {name: measured(rows, next(iter(methods)))[0][name] for name in VERSIONS}
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    names = [name for name in SHOWN if name in methods]
    whole, about = sheet("test", names, methods, dev, RUNS / key)
    whole.save(FOLDER / "methods.jpg", quality=85, optimize=True)
    facts = {"columns": ["input", "truth", *names], "titles": titles, "rows": about, "points": points}
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(FOLDER / "methods.json", lambda tmp: tmp.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
