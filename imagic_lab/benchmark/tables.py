"""What the benchmark prints: one table of all methods, and one of their success by kind of edit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imagic_lab.benchmark.rows import best_index, measured_rows, numbers_in, success_times_kept
from imagic_lab.methods import Method
from imagic_lab.toyworld.edits import EDIT_KINDS

HEADER = ("method", "knob", "success", "details kept", "both", "PSNR, dB", "seconds", "UNet evaluations", "failed")
NOTE = """{} edits. Details kept: of the successful pictures. Both: success x details kept, where a failure keeps
nothing; for this the knob was chosen, on {} edits of dev. PSNR: to the input, where a value of the knob stands for it.
Seconds and evaluations are for one picture, training or inversion included; after the plus sign those that a backward
pass followed. In brackets 95 % intervals over the edits. The last table has too few edits of a kind for intervals.
"""


def method_tables(methods: dict[str, Method], rows: Sequence[dict], dev: Sequence[dict]) -> str:
    """Two Markdown tables. Each method is shown at the value of its knob that was best on "dev".

    A method that failed on an edit has not succeeded there. A dash stands where nothing was measured.
    """
    whole, by_kind = [], []
    for name, method in methods.items():
        own = [row for row in rows if row["method"] == name]
        if measured_rows(own, name) and measured_rows(dev, name):
            best = best_index(dev, name)
            whole.append(summary(method, own, measured_rows(own, name), best))
            by_kind.append([method.title, *(success_of_kind(own, kind, best) for kind in EDIT_KINDS)])
        else:
            whole.append([method.title, *["–"] * 7, str(len(own) - len(measured_rows(own, name)))])
            by_kind.append([method.title, *["–"] * len(EDIT_KINDS)])
    note = NOTE.format(*(len({row["edit"] for row in some}) for some in (rows, dev)))
    return f"{markdown_table(HEADER, whole)}\n{note}\n{markdown_table(['success', *EDIT_KINDS], by_kind)}"


def summary(method: Method, own: Sequence[dict], good: Sequence[dict], best: int) -> list[str]:
    """The line of one method, from its rows (own) and those of them that are not failures (good)."""
    return [
        method.title,
        method.said(method.values[best]),
        mean_and_interval([success_at(row, best) for row in own]),
        mean_and_interval([numbers_in(row["kept"])[best] for row in good]),
        mean_and_interval([0.0 if row["error"] else success_times_kept(row)[best] for row in own]),
        f"{np.mean([float(row['psnr']) for row in good]):.1f}" if method.rebuilds else "–",
        f"{mean_cost(good, 'seconds', best):.1f}",
        cost_in_words(good, best),
        str(len(own) - len(good)),
    ]


def success_at(row: dict, best: int) -> float:
    return 0.0 if row["error"] else numbers_in(row["success"])[best]


def success_of_kind(rows: Sequence[dict], kind: str, best: int) -> str:
    """The mean success on edits of one kind, in percent; a dash if there are none."""
    shares = [success_at(row, best) for row in rows if row["kind"] == kind]
    return f"{100 * np.mean(shares):.0f} %" if shares else "–"


def mean_cost(rows: Sequence[dict], what: str, best: int) -> float:
    """Seconds or evaluations for one picture at a value of the knob, including what the method does before it."""
    return float(np.mean([float(row[what]) + numbers_in(row[f"{what}_a_picture"])[best] for row in rows]))


def cost_in_words(rows: Sequence[dict], best: int) -> str:
    """'40 + 1120': UNet evaluations without and with a backward pass."""
    learning = float(np.mean([float(row["with_gradient"]) for row in rows]))
    alone = f"{mean_cost(rows, 'evaluations', best) - learning:.0f}"
    return f"{alone} + {learning:.0f}" if learning else alone


def mean_and_interval(values: Sequence[float], repeats: int = 2000) -> str:
    """'81 % (69–94)': the mean and its 95 % interval, by a bootstrap over the edits; a dash without values."""
    values = [value for value in values if not math.isnan(value)]
    if not values:
        return "–"
    means = np.random.default_rng(0).choice(values, (repeats, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{100 * np.mean(values):.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
