"""CLIP as a measure of edited pictures, for models whose folder names no other measure."""

from statistics import fmean

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from imagic_lib.pictures import rmse
from imagic_lib.stage4_inference import sample_text
from imagic_lib.suggestion import SEEDS, TRIES, Measure

CLIP = "openai/clip-vit-large-patch14"  # 1.7 GB; Stable Diffusion 1.4 uses its text encoder


def by_downloaded_clip(edit) -> Measure:
    """`by_clip` with OpenAI's model, which is downloaded on first use."""
    model = CLIPModel.from_pretrained(CLIP, use_safetensors=True).to(edit.pipe.unet.device)
    return by_clip(edit, model, CLIPProcessor.from_pretrained(CLIP))


def by_clip(edit, model: CLIPModel, processor: CLIPProcessor) -> Measure:
    """Make a measure from 0 to 1: how well a picture matches the text, times how close it is to the input, c · (1 - d).

    c is the picture's CLIP score for the text, scaled so that the input has 0 and pictures of the text alone, drawn by
    the loaded model, have 1. d is the picture's distance to the input, scaled so that those pictures have 1.
    """
    free = sample_text(edit.pipe, edit.text, SEEDS, **TRIES["random"].sampling)
    near = edit.reconstruction
    start, goal = (fmean(clip_scores(model, processor, drawn, edit.text)) for drawn in ([near], free))
    way, far = max(goal - start, 1e-6), max(fmean(rmse(picture, near) for picture in free), 1e-6)

    def measure(pictures: list[Image.Image]) -> list[float]:
        scores = clip_scores(model, processor, pictures, edit.text)
        return [
            min(max((score - start) / way, 0.0), 1.0) * max(1 - rmse(picture, near) / far, 0.0)
            for score, picture in zip(scores, pictures, strict=True)
        ]

    return measure


@torch.no_grad()
def clip_scores(model: CLIPModel, processor: CLIPProcessor, pictures: list[Image.Image], text: str) -> list[float]:
    """Return the cosine similarity of each picture and the text in CLIP's space (Radford et al. 2021)."""
    inputs = processor(text=[text], images=pictures, return_tensors="pt", padding=True, truncation=True)
    found = model(**inputs.to(model.device))
    return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).tolist()
