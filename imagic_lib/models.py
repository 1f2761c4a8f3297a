"""Get a Stable Diffusion: the embedded tiny one, one from the Hugging Face hub, or a local folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

DATA = Path(__file__).resolve().parent.parent / "data"
TINY = DATA / "tiny-sd"


def load_pipeline(model: str | Path = "tiny", device: str | torch.device | None = None) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` in float32, ready to be looked into.

    model: "tiny" (embedded, 128x128 drawings), a hub id such as "CompVis/stable-diffusion-v1-4", or a
    folder in diffusers format. device: default is the GPU if there is one. Weights are read from
    safetensors only. Raises FileNotFoundError or ValueError in one sentence if the model is missing or
    damaged.
    """
    folder = TINY if str(model) == "tiny" else Path(model)
    if folder == TINY and not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"the embedded model is missing: {folder} has no model_index.json; clone again")
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(f"{folder} is no diffusers model: it has no model_index.json")
    source = str(folder) if folder.exists() else str(model)
    quiet = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        pipe = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True)
    except Exception as error:  # diffusers raises many kinds; a student needs to know one thing
        if folder.exists():
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"the model in {folder} is damaged or incomplete: {reason}") from error
        raise FileNotFoundError(
            f"{model!r} is neither a folder nor a model that could be downloaded from the Hugging Face hub. "
            f"Stable Diffusion 1.4 is a download of about 4 GB: fetch it where there is a network and give "
            f'the folder, or use "tiny", which works now'
        ) from error
    finally:
        diffusers_logging.set_verbosity(quiet)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device).to(torch.float32)


def family(pipe: StableDiffusionPipeline) -> str:
    """ "tiny" or "stable-diffusion": which of a stage's defaults fit. The UNets differ 80-fold in size."""
    return "tiny" if sum(p.numel() for p in pipe.unet.parameters()) < 50e6 else "stable-diffusion"


def unknown_words(pipe: StableDiffusionPipeline, text: str) -> list[str]:
    """Words that the embedded model never saw: its tokenizer has no single token for them."""
    words = [word.strip(".,;:!?\"'()").lower() for word in text.split()]
    return [w for w in dict.fromkeys(words) if w and len(pipe.tokenizer.tokenize(w)) > 1]


@torch.no_grad()
def encode_text(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    """e_tgt: the text as the UNet reads it, (1, tokens, width).

    Raises ValueError for an empty text. Warns if the text is too long (and says what is cut) or, with
    the embedded model, if it has words that the model never saw.
    """
    if not text or not text.strip():
        raise ValueError("the text is empty: say what the edited picture shows, e.g. 'a brown dog jumping'")
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(text, truncation=False).input_ids
    if len(ids) > limit:
        cut = pipe.tokenizer.decode(ids[limit - 1 : -1]).strip()
        warnings.warn(
            f"the text has {len(ids) - 2} tokens and the model reads {limit - 2}: cut off is {cut!r}", stacklevel=2
        )
    if family(pipe) == "tiny" and (words := unknown_words(pipe, text)):
        warnings.warn(
            f"the embedded model never saw {', '.join(map(repr, words))}: it knows dogs, cats, rabbits, birds "
            "and cars, eight colours, their poses, and grass, beach, snow and night. For any text, use "
            "Stable Diffusion 1.4",
            stacklevel=2,
        )
    tokens = pipe.tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(pipe.text_encoder.config, "use_attention_mask", None) else None
    ids = tokens.input_ids.to(pipe.text_encoder.device)
    return pipe.text_encoder(ids, attention_mask=mask).last_hidden_state
