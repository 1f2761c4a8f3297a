"""The tables that the benchmark prints: one of all methods, and one of their success by kind of edit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from imagic_lab.benchmark.rows import at_value, best_value, measured_rows
from imagic_lab.methods import Method
from imagic_lab.toyworld.edits import EDIT_KINDS

HEADER = ("method", "knob", "success", "details kept", "worth", "PSNR, dB", "seconds", "UNet evaluations", "failed")
NOTE = """{} edits. Details kept: of the successful pictures. Worth: success x details kept, where a failure keeps
nothing; for this the knob was chosen, on {} edits of dev. PSNR: to the input, where a value of the knob stands for it.
Seconds and evaluations are for one picture, training or inversion included; after the plus sign those that a backward
pass followed. In brackets 95 % intervals over the edits. The last table has too few edits of a kind for intervals.
"""


def method_tables(methods: dict[str, Method], rows: Sequence[dict], dev: Sequence[dict]) -> str:
    """Return two Markdown tables, with each method at the value of its knob that was best on "dev".

    If a method failed on an edit, that counts as no success. A dash means that nothing was measured.
    """
    whole, by_kind = [], []
    for name, method in methods.items():
        own = [row for row in rows if row["method"] == name]
        if measured_rows(own, name) and measured_rows(dev, name):
            best = best_value(dev, name)
            whole.append(summary(method, own, measured_rows(own, name), best))
            by_kind.append([method.title, *(success_of_kind(own, kind, best) for kind in EDIT_KINDS)])
        else:
            whole.append([method.title, *["–"] * 7, str(len(own) - len(measured_rows(own, name)))])
            by_kind.append([method.title, *["–"] * len(EDIT_KINDS)])
    note = NOTE.format(*(len({row["edit"] for row in some}) for some in (rows, dev)))
    return f"{markdown_table(HEADER, whole)}\n{note}\n{markdown_table(['success', *EDIT_KINDS], by_kind)}"


def summary(method: Method, own: Sequence[dict], good: Sequence[dict], best: float) -> list[str]:
    """Return the line of one method, from its rows (own) and those among them that are not failures (good)."""
    return [
        method.title,
        method.said(best),
        mean_and_interval(by_edit(own, "success", best)),
        mean_and_interval(by_edit(good, "kept", best)),
        mean_and_interval(by_edit(own, "worth", best)),
        f"{np.mean([float(row['psnr']) for row in good]):.1f}" if method.rebuilds else "–",
        f"{mean_cost(good, 'seconds', best):.1f}",
        cost_in_words(good, best),
        str(len(own) - len(good)),
    ]


def by_edit(rows: Sequence[dict], what: str, value: float) -> list[list[float]]:
    """Return, for each edit, a number for each training (see `at_value`), which is 0 if the method failed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        found.setdefault(int(row["edit"]), []).append(0.0 if row["error"] else at_value(row, what, value))
    return [found[edit] for edit in sorted(found)]


def success_of_kind(rows: Sequence[dict], kind: str, best: float) -> str:
    """Return the mean success on edits of one kind, in percent, or a dash if there are none."""
    shares = by_edit([row for row in rows if row["kind"] == kind], "success", best)
    return f"{100 * np.mean([np.mean(one) for one in shares]):.0f} %" if shares else "–"


def mean_cost(rows: Sequence[dict], what: str, best: float) -> float:
    """Return seconds or evaluations for one picture at a value of the knob, with what the method needs before it."""
    return float(np.mean([float(row[what]) + at_value(row, f"{what}_a_picture", best) for row in rows]))


def cost_in_words(rows: Sequence[dict], best: float) -> str:
    """Write UNet evaluations without and with a backward pass as '40 + 1120'."""
    learning = float(np.mean([float(row["with_gradient"]) for row in rows]))
    alone = f"{mean_cost(rows, 'evaluations', best) - learning:.0f}"
    return f"{alone} + {learning:.0f}" if learning else alone


Values = Sequence[float] | Sequence[Sequence[float]]  # one for each edit, or one for each of its trainings


def mean_and_interval(values: Values, repeats: int = 2000, share: bool = True) -> str:
    """Write the mean and its 95 % interval (`interval_of`) as '81 % (69–94)', or a dash without values."""
    mean, low, high = interval_of(values, repeats, share)
    return "–" if math.isnan(mean) else f"{100 * mean:.0f} % ({100 * low:.0f}–{100 * high:.0f})"


def interval_of(values: Values, repeats: int = 2000, share: bool = True) -> tuple[float, float, float]:
    """Return (mean, low, high), a mean over edits and its 95 % interval, by a bootstrap over the edits and, if an edit
    has several values (its trainings), also over these. nan is left out. share: whether the values are shares. If all
    are then 0, or all 1, Wilson's interval is used, because a bootstrap's would have no width."""
    groups = [[one for one in np.atleast_1d(value) if not math.isnan(one)] for value in values]
    groups = [np.array(group) for group in groups if group]
    several = any(len(group) > 1 for group in groups)
    if not groups:
        return math.nan, math.nan, math.nan
    mean, draw = float(np.mean([group.mean() for group in groups])), np.random.default_rng(0)
    if share and len({*np.concatenate(groups)}) == 1 and mean in (0, 1):
        n, z = len(groups), 1.96
        centre, half = (mean + z * z / 2 / n) / (1 + z * z / n), z * z / 2 / n / (1 + z * z / n)
        return mean, max(0.0, centre - half), min(1.0, centre + half)
    again = np.stack([draw.choice(g, repeats) if several else g.repeat(repeats) for g in groups], axis=1)
    # above, a training is drawn for each edit; below, the edits are drawn
    whole = np.take_along_axis(again, draw.integers(len(groups), size=again.shape), axis=1)
    low, high = np.quantile(whole.mean(axis=1), (0.025, 0.975))
    return mean, float(low), float(high)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
