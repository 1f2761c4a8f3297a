"""How should a suggestion choose η and λ? Measure every pair on ToyEdit dev, as a suggestion sees it and as it is.

    python -m imagic_lab.numbers.suggestion    # four minutes of one core an edit; continues where it was stopped

Each edit is written into data/experiments/suggestion.json at once; the table of all so far goes into the model card.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import imagic_lib as imagic
from imagic_lab.benchmark import markdown_table, mean_and_interval, versions_of
from imagic_lab.numbers.report import TINY_CARD, command_line, put
from imagic_lab.numbers.results import Results, rounded
from imagic_lab.toyworld import load_reader
from imagic_lab.toyworld.edits import edit_score, read_by, toyedit
from imagic_lib import suggestion
from imagic_lib.pictures import to_tensor

OWN = suggestion.TRIES["own"]
ALL_ETAS, ALL_SCALES = (0.8, 1.0, 1.2), (0.25, 0.5, 1.0)
TRIED_SEEDS = (0, 1, 2, 3)  # a rule looks at these
TRUE_SEEDS = (10, 11, 12, 13)  # these tell whether it chose well
RULES = [  # the ηs and λs to try, the number of seeds, and the share of the best score that suffices for a larger λ
    ((1.0,), (0.25, 0.5), 2, 0.95),
    ((1.0, 1.2), (0.25, 0.5), 2, 0.95),
    ((0.8, 1.0, 1.2), (0.25, 0.5), 1, 0.95),
    ((0.8, 1.0, 1.2), (0.25, 0.5), 2, 1.0),
    ((0.8, 1.0, 1.2), (0.25, 0.5), 2, 0.95),
    ((0.8, 1.0, 1.2), (0.25, 0.5), 4, 0.95),
    (ALL_ETAS, ALL_SCALES, 2, 0.95),
]
FIXED = [(1.0, 0.25), (1.0, 0.5), (1.2, 0.5), (1.0, 1.0)]


def score_pairs(pipe, reader, before, change: dict[str, str]) -> dict:
    """Make one edit. Returns, for each pair (η, λ), the scores of pictures as `suggest` sees them, and the scores of
    pictures with other seeds against the ground truth (`toyworld.edits.edit_score`)."""
    truth = before.edit(**change)
    edit = imagic.run_edit(pipe, imagic.load_image(before.render(), pipe), truth.caption())
    found, seen = {"kind": next(iter(change)), "to": truth.caption(), "tried": {}, "true": {}}, read_by(edit)
    for scale in ALL_SCALES:
        rough = edit.pictures(ALL_ETAS, TRIED_SEEDS, scale=scale, **OWN.sampling)
        final = edit.pictures(ALL_ETAS, TRUE_SEEDS, scale=scale)
        for k, eta in enumerate(ALL_ETAS):
            pair = f"{eta:g} {scale:g}"
            found["tried"][pair] = [rounded(score, 4) for score in seen([row[k] for row in rough])]
            found["true"][pair] = [rounded(edit_score(reader, to_tensor(row[k]), truth, before), 4) for row in final]
    return found


def choose_pair(edit: dict, etas: Sequence[float], scales: Sequence[float], seeds: int, nearly: float) -> str:
    """Return the pair that a rule chooses for this edit."""
    scores = {(eta, scale): fmean(edit["tried"][f"{eta:g} {scale:g}"][:seeds]) for eta in etas for scale in scales}
    eta, scale = suggestion.best_pair(scores, nearly)
    return f"{eta:g} {scale:g}"


def rule_row(name: list[str], edits: list[dict], pairs: list[str]) -> list[str]:
    """Return the line of a rule, from the pairs that it chose, one for each edit."""
    true = [edit["true"][pair] for edit, pair in zip(edits, pairs, strict=True)]
    best = [max(map(fmean, edit["true"].values())) for edit in edits]
    successes = [fmean(value > 0 for value in values) for values in true]
    lost = [high - fmean(values) for high, values in zip(best, true, strict=True)]
    return [
        *name,
        *map(mean_and_interval, (successes, [fmean(values) for values in true])),
        mean_and_interval(lost, share=False),
    ]


def rules_table(edits: list[dict]) -> str:
    lines = []
    for etas, scales, seeds, nearly in RULES:
        rule = "the best" if nearly == 1 else f"largest λ within {100 * (1 - nearly):.0f} % of the best"
        tried = [", ".join(f"{value:g}" for value in values) for values in (etas, scales)]
        name = [*tried, str(seeds), str(len(etas) * len(scales) * seeds), rule]
        if (etas, scales, seeds, nearly) == (OWN.etas["tiny"], OWN.scales, len(suggestion.SEEDS), suggestion.NEARLY):
            name = [f"**{cell}**" for cell in name]
        lines.append(rule_row(name, edits, [choose_pair(edit, etas, scales, seeds, nearly) for edit in edits]))
    for eta, scale in FIXED:
        pair = f"{eta:g} {scale:g}"
        lines.append(rule_row([f"{eta:g}", f"{scale:g}", "–", "0", "always"], edits, [pair] * len(edits)))
    head = ["η tried", "λ tried", "seeds", "pictures", "chosen", "success"]
    head += ["worth", "regret: lost against the best pair"]
    judged = f"judged by {len(TRUE_SEEDS)} pictures of other seeds"
    note = f"""{len(edits)} edits of ToyEdit dev, from the picture's own noise; {judged}; in
brackets 95 % intervals by a bootstrap over the edits. The best pair is that of nine by the ground truth.
"""
    return markdown_table(head, lines) + "\n" + note


def main() -> None:
    command_line(__doc__).parse_args()
    pipe, reader, results = imagic.load_pipeline("tiny"), load_reader(), Results("suggestion.json", "versions", "edits")
    results.check_versions(versions_of(pipe, reader))
    for index, (before, change) in enumerate(toyedit("dev")):
        if str(index) not in results.found["edits"]:
            results.keep("edits", str(index), score_pairs(pipe, reader, before, change))
            put(TINY_CARD, "suggestion", rules_table(list(results.found["edits"].values())))


if __name__ == "__main__":
    main()
