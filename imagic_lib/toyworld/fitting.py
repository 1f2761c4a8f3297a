"""Fit a scene to a picture by drawing it: analysis by synthesis.

The network reads a picture at one glance; here its reading is made exact. Each detail that the picture can show is
tried the other way, or a little more and a little less; what makes the drawing more like the picture is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from imagic_lib.toyworld.details import COLLAR_COLOURS, NUMBERS, SWITCHES, from_numbers, to_numbers, visible
from imagic_lib.toyworld.drawing import draw
from imagic_lib.toyworld.scene import Scene
from imagic_lib.toyworld.vae import to_tensor

STEPS = (0.24, 0.12, 0.06, 0.03)  # how far an amount is moved at a time, from round to round
CLOUDS_SEEN = {"first cloud", "second cloud"}  # left as they were read: the network counts clouds well
Numbers = dict[str, float]


def fit(picture: Tensor, scene: Scene) -> Scene:
    """The scene near `scene` that, drawn, looks most like the picture (3, 128, 128) in [-1, 1]. About 300 drawings."""
    picture = softened(picture)
    attributes, numbers = scene.attributes, to_numbers(scene)

    def error(numbers: Numbers) -> float:
        drawn = to_tensor(np.asarray(draw(from_numbers(attributes, numbers)))[None])[0]
        return (softened(drawn) - picture).square().mean().item()

    best = error(numbers)
    for step in STEPS:
        shown = visible(from_numbers(attributes, numbers))
        for name in (*NUMBERS, *SWITCHES):
            if name not in shown or name in CLOUDS_SEEN:
                continue
            for change in changes(name, step):
                while (found := error(changed := numbers | change(numbers))) < best:  # go on as long as it helps
                    best, numbers = found, changed
    return from_numbers(attributes, numbers)


def changes(name: str, step: float) -> list[Callable[[Numbers], Numbers]]:
    """What to try with this value. A collar is tried in every colour: in a wrong one it does not fit."""
    if name == "collar":
        colours = [{"collar": 1.0, "collar colour": float(k)} for k in range(len(COLLAR_COLOURS))]
        return [lambda _, new=new: new for new in ({"collar": 0.0}, *colours)]
    if name in SWITCHES:
        return [lambda numbers: {name: 1 - numbers[name]}]
    return [lambda numbers, s=s: {name: min(max(numbers[name] + s, 0.0), 0.999)} for s in (-step, step)]


def softened(x: Tensor) -> Tensor:
    """(3, h, w), each pixel the mean of 3 x 3: an edge that is a pixel off is no great error."""
    return F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
