"""The methods, compared: tables, the figure of quality against time, and the pictures behind the numbers.

    python -m imagic_lib benchmark --split dev --edits 4      # some core-hours each; they go on where they were stopped
    python -m imagic_lib benchmark --split test --edits 12
    python -m imagic_lab.numbers.methods                              # seconds; reads their rows and pictures

It writes the tables of README.md, data/experiments/methods.png, methods.json, and methods.jpg, the sheet of
pictures. The pictures lie in the benchmark's work folder; in a fresh clone, which has the rows alone, the sheet stays.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from imagic_lab.benchmark.benchmark import (
    SHEET,
    VERSIONS,
    best_value,
    current,
    job_for,
    mean_cost,
    measured,
    numbers_in,
    tables,
    worth,
    write_table,
)
from imagic_lab.methods import METHODS, Method, community_methods
from imagic_lab.numbers.report import README, ROOT, put
from imagic_lab.numbers.results import FOLDER
from imagic_lab.sweep.table import read_table
from imagic_lib.training.checkpoints import write_atomically

RUNS = ROOT / "runs" / "benchmark"
SHOWN = ("imagic", "imagic-fast", "no-stage-2", "sdedit", "npi", "p2p", "ledits")
EDITS = 12  # in the sheet of pictures: three of each kind
SIDE = 128
ABOVE, RIGHT, BELOW, LEFT = (0, 11), (13, 0), (0, -11), (-13, 0)  # points: where a number stands beside its dot
PLACES = {"imagic": BELOW, "imagic-fast": ABOVE, "community": BELOW, "ddim-inversion": BELOW, "npi": BELOW, "p2p": LEFT}
PLACES |= {"ledits": ABOVE, "text": ABOVE, "sdedit": BELOW}
COLOURS = {"imagic": "#0072B2", "community": "#D55E00", "inversion": "#009E73", "other": "#555555"}


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
        found[what] = mean_cost(own, what, best)
    return found


def figure(points: dict[str, dict], methods: dict[str, Method]) -> Figure:
    """Left, what an edit is worth against the seconds of one picture; right, details kept against success."""
    whole = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = whole.subplots(1, 2)
    for number, (name, found) in enumerate(points.items(), 1):
        colour = COLOURS[family_of(name)]
        for axis, x, y in ((left, found["seconds"], found["both"]), (right, 100 * found["success"], found["kept"])):
            axis.scatter(x, 100 * y, label=f"{number}  {methods[name].title}", color=colour, s=60, alpha=0.7)
            place = {"xytext": PLACES.get(name, RIGHT), "textcoords": "offset points"}
            axis.annotate(str(number), (x, 100 * y), **place, ha="center", va="center", fontsize=11, color=colour)
    if "text" in points:
        base = 100 * points["text"]["both"]
        left.axhline(base, color=COLOURS["other"], linestyle="--", linewidth=1)
        words = {"transform": left.get_yaxis_transform(), "ha": "right", "fontsize": 10, "color": COLOURS["other"]}
        left.text(0.99, base + 1, "no edit: the text alone", **words)
    left.set(xscale="log", ylim=(0, 100))
    left.set_xlabel("seconds for one edited picture, training included", fontsize=12)
    left.set_ylabel("success × details kept, %", fontsize=12)
    right.set(xlim=(0, 105), ylim=(0, 100))
    right.set_xlabel("edits that succeed, %", fontsize=12)
    right.set_ylabel("details kept by these, %", fontsize=12)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    whole.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    return whole


def family_of(name: str) -> str:
    """Imagic of this library, of the community, what starts from an inversion, or another way."""
    if name.startswith(("imagic", "no-stage")):
        return "imagic"
    if name.startswith("community"):
        return "community"
    return "inversion" if name in ("ddim-inversion", "npi", "p2p", "null-text", "ledits") else "other"


def sheet(split: str, names: list[str], methods: dict, dev: list[dict], folder: Path) -> tuple[Image.Image, list[dict]]:
    """A row for each edit: the input, the right answer, and one picture of each method; and what each row is about."""
    folder.mkdir(parents=True, exist_ok=True)
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
    methods = METHODS | community_methods("")  # their rows are read, and need no file
    rows, dev = (current(rows_of(split), methods) for split in ("test", "dev"))
    methods = {name: method for name, method in methods.items() if measured(rows, name)}
    put(README, "methods", tables(methods, rows, dev))
    points = {name: point(rows, dev, name) for name in methods}
    points = {name: found for name, found in points.items() if not math.isnan(found["kept"])}
    figure(points, methods).savefig(FOLDER / "methods.png", dpi=80)
    keep(points=points, titles={name: method.title for name, method in methods.items()})
    versions = {name: measured(rows, next(iter(methods)))[0][name] for name in VERSIONS}
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    names = [name for name in SHOWN if name in methods]
    try:
        whole, about = sheet("test", names, methods, dev, RUNS / key)
    except FileNotFoundError as error:
        print(f"methods.jpg stays as it is: there are not all pictures here ({error.filename})")
    else:
        whole.save(FOLDER / "methods.jpg", quality=85, optimize=True)
        keep(columns=["input", "truth", *names], rows=about)


def keep(**facts) -> None:
    """Put these facts into methods.json; the others stay."""
    path = FOLDER / "methods.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(known | facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
