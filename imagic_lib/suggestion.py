"""Which η, and how much of the fine-tuning? A few pictures of every pair are drawn and measured; the best pair wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image

from imagic_lib.models import family
from imagic_lib.pictures import rmse
from imagic_lib.stage4_inference import sample_text

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor

    from imagic_lib.edit import ImagicEdit

# The paper finds 0.6 to 0.8 best. The embedded model turns later: imagic_lab/numbers/suggestion.py.
ETAS = {"tiny": (0.8, 1.0), "stable-diffusion": (0.6, 0.8)}
SCALES = (0.5, 0.75, 1.0)
SEEDS = (0, 1, 2)
TRIED = 2 * len(SCALES) * len(SEEDS)  # pictures
NEARLY = 0.95  # of the best score: three seeds can't tell smaller differences
SAMPLING = {"scheduler": "sde-dpm++", "steps": 15}  # fewer steps than a final picture has: whether it succeeds shows
CLIP = "openai/clip-vit-large-patch14"  # whose text tower Stable Diffusion 1.4 has; 1.7 GB

Measure = Callable[[list[Image.Image]], list[float]]  # for each picture from 0 (failed) to 1 (done, and all else kept)


class Suggestion(NamedTuple):
    """The pair to sample with: `edit.pictures([eta], seeds, scale=scale)`."""

    eta: float
    scale: float
    scores: dict[tuple[float, float], float]  # (η, scale) -> the mean measure, from 0 to 1


def suggest(edit: ImagicEdit, measure: Measure | None = None, seeds: Sequence[int] = SEEDS) -> Suggestion:
    """The pair (η, scale) whose pictures measure best. Of pairs that measure nearly as well it is the one with the
    largest scale, because that keeps more of what no measure sees.

    measure: by default the reader's for the embedded model, CLIP's for all others (`measure_for`).
    """
    measure, etas, scores = measure or measure_for(edit), ETAS[family(edit.pipe)], {}
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


def measure_for(edit: ImagicEdit) -> Measure:
    """The reader's measure where there is one, for drawings; else CLIP's, which is downloaded at its first use."""
    if family(edit.pipe) == "tiny":
        from imagic_lab.toyworld.edits import read_by  # the only way out of the core, and only for the toy world

        return read_by(edit)
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(CLIP, use_safetensors=True).to(edit.pipe.unet.device)
    return by_clip(edit, model, CLIPProcessor.from_pretrained(CLIP))


def by_clip(edit: ImagicEdit, model: CLIPModel, processor: CLIPProcessor) -> Measure:
    """How far a picture goes to the text, times how near it stays to the input: c · (1 - d), both from 0 to 1.

    c is the picture's CLIP score for the text, 0 at the input's and 1 at that of pictures of the text alone, by the
    loaded model. d is its distance to the input, 1 at the distance of those pictures.
    """
    free = sample_text(edit.pipe, edit.text, SEEDS, **SAMPLING)
    near = edit.reconstruction
    start, goal = (
        fmean(clip_scores(model, processor, [near], edit.text)),
        clip_scores(model, processor, free, edit.text),
    )
    way, far = max(fmean(goal) - start, 1e-6), max(fmean(rmse(picture, near) for picture in free), 1e-6)

    def measure(pictures: list[Image.Image]) -> list[float]:
        scores = clip_scores(model, processor, pictures, edit.text)
        return [
            min(max((score - start) / way, 0.0), 1.0) * max(1 - rmse(picture, near) / far, 0.0)
            for score, picture in zip(scores, pictures, strict=True)
        ]

    return measure


@torch.no_grad()
def clip_scores(model: CLIPModel, processor: CLIPProcessor, pictures: list[Image.Image], text: str) -> list[float]:
    """The cosine between each picture and the text in CLIP's space (Radford et al. 2021)."""
    inputs = processor(text=[text], images=pictures, return_tensors="pt", padding=True, truncation=True)
    found = model(**inputs.to(model.device))
    return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).tolist()
