"""Which η, and how much of the fine-tuning? A few pictures of every pair are drawn and measured; the best pair wins."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from PIL import Image

from imagic_lib.models import family, plugin_of

# The paper finds 0.6 to 0.8 best. The embedded model needs more: imagic_lab/numbers/suggestion.py.
ETAS = {"tiny": (0.8, 1.0), "stable-diffusion": (0.6, 0.8)}
SCALES = (0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)
TRIED = 2 * len(SCALES) * len(SEEDS)  # pictures
NEARLY = 0.95  # of the best score: three seeds can't tell smaller differences
SAMPLING = {"scheduler": "sde-dpm++", "steps": 15}  # fewer steps than a final picture has: whether it succeeds shows
MEASURE = "imagic_lab.measures:by_downloaded_clip"  # of a model whose folder names no other

Measure = Callable[[list[Image.Image]], list[float]]  # for each picture from 0 (failed) to 1 (done, and all else kept)


class Suggestion(NamedTuple):
    """The pair to sample with: `edit.pictures([eta], seeds, scale=scale)`."""

    eta: float
    scale: float
    scores: dict[tuple[float, float], float]  # (η, scale) -> the mean measure, from 0 to 1


def suggest(edit, measure: Measure | None = None, seeds: Sequence[int] = SEEDS) -> Suggestion:
    """The pair (η, scale) whose pictures measure best. Of pairs that measure nearly as well it is the one with the
    largest scale, because that keeps more of what no measure sees.

    edit: an `edit.ImagicEdit`. measure: by default the one that the model's folder names, as the embedded model's does
    (the reader of drawings); else CLIP's, which is downloaded at its first use."""
    measure = measure or plugin_of(edit.pipe, "measure", MEASURE)(edit)
    etas, scores = ETAS[family(edit.pipe)], {}
    for scale in SCALES:
        columns = zip(*edit.pictures(etas, seeds, scale=scale, **SAMPLING), strict=True)
        for eta, drawn in zip(etas, columns, strict=True):
            scores[eta, scale] = fmean(measure(list(drawn)))
    return Suggestion(*best_pair(scores), scores)


def best_pair(scores: dict[tuple[float, float], float], nearly: float = NEARLY) -> tuple[float, float]:
    """Of the pairs (η, scale) with at least `nearly` the best score: the largest scale, then the best score, then the
    smaller η."""
    good = [pair for pair, score in scores.items() if score >= nearly * max(scores.values())]
    return max(good, key=lambda pair: (pair[1], scores[pair], -pair[0]))
