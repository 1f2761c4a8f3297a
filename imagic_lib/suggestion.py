"""Suggest η and the tuning strength λ: draw and measure a few pictures for each pair, and take the best pair."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from PIL import Image

from imagic_lib.models import family, plugin_of


class Tries(NamedTuple):
    """The pairs to try: each η with each λ, drawn with these settings."""

    etas: dict[str, tuple[float, ...]]  # by kind of model
    scales: tuple[float, ...]
    sampling: dict


TRIES = {  # for each noise to start from; measured on the embedded model by imagic_lab/numbers/suggestion.py
    "own": Tries({"tiny": (0.8, 1.0, 1.2), "stable-diffusion": (0.6, 0.8, 1.0)}, (0.25, 0.5), {}),
    # the paper finds 0.6 to 0.8 best; fewer steps than for a final picture suffice to see whether it succeeds
    "random": Tries({"tiny": (0.8, 1.0), "stable-diffusion": (0.6, 0.8)}, (0.5, 0.75, 1.0),
                    {"scheduler": "sde-dpm++", "steps": 15}),
}  # fmt: skip
SEEDS = (0, 1)
NEARLY = 0.95  # of the best score; with so few seeds, smaller differences mean nothing
MEASURE = "imagic_lab.measures:by_downloaded_clip"  # for a model whose folder names no other

Measure = Callable[[list[Image.Image]], list[float]]  # for each picture, from 0 (failed) to 1 (done, and all else kept)


class Suggestion(NamedTuple):
    """The pair to sample with: `edit.pictures([eta], seeds, scale=scale, noise=noise)`."""

    eta: float
    scale: float
    scores: dict[tuple[float, float], float]  # (η, scale) -> the mean measure, from 0 to 1


def suggest(edit, measure: Measure | None = None, seeds: Sequence[int] = SEEDS, *, noise: str = "own") -> Suggestion:
    """Suggest the pair (η, scale) whose pictures score best. Among pairs that score nearly as well, it is the one with
    the largest scale, because that keeps more of what no measure sees.

    edit: an `edit.ImagicEdit`. measure: by default the one that the model's folder names, which for the embedded model
    is the reader of drawings; else CLIP's, which is downloaded on first use. noise: as in `edit.pictures`."""
    measure = measure or plugin_of(edit.pipe, "measure", MEASURE)(edit)
    tries, scores = TRIES[noise], {}
    etas = tries.etas[family(edit.pipe)]
    for scale in tries.scales:
        columns = zip(*edit.pictures(etas, seeds, scale=scale, noise=noise, **tries.sampling), strict=True)
        for eta, drawn in zip(etas, columns, strict=True):
            scores[eta, scale] = fmean(measure(list(drawn)))
    return Suggestion(*best_pair(scores), scores)


def best_pair(scores: dict[tuple[float, float], float], nearly: float = NEARLY) -> tuple[float, float]:
    """Among the pairs (η, scale) that score at least `nearly` times the best, return the one with the largest scale.
    Ties go to the better score, then to the smaller η."""
    good = [pair for pair, score in scores.items() if score >= nearly * max(scores.values())]
    return max(good, key=lambda pair: (pair[1], scores[pair], -pair[0]))
