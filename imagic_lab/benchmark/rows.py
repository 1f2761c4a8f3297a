"""The rows of the benchmark, a CSV file with one for each edit and method; and each knob, chosen on the rows of dev."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagic_lab.benchmark.measuring import READINGS, cell_of
from imagic_lab.benchmark.versions import hash_of_settings
from imagic_lab.methods import Method
from imagic_lib.files import write_atomically

COMPARABLE = ("toyedit", "library", "torch", "diffusers", "model", "reader")  # must agree in rows that are compared
LISTS = (*READINGS, "seconds_a_picture", "evaluations_a_picture")  # cells with a number for each value of the knob
ROW_COLUMNS = (
    *("split", "edit", "kind", "from", "to", "method", "training", "settings", "knob", "values", "pictures", *LISTS),
    *("psnr", "seconds", "evaluations", "with_gradient", "error", "date", *COMPARABLE),
)


def read_rows(path: Path, versions: dict[str, str], advice: str = "move it away, or give another --out") -> list[dict]:
    """Read the rows of a file; none if it does not exist yet. Raises ValueError if the file is not the benchmark's, or
    if its rows have other versions. advice: what to do then."""
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable CSV file ({error})") from None
    for row in rows:
        if tuple(row) != ROW_COLUMNS or None in row.values():
            raise ValueError(f"{path} does not have the benchmark's columns: {advice}")
        # the row of a failed edit has no versions, and the edit is tried again
        if other := [name for name in COMPARABLE if row[name] and row[name] != versions[name]]:
            said = ", ".join(f"{name} {row[name]} (here {versions[name]})" for name in other)
            raise ValueError(f"{path} was measured with {said}: {advice}")
    return rows


def add_rows(path: Path, rows: Sequence[dict], new: Sequence[dict]) -> list[dict]:
    """Add new rows, which replace those of the same edit, method and training. Writes and returns all rows."""
    new = [{name: str(row.get(name, "")) for name in ROW_COLUMNS} for row in new]
    found = {(int(row["edit"]), row["method"], int(row["training"])): row for row in [*rows, *new]}
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=ROW_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found[key] for key in sorted(found))
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    return [found[key] for key in sorted(found)]


def current_rows(rows: Sequence[dict], methods: dict[str, Method]) -> list[dict]:
    """Return the rows of these methods whose settings and knob values are still in use, and failures."""
    tried = {name: set(cell_of(method.values).split()) for name, method in methods.items()}
    hashes = {name: hash_of_settings(method) for name, method in methods.items()}
    return [r for r in rows if (m := r["method"]) in tried and (r["error"] or
            (hashes[m] == r["settings"] and tried[m] >= set(r["values"].split())))]  # fmt: skip


def measured_rows(rows: Sequence[dict], method: str) -> list[dict]:
    """Return the rows of one method, without its failures."""
    return [row for row in rows if row["method"] == method and not row["error"]]


def numbers_in(cell: str) -> list[float]:
    return [float(number) for number in cell.split()]


def success_times_kept(row: dict) -> np.ndarray:
    """Return the worth of an edit, success × details kept, for each value of the knob. A failure keeps nothing."""
    success, kept = (np.array(numbers_in(row[name])) for name in ("success", "kept"))
    return success * np.nan_to_num(kept)


def best_value(rows: Sequence[dict], method: str) -> float:
    """Return the knob's value with the highest worth on these edits; of equal ones the first, which keeps the most."""
    own = measured_rows(rows, method)
    return numbers_in(own[0]["values"])[int(np.mean([success_times_kept(row) for row in own], axis=0).argmax())]


def at_value(row: dict, what: str, value: float) -> float:
    """Return a cell's number at a value of the knob. what: one of `LISTS`, or "worth" (success × details kept)."""
    numbers = success_times_kept(row) if what == "worth" else numbers_in(row[what])
    return float(numbers[numbers_in(row["values"]).index(value)])
