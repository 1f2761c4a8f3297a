"""The interface of every method, and the checks before a method starts."""

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
    paper: str  # its source
    prepare: Callable[..., Draw]  # prepare(pipe, image, text), and the caption of the input if the method needs one
    knob: str  # the name of its one setting, a number
    values: tuple[float, ...]  # of the knob, worth trying; the first one keeps most of the input
    largest: float  # the knob's largest value; the smallest is 0
    caption: bool = False  # does the method need a text that says what the input shows?
    trains: bool = False  # does it train, from a seed?
    seeded: bool = True  # does another seed give another picture?
    rebuilds: bool = True  # does the first value rebuild the input, without an edit?
    say: Callable[[float], str] | None = None  # puts a value into words; by default "knob = value"
    settings: tuple[dict, ...] = ()  # the defaults that it uses, in addition to those of sampling

    def start(
        self, pipe: StableDiffusionPipeline, image: Tensor, text: str, source: str | None = None, training: int = 0
    ) -> Draw:
        """Do the part that comes once for each picture, such as training or inversion. Returns a function that draws.

        image: (1, 3, size, size) in [-1, 1] (`load_image`). text: describes the edited picture. source: describes the
        input. training: the seed of the training, if any. Raises ValueError if the method needs a source and none is
        given; draw(knob, seeds) raises it if the knob is missing or out of range. The pipeline is left unchanged.
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
        """Return a value of the knob in words, for a table."""
        return self.say(value) if self.say else f"{self.knob} = {value:g}"

    def checked_knob(self, knob: float | None) -> float:
        """Return the knob as a float. Raises ValueError if it is not a number, or out of range."""
        number = knob if isinstance(knob, Real) else math.nan
        if not 0 <= number <= self.largest:
            given = "none was given" if knob is None else f"it is {knob!r}"
            raise ValueError(f"{self.title} needs its knob, {self.knob}, from 0 to {self.largest:g}: {given}")
        return float(number)
