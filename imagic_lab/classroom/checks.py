"""Checks of the exercises: `checks.check_NAME(answer)` prints whether an answer is right, or gives a hint.

`answers.json` holds for each exercise the praise, the hint and usually the right answer: a number, a list of numbers,
a list of texts (one is enough), or a text whose letters can come in any order. Where the answer is a function, `calls`
lists inputs and right results. Numbers can be wrong by `within`. `ANSWERS` holds the answers that need tensors,
pictures, or values of the notebook.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from math import log
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from imagic_lib.pictures import rmse

NOTEBOOKS = json.loads(Path(__file__).with_name("answers.json").read_text(encoding="utf-8"))
EXERCISES = {name: exercise for exercises in NOTEBOOKS.values() for name, exercise in exercises.items()}


def verdict(name: str, answer, *given) -> None:
    """Print a verdict on the answer to an exercise. given: values of the notebook on which the right one depends."""
    exercise = EXERCISES[name] | (ANSWERS[name](*given) if name in ANSWERS else {})
    pairs = [(answer, exercise.get("answer"))]
    if "calls" in exercise and callable(answer):
        pairs = [(answer(*deepcopy(inputs)), result) for inputs, result in exercise["calls"]]
    if pairs[0][0] is None or pairs[0][0] is ...:
        print("not attempted yet: replace the three dots with your answer")
    elif all(same_answer(found, right, exercise.get("within", 1e-3)) for found, right in pairs):
        print("right:", exercise["praise"])
    else:
        print("not yet:", exercise["hint"])


def __getattr__(name: str) -> Callable:
    """`check_psnr` is the check of the exercise "psnr"."""
    exercise = name.removeprefix("check_")
    if exercise == name or exercise not in EXERCISES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(verdict, exercise)


def same_answer(found, right, within: float) -> bool:
    """Is an answer right? False also for one of the wrong kind."""
    if right is None:
        return found is None
    if isinstance(right, str):
        return sorted(str(found)) == sorted(right)
    if isinstance(right, list) and isinstance(right[0], str):
        return found in right
    try:
        a, b = (numbers(value) for value in (found, right))
    except (TypeError, ValueError, IndexError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, atol=within, rtol=0)


def numbers(value) -> Tensor:
    """A number, several numbers (also as texts), or a tensor: as a tensor."""
    if isinstance(value, str | list | tuple):
        value = float(value) if isinstance(value, str) else [float(one) for one in value]
    return torch.as_tensor(value, dtype=torch.float64).squeeze()


def calls(solution: Callable, *inputs: tuple) -> dict:
    return {"calls": [(one, solution(*one)) for one in inputs]}


def randoms(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def last_swap(swaps: Sequence[int], pictures: Sequence[Image.Image]) -> dict:
    near = [rmse(picture, pictures[0]) < rmse(picture, pictures[-1]) for picture in pictures]
    return {"answer": [swap for swap, is_near in zip(swaps, near, strict=True) if is_near][-1]}


Z, NOISE = randoms((1, 4, 16, 16), (1, 4, 16, 16))
GREYS = [Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 90, 140, 255, 100)]
ANSWERS = {
    "noised": lambda alphas: calls(
        lambda z, noise, t: alphas[t].sqrt() * z + (1 - alphas[t]).sqrt() * noise, (Z, NOISE, 300)
    ),
    "equal_weights": lambda alphas: {"answer": (alphas - 0.5).abs().argmin(), "within": 1.5},
    "psnr": lambda: {"calls": [((torch.zeros(4, 4), torch.full((4, 4), 0.1)), 20)]},
    "z_0_from_v": lambda: calls(lambda z_t, v, a: a.sqrt() * z_t - (1 - a).sqrt() * v, (Z, NOISE, torch.tensor(0.3))),
    "last_swap": last_swap,
    "nearest": lambda: {"calls": [((GREYS[:4], GREYS[4]), 1), ((GREYS[3::-1], GREYS[4]), 2)]},
    "min_snr_weight": lambda: calls(lambda snr: (5 / snr).clamp(max=1), (torch.tensor([0.01, 1, 5, 20, 1000]),)),
    "scaling_factor": lambda raw: {"answer": 1 / raw.std(), "within": 0.01 / raw.std().item()},
    "chance_loss": lambda batch: {"answer": log(batch), "within": 0.01},
    "cosine": lambda: {"calls": [((torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])), 0.8)]},
}
