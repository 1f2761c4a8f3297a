"""What all methods share: one interface, and what is asked before any of them starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from imagic_lib.models import check_text
from imagic_lib.stage4_inference import seeds_of

Draw = Callable[[float, Sequence[int]], list[Image.Image]]  # draw(knob, seeds) -> one picture for each seed


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
    values: tuple[float, ...]  # of the knob, worth a try; the first one keeps most of the input
    largest: float  # value of the knob; the smallest is 0
    caption: bool = False  # does it need a text that says what the input shows?
    seeded: bool = True  # does another seed give another picture?
    rebuilds: bool = True  # does the first value stand for the input itself, without an edit?
    say: Callable[[float], str] | None = None  # a value in words; left out, "knob = value"
    settings: tuple[dict, ...] = ()  # the defaults that it works with, beside those of sampling

    def start(self, pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str | None = None) -> Draw:
        """Train or invert, whatever the method does once for a picture; what it returns draws.

        image: (1, 3, size, size) in [-1, 1] (`load_image`). text: what the edited picture shows. source: what the input
        shows, for a method that needs it. Raises ValueError if it is missing, and draw(knob, seeds) raises it for a
        knob that is missing or out of range. The pipeline stays as it was.
        """
        check_text(text)
        if self.caption and not source:
            raise ValueError(f"{self.title} needs a caption of the input: give source='a brown dog sitting', say")
        draw = self.prepare(pipe, image, text, source) if self.caption else self.prepare(pipe, image, text)

        def checked_draw(knob: float | None = None, seeds: Sequence[int] = (0,)) -> list[Image.Image]:
            return draw(self.checked(knob), seeds_of(seeds))

        return checked_draw

    def said(self, value: float) -> str:
        """A value of the knob, as a table has it."""
        return self.say(value) if self.say else f"{self.knob} = {value:g}"

    def checked(self, knob: float | None) -> float:
        """The knob as a number. Raises ValueError if it is none, or out of range."""
        number = knob if isinstance(knob, Real) else math.nan
        if not 0 <= number <= self.largest:
            said = "none was given" if knob is None else f"it is {knob!r}"
            raise ValueError(f"{self.title} needs its knob, {self.knob}, from 0 to {self.largest:g}: {said}")
        return float(number)
