"""Imagic with its defaults on ToyEdit. Does the edit succeed, and does the picture keep its details?

    python -m imagic_lab.numbers.toyedit test       # 60 edits, two minutes of one core each
    python -m imagic_lab.numbers.toyedit dev 12     # the first 12 edits of dev

Each edit is written into data/experiments/edits.json at once, so the script continues where it was stopped. The table
of the test goes into the model card, that of dev is printed. The suggestion has not seen the seeds of the pictures.
"""

from __future__ import annotations

import time
from statistics import fmean

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table, mean_and_interval, versions_of
from imagic_lab.numbers.edits import UNSEEN_SEEDS
from imagic_lab.numbers.report import TINY_CARD, command_line, put
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import EDIT_COUNTS, EDIT_KINDS, toyedit
from imagic_lib import suggestion
from imagic_lib.pictures import psnr

REBUILT = 28.0  # dB; at η = 0, this PSNR to the VAE's reconstruction counts as rebuilt


def report_pair(reader, edit, pair: tuple[float, float], truth, before) -> dict:
    """Return, for one pair (η, λ), the shares of right pictures and successes, and the successes' details kept."""
    eta, scale = pair
    drawn = [row[0] for row in edit.pictures([eta], UNSEEN_SEEDS, scale=scale)]
    reports = [reader.report(picture, truth, before) for picture in drawn]
    kept = [report.kept for report in reports if report.success]
    found = {"right": fmean(r.right for r in reports), "success": fmean(r.success for r in reports)}
    return found | {"kept": rounded(fmean(kept)) if kept else None}


def measure_default_edit(pipe, reader, before, change: dict[str, str]) -> dict:
    """Make one edit with the defaults, and measure it."""
    began, truth = time.process_time(), before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found = {"kind": next(iter(change)), "from": before.caption(), "to": truth.caption()}
    found["seconds"] = rounded(time.process_time() - began, 1)
    rebuilt = edit.pictures([0.0], UNSEEN_SEEDS, noise="random")  # its own noise always rebuilds the input
    found["psnr"] = [rounded(psnr(row[0], edit.reconstruction), 1) for row in rebuilt]
    chosen = edit.suggest()
    pair = chosen.eta, chosen.scale
    found |= {"eta": chosen.eta, "scale": chosen.scale}
    found["seconds to suggest"] = rounded(time.process_time() - began - found["seconds"], 1)
    found["tuned"] = report_pair(reader, edit, pair, truth, before)
    found["untuned"] = report_pair(reader, edit, (chosen.eta, 0.0), truth, before)
    return found


def kind_row(name: str, edits: list[dict]) -> list[str]:
    rebuilt = [fmean(value >= REBUILT for value in edit["psnr"]) for edit in edits]
    both = [edit for edit in edits if None not in (edit["tuned"]["kept"], edit["untuned"]["kept"])]
    row = [name, str(len(edits)), mean_and_interval(rebuilt)]
    row += [
        mean_and_interval([edit[which][what] for edit in edits])
        for what in ("right", "success")
        for which in ("tuned", "untuned")
    ]
    kept = {which: [edit[which]["kept"] for edit in both] for which in ("tuned", "untuned")}
    difference = [tuned - untuned for tuned, untuned in zip(*kept.values(), strict=True)]
    return [*row, *map(mean_and_interval, kept.values()), mean_and_interval(difference, share=False)]


def toyedit_table(split: str, found: dict) -> str:
    edits = list(found.values())
    header = [
        "kind",
        "edits",
        f"η = 0, random noise: PSNR ≥ {REBUILT:g} dB",
        "right",
        "… untuned",
        "success",
        "… untuned",
    ]
    header += ["details kept", "… untuned", "difference"]
    rows = [kind_row(kind, some) for kind in EDIT_KINDS if (some := [e for e in edits if e["kind"] == kind])]
    pairs = [(e["eta"], e["scale"]) for e in edits]
    counts = {pair: pairs.count(pair) for pair in sorted(set(pairs), key=pairs.count, reverse=True)}
    chosen = ", ".join(f"({eta:g}, {scale:g}) {n}" for (eta, scale), n in counts.items())
    seconds, more = (fmean(edit[name] for edit in edits) for name in ("seconds", "seconds to suggest"))
    seeds = len(UNSEEN_SEEDS)
    note = f"""{len(edits)} edits of ToyEdit {split}, {seeds} seeds each; in brackets 95 % intervals by a bootstrap
over the edits. Pictures start from the input's own noise. Untuned: the same η at λ = 0. Details kept are those of
successful pictures, on the edits where both have some. Suggested (η, λ), and for how many edits: {chosen}.
Training took {seconds:.0f} s of one core, the suggestion {more:.0f} s.
"""
    return markdown_table(header, [*rows, kind_row("all", edits)]) + "\n" + note


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("split", choices=EDIT_COUNTS)
    options.add_argument("count", nargs="?", type=int, help="how many of its edits (default: all)")
    asked = options.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("edits.json", "versions", *EDIT_COUNTS)
    rule = suggestion.TRIES["own"], suggestion.SEEDS, suggestion.NEARLY
    results.check_versions(versions_of(pipe, reader) | {"suggestion": str(rule)})
    done = results.found[asked.split]
    for index, (before, change) in enumerate(toyedit(asked.split)[: asked.count]):
        if str(index) not in done:
            results.keep(asked.split, str(index), measure_default_edit(pipe, reader, before, change))
    if asked.split == "test":
        put(TINY_CARD, "toyedit", toyedit_table(asked.split, done))
    else:
        print(toyedit_table(asked.split, done))


if __name__ == "__main__":
    main()
