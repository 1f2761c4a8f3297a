"""What makes Imagic faster? The paper's schedule, the library's, and others that differ from these in one choice.

    python -m imagic_lab.numbers.schedules          # about ninety minutes of one core; continues where it was stopped
    python -m imagic_lab.numbers.schedules 1        # only the first edit

Each edit of ToyEdit dev on each schedule is written into data/experiments/faster.json at once; the table goes into
imagic_lab/numbers/README.md.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from statistics import fmean

import numpy as np

import imagic_lib as imagic
from imagic_lab.benchmark import (
    markdown_table,
    mean_and_interval,
    measure_edit,
    numbers_in,
    success_times_kept,
    versions_of,
)
from imagic_lab.experiments.schedules import Schedule, scheduled
from imagic_lab.methods import IMAGIC, ON_THE_WAY, PAPER, WAY_VALUES, Method
from imagic_lab.methods.tuning import pair_at
from imagic_lab.numbers.report import README, command_line, put
from imagic_lab.numbers.results import Results
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import toyedit
from imagic_lib import stage1_embedding, stage2_finetuning

DEV_EDITS = 4  # one of each kind
STAGE_1, STAGE_2 = stage1_embedding.DEFAULTS["tiny"], stage2_finetuning.DEFAULTS["full"]["tiny"]
OURS = Schedule(
    STAGE_1["steps"],
    STAGE_2["steps"],
    (STAGE_1["lr"], STAGE_2["lr"]),
    batch=STAGE_2["batch"],
    decay=STAGE_2["decay"],
    bias=STAGE_2["bias"],
)
MORE_STEPS = replace(OURS, first=40, second=100, rates=(5e-2, 2e-4))
PAPERS = Schedule(
    PAPER["tiny"][0]["steps"], PAPER["tiny"][1]["steps"], (PAPER["tiny"][0]["lr"], PAPER["tiny"][1]["lr"])
)
ALL_STEPS = OURS.first + OURS.second
SCHEDULES = {
    "the paper's": PAPERS,
    "the paper's, a fifth of the steps, five times the rates": replace(
        PAPERS, first=200, second=300, rates=tuple(5 * lr for lr in PAPERS.rates)
    ),
    "more steps, smaller rates": MORE_STEPS,
    "the library's, few steps": OURS,
    "few steps, times without strata": replace(OURS, stratified=False),
    "few steps, the rate not lowered": replace(OURS, decay=0.0),
    "few steps, all times alike (no bias)": replace(OURS, bias=0.0),
    "e and θ together": replace(OURS, second=ALL_STEPS, order="joint"),
    "e and θ in turns": replace(OURS, second=ALL_STEPS // 2, order="alternating"),
    "few steps, attention only": replace(OURS, layers="attn"),
    "few steps, all but attention": replace(OURS, layers="^(?!.*attn)"),
    "more steps, until the probe settles": replace(MORE_STEPS, patience=2),
}


def best_values(found: list[dict]) -> tuple[int, list[float]]:
    """(where on the way the edits are worth most on average, by its index; what each edit is worth there)."""
    values = np.array([success_times_kept(one) for one in found])
    best = int(values.mean(axis=0).argmax())
    return best, values[:, best].tolist()


def schedule_row(name: str, found: list[dict], few: list[dict]) -> list[str]:
    """The line of a schedule, at its best place on the way. few: runs of the few steps, for the same edits."""
    success = [numbers_in(one["success"]) for one in found]
    best, values = best_values(found)
    kept = [numbers_in(one["kept"])[best] for one in found]
    evaluations, seconds = (fmean(float(one[what]) for one in found) for what in ("with_gradient", "seconds"))
    numbers = [f"{evaluations:.0f}", f"{seconds:.0f}", f"{fmean(float(one['psnr']) for one in found):.1f}"]
    eta, scale = pair_at(WAY_VALUES[best])
    differences = [a - b for a, b in zip(values, best_values(few)[1], strict=True)]
    shares = [mean_and_interval(share) for share in ([s[best] for s in success], kept, values)]
    return [name, *numbers, f"{eta:g}, {scale:g}", *shares, mean_and_interval(differences, share=False)]


def schedules_table(runs: dict[str, dict]) -> str:
    """The table of the stored runs, with its note."""
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
    count = min(len(found) for found in of.values())  # without the edit in which a run was stopped
    note = f"{count} edits of ToyEdit dev, 4 seeds each; in brackets 95 % intervals over the edits. The last column "
    note += "is the difference in 'both' edit by edit, in points. The pair (η, λ) of each line, and the rates of the "
    note += "few steps, were chosen on these edits. The seconds are of one core while the other was busy.\n"
    few = of["the library's, few steps"][:count]
    return markdown_table(header, [schedule_row(name, found[:count], few) for name, found in of.items()]) + "\n" + note


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("count", nargs="?", type=int, default=DEV_EDITS, help="how many edits (default: 4)")
    asked = options.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("faster.json", "versions", "runs")
    results.check_versions(versions_of(pipe, reader))
    for index, edit in enumerate(toyedit("dev")[: asked.count]):
        for name, schedule in SCHEDULES.items():
            key, about = f"{index} / {name}", {k: str(v) for k, v in asdict(schedule).items()}
            if results.found["runs"].get(key, {}).get("schedule") != about:
                method = Method(name, IMAGIC, partial(scheduled, schedule=schedule), **ON_THE_WAY)
                found, _ = measure_edit(method, pipe, edit, reader, seeds=range(4))
                results.keep("runs", key, found | {"schedule": about})
    put(README, "faster", schedules_table(results.found["runs"]))


if __name__ == "__main__":
    main()
