"""CLIP as a measure of an edited picture, for models whose folder names no measure of their own."""

from statistics import fmean

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from imagic_lib.pictures import rmse
from imagic_lib.stage4_inference import sample_text
from imagic_lib.suggestion import SEEDS, TRIES, Measure

CLIP = "openai/clip-vit-large-patch14"  # whose text tower Stable Diffusion 1.4 has; 1.7 GB


def by_downloaded_clip(edit) -> Measure:
    """`by_clip` with OpenAI's model, which is downloaded at its first use."""
    model = CLIPModel.from_pretrained(CLIP, use_safetensors=True).to(edit.pipe.unet.device)
    return by_clip(edit, model, CLIPProcessor.from_pretrained(CLIP))


def by_clip(edit, model: CLIPModel, processor: CLIPProcessor) -> Measure:
    """How well a picture matches the text, times how near it stays to the input: c · (1 - d), both from 0 to 1.

    c is the picture's CLIP score for the text, 0 at the input's and 1 at that of pictures of the text alone, by the
    loaded model. d is its distance to the input, 1 at the distance of those pictures.
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
    """The cosine between each picture and the text in CLIP's space (Radford et al. 2021)."""
    inputs = processor(text=[text], images=pictures, return_tensors="pt", padding=True, truncation=True)
    found = model(**inputs.to(model.device))
    return torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds).tolist()
