"""Which η, and how much of the fine-tuning? A few pictures of every pair are drawn and measured; the best pair wins."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

from PIL import Image

from imagic_lib.models import family, plugin_of


class Tries(NamedTuple):
    """What is tried: each η with each λ, in pictures that are drawn with these settings."""

    etas: dict[str, tuple[float, ...]]  # by kind of model
    scales: tuple[float, ...]
    sampling: dict


TRIES = {  # by the noise that the pictures start from; measured on the embedded model: imagic_lab/numbers/suggestion.py
    "own": Tries({"tiny": (0.8, 1.0, 1.2), "stable-diffusion": (0.6, 0.8, 1.0)}, (0.25, 0.5), {}),
    # the paper finds 0.6 to 0.8 best; fewer steps than a final picture has, because whether it succeeds shows
    "random": Tries({"tiny": (0.8, 1.0), "stable-diffusion": (0.6, 0.8)}, (0.5, 0.75, 1.0),
                    {"scheduler": "sde-dpm++", "steps": 15}),
}  # fmt: skip
SEEDS = (0, 1)
NEARLY = 0.95  # of the best score: so few seeds can't tell smaller differences
MEASURE = "imagic_lab.measures:by_downloaded_clip"  # of a model whose folder names no other

Measure = Callable[[list[Image.Image]], list[float]]  # for each picture from 0 (failed) to 1 (done, and all else kept)


class Suggestion(NamedTuple):
    """The pair to sample with: `edit.pictures([eta], seeds, scale=scale, noise=noise)`."""

    eta: float
    scale: float
    scores: dict[tuple[float, float], float]  # (η, scale) -> the mean measure, from 0 to 1


def suggest(edit, measure: Measure | None = None, seeds: Sequence[int] = SEEDS, *, noise: str = "own") -> Suggestion:
    """The pair (η, scale) whose pictures measure best. Of pairs that measure nearly as well it is the one with the
    largest scale, because that keeps more of what no measure sees.

    edit: an `edit.ImagicEdit`. measure: by default the one that the model's folder names, as the embedded model's does
    (the reader of drawings); else CLIP's, which is downloaded at its first use. noise: as in `edit.pictures`."""
    measure = measure or plugin_of(edit.pipe, "measure", MEASURE)(edit)
    tries, scores = TRIES[noise], {}
    etas = tries.etas[family(edit.pipe)]
    for scale in tries.scales:
        columns = zip(*edit.pictures(etas, seeds, scale=scale, noise=noise, **tries.sampling), strict=True)
        for eta, drawn in zip(etas, columns, strict=True):
            scores[eta, scale] = fmean(measure(list(drawn)))
    return Suggestion(*best_pair(scores), scores)


def best_pair(scores: dict[tuple[float, float], float], nearly: float = NEARLY) -> tuple[float, float]:
    """Of the pairs (η, scale) with at least `nearly` the best score: the largest scale, then the best score, then the
    smaller η."""
    good = [pair for pair, score in scores.items() if score >= nearly * max(scores.values())]
    return max(good, key=lambda pair: (pair[1], scores[pair], -pair[0]))
