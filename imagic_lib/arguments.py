"""Checks of what users give: numbers, lists, texts and tensors. Each error is one sentence."""

import math
import operator
import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

LONGEST_TEXT = 10_000  # characters; the tokenizer's time grows with the square of the longest word
FARTHEST_ETA = 10.0  # far beyond any η that shows anything; with 1e30 the pictures are black


def warn_caller(message: str) -> None:
    """Warn, and point at the line that called us, which is the first one outside these packages and torch."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in ("imagic_lib", "imagic_lab", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def whole_number(name: str, value: object) -> int:
    """Return any kind of whole number, also one of NumPy, as an int. Raises ValueError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: it must be a whole number") from None


def check_setting(name: str, value: float, zero: bool, most: float = math.inf) -> None:
    """Raise ValueError for a number that no stage can use. zero: whether 0 is allowed. most: largest number."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} is {value}: it must be {'0 or more' if zero else 'above 0'}")
    if value > most:
        raise ValueError(f"{name} is {value}: it must be {most:g} at most")


def seeds_of(seeds: Sequence[int]) -> list[int]:
    """Return the seeds as a list: whole numbers from 0 to 2**63 - 1, at least one. Raises ValueError for others."""
    try:
        numbers = [operator.index(seed) for seed in seeds]
    except TypeError:
        numbers = []
    if not numbers or not all(0 <= seed < 2**63 for seed in numbers):
        raise ValueError("seeds must be a list of one or more whole numbers from 0 up, e.g. seeds=[0, 1, 2]")
    return numbers


def etas_of(etas: Sequence[float]) -> list[float]:
    """Return the ηs as a list: one or more, each from -10 to 10. Raises ValueError for anything else."""
    try:
        numbers = [float(eta) + 0.0 for eta in etas]  # -0 is 0
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(abs(eta) <= FARTHEST_ETA for eta in numbers):
        raise ValueError(f"η must be a number within ±{FARTHEST_ETA:g}, or a list of at least one, e.g. [0, 0.5, 1]")
    return numbers


def method_of(method: str) -> str:
    """Return the method. Raises ValueError if stage 2 doesn't have it."""
    if method not in ("full", "lora"):
        raise ValueError(f"method {method!r} is unknown: choose 'full' or 'lora'")
    return method


def check_text(text: str) -> None:
    """Raise ValueError unless this is a text, neither empty nor longer than `LONGEST_TEXT`, in valid Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the text is empty: say what the edited picture shows, e.g. 'a brown dog jumping'")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the text has {len(text)} characters: one sentence is enough, {LONGEST_TEXT} are the limit")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("the text has bytes that are not letters: write it in UTF-8")


def check_one_image_one_embedding(image: Tensor, embedding: Tensor) -> None:
    """Raise ValueError unless these are one picture and one embedding, all of whose numbers are finite."""
    if image.ndim != 4 or image.shape[:2] != (1, 3):
        raise ValueError(f"the picture has the shape {tuple(image.shape)}, not (1, 3, size, size): use load_image")
    if embedding.ndim != 3 or len(embedding) != 1:
        raise ValueError(f"the embedding has the shape {tuple(embedding.shape)}, not (1, tokens, width)")
    if not (torch.isfinite(image).all() and torch.isfinite(embedding).all()):
        raise ValueError("the picture or the embedding has values that are not finite")


def cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    """Return the caller's generator, or one with seed 0. Noise is drawn on the CPU, so that a seed gives the same noise
    on every machine. Raises ValueError for a generator on another device."""
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"the generator is on {generator.device}: give torch.Generator() on the CPU")
    return generator or torch.Generator().manual_seed(0)
