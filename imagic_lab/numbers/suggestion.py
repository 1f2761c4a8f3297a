"""How should a suggestion choose η and λ? Every pair on edits of ToyEdit dev, as a suggestion sees it, and as it is.

    python -m imagic_lab.numbers.suggestion    # four minutes of one core an edit; goes on where it was stopped

Each edit is written into data/experiments/suggestion.json at once; the table of all so far goes into the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import imagic_lib as imagic
from imagic_lab.benchmark.benchmark import interval, versions_of
from imagic_lab.numbers.report import CARD, put, table
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import read_by, toyedit, worth
from imagic_lib import suggestion
from imagic_lib.pictures import to_tensor

ETAS, SCALES = (0.6, 0.7, 0.8, 0.9, 1.0), suggestion.SCALES
TRIED = (0, 1, 2, 3)  # seeds that a rule may look at
TRUE = (10, 11, 12, 13)  # seeds that tell whether it chose well
RULES = [  # which η are tried, with how many seeds, and from which part of the best score on a pair may win
    ((0.6, 0.8, 1.0), 2, 1.0),
    ((0.6, 0.8, 1.0), 3, 1.0),
    ((0.8, 1.0), 3, 1.0),
    ((0.8, 1.0), 3, 0.95),
    ((0.8, 1.0), 4, 0.95),
    ((0.8, 0.9, 1.0), 3, 0.95),
    (ETAS, 4, 0.95),
]
FIXED = [(0.8, 0.75), (0.9, 0.75), (1.0, 0.75), (1.0, 1.0)]


def measure(pipe, reader, before, change: dict[str, str]) -> dict:
    """One edit. Of each pair (η, λ): the scores of single pictures in few steps, as `suggest` finds them, and what
    final pictures of other seeds are worth by the ground truth (`edits.worth`)."""
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found, seen = {"kind": next(iter(change)), "to": truth.caption(), "tried": {}, "true": {}}, read_by(edit)
    for scale in SCALES:
        rough = edit.pictures(ETAS, TRIED, scale=scale, **suggestion.SAMPLING)
        final = edit.pictures(ETAS, TRUE, scale=scale)
        for k, eta in enumerate(ETAS):
            pair = f"{eta:g} {scale:g}"
            found["tried"][pair] = [rounded(score, 4) for score in seen([row[k] for row in rough])]
            found["true"][pair] = [rounded(worth(reader, to_tensor(row[k]), truth, before), 4) for row in final]
    return found


def chosen(edit: dict, etas: Sequence[float], seeds: int, nearly: float) -> str:
    """The pair that a rule takes for this edit."""
    scores = {(eta, scale): fmean(edit["tried"][f"{eta:g} {scale:g}"][:seeds]) for eta in etas for scale in SCALES}
    eta, scale = suggestion.best_pair(scores, nearly)
    return f"{eta:g} {scale:g}"


def row_of(name: list[str], edits: list[dict], pairs: list[str]) -> list[str]:
    """What the pictures of these pairs, one for each edit, are worth."""
    true = [edit["true"][pair] for edit, pair in zip(edits, pairs, strict=True)]
    best = [max(map(fmean, edit["true"].values())) for edit in edits]
    successes = [fmean(value > 0 for value in values) for values in true]
    lost = [high - fmean(values) for high, values in zip(best, true, strict=True)]
    return [*name, interval(successes), interval([fmean(values) for values in true]), interval(lost)]


def table_of(edits: list[dict]) -> str:
    lines = []
    for etas, seeds, nearly in RULES:
        rule = "the best" if nearly == 1 else f"largest λ within {100 * (1 - nearly):.0f} % of the best"
        name = [", ".join(f"{eta:g}" for eta in etas), str(seeds), str(len(etas) * len(SCALES) * seeds), rule]
        if (etas, seeds, nearly) == (suggestion.ETAS["tiny"], len(suggestion.SEEDS), suggestion.NEARLY):
            name = [f"**{cell}**" for cell in name]
        lines.append(row_of(name, edits, [chosen(edit, etas, seeds, nearly) for edit in edits]))
    for eta, scale in FIXED:
        pair = f"{eta:g} {scale:g}"
        lines.append(row_of([f"{eta:g}", "–", "0", f"always λ = {scale:g}"], edits, [pair] * len(edits)))
    head = ["η tried", "seeds", "pictures", "chosen", "success"]
    head += ["details kept, failures as 0", "regret: lost against the best pair"]
    note = f"""{len(edits)} edits of ToyEdit dev; λ = 0.5, 0.75 and 1; judged by {len(TRUE)} pictures of other seeds; in
brackets 95 % intervals by a bootstrap over the edits. The best pair is that of fifteen by the ground truth.
"""
    return table(head, lines) + "\n" + note


def main() -> None:
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("suggestion.json", "versions", "edits")
    versions = versions_of(pipe, reader)
    if (results.found["versions"] or versions) != versions:
        raise ValueError(f"{results.path} was measured with other versions: delete it to measure anew")
    results.found["versions"] = versions
    for index, (before, change) in enumerate(toyedit("dev")):
        if str(index) not in results.found["edits"]:
            results.keep("edits", str(index), measure(pipe, reader, before, change))
            put(CARD, "suggestion", table_of(list(results.found["edits"].values())))


if __name__ == "__main__":
    main()
