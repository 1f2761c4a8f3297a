"""Imagic with its defaults on ToyEdit: does the edit succeed, does the picture stay itself?

    python -m imagic_lab.numbers.toyedit test       # 60 edits, two minutes of one core each; resumable
    python -m imagic_lab.numbers.toyedit dev 12     # the first 12 edits of dev

Each edit is written into data/experiments/edits.json at once. The table of the test goes into the model card, that of
dev is printed. The pictures are drawn with seeds that the suggestion has not seen.
"""

from __future__ import annotations

import argparse
import time
from statistics import fmean

import imagic_lib as imagic
from imagic_lab.benchmark.benchmark import interval, versions_of
from imagic_lab.numbers.report import CARD, put, table
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import KINDS, SIZES, toyedit
from imagic_lib import suggestion
from imagic_lib.pictures import psnr

RESULTS = "edits.json"
SEEDS = tuple(range(10, 18))
BOTH = ("tuned", "untuned")
REBUILT = 28.0  # dB: at η = 0 as near as this to what the VAE makes of the input


def looked_at(reader, edit, pair: tuple[float, float], truth, before) -> dict:
    """The pictures of one pair (η, λ): the share that is right, that succeeds, and the details that successes keep."""
    eta, scale = pair
    drawn = [row[0] for row in edit.pictures([eta], SEEDS, scale=scale)]
    reports = [reader.report(picture, truth, before) for picture in drawn]
    kept = [report.kept for report in reports if report.success]
    found = {"right": fmean(r.right for r in reports), "success": fmean(r.success for r in reports)}
    return found | {"kept": rounded(fmean(kept)) if kept else None}


def measure(pipe, reader, before, change: dict[str, str]) -> dict:
    """One edit, trained with the defaults."""
    began, truth = time.process_time(), before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found = {"kind": next(iter(change)), "from": before.caption(), "to": truth.caption()}
    found["seconds"] = rounded(time.process_time() - began, 1)
    found["psnr"] = [rounded(psnr(row[0], edit.reconstruction), 1) for row in edit.pictures([0.0], SEEDS)]
    chosen = edit.suggest()
    pair = chosen.eta, chosen.scale
    found |= {"eta": chosen.eta, "scale": chosen.scale}
    found["seconds to suggest"] = rounded(time.process_time() - began - found["seconds"], 1)
    found["tuned"] = looked_at(reader, edit, pair, truth, before)
    found["untuned"] = looked_at(reader, edit, (chosen.eta, 0.0), truth, before)
    return found


def row_of(name: str, edits: list[dict]) -> list[str]:
    rebuilt = [fmean(value >= REBUILT for value in edit["psnr"]) for edit in edits]
    both = [edit for edit in edits if None not in (edit["tuned"]["kept"], edit["untuned"]["kept"])]
    row = [name, str(len(edits)), interval(rebuilt)]
    row += [
        interval([edit[which][what] for edit in edits])
        for what in ("right", "success")
        for which in ("tuned", "untuned")
    ]
    row += [interval([edit[which]["kept"] for edit in both]) if both else "–" for which in ("tuned", "untuned")]
    return [*row, interval([edit["tuned"]["kept"] - edit["untuned"]["kept"] for edit in both]) if both else "–"]


def table_of(split: str, found: dict) -> str:
    edits = list(found.values())
    header = ["kind", "edits", f"η = 0: PSNR ≥ {REBUILT:g} dB", "right", "… untuned", "success", "… untuned"]
    header += ["details kept", "… untuned", "difference"]
    rows = [row_of(kind, some) for kind in KINDS if (some := [e for e in edits if e["kind"] == kind])]
    pairs = [(e["eta"], e["scale"]) for e in edits]
    counts = {pair: pairs.count(pair) for pair in sorted(set(pairs), key=pairs.count, reverse=True)}
    chosen = ", ".join(f"({eta:g}, {scale:g}) {n}" for (eta, scale), n in counts.items())
    seconds, more = (fmean(edit[name] for edit in edits) for name in ("seconds", "seconds to suggest"))
    note = f"""{len(edits)} edits of ToyEdit {split}, {len(SEEDS)} seeds each; in brackets 95 % intervals by a bootstrap
over the edits. Untuned: the same η at λ = 0. Details kept are those of successful pictures, on the edits where both
have some. Suggested (η, λ), and for how many edits: {chosen}.
Training took {seconds:.0f} s of one core, the suggestion {more:.0f} s.
"""
    return table(header, [*rows, row_of("all", edits)]) + "\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("split", choices=SIZES)
    parser.add_argument("count", nargs="?", type=int, help="how many of its edits (default: all)")
    asked = parser.parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results(RESULTS, "versions", *SIZES)
    rule = suggestion.ETAS["tiny"], suggestion.SCALES, suggestion.SEEDS, suggestion.NEARLY
    versions = versions_of(pipe, reader) | {"suggestion": str(rule)}
    if (results.found["versions"] or versions) != versions:
        raise ValueError(f"{results.path} was measured with other versions: delete it to measure anew")
    results.found["versions"], done = versions, results.found[asked.split]
    for index, (before, change) in enumerate(toyedit(asked.split)[: asked.count]):
        if str(index) not in done:
            results.keep(asked.split, str(index), measure(pipe, reader, before, change))
    if asked.split == "test":
        put(CARD, "toyedit", table_of(asked.split, done))
    else:
        print(table_of(asked.split, done))


if __name__ == "__main__":
    main()
