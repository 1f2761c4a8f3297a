"""Get a Stable Diffusion: the embedded tiny one, one from the Hugging Face hub, or a local folder."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import sys
import warnings
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor

DATA = Path(__file__).resolve().parent.parent / "data"
TINY = DATA / "tiny-sd"


LONGEST_TEXT = 10_000  # characters; the time of the tokenizer grows with the square of the longest word

SIZES = {  # what a first use downloads, in GB
    "CompVis/stable-diffusion-v1-4": 5.5,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 5.5,
}


def load_pipeline(
    model: str | Path = "tiny", device: str | torch.device | None = None, *, safety_checker: bool = True
) -> StableDiffusionPipeline:
    """A `StableDiffusionPipeline` in float32, ready to be looked into.

    model: "tiny" (embedded, 128x128 drawings), a hub id such as "CompVis/stable-diffusion-v1-4", or a
    folder in diffusers format. device: default is the GPU if there is one; for "tiny" the CPU, which is
    enough for it, and on which the notebooks draw their noise. safety_checker: False leaves out the one
    that a checkpoint ships. Weights are read from safetensors only. Raises FileNotFoundError
    or ValueError in one sentence if the model is missing or damaged.
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
        unchecked = {} if safety_checker else {"safety_checker": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True, **unchecked).to(torch.float32)
    except Exception as error:  # diffusers raises many kinds; a student needs to know one thing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if folder.exists():
            raise ValueError(f"the model in {folder} is damaged or incomplete: {reason}") from error
        size = f"about {SIZES[str(model)]} GB" if str(model) in SIZES else "several GB"
        raise FileNotFoundError(
            f"{model!r} is no folder here, and could not be had from the Hugging Face hub ({reason}): a first use "
            f"downloads {size}, so where there is a network run `hf download {model} --local-dir FOLDER "
            f'--exclude "*.bin" --exclude "*.msgpack" --exclude "*fp16*"` and give that FOLDER; "tiny" works now'
        ) from error
    finally:
        diffusers_logging.set_verbosity(quiet)
    device = device or ("cuda" if torch.cuda.is_available() and folder != TINY else "cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def name_of(pipe: StableDiffusionPipeline) -> str:
    """What to give `load_pipeline` for this model: "tiny", a hub id or a folder."""
    name = str(pipe.config.get("_name_or_path") or "a pipeline of one's own")
    return "tiny" if name == str(TINY) else name


def fingerprint(pipe: StableDiffusionPipeline) -> str:
    """A short name of a model's weights: equal for equal models, whatever they are called, in whatever
    precision and by whatever library version they were loaded. It looks at the shape and the first 1024
    numbers of every tensor, so that a 4 GB model takes no minute."""
    digest = hashlib.sha256()
    for part in (pipe.text_encoder, pipe.vae, pipe.unet):
        tensors = {k.removeprefix("text_model."): v for k, v in part.state_dict().items() if v.is_floating_point()}
        for name, value in sorted(tensors.items()):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:1024].half().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def family(pipe: StableDiffusionPipeline) -> str:
    """ "tiny" or "stable-diffusion": which of a stage's defaults fit. The UNets differ 80-fold in size."""
    return "tiny" if sum(p.numel() for p in pipe.unet.parameters()) < 50e6 else "stable-diffusion"


def settings_for(pipe: StableDiffusionPipeline, defaults: dict[str, dict], **given) -> dict:
    """The settings of a stage: what was given, and for what is None the default of this kind of model.

    Raises ValueError for a value that a stage can't use. 0 steps train nothing, but draw no picture either.
    """
    drawing = "guidance_scale" in given
    for name, value in given.items():
        if value is None:
            continue
        if name in ("steps", "batch"):
            given[name] = value = whole_number(name, value)
        zero_works = name in ("guidance_scale", "decay", "bias") or (name == "steps" and not drawing)
        if not math.isfinite(value) or value < 0 or (value == 0 and not zero_works):
            raise ValueError(f"{name} is {value}: it must be {'0 or more' if zero_works else 'above 0'}")
        if name == "decay" and value > 1:
            raise ValueError(f"decay is {value}: it is a share of the steps, from 0 to 1")
    return defaults[family(pipe)] | {name: value for name, value in given.items() if value is not None}


def whole_number(name: str, value: object) -> int:
    """A whole number of any kind, NumPy's too, as Python's own. Raises ValueError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: it must be a whole number") from None


def warn_caller(message: str) -> None:
    """A warning that points at the caller's own line: the first one outside this package and torch's decorators."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("imagic_lib", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


@cache
def vocabulary() -> frozenset[str]:
    """Every word in the captions that the embedded model was trained on, from the list in its folder."""
    return frozenset(json.loads((TINY / "vocabulary.json").read_text(encoding="utf-8")))


def unknown_words(text: str) -> list[str]:
    """The words of a text that stand in no caption of the toy world: to the embedded model they are noise."""
    words = (word.strip(".,;:!?\"'()–-").lower() for word in text.split())
    return [word for word in dict.fromkeys(words) if word and word not in vocabulary()]


def check_text(text: str) -> None:
    """Raises ValueError for a text that is empty, endless or no text."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the text is empty: say what the edited picture shows, e.g. 'a brown dog jumping'")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the text has {len(text)} characters: one sentence is enough, {LONGEST_TEXT} are the limit")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("the text has bytes that are no letters: write it in UTF-8")


@torch.no_grad()
def encode_text(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    """e_tgt: the text as the UNet reads it, (1, tokens, width).

    Raises ValueError for a text that is empty, endless or no text. Warns if it is longer than the model reads (and
    says what is cut) or, with the embedded model, if it has words that the model never saw.
    """
    check_text(text)
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(text, truncation=False).input_ids
    if len(ids) > limit:
        cut = pipe.tokenizer.decode(ids[limit - 1 : -1]).strip()
        warn_caller(f"the text has {len(ids) - 2} tokens and the model reads {limit - 2}: cut off is {cut!r}")
    if family(pipe) == "tiny" and (words := unknown_words(text)):
        warn_caller(
            f"the embedded model never saw {', '.join(map(repr, words))}: it knows dogs, cats, rabbits, birds "
            "and cars, eight colours, their poses, and grass, beach, snow and night. For any text, use "
            "Stable Diffusion 1.4"
        )
    tokens = pipe.tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    mask = tokens.attention_mask if getattr(pipe.text_encoder.config, "use_attention_mask", None) else None
    ids = tokens.input_ids.to(pipe.text_encoder.device)
    return pipe.text_encoder(ids, attention_mask=mask).last_hidden_state
