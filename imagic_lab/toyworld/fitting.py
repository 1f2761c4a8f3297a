"""Fit a scene to a picture by drawing it: analysis by synthesis.

The network reads a picture at one glance; here its reading is made exact. Each detail that the picture can show is
tried the other way, or a little more and a little less; what makes the drawing more like the picture is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from imagic_lab.toyworld.details import COLLAR_COLOURS, NUMBERS, SWITCHES, from_numbers, to_numbers, visible
from imagic_lab.toyworld.drawing import draw
from imagic_lab.toyworld.scene import Scene
from imagic_lab.toyworld.vae import to_tensor

STEPS = (0.24, 0.12, 0.06, 0.03)  # how far an amount is moved at a time, from round to round
CLOUD_SEEN = {"first cloud": 1, "second cloud": 2}
PLACES = [
    (x, y) for x in np.linspace(0.05, 0.95, 10) for y in (0.1, 0.3, 0.5, 0.7, 0.9)
]  # where a cloud may be, to begin with
Numbers = dict[str, float]


def fit(picture: Tensor, starts: Sequence[Scene]) -> Scene:
    """The scene near one of `starts` that, drawn, looks most like the picture (3, 128, 128) in [-1, 1].

    All starts are fitted coarsely, the best of them is fitted to the end: 400 to 600 drawings.
    """
    picture = softened(picture)

    def error(scene: Scene) -> float:
        drawn = to_tensor(np.asarray(draw(scene))[None])[0]
        return (softened(drawn) - picture).square().mean().item()

    coarse = [nearer(error, start, STEPS[0], clouds=True) for start in starts]
    best = min(coarse, key=error) if len(coarse) > 1 else coarse[0]
    for step in STEPS[1:]:
        best = nearer(error, best, step)
    return best


def nearer(error: Callable[[Scene], float], scene: Scene, step: float, clouds: bool = False) -> Scene:
    """The scene after a round in which each visible detail was tried in other ways; what lowers the error is kept."""
    attributes, numbers, shown = scene.attributes, to_numbers(scene), visible(scene)
    best = error(from_numbers(attributes, numbers))
    for name in (*NUMBERS, *SWITCHES):
        if name not in shown or (name in CLOUD_SEEN and not (clouds and numbers[name])):
            continue
        for change in changes(name, step):
            while (found := error(from_numbers(attributes, changed := numbers | change(numbers)))) < best:
                best, numbers = found, changed  # go on as long as it helps
    return from_numbers(attributes, numbers)


def changes(name: str, step: float) -> list[Callable[[Numbers], Numbers]]:
    """What to try with this value. A collar is tried in every colour: in a wrong one it does not fit. A cloud that was
    read is tried everywhere: where it is not, no small move finds it. How many there are is left as it was read: when
    the search decided that as well, it was wrong about the clouds of every fourth drawing."""
    if name == "collar":
        colours = [{"collar": 1.0, "collar colour": float(k)} for k in range(len(COLLAR_COLOURS))]
        return [lambda _, new=new: new for new in ({"collar": 0.0}, *colours)]
    if name in CLOUD_SEEN:
        k = CLOUD_SEEN[name]
        return [lambda _, x=x, y=y: {f"cloud {k} x": x, f"cloud {k} y": y} for x, y in PLACES]
    if name in SWITCHES:
        return [lambda numbers: {name: 1 - numbers[name]}]
    return [lambda numbers, s=s: {name: min(max(numbers[name] + s, 0.0), 0.999)} for s in (-step, step)]


def softened(x: Tensor) -> Tensor:
    """(3, h, w), each pixel the mean of 3 x 3: an edge that is a pixel off is no great error."""
    return F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
