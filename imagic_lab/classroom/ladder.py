"""`check(key, answer)` prints the answer, gives a point if it is right, and else names the likely mistake.

The exercises are data, in `notebooks/exercises.toml`. Each has a `solution`, at least three `mistakes`, each with a
reply, a `praise`, and a `hint` for all other answers. Solutions and mistakes are Python, either an expression or the
text of a function, which is then tried on the `calls`. `within` is the tolerance of numbers (0.001), and `accept` lists
further right answers. `seen` is a function that is applied to results before they are compared. `given` has example
values for the keywords that the notebook passes to `check`.
"""

from __future__ import annotations

import inspect
import math
import re
import traceback
import unicodedata
from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagic_lab.classroom.course import entry, note, recall
from imagic_lib.pictures import psnr, rmse

NAMES = {"torch": torch, "math": math, "np": np, "Image": Image, "rmse": rmse, "psnr": psnr}
GREEK = {r"\blambda\b": "λ", r"\beta\b": "η", r"\btheta\b": "θ"}
MISSING = "not attempted yet: replace the three dots with your answer"
A_VALUE = "this exercise asks for a value: call your function, and give what it returns"
A_FUNCTION = "this exercise asks for a function: give its name, without parentheses"
NO_RETURN = "your function returns None: is a `return` missing at its end?"


def check(key: str, answer, **given) -> None:
    """Print a verdict on the answer to the exercise `key` ("02.stop_at"); a right one is worth a point.

    given: values from the notebook that the solution needs, under their names in the exercise. Raises ValueError if
    there is no such exercise.
    """
    exercise = entry("exercises", key)
    names = NAMES | {name: evaluate(text, NAMES) for name, text in exercise.get("given", {}).items()} | given
    solution, calls = evaluate(exercise["solution"], names), evaluate(exercise.get("calls", "[]"), names)
    seen, within = evaluate(exercise.get("seen", "None"), names), exercise.get("within", 1e-3)

    def fits(other) -> bool:
        return all(agree(a, b, within, seen) for a, b in zip(found, outcomes(other, calls), strict=True))

    found, fault = look(answer, solution, calls)
    if fault == MISSING:
        return print(MISSING)
    right = not fault and any(map(fits, [solution, *(evaluate(text, names) for text in exercise.get("accept", []))]))
    if found:
        differs = [not agree(a, b, within, seen) for a, b in zip(found, outcomes(solution, calls), strict=True)]
        k = differs.index(True) if any(differs) else 0
        asked = f"your function gave {describe(found[k])} for {describe(calls[k])}" if callable(answer) else ""
        print(asked or f"your answer: {describe(answer)}")
    likely = (says for wrong, says in exercise["mistakes"] if fits(evaluate(wrong, names)))
    says = fault or next(likely, exercise["hint"])
    print(f"right, 1 point: {exercise['praise']}" if right else f"not yet: {says}")
    if not recall().get(key, {}).get("points"):  # a right answer stays
        note(key, question="exercise", answer=source_of(answer), points=int(right))


def evaluate(text: str, names: dict):
    """Return the value of an expression, or the function that a text defines."""
    if not text.lstrip().startswith("def "):
        return eval(text, dict(names))
    exec(text, space := dict(names))
    return space[re.match(r"\s*def (\w+)", text)[1]]


def outcomes(answer, calls: list[tuple]) -> list:
    """Return what a function gives for each of the calls, which are left unchanged; or the answer, if it is a value."""
    return [answer(*deepcopy(inputs)) for inputs in calls] if callable(answer) else [answer]


def look(answer, solution, calls: list[tuple]) -> tuple[list, str]:
    """Return the outcomes to compare with the solution's, and "" or a sentence that says why there are none."""
    if answer is ... or answer is None:
        return [], MISSING
    if callable(answer) != callable(solution):
        return [], A_FUNCTION if callable(solution) else A_VALUE
    try:
        found = outcomes(answer, calls)
    except Exception as error:
        return [], stopped(error, answer)
    if any(one is ... for one in found):
        return [], MISSING
    if all(one is None for one in found) and any(one is not None for one in outcomes(solution, calls)):
        return [], NO_RETURN
    return found, ""


def stopped(error: Exception, function: Callable) -> str:
    """Return a student's exception as a sentence, with the line of the function that raised it."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [frame.line for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file and frame.line]
    where = f" at `{lines[-1]}`" if lines else ""
    return f"your function stopped{where} with {type(error).__name__}: {error}"


def agree(found, right, within: float = 1e-3, seen: Callable | None = None) -> bool:
    """Whether two answers mean the same. Case, spaces, quotes, and the kind of minus sign or bracket don't matter.

    The order of the parts does, unless `right` is a set. seen: a function to apply to both before they are compared.
    """
    try:
        if seen:
            found, right = seen(found), seen(right)
        if right is None or isinstance(right, bool | str):
            return plain(*parts(found, 1)) == plain(right)
        if isinstance(right, set):
            return {plain(one) for one in parts(found, len(right))} == {plain(one) for one in right}
        if isinstance(right, list | tuple):
            pairs = zip(parts(found, len(right)), right, strict=True)
            return all(agree(one, other, within) for one, other in pairs)
        a, b = number(found), number(right)
    except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
        return False
    return a.shape == b.shape and torch.allclose(a, b, atol=within, rtol=0)


def parts(answer, count: int) -> list:
    """Split an answer that should have `count` parts; it can also be a text, such as "b, c" or "bc"."""
    if isinstance(answer, str):
        if count == 1:
            return [answer]
        pieces = [piece for piece in re.split(r"\s*;\s*|,\s+|\s+", answer.strip(" ()[]{}")) if piece]
        pieces = pieces if len(pieces) > 1 else pieces[0].split(",")
        return list(pieces[0]) if len(pieces) == 1 else pieces
    return list(answer) if isinstance(answer, list | tuple | set | frozenset | Tensor | np.ndarray) else [answer]


def plain(answer) -> str:
    """Return an answer as a text, reduced to what matters."""
    text = unicodedata.normalize("NFKC", str(answer)).replace("−", "-").replace("–", "-").casefold()
    for name, letter in GREEK.items():
        text = re.sub(name, letter, text)
    return " ".join(text.split()).strip(" .\"'“”‘’")


def number(answer) -> Tensor:
    """Return a tensor from one or more numbers, or from a text ("16,384", "−0,5"). Raises ValueError or TypeError."""
    if isinstance(answer, str):
        text = re.sub(r"(?<=\d)[^\d.,]+$", "", plain(answer)).replace(" ", "").replace("_", "")  # without a unit
        thousands = re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text)
        answer = float(text.replace(",", "" if thousands else "."))
    if isinstance(answer, list | tuple):
        answer = [float(one) for one in answer]
    return torch.as_tensor(answer, dtype=torch.float64).squeeze()


def describe(value) -> str:
    """Describe an answer in a short text, without long tensors or digits that differ between processors."""
    if isinstance(value, Tensor | np.ndarray):
        few = value.ndim < 2 and (value.size if isinstance(value, np.ndarray) else value.numel()) <= 6
        return describe(value.tolist()) if few else f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".") if value == 0 or 1e-3 <= abs(value) < 1e7 else f"{value:.2e}"
    if isinstance(value, list | tuple | set):
        inner = [describe(one) for one in (sorted(value, key=str) if isinstance(value, set) else value)]
        return f"({', '.join(inner)})" if len(inner) <= 8 else f"{len(inner)} values"
    if isinstance(value, Image.Image):
        return "a picture"
    return f"“{value}”" if isinstance(value, str) else str(value)[:80]


def source_of(answer) -> str:
    """Return the source of a function, or else a short text for the answer, to be handed in."""
    try:
        return inspect.getsource(answer) if callable(answer) else describe(answer)
    except (OSError, TypeError):
        return describe(answer)
