"""The interface that every method has, and the checks before one of them starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lib.arguments import check_text, seeds_of

Draw = Callable[[float, Sequence[int]], list[Image.Image]]  # draw(knob, seeds) -> a picture for each seed


@dataclass(frozen=True)
class Method:
    """A way to edit one picture by a text.

    >>> draw = METHODS["sdedit"].start(pipe, image, "a brown dog jumping on the grass")
    >>> pictures = draw(0.6, seeds=[0, 1])
    """

    title: str
    paper: str  # where it comes from
    prepare: Callable[..., Draw]  # prepare(pipe, image, text), and the caption of the input if the method needs one
    knob: str  # what its one number means
    values: tuple[float, ...]  # the knob's values that are worth a try; the first one keeps most of the input
    largest: float  # the knob's largest value; the smallest is 0
    caption: bool = False  # does the method need a text that says what the input shows?
    trains: bool = False  # does it train, with a seed of its own?
    seeded: bool = True  # does another seed give another picture?
    rebuilds: bool = True  # does the first value stand for the input itself, without an edit?
    say: Callable[[float], str] | None = None  # a value in words; left out, "knob = value"
    settings: tuple[dict, ...] = ()  # the defaults that it uses, in addition to those of sampling

    def start(
        self, pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str | None = None, training: int = 0
    ) -> Draw:
        """Do what the method does once for a picture, such as training or inversion; returns a function that draws.

        image: (1, 3, size, size) in [-1, 1] (`load_image`). text: what the edited picture shows. source: what the input
        shows. training: the seed of its training, if it trains. Raises ValueError if the method needs a source and has
        none; draw(knob, seeds) raises it for a knob that is missing or out of range. The pipeline stays as it was.
        """
        check_text(text)
        if self.caption and not source:
            raise ValueError(
                f"{self.title} needs a caption of the input: give one, such as source='a brown dog sitting'"
            )
        given = [source] if self.caption else []
        draw = self.prepare(pipe, image, text, *given, **({"training": training} if self.trains else {}))

        def checked_draw(knob: float | None = None, seeds: Sequence[int] = (0,)) -> list[Image.Image]:
            return draw(self.checked_knob(knob), seeds_of(seeds))

        return checked_draw

    def said(self, value: float) -> str:
        """A value of the knob, as a table shows it."""
        return self.say(value) if self.say else f"{self.knob} = {value:g}"

    def checked_knob(self, knob: float | None) -> float:
        """The knob as a number. Raises ValueError if it is not a number, or out of range."""
        number = knob if isinstance(knob, Real) else math.nan
        if not 0 <= number <= self.largest:
            given = "none was given" if knob is None else f"it is {knob!r}"
            raise ValueError(f"{self.title} needs its knob, {self.knob}, from 0 to {self.largest:g}: {given}")
        return float(number)
