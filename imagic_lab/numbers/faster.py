"""A faster Imagic: what buys what? The paper's schedule, the library's, and one choice at a time between them.

    python -m imagic_lab.numbers.faster          # about ninety minutes of one core; goes on where it was stopped
    python -m imagic_lab.numbers.faster 1        # the first edit only

Each edit of ToyEdit dev on each schedule is kept in data/experiments/faster.json at once; the table goes into
imagic_lab/numbers/README.md.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial
from statistics import fmean

import numpy as np

import imagic_lib as imagic
from imagic_lab.benchmark.benchmark import interval, measure, numbers_in, versions_of, worth
from imagic_lab.experiments.schedules import Schedule, scheduled
from imagic_lab.methods import FAST, IMAGIC, PAPER, WAYS, on_the_way
from imagic_lab.methods.tuning import pair_at
from imagic_lab.numbers.report import README, put, table
from imagic_lab.numbers.results import Results
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import toyedit
from imagic_lib import stage1_embedding, stage2_finetuning

COUNT = 4  # edits of dev, one of each kind
FIRST, SECOND = stage1_embedding.DEFAULTS["tiny"], stage2_finetuning.DEFAULTS["full"]["tiny"]
OURS = Schedule(
    FIRST["steps"],
    SECOND["steps"],
    (FIRST["lr"], SECOND["lr"]),
    batch=SECOND["batch"],
    decay=SECOND["decay"],
    bias=SECOND["bias"],
)
PAPERS = Schedule(
    PAPER["tiny"][0]["steps"], PAPER["tiny"][1]["steps"], (PAPER["tiny"][0]["lr"], PAPER["tiny"][1]["lr"])
)
FEW = replace(
    OURS,
    first=FAST["tiny"][0]["steps"],
    second=FAST["tiny"][1]["steps"],
    rates=(FAST["tiny"][0]["lr"], FAST["tiny"][1]["lr"]),
)
SCHEDULES = {
    "the paper's": PAPERS,
    "the paper's, a fifth of the steps, five times the rates": replace(
        PAPERS, first=200, second=300, rates=tuple(5 * lr for lr in PAPERS.rates)
    ),
    "the library's": OURS,
    "few steps, larger rates": FEW,
    "few steps, times without strata": replace(FEW, stratified=False),
    "few steps, the rate not lowered": replace(FEW, decay=0.0),
    "few steps, all times alike (no bias)": replace(FEW, bias=0.0),
    "e and θ together": replace(FEW, second=FEW.first + FEW.second, order="joint"),
    "e and θ in turns": replace(FEW, second=(FEW.first + FEW.second) // 2, order="alternating"),
    "few steps, attention only": replace(FEW, layers="attn"),
    "few steps, all but attention": replace(FEW, layers="^(?!.*attn)"),
    "the library's, until the probe settles": replace(OURS, patience=2),
}


def worths(found: list[dict]) -> list[float]:
    """What each edit is worth, at the place on the way that is worth most over all edits."""
    values = np.array([worth(one) for one in found])
    return values[:, int(values.mean(axis=0).argmax())].tolist()


def row_of(name: str, found: list[dict], few: list[dict]) -> list[str]:
    """At the place on the way that is worth most over all edits. few: the runs of the few steps, of the same edits."""
    success = [numbers_in(one["success"]) for one in found]
    best = int(np.argmax(np.mean([worth(one) for one in found], axis=0)))
    kept = [numbers_in(one["kept"])[best] for one in found]
    evaluations, seconds = (fmean(float(one[what]) for one in found) for what in ("with_gradient", "seconds"))
    numbers = [f"{evaluations:.0f}", f"{seconds:.0f}", f"{fmean(float(one['psnr']) for one in found):.1f}"]
    eta, scale = pair_at(WAYS[best])
    differences = [a - b for a, b in zip(worths(found), worths(few), strict=True)]
    shares = [s[best] for s in success], kept, worths(found), differences
    return [name, *numbers, f"{eta:g}, {scale:g}", *map(interval, shares)]


def page_of(runs: dict[str, dict]) -> str:
    """The table of the runs that are stored, with its note."""
    header = [
        "schedule",
        "samples with gradient",
        "seconds",
        "PSNR at η = 0, dB",
        "η, λ",
        "success",
        "details kept",
        "both",
        "minus few steps",
    ]
    of = {name: [run for key, run in runs.items() if key.endswith(f"/ {name}")] for name in SCHEDULES}
    count = min(len(found) for found in of.values())  # a run that was stopped in the midst of an edit leaves it out
    note = f"{count} edits of ToyEdit dev, 4 seeds each; in brackets 95 % intervals over the edits. The last column "
    note += "is the difference in 'both' edit by edit, in points. The pair (η, λ) of each line, and the rates of the "
    note += "few steps, were chosen on these edits. The seconds are of one core while the other was busy.\n"
    few = of["few steps, larger rates"][:count]
    return table(header, [row_of(name, found[:count], few) for name, found in of.items()]) + "\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=COUNT, help="so many edits")
    asked = parser.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("faster.json", "versions", "runs")
    versions = versions_of(pipe, reader)
    if (results.found["versions"] or versions) != versions:
        raise ValueError(f"{results.path} was measured with other versions: delete it to measure anew")
    results.found["versions"] = versions
    for index, edit in enumerate(toyedit("dev")[: asked.count]):
        for name, schedule in SCHEDULES.items():
            key, about = f"{index} / {name}", {k: str(v) for k, v in asdict(schedule).items()}
            if results.found["runs"].get(key, {}).get("schedule") != about:
                method = on_the_way(name, IMAGIC, partial(scheduled, schedule=schedule))
                found, _ = measure(method, pipe, edit, reader)
                results.keep("runs", key, found | {"schedule": about})
    put(README, "faster", page_of(results.found["runs"]))


if __name__ == "__main__":
    main()
