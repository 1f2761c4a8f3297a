"""Fit a scene to a picture by drawing it (analysis by synthesis).

The network reads a picture at a glance; the fit makes this reading exact. Each detail that the picture can show is
switched, or made a little larger and a little smaller. A change stays if it makes the drawing more like the picture.
"""

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from imagic_lab.toyworld.details import AMOUNTS, CLOUD_IDS, COLLAR_COLOURS, SWITCHES, from_numbers, to_numbers, visible
from imagic_lab.toyworld.scene import Scene
from imagic_lib.pictures import to_tensor

MOVES = (0.24, 0.12, 0.06, 0.03)  # the step by which amounts change, in each round
CLOUD_PLACES = tuple(product(np.linspace(0.05, 0.95, 10).tolist(), (0.1, 0.3, 0.5, 0.7, 0.9)))  # (x, y) to start from


def fit_scene(picture: Tensor, starts: Sequence[Scene]) -> Scene:
    """Return the scene near one of `starts` whose drawing is most like the picture, (3, 128, 128) in [-1, 1].

    All starts are fitted coarsely, then the best of them is fitted fully. This takes 400 to 600 drawings.
    """
    picture = softened(picture)

    def error(scene: Scene) -> float:
        return (softened(to_tensor(scene.render())[0]) - picture).square().mean().item()

    coarse = [one_round(error, start, MOVES[0], clouds=True) for start in starts]
    best = min(coarse, key=error) if len(coarse) > 1 else coarse[0]
    for step in MOVES[1:]:
        best = one_round(error, best, step)
    return best


def one_round(error: Callable[[Scene], float], scene: Scene, step: float, clouds: bool = False) -> Scene:
    """Change each visible detail of the scene in turn, and keep the changes that lower the error."""
    attributes, numbers, shown = scene.attributes, to_numbers(scene), visible(scene)
    best = error(from_numbers(attributes, numbers))
    for name in (*AMOUNTS, *SWITCHES):
        if name not in shown or (name in CLOUD_IDS and not (clouds and numbers[name])):
            continue
        for change in changes(name, step):
            while (found := error(from_numbers(attributes, changed := numbers | change(numbers)))) < best:
                best, numbers = found, changed  # repeat as long as it helps
    return from_numbers(attributes, numbers)


def changes(name: str, step: float) -> list[Callable[[dict], dict]]:
    """Return the changes to try with this detail.

    We try a collar in every colour, because in a wrong one it does not fit, and a cloud everywhere, because small moves
    don't lead to its place. The number of clouds stays as the network read it. When the search also chose that number,
    it was wrong in every fourth drawing.
    """
    if name == "collar":
        colours = [{"collar": 1.0, "collar colour": float(k)} for k in range(len(COLLAR_COLOURS))]
        return [lambda _, new=new: new for new in ({"collar": 0.0}, *colours)]
    if name in CLOUD_IDS:
        k = CLOUD_IDS[name]
        return [lambda _, x=x, y=y: {f"cloud {k} x": x, f"cloud {k} y": y} for x, y in CLOUD_PLACES]
    if name in SWITCHES:
        return [lambda numbers: {name: 1 - numbers[name]}]
    return [lambda numbers, s=s: {name: min(max(numbers[name] + s, 0.0), 0.999)} for s in (-step, step)]


def softened(x: Tensor) -> Tensor:
    """Blur a picture (3, h, w) by means over 3 x 3 pixels, so that an edge that is a pixel off is a small error."""
    return F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]
