"""How do the methods compare? The tables, a figure of quality against time, and the pictures behind the numbers.

    python -m imagic_lab.numbers.methods        # seconds; reads the benchmark's rows and pictures

It reads data/experiments/toyedit-*.csv, which `python -m imagic_lab.benchmark` measured (README.md says how), and
writes the tables of README.md and data/experiments/methods.png, .json and .jpg. The last is a sheet of pictures from
the benchmark's work folder. A fresh clone has no such folder, so there the sheet is left unchanged.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from imagic_lab.benchmark import (
    at_value,
    best_value,
    current_rows,
    markdown_table,
    mean_and_interval,
    measured_rows,
    method_tables,
    numbers_in,
)
from imagic_lab.benchmark.jobs import PICTURE_SHEET, job_for
from imagic_lab.benchmark.rows import COMPARABLE
from imagic_lab.benchmark.tables import mean_cost
from imagic_lab.methods import METHODS, Method, community_methods
from imagic_lab.numbers.report import README, ROOT, command_line, put
from imagic_lab.numbers.results import FOLDER
from imagic_lab.toyworld.edits import EDIT_KINDS
from imagic_lib.files import write_atomically

WORK_FOLDER = ROOT / "runs" / "benchmark"
SHEET_METHODS = ("imagic", "imagic-own", "no-stage-2", "sdedit", "npi", "p2p", "ledits")
SHEET_EDITS = 12  # three of each kind
TILE_PIXELS = 128  # width and height of a tile
ABOVE, RIGHT, BELOW, LEFT = (0, 11), (13, 0), (0, -11), (-13, 0)  # points from a dot to its number
NUMBER_PLACES = {
    "imagic": BELOW,
    "imagic-own": ABOVE,
    "community": BELOW,
    "ddim-inversion": BELOW,
    "npi": BELOW,
    "p2p": LEFT,
}
NUMBER_PLACES |= {"ledits": ABOVE, "text": ABOVE, "sdedit": BELOW}
INVERSIONS = ["ddim-inversion", "npi", "p2p", "null-text", "pnp-inversion", "edit-friendly", "h-edit", "ddcm", "ledits"]
GROUP_COLOURS = {"imagic": "#0072B2", "community": "#D55E00", "inversion": "#009E73", "other": "#555555"}


def stored_rows(split: str) -> list[dict]:
    return list(csv.DictReader((FOLDER / f"toyedit-{split}.csv").read_text(encoding="utf-8").splitlines()))


def point_of(rows: list[dict], dev: list[dict], name: str) -> dict[str, float]:
    """Return a method's means at the value that was best on dev: success, details kept, both, seconds, evaluations."""
    own, best = measured_rows(rows, name), best_value(dev, name)
    found = {"kept": float(np.nanmean([at_value(row, "kept", best) for row in own]))}
    found["both"] = float(np.mean([at_value(row, "worth", best) for row in own]))
    found["success"] = float(np.mean([at_value(row, "success", best) for row in own]))
    for what in ("seconds", "evaluations"):
        found[what] = mean_cost(own, what, best)
    return found


def figure_of_methods(points: dict[str, dict], methods: dict[str, Method]) -> Figure:
    """Plot success × details kept against the seconds of one picture, and to the right details kept against success."""
    whole = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = whole.subplots(1, 2)
    for number, (name, found) in enumerate(points.items(), 1):
        colour = GROUP_COLOURS[group_of(name)]
        for axis, x, y in ((left, found["seconds"], found["both"]), (right, 100 * found["success"], found["kept"])):
            axis.scatter(x, 100 * y, label=f"{number}  {methods[name].title}", color=colour, s=60, alpha=0.7)
            place = {"xytext": NUMBER_PLACES.get(name, RIGHT), "textcoords": "offset points"}
            axis.annotate(str(number), (x, 100 * y), **place, ha="center", va="center", fontsize=11, color=colour)
    if "text" in points:
        base = 100 * points["text"]["both"]
        left.axhline(base, color=GROUP_COLOURS["other"], linestyle="--", linewidth=1)
        words = {
            "transform": left.get_yaxis_transform(),
            "ha": "right",
            "fontsize": 10,
            "color": GROUP_COLOURS["other"],
        }
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


def group_of(name: str) -> str:
    """Say whether it is this library's Imagic, the community's, a method that starts from an inversion, or another."""
    if name.startswith(("imagic", "no-stage", "own")):
        return "imagic"
    if name.startswith("community"):
        return "community"
    return "inversion" if name in INVERSIONS else "other"


def sheet_of_methods(
    split: str, names: list[str], methods: dict, rows: list[dict], dev: list[dict], folder: Path
) -> tuple[Image.Image, list[dict]]:
    """Draw a row for each edit (input, ground truth, each method). Returns the sheet, and facts on each row."""
    whole, about = Image.new("RGB", (TILE_PIXELS * (2 + len(names)), TILE_PIXELS * SHEET_EDITS), "white"), []
    for line in range(SHEET_EDITS):
        for column, name in enumerate(names):
            [row] = [one for one in rows if (one["method"], one["edit"], one["training"]) == (name, str(line), "0")]
            values = numbers_in(row["values"])
            job = job_for(split, line, name, replace(methods[name], values=tuple(values)))
            with Image.open(folder / "sweep" / "edits" / job.name / PICTURE_SHEET) as drawn:
                if column == 0:
                    whole.paste(drawn.crop((0, 0, 2 * TILE_PIXELS, TILE_PIXELS)), (0, TILE_PIXELS * line))
                left = TILE_PIXELS * (2 + values.index(best_value(dev, name)))
                whole.paste(
                    drawn.crop((left, 0, left + TILE_PIXELS, TILE_PIXELS)),
                    (TILE_PIXELS * (2 + column), TILE_PIXELS * line),
                )
        about.append({"edit": line, "text": job.text})
    return whole, about


def values_table(rows: list[dict]) -> str:
    """Return a table of one method at every value of its knob, on the rows of dev, which would choose the value."""
    lines = []
    for value in numbers_in(rows[0]["values"]):
        success, kept, worth = ([at_value(row, w, value) for row in rows] for w in ("success", "kept", "worth"))
        of = {kind: [w for row, w in zip(rows, worth, strict=True) if row["kind"] == kind] for kind in EDIT_KINDS}
        kinds = ", ".join(f"{100 * np.mean(some):.0f}" for some in of.values())
        line = [mean_and_interval(success), f"{100 * np.nanmean(kept):.0f} %", mean_and_interval(worth), f"{kinds} %"]
        lines.append([f"{value:g}", *line])
    header = [rows[0]["knob"], "success", "details kept", "worth", "worth by kind: " + ", ".join(EDIT_KINDS)]
    pictures = "{} edits of ToyEdit dev, {} pictures each; in brackets 95 % intervals over the edits."
    return markdown_table(header, lines) + "\n" + pictures.format(len(rows), rows[0]["pictures"])


def main() -> None:
    command_line(__doc__).parse_args()
    put(README, "dev40", values_table(measured_rows(stored_rows("dev40"), "imagic-own")))
    methods = METHODS | community_methods("")  # only their rows are read, so no file is needed
    rows, dev = (current_rows(stored_rows(split), methods) for split in ("test", "dev"))
    methods = {name: method for name, method in methods.items() if measured_rows(rows, name)}
    put(README, "methods", method_tables(methods, rows, dev))
    points = {name: point_of(rows, dev, name) for name in methods}
    points = {name: found for name, found in points.items() if not math.isnan(found["kept"])}
    figure_of_methods(points, methods).savefig(FOLDER / "methods.png", dpi=80)
    keep_facts(points=points, titles={name: method.title for name, method in methods.items()})
    versions = {name: measured_rows(rows, next(iter(methods)))[0][name] for name in COMPARABLE}
    key = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
    names = [name for name in SHEET_METHODS if name in methods]
    try:
        whole, about = sheet_of_methods("test", names, methods, rows, dev, WORK_FOLDER / key)
    except FileNotFoundError as error:
        print(f"methods.jpg stays as it is, because pictures are missing here ({error.filename})")
    else:
        whole.save(FOLDER / "methods.jpg", quality=85, optimize=True)
        keep_facts(columns=["input", "truth", *names], rows=about)


def keep_facts(**facts) -> None:
    """Put these facts into methods.json, and leave the others there."""
    path = FOLDER / "methods.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = json.dumps(known | facts, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
